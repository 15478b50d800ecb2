"""What the service remembers, in SQL: SQLite in a file by default, PostgreSQL by URL.

Every change is one conditional statement (compare and set) or one short transaction, so that any number of gateways
and renderers may work on one database and any of them may die between two statements. Times are seconds since 1970 by
the clock of whoever writes; leases are long beside the drift of clocks that NTP keeps.
"""

import contextlib
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    inspect,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from p2e.errors import ConfigError

__all__ = [
    "READ_ONLY", "CounterRow", "EffectOwnerRow", "EffectRow", "Gate", "IdempotencyRow", "JobRow", "Table", "WebhookRow",
    "open_database",
]  # fmt: skip

READ_ONLY = {"p2e_read_only": True}  # execution options of an engine whose transactions write nothing
BUSY_TIMEOUT_MS = 30_000  # how long a SQLite connection waits for another one's write


class Table(DeclarativeBase):
    """Of all tables."""


class JobRow(Table):
    """A video job. `status` is queued, in_progress, or one of completed, failed, cancelled, which never change."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    effect_id: Mapped[str | None] = mapped_column(String(64))
    steps: Mapped[int] = mapped_column(Integer)
    steps_done: Mapped[int] = mapped_column(Integer, default=0)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[float | None] = mapped_column(Float)
    cancel_asked: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[float] = mapped_column(Float)
    sequence: Mapped[int] = mapped_column(Integer)  # order of arrival, also within one tick of the clock
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    artefact: Mapped[str | None] = mapped_column(String(128))

    __table_args__ = (
        Index("jobs_by_status", "status", "sequence"),
        Index("jobs_by_owner", "owner", "sequence"),
        UniqueConstraint("sequence", name="jobs_sequence"),
    )


class EffectRow(Table):
    """An effect that is there: what it was made of, and its LoRA file."""

    __tablename__ = "effects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    source: Mapped[dict[str, Any]] = mapped_column(JSON)
    base: Mapped[str] = mapped_column(String(128))
    checkpoint: Mapped[str] = mapped_column(String(128))
    rank: Mapped[int] = mapped_column(Integer)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    artefact: Mapped[str] = mapped_column(String(128))
    seconds: Mapped[float] = mapped_column(Float)
    created_at: Mapped[float] = mapped_column(Float)
    used_at: Mapped[float] = mapped_column(Float)  # to within some minutes: when it was last asked for


class EffectOwnerRow(Table):
    """Who has asked for an effect: it is theirs to read and to delete, and gone when nobody's."""

    __tablename__ = "effect_owners"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    effect_id: Mapped[str] = mapped_column(String(64), ForeignKey("effects.id"), primary_key=True)
    created_at: Mapped[float] = mapped_column(Float)
    sequence: Mapped[int] = mapped_column(Integer)

    __table_args__ = (Index("effect_owners_by_owner", "owner", "sequence"), Index("effect_owners_of", "effect_id"))


class IdempotencyRow(Table):
    """The answer that a key of an owner has had on a route."""

    __tablename__ = "idempotency"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    route: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(256), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    answer: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)


class WebhookRow(Table):
    """An event that somebody is to be told: of one job there is one, written with its end.

    `due_at` is when it may be sent (again), null once `outcome` is delivered or given_up. `claims` counts how often a
    deliverer took it, `attempts` how often it was sent in vain.
    """

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(64))
    url: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    due_at: Mapped[float | None] = mapped_column(Float)
    claims: Mapped[int] = mapped_column(Integer, default=0)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    outcome: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[str | None] = mapped_column(String(200))

    __table_args__ = (UniqueConstraint("job_id", name="webhooks_job"), Index("webhooks_due", "due_at"))


class CounterRow(Table):
    """A sum of what was counted, by name and labels."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(String(256), primary_key=True)
    value: Mapped[float] = mapped_column(Float)


class Gate(Table):
    """One row that whoever submits writes first: submissions come one after the other, so that limits are exact."""

    __tablename__ = "gate"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, default=0)


def open_database(url: str) -> Engine:
    """Opens a database and makes what tables it lacks.

    Args:
        url: of SQLAlchemy, such as sqlite:///jobs.sqlite or postgresql+psycopg://user@host/name.

    Raises:
        ConfigError: the URL is not one, names an unknown database, cannot be reached, or was made by another version.
    """
    shown = "the database"
    try:
        parsed = make_url(url)
        shown = parsed.render_as_string(hide_password=True)
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        _make_tables(engine)
        _check_columns(engine, shown)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        cause = str(error).splitlines()[0][:120]
        raise ConfigError(f"database: {cause}; give sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME") from None
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", error)).splitlines()[0][:160]
        raise ConfigError(f"{shown}: cannot be opened ({cause}); check the address and its rights") from None
    return engine


def _prepare_sqlite(engine: Engine) -> None:
    """Readers beside a writer (WAL), and transactions that take the write lock when they begin: one that reads first
    and writes later could not get it any more."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        reads = connection.get_execution_options().keys() >= READ_ONLY.keys()
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _make_tables(engine: Engine) -> None:
    try:
        Table.metadata.create_all(engine)
    except (OperationalError, ProgrammingError, IntegrityError):  # another process made them at the same moment
        Table.metadata.create_all(engine)
    with contextlib.suppress(IntegrityError), engine.begin() as connection:
        connection.execute(insert(Gate).values(id=1, sequence=0))


def _check_columns(engine: Engine, shown: str) -> None:
    found = inspect(engine)
    for name, table in Table.metadata.tables.items():
        known = {column["name"] for column in found.get_columns(name)}
        if missing := sorted(set(table.columns.keys()) - known):
            raise ConfigError(f"{shown}: made by another version, {name} has no {missing[0]}; give a new database")
