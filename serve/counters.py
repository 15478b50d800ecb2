"""What all gateways and renderers count together, in the database: one scrape of any gateway shows the whole service,
and a restart loses nothing.

Numbers gather in memory and are added to the database once a second, so that no request waits for it; a process that is
killed loses that second.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping

from sqlalchemy import Engine, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from serve.database import READ_ONLY, CounterRow

__all__ = ["SECONDS", "Counters"]

LOG = logging.getLogger("p2e.counters")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
Labels = tuple[tuple[str, str], ...]


class Counters:
    """Sums by name and labels.

    Args:
        engine: as `open_database` gives it.
        every_s: how often they are added to the database; None is only when `flush` is called.
    """

    def __init__(self, engine: Engine, every_s: float | None = 1.0) -> None:
        self.engine = engine
        self._reader = engine.execution_options(**READ_ONLY)
        self._sums: dict[tuple[str, str], float] = defaultdict(float)
        self._lock, self._closed = threading.Lock(), threading.Event()
        if every_s is not None:
            threading.Thread(target=self._run, args=(every_s,), name="counters", daemon=True).start()

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Adds to a sum."""
        with self._lock:
            self._sums[name, shown(labels)] += value

    def observe(self, name: str, seconds: float) -> None:
        """Adds to a histogram of seconds: its buckets (not cumulative), sum and count."""
        bound = next((f"{bound:g}" for bound in SECONDS if seconds <= bound), "+Inf")
        self.add(f"{name}_bucket", le=bound)
        self.add(f"{name}_sum", seconds)

    def flush(self) -> None:
        """Adds what has gathered to the database; where that cannot be reached it is kept for the next time."""
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
        if not sums:
            return
        insert = INSERT[self.engine.dialect.name](CounterRow)
        added = insert.on_conflict_do_update(
            index_elements=[CounterRow.name, CounterRow.labels],
            set_={"value": CounterRow.value + insert.excluded.value},
        )
        try:
            with self.engine.begin() as connection:  # in one order, so that two of these never wait for each other
                rows = [{"name": n, "labels": labels, "value": v} for (n, labels), v in sorted(sums.items())]
                connection.execute(added, rows)
        except SQLAlchemyError as error:
            LOG.warning("counters could not be stored: %s", str(error).splitlines()[0])
            with self._lock:
                for key, value in sums.items():
                    self._sums[key] += value

    def read(self) -> dict[str, dict[Labels, float]]:
        """All sums: name -> labels -> value."""
        self.flush()
        found: dict[str, dict[Labels, float]] = defaultdict(dict)
        with self._reader.connect() as connection:
            for name, labels, value in connection.execute(select(CounterRow.name, CounterRow.labels, CounterRow.value)):
                found[name][parsed(labels)] = value
        return found

    def close(self) -> None:
        """Ends the thread and stores what is left."""
        self._closed.set()
        self.flush()

    def _run(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            self.flush()


def shown(labels: Mapping[str, str]) -> str:
    """Labels as one line of text; their values hold neither = nor newlines."""
    return "\n".join(f"{name}={value}" for name, value in sorted(labels.items()))


def parsed(text: str) -> Labels:
    return tuple((name, value) for name, _, value in (line.partition("=") for line in text.splitlines()))
