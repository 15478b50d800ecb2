"""The renderer: what it draws, from what, and how fast."""

import time

import pytest
import torch
from torch import Tensor

from p2e.world.draw import draw_clips
from p2e.world.effects import EFFECTS, sample_params
from p2e.world.grade import grade
from p2e.world.motion import CAPTIONS, EVENTS, sample_motion
from p2e.world.parameters import EffectParams
from p2e.world.scenes import CATEGORIES, EVALUATION_SCENES, Scenes, evaluation_scenes, sample_scenes
from p2e.world.sprites import CELL, NAMES, SUBJECTS, Atlas, load_atlas
from p2e.world.tempo import Tempo


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return load_atlas()


@pytest.fixture(scope="module")
def all_effects(atlas: Atlas) -> tuple[Tensor, Tensor]:
    """Every effect, and the same scenes without it, uint8 [E, 17, 3, 32, 32]."""
    scenes = evaluation_scenes().select(torch.arange(len(EFFECTS)) % EVALUATION_SCENES)
    params = sample_params(torch.arange(len(EFFECTS)), None, torch.Generator().manual_seed(3))
    return draw_clips(scenes, params, atlas, 17, 32), draw_clips(scenes, None, atlas, 17, 32)


def some(n: int, seed: int = 0) -> tuple[Scenes, EffectParams]:
    generator = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(n, generator)
    index = torch.randint(0, len(EFFECTS), (n,), generator=generator)
    return scenes, sample_params(index, None, generator)


def test_atlas_is_premultiplied_and_has_clear_margins(atlas: Atlas) -> None:
    assert atlas.images.shape == (len(NAMES), 4, CELL, CELL) and len(set(NAMES)) == len(NAMES) >= 110
    assert (atlas.images[:, :3] <= atlas.images[:, 3:] + 1e-6).all()
    assert atlas.images[:, 3, 0].max() == 0 and atlas.images[:, 3, :, -1].max() == 0
    assert (atlas.images[:, 3].mean((1, 2)) > 0.1).all()  # every cell shows something
    assert atlas.small.shape == (len(NAMES), 4, CELL // 2, CELL // 2)


def test_frame_zero_is_the_still_scene(all_effects: tuple[Tensor, Tensor]) -> None:
    video, still = all_effects
    difference = (video[:, 0].int() - still[:, 0].int()).abs().flatten(1).amax(1)
    assert difference.max() <= 1, [EFFECTS[i].name for i in (difference > 1).nonzero().flatten().tolist()]


def test_every_effect_changes_the_picture(all_effects: tuple[Tensor, Tensor]) -> None:
    video, still = all_effects
    change = (video.float() - still.float()).abs().flatten(2).mean(2).amax(1)  # of the frame that changes most
    assert change.min() > 2.5, [EFFECTS[i].name for i in (change <= 2.5).nonzero().flatten().tolist()]


def test_clips_are_smooth_in_time(all_effects: tuple[Tensor, Tensor]) -> None:
    """Between two frames no effect changes more than a quarter of the range on average: no flashing."""
    video, _ = all_effects
    steps = (video[:, 1:].float() - video[:, :-1].float()).abs().flatten(2).mean(2).amax(1)
    assert steps.max() < 64, EFFECTS[int(steps.argmax())].name


def test_a_clip_does_not_depend_on_its_batch(atlas: Atlas) -> None:
    scenes, params = some(12)
    together = draw_clips(scenes, params, atlas, 5, 48)
    assert torch.equal(together, draw_clips(scenes, params, atlas, 5, 48))
    for i in (0, 7, 11):
        alone = draw_clips(scenes.select(slice(i, i + 1)), params.select(slice(i, i + 1)), atlas, 5, 48)[0]
        assert (together[i].int() - alone.int()).abs().max() <= 1


def test_shapes_and_type(atlas: Atlas) -> None:
    scenes, params = some(3)
    video = draw_clips(scenes, params, atlas, frames=4, size=64)
    assert video.shape == (3, 4, 3, 64, 64) and video.dtype == torch.uint8


def test_only_moving_backgrounds_move_by_themselves(atlas: Atlas) -> None:
    scenes = evaluation_scenes()
    video = draw_clips(scenes, None, atlas, 3, 48).float()
    change = (video[:, 2] - video[:, 0]).abs().flatten(1).mean(1)
    moving = scenes.category == CATEGORIES.index("moving background")
    assert (change[~moving] == 0).all() and (change[moving] > 1).all()


def test_pixelated_pictures_stay_antialiased(atlas: Atlas) -> None:
    """A picture drawn at 96 and averaged to 48 is near the one drawn at 48: edges carry no aliasing."""
    scenes = evaluation_scenes().select(slice(0, 16))
    fine = torch.nn.functional.avg_pool2d(draw_clips(scenes, None, atlas, 1, 96)[:, 0].float(), 2)
    coarse = draw_clips(scenes, None, atlas, 1, 48)[:, 0].float()
    assert (fine - coarse).square().mean().sqrt() < 255 * 0.03


def test_grading_nothing_returns_the_picture() -> None:
    picture = torch.rand(2, 3, 3, 16, 16)
    assert torch.equal(grade(picture, Tempo(EffectParams.still(2), 3)), picture)


def test_sixteen_clips_take_at_most_a_few_seconds(atlas: Atlas) -> None:
    scenes, params = some(16)
    start = time.perf_counter()
    draw_clips(scenes, params, atlas)
    assert time.perf_counter() - start < 10  # 0.5 s on one free core; the bound allows for a busy machine


def test_evaluation_scenes_are_fixed_and_cover_the_categories(atlas: Atlas) -> None:
    scenes, again = evaluation_scenes(), evaluation_scenes()
    assert len(scenes) == EVALUATION_SCENES == 76
    assert torch.equal(scenes.phase, again.phase) and torch.equal(scenes.sprite, again.sprite)
    counts = torch.bincount(scenes.category, minlength=len(CATEGORIES))
    assert counts.min() >= 15
    shown = scenes.shown.sum(1)
    several = scenes.category == CATEGORIES.index("several")
    assert (shown[several] >= 2).all() and (shown[~several] == 1).all()
    for category, kind in (("single", "person"), ("objects", "object"), ("animals", "animal")):
        rows = scenes.category == CATEGORIES.index(category)
        assert set(scenes.sprite[rows, 0].tolist()) <= set(SUBJECTS[kind])


def test_no_subject_is_what_an_effect_brings() -> None:
    """Else a transformation could leave the picture as it is, and there would be nothing to measure."""
    subjects = {NAMES[i] for ids in SUBJECTS.values() for i in ids}
    assert not subjects & {v for spec in EFFECTS for v in spec.parameters.values() if isinstance(v, str)}


def test_generic_motion_is_drawn_from_the_generator_and_differs(atlas: Atlas) -> None:
    def draw(seed: int) -> tuple[EffectParams, Tensor, Scenes]:
        generator = torch.Generator().manual_seed(seed)
        scenes = sample_scenes(64, generator)
        return *sample_motion(64, generator, scenes=scenes), scenes

    params, captions, scenes = draw(0)
    again, again_captions, _ = draw(0)
    assert torch.equal(params.values, again.values) and torch.equal(captions, again_captions)
    assert not torch.equal(params.values, draw(1)[0].values)
    for i, caption in enumerate(captions.tolist()):
        assert NAMES[int(scenes.sprite[i, 0])] in CAPTIONS[caption]
    video = draw_clips(scenes, params, atlas, 5, 48)
    still = draw_clips(scenes, None, atlas, 5, 48)
    assert (video[:, 0].int() - still[:, 0].int()).abs().max() <= 1
    event = captions // 4 % len(EVENTS)
    change = (video.float() - still.float()).abs().flatten(1).mean(1)
    assert (change[event == 0] == 0).all() and (change[event != 0] > 0.2).float().mean() > 0.9


def test_captions_are_few_distinct_and_coarse() -> None:
    assert len(set(CAPTIONS)) == len(CAPTIONS) <= 4000
    words = {word for caption in CAPTIONS for word in caption.replace(",", "").split()}
    assert not words & {"red", "yellow", "blue", "purple", "pink", "cat", "santa", "skull", "robot", "fisheye", "snow"}
    _, captions = sample_motion(8, torch.Generator().manual_seed(0))
    assert all("a scene" in CAPTIONS[i] for i in captions.tolist())
