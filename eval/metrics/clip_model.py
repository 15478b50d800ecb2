"""CLIP of open_clip, with weights from a file.

OpenAI's weights are for QuickGELU; open_clip's plain "ViT-B-16" has another activation and only warns, so the models
here are the "-quickgelu" ones, which is checked.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2e.errors import ConfigError
from p2e.files import sha256

__all__ = ["MEAN", "STD", "ClipModel"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SOURCES = {
    "ViT-B-16-quickgelu": "open_clip_model.safetensors of huggingface.co/timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14-quickgelu": "open_clip_model.safetensors of huggingface.co/timm/vit_large_patch14_clip_224.openai",
}


class ClipModel:
    """Images and texts to unit vectors, in float32.

    Args:
        name: open_clip's name of the architecture.
        weights: safetensors of its state.

    Raises:
        ConfigError: there is no such file, or it is of another model.
    """

    def __init__(self, name: str, weights: str, device: str) -> None:
        import open_clip
        from safetensors import safe_open

        if not Path(weights).is_file():
            source = SOURCES.get(name, f"the safetensors of {name}")
            raise ConfigError(f"{weights}: no such file; fetch {source} and give its path as weights")
        self.name, self.device, self.digest = name, device, sha256(weights)
        if not (open_clip.get_model_config(name) or {}).get("quick_gelu"):
            raise ConfigError(f"{name}: has no QuickGELU, which OpenAI's weights are for; give a -quickgelu model")
        try:
            with safe_open(weights, "pt"):  # open_clip would take a pickle, too
                pass
            self.model: Any = open_clip.create_model(name, weights, precision="fp32", device=device).eval()
        except Exception as error:  # safetensors and open_clip have errors of several kinds
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{weights}: not the weights of {name} ({reason}); fetch {SOURCES.get(name)}") from None
        assert any(type(module).__name__ == "QuickGELU" for module in self.model.modules())
        self.size = int(self.model.visual.image_size[0])
        self.tokenizer: Any = open_clip.get_tokenizer(name)
        self._texts: dict[str, Tensor] = {}

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        """[N, 3, S, S], normalised -> unit vectors [N, D]."""
        return torch.nn.functional.normalize(self.model.encode_image(pixels.to(self.device)).float(), dim=-1)

    @torch.inference_mode()
    def text(self, text: str) -> Tensor:
        """Unit vector [D]; what is longer than the context is cut off, see `tokens`."""
        if text not in self._texts:
            found = self.model.encode_text(self.tokenizer([text]).to(self.device)).float()
            self._texts[text] = torch.nn.functional.normalize(found, dim=-1)[0]
        return self._texts[text]

    def tokens(self, text: str) -> tuple[int, bool]:
        """How many tokens the whole text has, with start and end, and whether the model reads fewer."""
        count = len(self.tokenizer.encode(text)) + 2
        return count, count > self.tokenizer.context_length
