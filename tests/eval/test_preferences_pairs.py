"""Which clips are shown together, and what is kept of the answers."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raters import vote_on
from small_run import METHODS, SmallRun, small_run

from eval.preferences.pairs import Pair, draw
from eval.preferences.votes import Vote, VoteLog, check_rater, read_votes, standing
from eval.run_files import RunFiles
from p2e.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("pairs") / "run")


def drawn(run: SmallRun, rater: str = "ana", count: int | None = None, methods: tuple[str, ...] = ()) -> list[Pair]:
    files = RunFiles.of(run.folder)
    return draw(files.suite, files.clips(), rater, count=count, methods=methods)


def test_every_two_clips_of_a_cell_once(run: SmallRun):
    pairs = drawn(run)
    assert len(pairs) == len({pair.cell for pair in pairs}) == 6 * 5 * 2
    assert all(pair.left.method != pair.right.method and pair.left.clip != pair.right.clip for pair in pairs)
    assert all((pair.left.effect, pair.left.scene) == (pair.right.effect, pair.right.scene) for pair in pairs)
    assert {pair.prompt for pair in pairs} == {f"it does effect_{n}" for n in range(5)}


def test_sides_and_order_are_drawn_and_stay(run: SmallRun):
    pairs = drawn(run)
    assert pairs == drawn(run)
    others = drawn(run, "ben")
    assert {pair.cell for pair in others} == {pair.cell for pair in pairs}
    assert [pair.cell for pair in others] != [pair.cell for pair in pairs]
    sides = {pair.cell: pair.left.method for pair in others}
    turned = sum(sides[pair.cell] != pair.left.method for pair in pairs)
    assert 15 <= turned <= 45  # of 60 fair coins, but for one in ten thousand
    for method, _ in METHODS:  # a side tells nothing of the method
        assert 5 <= sum(pair.left.method == method for pair in pairs) <= 25


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 60))
def test_fewer_pairs_are_spread_and_part_of_more(run: SmallRun, count: int):
    """All raters meet the same cells, over pairs of methods and then over effects as evenly as whole numbers allow."""
    pairs = drawn(run, count=count)
    cells = {pair.cell for pair in pairs}
    assert len(pairs) == count and cells == {pair.cell for pair in drawn(run, "ben", count)}
    assert cells <= {pair.cell for pair in drawn(run, count=count + 1)}
    of_methods = Counter(cell[2] for cell in cells)
    assert max(of_methods.values()) - (min(of_methods.values()) if len(of_methods) == 6 else 0) <= 1
    for methods in of_methods:
        of_effects = Counter(cell[0] for cell in cells if cell[2] == methods)
        assert max(of_effects.values()) - (min(of_effects.values()) if len(of_effects) == 5 else 0) <= 1


def test_methods_are_chosen_by_title(run: SmallRun):
    pairs = drawn(run, methods=("LoRA", "Zero-shot"))
    assert len(pairs) == 10 and {pair.cell[2] for pair in pairs} == {frozenset(("LoRA", "Zero-shot"))}
    with pytest.raises(InputError, match="no method 'none'; its methods are Base, LoRA"):
        drawn(run, methods=("LoRA", "none"))
    with pytest.raises(InputError, match="no two methods"):
        drawn(run, methods=("LoRA",))


def test_clips_that_are_missing_or_equal_are_no_pair(tmp_path: Path):
    run = small_run(tmp_path / "run", unrendered={("LoRA", "effect_0", "s0")})
    files = RunFiles.of(run.folder)
    rows = [
        row.model_copy(update={"clip": "000"})
        if (row.method, row.effect, row.scene) == ("Zero-shot", "effect_0", "s0")
        else row
        for row in files.clips()
    ]
    found = {pair.cell[2] for pair in draw(run.suite, rows, "ana") if pair.cell[:2] == ("effect_0", "s0")}
    assert found == {frozenset(("Base", "Mean LoRA")), frozenset(("Zero-shot", "Mean LoRA"))}


def test_answers_are_kept_and_the_last_holds(tmp_path: Path, run: SmallRun):
    files, (one, two, *_) = RunFiles.of(tmp_path), drawn(run)
    turned = Pair(two.right, two.left, two.prompt)
    with VoteLog(files, "ana") as log:
        for pair, choice in ((one, "left"), (two, "equal"), (one, "bad"), (turned, "left")):
            log.keep(vote_on(pair, "ana", choice))
        with pytest.raises(InputError, match="another process writes there"):
            VoteLog(files, "ana")
        with VoteLog(files, "ben") as other:
            other.keep(vote_on(one, "ben", "right"))
    assert {(vote.rater, vote.cell, vote.choice) for vote in read_votes(files)} == {
        ("ana", one.cell, "bad"), ("ana", two.cell, "left"), ("ben", one.cell, "right"),
    }  # fmt: skip
    first = next(vote for vote in read_votes(files) if vote.cell == two.cell)
    assert first.for_method(two.right.method) == 1 and first.for_method(two.left.method) == -1


def test_a_killed_writer_costs_one_answer(tmp_path: Path, run: SmallRun):
    files, (one, two, *_) = RunFiles.of(tmp_path), drawn(run)
    with VoteLog(files, "ana") as log:
        log.keep(vote_on(one, "ana", "left"))
        log.keep(vote_on(two, "ana", "right"))
        path = log.path
    path.write_bytes(path.read_bytes()[:-9])
    assert [vote.cell for vote in read_votes(files)] == [one.cell]
    with VoteLog(files, "ana") as log:
        log.keep(vote_on(two, "ana", "equal"))
    assert {vote.choice for vote in read_votes(files)} == {"left", "equal"}


def test_answers_on_clips_that_are_gone_do_not_stand(run: SmallRun):
    files, (one, two, *_) = RunFiles.of(run.folder), drawn(run)
    rows = {(row.method, row.effect, row.scene): row for row in files.clips()}
    votes = [vote_on(one, "ana", "left"), vote_on(two, "ana", "left").model_copy(update={"left_clip": "another"})]
    found = standing([*votes, votes[0].model_copy(update={"effect": "none"})], rows)
    assert found.votes == (votes[0],) and found.outdated == 2


@pytest.mark.parametrize("name", ["", "../ana", "ana.b", "-ana", "a" * 51, "ana\n", "ána", "a b"])
def test_a_raters_name_is_a_files_name(name: str):
    with pytest.raises(InputError, match="--rater"):
        check_rater(name)


def test_lines_that_are_no_answers_are_named(tmp_path: Path, run: SmallRun):
    (pair, *_) = drawn(run)
    (tmp_path / "preferences").mkdir()
    (tmp_path / "preferences" / "ana.jsonl").write_text('{"rater": "ana"}\n')
    with pytest.raises(ConfigError, match=r"ana\.jsonl: effect"):
        read_votes(RunFiles.of(tmp_path))
    values = vote_on(pair, "ana", "left").model_dump()
    for change in ({"choice": "both"}, {"seconds": -1}, {"right": pair.left.method}, {"rater": "../x"}):
        with pytest.raises(ConfigError):
            Vote.parse(values | change)
    with pytest.raises(InputError, match="copy the run here"):
        VoteLog(RunFiles.of("memory://run"), "ana")
