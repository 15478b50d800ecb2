"""Metrics of a clip. Each says in its recipe all that changes its numbers; figures of two recipes do not compare.

| metric | unit | of what | weights |
|---|---|---|---|
| clip_score | 100 x cosine | 16 uniform frames and the effect's prompt, CLIP ViT-B/16 of OpenAI | a safetensors file |
| aesthetic | percent | every frame, VBench's recipe: CLIP ViT-L/14 and LAION's linear head | two files |
| motion_smoothness | percent | VBench's formula over an interpolation model of the user's | the user's plug-in |
| blend_smoothness | percent | the same formula over the mean of two frames; not to be compared with the former | none |
| mean_motion | percent of the range | mean absolute difference of neighbouring frames | none |
| moving_share | percent of the pixels | pixels that change visibly between the first frame and any other | none |
| first_frame | dB | PSNR of the first frame to the picture given, as the renderer fits it | none |
| oracle | fidelity | the world's true effect on the same first frame (`p2e.world.oracle`) | none |

A still clip is as smooth as can be: smoothness is read beside mean_motion and moving_share.
"""

from eval.metrics.base import Context, Metric, Unscorable
from eval.metrics.reading import read_clip
from eval.metrics.registry import METRICS, open_metric
from eval.metrics.scoring import Item, score_clips, score_key

__all__ = [
    "METRICS",
    "Context",
    "Item",
    "Metric",
    "Unscorable",
    "open_metric",
    "read_clip",
    "score_clips",
    "score_key",
]
