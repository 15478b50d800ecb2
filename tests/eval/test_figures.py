"""Charts show their lines where they lie; sheets hold what they are asked for; presence is a projection."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_states

from eval.world.blends import joined_text, presence
from eval.world.figures import loss_chart, main
from eval.world.plot import COLOURS, HEIGHT, Chart, Line, ticks
from p2e.errors import InputError


def rows_of(picture: Image.Image, colour: tuple[int, int, int], x: int) -> list[int]:
    column = np.asarray(picture).astype(int)[:, x]
    return np.flatnonzero((abs(column - np.array(colour)) < 60).all(1)).tolist()


def test_a_line_is_drawn_where_its_points_are():
    chart = Chart("t", "x", "y", [Line("low", [0, 1], [0.25, 0.25]), Line("high", [0, 1], [0.75, 0.75])])
    chart.x_range, chart.y_range = (0, 1), (0, 1)
    picture = chart.draw()
    low, high = (rows_of(picture, COLOURS[i], 400) for i in (0, 1))
    assert low and high and max(high) < min(low) < HEIGHT
    assert np.mean(low) - np.mean(high) == pytest.approx(0.5 * (HEIGHT - 62 - 50), abs=2)


def test_gaps_and_logarithms():
    chart = Chart("t", "x", "y", [Line("gap", [0, 1, 2, 3], [1.0, float("nan"), 10.0, 100.0])], log_y=True)
    assert chart.draw().size[1] == HEIGHT
    with pytest.raises(InputError, match="not positive"):
        Chart("t", "x", "y", [Line("zero", [0, 1], [0.0, 1.0])], log_y=True).draw()
    with pytest.raises(InputError, match="no points"):
        Chart("t", "x", "y", []).draw()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (0, 14000, [0, 5000, 10000])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == expected


def test_loss_curves_come_from_histories(tmp_path: Path):
    for name, errors in (("full", (1.0, 0.3)), ("none", (1.0, 0.7))):
        rows = [{"step": i, "update_error": x} for i, x in enumerate(errors)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.json").write_text(json.dumps({"history": rows}))
    chart = loss_chart({"full weights": tmp_path / "full", "none": tmp_path / "none"})
    assert [(line.label, list(line.y)) for line in chart.lines] == [("full weights", [1.0, 0.3]), ("none", [1.0, 0.7])]
    main(["loss", "--out", str(tmp_path / "loss.png"), f"full weights={tmp_path / 'full'}", str(tmp_path / "none")])
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size[1] == HEIGHT
    with pytest.raises(InputError, match="no training history with factor_error"):
        loss_chart({"full": tmp_path / "full"}, "factor_error")


def test_strips_become_a_sheet(tmp_path: Path):
    for column, shade in (("truth", 250), ("init-50", 10)):
        (tmp_path / "clips" / "twist").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 20), (shade, 0, 0)).save(tmp_path / "clips" / "twist" / f"{column}.png")
    call = ["sheet", str(tmp_path / "clips"), "--effect", "twist", "--out", str(tmp_path / "sheet.png")]
    main([*call, "--column", "truth", "--column", "Init-50=init:50"])
    with Image.open(tmp_path / "sheet.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[0] == 48 and pixels[10, -5].tolist() == [250, 0, 0] and pixels[34, -5].tolist() == [10, 0, 0]
    with pytest.raises(InputError, match="no such strip; measure zero with twist"):
        main([*call, "--column", "zero"])


def test_presence_tells_how_much_of_each_effect_shows():
    generator = torch.Generator().manual_seed(0)
    still = torch.full((2, 1, 3, 8, 8), 100.0)
    change = torch.randn(2, 2, 4, 3, 8, 8, generator=generator) * 20
    change[:, :, 0] = 0
    truth = (still + change).round().clamp(0, 255).byte()
    moved = truth.float() - still
    for weights in ([1.0, 0.0], [0.5, 0.5], [0.2, 0.9], [0.0, 0.0]):
        video = (still + weights[0] * moved[0] + weights[1] * moved[1]).round().byte()
        expected = torch.tensor([weights, weights], dtype=torch.float64)
        torch.testing.assert_close(presence(video, truth), expected, atol=0.02, rtol=0)


def test_joined_text_is_one_prompt_after_the_other():
    one, two = tiny_states(2)[0], tiny_states(2)[1]
    joined = joined_text(one, two)
    assert joined.shape == one.states.shape
    assert torch.equal(joined[:6], one.states[:6]) and torch.equal(joined[6:], two.states[:2])
    short = type(one)(one.states, torch.arange(8) < 2)
    assert torch.equal(joined_text(short, short)[2:4], one.states[:2]) and not joined_text(short, short)[4:].any()
