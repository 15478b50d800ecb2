"""Making the atlas: what is refused."""

from pathlib import Path

import pytest

from p2e.errors import InputError
from p2e.world.sprites import NAMES, make_atlas, sprite_id


def test_a_missing_or_wrong_font_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "text.ttf").write_text("not a font")
    for font in (tmp_path / "none.ttf", tmp_path / "text.ttf"):
        with pytest.raises(InputError, match="install fonts-noto-color-emoji"):
            make_atlas(font, tmp_path / "sprites.png")
    assert not (tmp_path / "sprites.png").exists()


def test_ids_follow_the_names() -> None:
    assert [sprite_id(name) for name in NAMES[:5]] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="no sprite"):
        sprite_id("basilisk")
