"""The measurement of the attention kernels' tiles, tiny, interpreted on a CPU."""

import json
from pathlib import Path

from eval.speed.tiles import PLANS, main, table


def test_every_tile_is_timed_and_right(tmp_path: Path) -> None:
    out = tmp_path / "tiles.jsonl"
    assert main(["--plan", "tiny", "--device", "cpu", "--out", str(out)]) == 0
    _, *found = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["kind"] for line in found} == {"tile"}
    names = ("latents", "text", "compression", "decompression")
    tiles = ["PyTorch", *map(list, PLANS["tiny"].tiles)]
    assert [(line["name"], line["tile"]) for line in found] == [(name, tile) for name in names for tile in tiles]
    assert all(line["seconds"] > 0 and line["error"] < 1e-5 for line in found)
    assert table(found).count("decompression") == len(tiles)
