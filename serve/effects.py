"""Effects that are there, named by what they are made of: the same request is answered from here.

An effect is everybody's in the sense that it is computed once, and somebody's in the sense that only who has asked for
it sees it. Its file has a name of its own each time that it is made, so that removing an old one cannot meet a new one.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from serve.database import READ_ONLY, EffectOwnerRow, EffectRow, Gate, JobRow
from serve.errors import Conflict, NotFound, checked_id
from serve.job import ENDED

__all__ = ["Effect", "EffectPage", "EffectStore", "artefact_name", "effect_id", "use_effect"]

COLUMNS = [column for column in EffectRow.__table__.columns if column.name != "used_at"]
USED_EVERY_S = 600  # a use is written down so often at most


@dataclass(frozen=True)
class Effect:
    """An effect; `source` is its prompt or blend with the strength, `artefact` its LoRA's file, `seconds` what the pass
    took that made it."""

    id: str
    source: dict[str, Any]
    base: str
    checkpoint: str
    rank: int
    bytes: int
    sha256: str
    artefact: str
    seconds: float
    created_at: float


@dataclass(frozen=True)
class EffectPage:
    """Some effects of a list, and whether more come after them."""

    effects: list[Effect]
    has_more: bool


def effect_id(source: Mapping[str, Any], checkpoint: str, base: str) -> str:
    """The name of what a source gives with a checkpoint and a base (their digests)."""
    text = json.dumps([dict(source), checkpoint, base], sort_keys=True, separators=(",", ":"))
    return "eff_" + hashlib.sha256(text.encode()).hexdigest()[:32]


def artefact_name(name: str) -> str:
    """A new file name for an effect's LoRA."""
    return f"{name}-{secrets.token_hex(8)}.safetensors"


def use_effect(connection: Connection, name: str, owner: str, artefact: str, now: float) -> None:
    """Notes that an owner's effect is used, in a transaction that has written the gate, so that it is not dropped
    before that ends.

    Raises:
        NotFound: the owner has it no more, or it is made anew since.
    """
    query = select(EffectRow.used_at).join(EffectOwnerRow)
    row = connection.execute(
        query.where(EffectRow.id == name, EffectRow.artefact == artefact, EffectOwnerRow.owner == owner)
    ).first()
    if row is None:
        raise NotFound(f"no effect {name}")
    _note_use(connection, name, now)


def _note_use(connection: Connection, name: str, now: float) -> None:
    stale = (EffectRow.id == name, EffectRow.used_at < now - USED_EVERY_S)
    connection.execute(update(EffectRow).where(*stale).values(used_at=now))


def _pass_gate(connection: Connection) -> int:
    """Waits for whoever else changes what jobs and owners have of effects -> the next number of the gate."""
    connection.execute(update(Gate).where(Gate.id == 1).values(sequence=Gate.sequence + 1))
    return connection.execute(select(Gate.sequence).where(Gate.id == 1)).scalar_one()


class EffectStore:
    """Effects in a database.

    Args:
        engine: as `open_database` gives it.
        clock: seconds since 1970.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine, self.clock = engine, clock
        self._reader = engine.execution_options(**READ_ONLY)

    def ask(self, name: str, owner: str) -> Effect | None:
        """The effect, from now on the owner's too; None where it must be made."""
        with self._reader.connect() as connection:
            used_at = connection.execute(select(EffectRow.used_at).where(EffectRow.id == name)).scalar()
        if used_at is None:
            return None
        if used_at < self.clock() - USED_EVERY_S:
            with self.engine.begin() as connection:
                _note_use(connection, name, self.clock())
        # Once it is the owner's, nobody else can have it dropped or exchanged for another of its name: read only then.
        try:
            return self.get(name, owner) if self._give(name, owner) else None
        except NotFound:  # the owner has dropped it at this moment
            return None

    def _give(self, name: str, owner: str) -> bool:
        """False where the effect has gone meanwhile."""
        mine = select(EffectOwnerRow.owner).where(EffectOwnerRow.owner == owner, EffectOwnerRow.effect_id == name)
        try:
            with self.engine.begin() as connection:
                if connection.execute(mine).first() is None:
                    self._insert_owner(connection, name, owner)
        except IntegrityError:  # it has gone; or the same owner asked twice at once, and has it
            with self._reader.connect() as connection:
                return connection.execute(mine).first() is not None
        return True

    def _insert_owner(self, connection: Connection, name: str, owner: str) -> None:
        sequence = _pass_gate(connection)
        connection.execute(
            insert(EffectOwnerRow).values(owner=owner, effect_id=name, created_at=self.clock(), sequence=sequence)
        )

    def add(self, effect: Effect, owner: str) -> Effect:
        """Records an effect whose file is stored -> it, or the one that another made first: then the file given is
        nobody's, and for the caller to remove."""
        while True:
            try:
                with self.engine.begin() as connection:  # with its owner, or somebody could drop it before it has one
                    connection.execute(insert(EffectRow).values(**vars(effect), used_at=self.clock()))
                    self._insert_owner(connection, effect.id, owner)
                return effect
            except IntegrityError:
                if (found := self.ask(effect.id, owner)) is not None:
                    return found

    def get(self, name: str, owner: str) -> Effect:
        """An effect of an owner.

        Raises:
            NotFound: there is none, or it is another's.
        """
        mine = (EffectOwnerRow.owner == owner, EffectRow.id == checked_id(name, "effect"))
        with self._reader.connect() as connection:
            row = connection.execute(select(*COLUMNS).join(EffectOwnerRow).where(*mine)).first()
        if row is None:
            raise NotFound(f"no effect {name}")
        return Effect(**row._mapping)

    def page(
        self, owner: str, *, after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc"
    ) -> EffectPage:
        """Effects of an owner by the time that they were first asked for.

        Raises:
            NotFound: `after` is none of the owner's.
        """
        at = EffectOwnerRow.sequence
        query = select(*COLUMNS).join(EffectOwnerRow).where(EffectOwnerRow.owner == owner)
        with self._reader.connect() as connection:
            if after is not None:
                mine = (EffectOwnerRow.owner == owner, EffectOwnerRow.effect_id == checked_id(after, "effect"))
                last = connection.execute(select(at).where(*mine)).scalar()
                if last is None:
                    raise NotFound(f"no effect {after}")
                query = query.where(at < last if order == "desc" else at > last)
            query = query.order_by(at.desc() if order == "desc" else at).limit(limit + 1)
            found = [Effect(**row._mapping) for row in connection.execute(query)]
        return EffectPage(found[:limit], len(found) > limit)

    def recent(self, owner: str, seconds: float) -> int:
        """How many effects an owner has come by within so many seconds."""
        mine = (EffectOwnerRow.owner == owner, EffectOwnerRow.created_at > self.clock() - seconds)
        with self._reader.connect() as connection:
            return connection.execute(select(func.count()).where(*mine)).scalar_one()

    def drop(self, name: str, owner: str) -> str | None:
        """Takes an effect from an owner -> its file, for the caller to remove, where it was the last one's.

        Raises:
            NotFound: there is none, or it is another's.
            Conflict: videos of the owner with it have not ended.
        """
        checked_id(name, "effect")
        with self.engine.begin() as connection:
            _pass_gate(connection)  # no video is queued meanwhile, and nobody else comes by the effect
            if _has_open_jobs(connection, name, owner):
                raise Conflict(f"videos with effect {name} have not ended; wait for them or cancel them")
            mine = (EffectOwnerRow.owner == owner, EffectOwnerRow.effect_id == name)
            if connection.execute(delete(EffectOwnerRow).where(*mine)).rowcount != 1:
                raise NotFound(f"no effect {name}")
            unowned = ~select(EffectOwnerRow.owner).where(EffectOwnerRow.effect_id == name).exists()
            gone = delete(EffectRow).where(EffectRow.id == name, unowned).returning(EffectRow.artefact)
            return connection.execute(gone).scalar()

    def expire(self, unused_s: float) -> list[str]:
        """Takes effects that nobody has used for so long from all owners -> their files, for the caller to remove.
        Those of videos that have not ended stay."""
        before = self.clock() - unused_s
        with self._reader.connect() as connection:
            names = connection.execute(select(EffectRow.id).where(EffectRow.used_at < before)).scalars().all()
        artefacts = []
        for name in names:
            with self.engine.begin() as connection:
                _pass_gate(connection)
                still = select(EffectRow.id).where(EffectRow.id == name, EffectRow.used_at < before)
                if connection.execute(still.with_for_update()).first() is None or _has_open_jobs(connection, name):
                    continue
                connection.execute(delete(EffectOwnerRow).where(EffectOwnerRow.effect_id == name))
                gone = delete(EffectRow).where(EffectRow.id == name).returning(EffectRow.artefact)
                artefacts += connection.execute(gone).scalars().all()
        return artefacts


def _has_open_jobs(connection: Connection, name: str, owner: str | None = None) -> bool:
    open_jobs = select(JobRow.id).where(JobRow.effect_id == name, JobRow.status.not_in(ENDED))
    if owner is not None:
        open_jobs = open_jobs.where(JobRow.owner == owner)
    return connection.execute(open_jobs).first() is not None
