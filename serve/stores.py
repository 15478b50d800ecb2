"""Where a service keeps everything: one database and one folder of files, which all its parts open for themselves."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from p2e.config import Settings
from serve.artefacts import ArtefactStore
from serve.counters import Counters
from serve.database import open_database
from serve.effects import EffectStore
from serve.job import JobSettings
from serve.jobs import JobStore

__all__ = ["StoreSettings", "Stores", "open_stores"]


class StoreSettings(Settings):
    """Where jobs, effects and files are kept.

    Attributes:
        database: of SQLAlchemy. SQLite is for one machine; for several, postgresql+psycopg://USER@HOST/NAME, with the
            password in PGPASSWORD or ~/.pgpass.
        artefacts: a folder that all machines share, or an fsspec URL such as s3://bucket/folder.
        jobs: limits and times of jobs.
    """

    database: str = "sqlite:///runs/serve/p2e.sqlite"
    artefacts: str = "runs/serve/artefacts"
    jobs: JobSettings = JobSettings()

    def absolute(self) -> "StoreSettings":
        """With paths that mean the same in every process of this machine; their folders are made."""
        database, artefacts = self.database, self.artefacts
        url = make_url(database)
        if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
            file = Path(url.database).absolute()
            file.parent.mkdir(parents=True, exist_ok=True)
            database = url.set(database=str(file)).render_as_string(hide_password=False)
        if "://" not in artefacts:
            artefacts = str(Path(artefacts).absolute())
        return self.model_copy(update={"database": database, "artefacts": artefacts})


@dataclass(frozen=True)
class Stores:
    """Opened."""

    engine: Engine
    jobs: JobStore
    effects: EffectStore
    artefacts: ArtefactStore
    counters: Counters


def open_stores(settings: StoreSettings) -> Stores:
    """Opens the database and the folder.

    Raises:
        ConfigError: one of them cannot be reached.
    """
    engine = open_database(settings.database)
    return Stores(
        engine, JobStore(engine, settings.jobs), EffectStore(engine), ArtefactStore(settings.artefacts),
        Counters(engine),
    )  # fmt: skip
