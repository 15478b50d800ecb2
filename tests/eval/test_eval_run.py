"""`p2e eval run` and the judge of `p2e eval world`: plans, and mistakes that are one line."""

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from cli_runner import assert_mistake, run_cli, run_well

from eval.commands import judge_settings
from p2e.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point, whether this checkout is installed or not."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["p2e.commands"]
    info = tmp_path / "site" / "checkout-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: checkout\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[p2e.commands]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(str(info.parent))
    assert entry_points(group="p2e.commands", name="eval")


def test_a_plan_says_what_there_is_to_do_and_does_none_of_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = run_well("eval", "run", "world", "--out", out, "--effects", 2, "--scenes", 2, "--plan-only")
    assert "26 clips to make (0 are there), 7 LoRAs to make, 112 scores to take; about 0.02 CPU hours" in said
    assert sorted(path.name for path in out.iterdir()) == ["images"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "moon", "--out", "x"), "no such suite"),
        (("run", "world", "--out", "x", "--method", "best"), "has no method 'best'"),
        (("run", "world", "--out", "x", "--judge", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("world", "--judge", "nowhere.yaml", "--weights", "w"), "leave out --weights"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], says: str) -> None:
    assert_mistake(run_cli("eval", *arguments), says)


def test_a_judge_s_settings_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text("model: some/judge\nretries: 2\n")
    assert judge_settings(path) == {"model": "some/judge", "retries": 2}
    for text in ("[1]", "a: ["):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"judge\.yaml"):
            judge_settings(path)
