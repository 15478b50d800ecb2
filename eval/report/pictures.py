"""Pictures of a report: strips of frames as JPEG in data URIs, within a budget of bytes."""

import base64
import io
from dataclasses import dataclass, field

from PIL import Image

from eval.metrics import Unscorable, read_clip
from eval.metrics.sampling import uniform_frames
from eval.run_files import ClipRow
from p2e.render.video import Clip

__all__ = ["Pictures"]

COLUMNS = 6
SIDE = 128  # pixels of a frame's longer side, at most


@dataclass
class Pictures:
    """Strips of clips of a run.

    Attributes:
        folder: of the run.
        budget: bytes that all of them may take; strips beyond it are left out.
    """

    folder: str
    budget: int
    used: int = 0
    left_out: int = 0
    _kept: dict[str, str | None] = field(default_factory=dict)

    def strip(self, row: ClipRow | None) -> str | None:
        """Data URI of frames from the first to the last; None where the clip cannot be shown, or not any more."""
        if row is None or row.video is None:
            return None
        if row.video not in self._kept:
            self._kept[row.video] = self._made(f"{self.folder}/{row.video}")
        return self._kept[row.video]

    def _made(self, path: str) -> str | None:
        try:
            data = jpeg(read_clip(path))
        except Unscorable:
            return None
        text = "data:image/jpeg;base64," + base64.b64encode(data).decode()
        if self.used + len(text) > self.budget:
            self.left_out += 1
            return None
        self.used += len(text)
        return text


def jpeg(clip: Clip) -> bytes:
    """COLUMNS frames side by side."""
    height, width = clip.size
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    strip = Image.new("RGB", ((size[0] + 2) * COLUMNS - 2, size[1]), "white")
    for place, index in enumerate(uniform_frames(len(clip), COLUMNS)):
        frame = Image.fromarray(clip.frames[index]).resize(size, Image.Resampling.LANCZOS)
        strip.paste(frame, (place * (size[0] + 2), 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=80)
    return file.getvalue()
