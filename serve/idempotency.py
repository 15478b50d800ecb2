"""Keys that clients give their requests, so that one that is sent twice is done once."""

from sqlalchemy import Connection, Engine, Row, delete, insert, select
from sqlalchemy.exc import IntegrityError

from serve.database import IdempotencyRow
from serve.errors import KeyReused
from serve.job import Idempotency

__all__ = ["claim_key", "forget_key", "known_key", "same_request", "write_key"]


def known_key(connection: Connection, owner: str, route: str, key: str, since: float) -> Row | None:
    """The row of a key that came since a time; an older one is forgotten."""
    row = connection.execute(select(IdempotencyRow.__table__).where(*_of(owner, route, key))).first()
    if row is not None and row.created_at < since:
        forget_key(connection, owner, route, key)
        return None
    return row


def forget_key(connection: Connection, owner: str, route: str, key: str) -> None:
    connection.execute(delete(IdempotencyRow).where(*_of(owner, route, key)))


def same_request(row: Row, idempotency: Idempotency) -> None:
    """Checks that a key comes with the request that it came with first.

    Raises:
        KeyReused: it does not.
    """
    if row.body_hash != idempotency.body_hash:
        raise KeyReused("this Idempotency-Key came with another request; use a new key for a new request")


def write_key(
    connection: Connection, owner: str, route: str, idempotency: Idempotency, answer: str, now: float
) -> None:
    connection.execute(
        insert(IdempotencyRow).values(
            owner=owner, route=route, key=idempotency.key, body_hash=idempotency.body_hash, answer=answer,
            created_at=now,
        )
    )  # fmt: skip


def claim_key(
    engine: Engine, owner: str, route: str, idempotency: Idempotency, answer: str, *, now: float, keep_s: float
) -> None:
    """Ties a key to a request whose answer is known beforehand, by its name at least; asked again, it is the same.

    Raises:
        KeyReused: the key came with another request within `keep_s`.
    """
    try:
        with engine.begin() as connection:
            row = known_key(connection, owner, route, idempotency.key, now - keep_s)
            if row is None:
                write_key(connection, owner, route, idempotency, answer, now)
    except IntegrityError:  # another request wrote it at this moment
        with engine.begin() as connection:
            row = known_key(connection, owner, route, idempotency.key, now - keep_s)
    if row is not None:
        same_request(row, idempotency)


def _of(owner: str, route: str, key: str) -> tuple:
    return (IdempotencyRow.owner == owner, IdempotencyRow.route == route, IdempotencyRow.key == key)
