"""The world's effects to look at: their words, true clips drawn by rule (no model is asked), pictures to begin with.

Everything is drawn when it is first asked for and kept: all 124 clips and 76 pictures are 2.6 MB. A clip takes a
quarter of a second of a core, one at a time on a thread of its own, so that a gateway starts without it and goes on
serving.
"""

import asyncio
import io
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serve.errors import NotFound

__all__ = ["Gallery"]

SCALE = 2  # the clips' colours are stored at half the pixels of the file
CRF = 20
STRIDE = 7  # from an effect's scene to that of the next in the table; it shares no factor with the number of scenes


class Gallery:
    """What the page shows of the world. Names and numbers are looked up in the world's tables, never in a folder."""

    def __init__(self) -> None:
        self._drawing = ThreadPoolExecutor(1, "gallery")  # starts its thread when it is first used
        self._kept: dict[str, Any] = {}

    async def table(self) -> dict[str, Any]:
        """{"effects": [{"name", "title", "prompt", "category", "known", "clip", "picture"}], "pictures"}, where a
        picture is {"place", "title"}; places are relative to the page. `known`: whether the effect was trained on.
        """
        return await self._once("table", _table)

    async def clip(self, name: str) -> bytes:
        """The true video of an effect on its scene, as mp4.

        Raises:
            NotFound: there is no such effect.
        """
        from p2e.world.effects import EFFECTS

        index = {spec.name: i for i, spec in enumerate(EFFECTS)}.get(name)
        if index is None:
            raise NotFound("no such clip")
        return await self._once(f"clip {index}", lambda: _clip(name, _scene(index)))

    async def picture(self, number: int) -> bytes:
        """The first frame of a scene, as PNG.

        Raises:
            NotFound: there is no such scene.
        """
        from p2e.world.scenes import EVALUATION_SCENES

        if not 0 <= number < EVALUATION_SCENES:
            raise NotFound("no such picture")
        return await self._once(f"picture {number}", lambda: _picture(number))

    async def _once(self, what: str, draw: Callable[[], Any]) -> Any:
        def kept() -> Any:
            if what not in self._kept:
                self._kept[what] = draw()
            return self._kept[what]

        if what in self._kept:
            return self._kept[what]
        return await asyncio.get_running_loop().run_in_executor(self._drawing, kept)


def _scene(index: int) -> int:
    from p2e.world.scenes import EVALUATION_SCENES

    return index * STRIDE % EVALUATION_SCENES


def _table() -> dict[str, Any]:
    from p2e.world.effects import EFFECTS
    from p2e.world.scenes import evaluation_scenes
    from p2e.world.sprites import SPRITES

    scenes = evaluation_scenes()
    pictures = []
    for number, (sprites, shown) in enumerate(zip(scenes.sprite.tolist(), scenes.shown.tolist(), strict=True)):
        names = [SPRITES[i].name.replace("_", " ") for i, there in zip(sprites, shown, strict=True) if there]
        pictures.append({"place": f"gallery/pictures/{number}.png", "title": ", ".join(names)})
    effects = [
        {
            "name": spec.name, "title": spec.name.replace("_", " "), "prompt": spec.prompts[0],
            "category": spec.category, "known": spec.split == "train", "clip": f"gallery/clips/{spec.name}.mp4",
            "picture": pictures[_scene(i)],
        }
        for i, spec in enumerate(EFFECTS)
    ]  # fmt: skip
    return {"effects": effects, "pictures": pictures}


def _clip(name: str, scene: int) -> bytes:
    from p2e.render.video import Clip, write_mp4
    from p2e.world.show import clip

    frames = clip(name, scene).permute(0, 2, 3, 1).contiguous().numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, Clip(frames), scale=SCALE, crf=CRF)
        return path.read_bytes()


def _picture(number: int) -> bytes:
    from PIL import Image

    from p2e.world.draw import draw_clips
    from p2e.world.scenes import evaluation_scenes
    from p2e.world.sprites import load_atlas

    still = draw_clips(evaluation_scenes().select(slice(number, number + 1)), None, load_atlas(), frames=1)[0, 0]
    file = io.BytesIO()
    Image.fromarray(still.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()
