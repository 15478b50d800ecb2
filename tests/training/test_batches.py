"""Which sites and effects a step draws: fixed shapes, everything visited, nothing but the step to remember."""

from hypothesis import given
from hypothesis import strategies as st

from p2e.training.batches import Sampler, share_sites


@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(1, 200))
def test_shares_are_feasible_and_add_up(sizes: list[int], total: int) -> None:
    shares = share_sites(sizes, total)
    assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))
    assert sum(shares) == min(max(total, len(sizes)), sum(sizes))


def test_shares_are_proportional() -> None:
    assert share_sites((64, 8, 8), 20) == (16, 2, 2)
    assert share_sites((400, 40, 40), 24) == (20, 2, 2)
    assert share_sites((64, 8, 8), 1) == (1, 1, 1)
    assert share_sites((64, 8, 8), 1000) == (64, 8, 8)


def sampler(**changes: object) -> Sampler:
    values: dict[str, object] = {
        "sizes": (16, 2, 5), "draws": (4, 1, 2), "effects": (0, 2, 3, 5, 7), "effects_per_step": 2, "seed": 3,
        "prompts": ((0, 2), (4, 1), (5, 3), (9, 2), (12, 1)),
    }  # fmt: skip
    return Sampler(**(values | changes))  # pyright: ignore[reportArgumentType]


def parts(s: Sampler, step: int) -> list[list[int]]:
    row, found = s.row(step), []
    for width in s.widths:
        found.append(row[:width])
        row = row[width:]
    assert not row
    return found


def test_an_epoch_visits_every_site_and_effect_and_no_step_repeats_one() -> None:
    s = sampler()
    assert s.steps_per_epoch == 4
    for start in (0, 12):  # a common multiple of the streams' own epochs
        seen: list[set[int]] = [set(), set(), set(), set()]
        for step in range(start, start + s.steps_per_epoch):
            for i, drawn in enumerate(parts(s, step)[:4]):
                assert len(set(drawn)) == len(drawn)
                seen[i] |= set(drawn)
        assert seen == [set(range(16)), {0, 1}, set(range(5)), {0, 2, 3, 5, 7}]


def test_every_prompt_is_of_its_effect_and_all_paraphrases_come_up() -> None:
    s, seen = sampler(), set()
    first = dict(zip(s.effects, s.prompts, strict=True))
    for step in range(60):
        effects, prompts = parts(s, step)[-2:]
        for effect, prompt in zip(effects, prompts, strict=True):
            start, count = first[effect]
            assert start <= prompt < start + count
            seen.add(prompt)
    assert seen == {0, 1, 4, 5, 6, 7, 9, 10, 12}


def test_a_row_depends_on_seed_and_step_alone() -> None:
    s = sampler()
    assert s.plan(7, 3).tolist() == [s.row(7), s.row(8), s.row(9)]
    assert s.row(7) == sampler().row(7)
    assert s.row(7) != sampler(seed=4).row(7)


def test_processes_of_a_step_draw_their_own() -> None:
    ranks = [sampler(rank=r, world=2) for r in range(2)]
    single = sampler()
    for step in range(5):
        assert [r.row(step) for r in ranks] == [single.row(2 * step), single.row(2 * step + 1)]
