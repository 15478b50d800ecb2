"""Effects: computed once, seen by who asked, gone with the last one; on SQLite and on a real PostgreSQL."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from databases import Clock

from serve.artefacts import NAME
from serve.database import open_database
from serve.effects import Effect, EffectStore, artefact_name, effect_id
from serve.errors import NotFound
from serve.jobs import JobStore

SOURCE = {"prompt": "it melts", "strength": 1.0}


@pytest.fixture
def store(database: str) -> EffectStore:
    return EffectStore(open_database(database), Clock())


def made(source: dict[str, object] = SOURCE) -> Effect:
    name = effect_id(source, "c" * 64, "b" * 64)
    return Effect(name, dict(source), "world", "c" * 64, 4, 1 << 33, "a" * 64, artefact_name(name), 0.5, 1000.0)


def test_a_name_is_of_all_that_an_effect_is_made_of() -> None:
    name = effect_id(SOURCE, "c", "b")
    assert name == effect_id(dict(reversed(SOURCE.items())), "c", "b") and len(name) == 36
    others = {effect_id(SOURCE | {"strength": 0.5}, "c", "b"), effect_id(SOURCE, "d", "b"), effect_id(SOURCE, "c", "d"),
              effect_id({"blend": [["eff_1", 1.0]]}, "c", "b")}  # fmt: skip
    assert len(others | {name}) == 5
    assert NAME.fullmatch(artefact_name(name)) and artefact_name(name) != artefact_name(name)


def test_the_second_who_asks_gets_what_the_first_had_made(store: EffectStore) -> None:
    effect = made()
    assert store.ask(effect.id, "a") is None
    assert store.add(effect, "a") == effect
    with pytest.raises(NotFound):
        store.get(effect.id, "b")
    assert store.ask(effect.id, "b") == effect and store.get(effect.id, "b") == effect
    assert store.ask(effect.id, "b") == effect  # again is the same
    assert len(store.page("b").effects) == 1
    again = made()  # made at the same time by another replica
    assert again.artefact != effect.artefact and store.add(again, "c") == effect


def test_it_is_gone_with_the_last_one(store: EffectStore) -> None:
    effect = made()
    store.add(effect, "a")
    store.ask(effect.id, "b")
    assert store.drop(effect.id, "a") is None
    for call in (store.get, store.drop):
        with pytest.raises(NotFound, match=effect.id):
            call(effect.id, "a")
    assert store.get(effect.id, "b") == effect
    assert store.drop(effect.id, "b") == effect.artefact
    assert store.ask(effect.id, "a") is None and store.page("a").effects == []


def test_a_list_in_pages(store: EffectStore) -> None:
    names = [store.add(made({"prompt": f"effect {i}"}), "a").id for i in range(5)]
    store.add(made({"prompt": "of another"}), "b")
    first = store.page("a", limit=2)
    assert [e.id for e in first.effects] == names[:-3:-1] and first.has_more
    rest = store.page("a", limit=3, after=first.effects[-1].id)
    assert [e.id for e in rest.effects] == names[2::-1] and not rest.has_more
    assert [e.id for e in store.page("a", order="asc", after=names[3]).effects] == names[4:]
    with pytest.raises(NotFound):
        store.page("b", after=names[0])


def test_asking_and_dropping_at_once_never_leaves_half(store: EffectStore) -> None:
    """Whoever is told that an effect is theirs finds it; a file that is to be removed is of no record."""
    name = made().id
    removed: list[str] = []

    def go(owner: str) -> None:
        chance = random.Random(owner)
        for _ in range(12):
            effect = store.ask(name, owner) or store.add(made(), owner)
            assert store.get(name, owner) == effect and effect.artefact not in removed
            if chance.random() < 0.7 and (artefact := store.drop(name, owner)) is not None:
                removed.append(artefact)
            elif store.page(owner).effects:
                store.drop(name, owner)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(go, [f"owner-{i}" for i in range(6)]))
    assert len(set(removed)) == len(removed)
    assert all(store.page(f"owner-{i}").effects == [] for i in range(6))


def test_ids_that_no_database_takes(database: str) -> None:
    """PostgreSQL has no NUL in its text."""
    engine = open_database(database)
    effects, jobs = EffectStore(engine), JobStore(engine)
    for call in (effects.get, effects.drop, jobs.get, jobs.cancel, jobs.delete):
        with pytest.raises(NotFound):
            call("x\x00", "alice")
    for store in (effects, jobs):
        with pytest.raises(NotFound):
            store.page("alice", after="x\x00")
    engine.dispose()
