"""One volume under two names in a history of before: the one that a wrong DATABASE_URL opened.

Until its key became the database that is *meant*, a volume had another history while the URL was
wrong than before and after. Such rows are taken over once, on evidence alone: a run under that name
saw `location.url` fail, and the name is what a wrong URL makes of this very database. So a second
database that was looked at on purpose stays a volume of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from nescord_ops import database as databases
from nescord_ops import history
from nescord_ops.settings import Settings

_log = logging.getLogger(__name__)
_WRONG = """
    SELECT DISTINCT p.volume FROM pages p JOIN changes c ON c.run = p.run AND c.name = p.name
    WHERE p.volume <> ? AND instr(c.standing, '"location.url"')
"""


def take_over(reports_dir: Path, settings: Settings) -> None:
    """Given a volume's settings, give its key to the rows that stand under its wrong names.

    Writes only where there are such rows. A history that cannot be written is left as it is.
    """
    meant = settings.database_meant or settings.database
    key = history.volume_key(meant)
    found = history.select(reports_dir, _WRONG, (key,))
    wrong = _mistaken(meant, settings.app_dir)
    names = [name for (name,) in found if str(name).partition("?")[0] in wrong]
    if not names:
        return
    file = reports_dir / history.FILE_NAME
    try:
        connection = sqlite3.connect(file, timeout=history.LOCK_SECONDS, isolation_level=None)
        with contextlib.closing(connection), databases.confined(connection):
            connection.execute("BEGIN IMMEDIATE")
            for table in ("pages", "measurements"):
                query = f"UPDATE {table} SET volume = ? WHERE volume = ?"
                connection.executemany(query, [(key, name) for name in names])
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        _log.warning("%s cannot be written, going on without: %s", file, error)


def _mistaken(meant: Path, app_dir: Path) -> set[str]:
    """What a URL with a query behind it, or with three slashes for four, makes of a database.

    The bot joins the rest of the URL to its working directory; see `settings.opened_by_bot`.
    """
    paths = {meant, app_dir / str(meant).lstrip("/")}
    if meant.is_relative_to(app_dir.parent):
        paths.add(app_dir / meant.relative_to(app_dir.parent))
    return {history.volume_key(os.path.normpath(path)) for path in paths}
