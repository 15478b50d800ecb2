"""The databases of `databases.py` for all tests of the service, and the browser of `pages.py` for those of its page."""

from databases import database, postgresql
from pages import browser, opened, serving

__all__ = ["browser", "database", "opened", "postgresql", "serving"]
