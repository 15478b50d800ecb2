"""The pictures that scenes and effects are made of: one atlas of sprites, shipped as `sprites.png`.

The atlas is a grid of RGBA cells cut from the Noto Color Emoji font (see CREDITS.md). Only the atlas ships; whoever has
the font (Debian: `fonts-noto-color-emoji`) makes it again with `python -m p2e.world.sprites FONT`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from p2e.errors import InputError
from p2e.files import atomic_path

__all__ = ["ATLAS_PATH", "NAMES", "SPRITES", "SUBJECTS", "Atlas", "Sprite", "load_atlas", "make_atlas", "sprite_id"]

ATLAS_PATH = Path(__file__).with_name("sprites.png")
CELL = 64  # pixels of a cell's side
MARGIN = 3  # transparent pixels around each sprite, so that its edge is antialiased by interpolation
COLUMNS = 12
FONT_PIXELS = 109  # the only size of the font's bitmaps

Kind = Literal["person", "animal", "object", "prop"]


@dataclass(frozen=True, slots=True)
class Sprite:
    """One sprite. Persons, animals and objects are subjects of scenes; props appear only through effects."""

    name: str
    text: str
    kind: Kind


def _sprites(kind: Kind, table: str) -> tuple[Sprite, ...]:
    entries = (entry.strip().partition(" ") for entry in table.split(","))
    return tuple(Sprite(name, text, kind) for text, _, name in entries)


SPRITES: tuple[Sprite, ...] = (
    *_sprites(
        "person",
        "👨 man, 👩 woman, 👦 boy, 👧 girl, 👱 blond person, 🧔 bearded man, 👮 police officer, 🕵 detective, "
        "👷 builder, 🤴 prince, 👸 princess, 🧙 wizard, 🧕 woman in a scarf, 🤠 cowboy, 😀 smiling face, "
        "😎 face with sunglasses, 😭 crying face, 😡 angry face, 🤓 nerdy face, 💂 guard",
    ),
    *_sprites(
        "animal",
        "🐶 dog, 🦁 lion, 🐯 tiger, 🐰 rabbit, 🦊 fox, 🐷 pig, 🐭 mouse, 🐹 hamster, 🐨 koala, 🐸 frog, 🐵 monkey, "
        "🐧 penguin, 🐦 bird, 🦆 duck, 🦉 owl, 🐴 horse, 🐟 fish, 🐳 whale, 🐢 turtle, 🐌 snail, 🐘 elephant, 🐍 snake",
    ),
    *_sprites(
        "object",
        "🍎 apple, 🍌 banana, 🍕 pizza, 🍔 burger, 🎂 cake, 🍉 watermelon, 🍓 strawberry, 🚌 bus, 🚜 tractor, "
        "⚽ football, 🏀 basketball, 🎸 guitar, 🎺 trumpet, 📷 camera, 💻 laptop, ⏰ alarm clock, 🏠 house, "
        "🏰 castle, 🌵 cactus, 🌻 sunflower, 👟 shoe, 📕 book, 🍄 mushroom, 🪑 chair",
    ),
    *_sprites(
        "prop",
        "🐱 cat, 🎅 santa, 🐮 cow, 👻 ghost, 🤖 robot, 🚂 train, 👽 alien, 🐻 brown bear, 🐼 panda, 💀 skull, "
        "🤡 clown, 🧟 zombie, 🎃 pumpkin, 🐔 chicken, 🦄 unicorn, 🐙 octopus, 🐝 bee, 🦋 butterfly, 🕷 spider, 👶 baby, "
        "👴 old man, 👵 old woman, 🧛 vampire, 🧝 elf, 🍪 cookie, ☕ coffee cup, 🏎 racing car, 🚀 rocket, ✈ airplane, "
        "⛵ sailing boat, 🚁 helicopter, 🎁 gift, 🎈 balloon, 🌳 tree, 🌸 blossom, ⭐ star, 🌙 moon, 🌞 sun, ☁ cloud, "
        "🔥 fire, ⛄ snowman, ❤ heart, 💎 diamond, 👑 crown, 🎩 top hat, ☂ umbrella, 🧹 broom, 🧠 brain, 🦇 bat, "
        "🦍 gorilla, 🕊 dove, 🪒 razor, 🛍 shopping bags, 🛷 sled, 💄 lipstick, 🛁 bathtub, 🎧 headphones, 🦃 turkey, "
        "⛸ ice skate, 🥊 boxing glove, 🐉 dragon, 🦖 dinosaur, 🛸 flying saucer, 🐻‍❄️ polar bear",
    ),
)
NAMES: tuple[str, ...] = tuple(sprite.name for sprite in SPRITES)
SUBJECTS: dict[str, tuple[int, ...]] = {
    kind: tuple(i for i, sprite in enumerate(SPRITES) if sprite.kind == kind) for kind in ("person", "animal", "object")
}


@dataclass(frozen=True)
class Atlas:
    """All sprites as tensors.

    Attributes:
        images: [N, 4, 64, 64] float32 in 0..1, colours premultiplied by alpha.
        small: [N, 4, 32, 32] the same at half size, for sprites drawn small.
        names: the N names, in order; the index is the sprite's id.
    """

    images: Tensor
    small: Tensor
    names: tuple[str, ...]


def sprite_id(name: str) -> int:
    """The index of a sprite in the atlas.

    Raises:
        InputError: there is no such sprite.
    """
    try:
        return NAMES.index(name)
    except ValueError:
        raise InputError(f"no sprite is called {name!r}; p2e/world/sprites.py lists them") from None


def load_atlas(device: torch.device | str = "cpu") -> Atlas:
    """The shipped atlas on `device`."""
    with Image.open(ATLAS_PATH) as image:
        sheet = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    rows = sheet.shape[0] // CELL
    cells = torch.from_numpy(sheet).reshape(rows, CELL, COLUMNS, CELL, 4).permute(0, 2, 4, 1, 3)
    straight = cells.reshape(rows * COLUMNS, 4, CELL, CELL)[: len(NAMES)]
    images = torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], dim=1).to(device)
    return Atlas(images, torch.nn.functional.avg_pool2d(images, 2), NAMES)


def _cell(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    canvas = Image.new("RGBA", (2 * FONT_PIXELS, 2 * FONT_PIXELS), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((20, 20), text, font=font, embedded_color=True)
    glyph = canvas.crop(canvas.getbbox())
    scale = (CELL - 2 * MARGIN) / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    glyph = glyph.resize(size, Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    cell.paste(glyph, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def make_atlas(font_path: str | Path, out: str | Path = ATLAS_PATH) -> None:
    """Draws every sprite of `SPRITES` with a colour emoji font into one PNG.

    Raises:
        InputError: the font is missing, or is not a colour bitmap font of this size.
    """
    try:
        font = ImageFont.truetype(str(font_path), FONT_PIXELS)
    except OSError as error:
        raise InputError(
            f"{font_path}: not a usable font ({error}); install fonts-noto-color-emoji and give the path of its ttf"
        ) from None
    rows = -(-len(SPRITES) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    for i, sprite in enumerate(SPRITES):
        sheet.paste(_cell(sprite.text, font), (i % COLUMNS * CELL, i // COLUMNS * CELL))
    with atomic_path(out) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    make_atlas(sys.argv[1])
