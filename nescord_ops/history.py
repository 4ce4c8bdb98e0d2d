"""Every run's verdicts and numbers in `history.sqlite3`, for trends, forecasts and the index.

A lost history costs trends and nothing else, so a damaged or foreign file never stops a report:
it is put aside when the next run is written, and reads as empty until then. Numbers are kept per
volume (the resolved path of its database), so that a demo's never mix with the real ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from nescord_ops import database as databases
from nescord_ops.checks import Status
from nescord_ops.show import printable

FILE_NAME = "history.sqlite3"
APPLICATION_ID = 0x4E4F5053  # "NOPS", so that a file that is not ours is known
SCHEMA_VERSION = 1
LOCK_SECONDS = 30.0
UNITS = ("bytes", "seconds", "days", "months", "usd", "percent", "gb")
_Made = TypeVar("_Made")
_log = logging.getLogger(__name__)
# What the surroundings did, as against what is wrong with the file (sqlite.org/rescode.html).
_SURROUNDINGS = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


@dataclasses.dataclass(frozen=True, slots=True)
class PageRow:
    """One notebook's verdict in one run."""

    name: str
    status: str
    headline: str


@dataclasses.dataclass(frozen=True, slots=True)
class RunRow:
    """One run; `stamp` is the name of its directory."""

    stamp: str
    generated_at: datetime
    status: str
    demo: bool
    pages: tuple[PageRow, ...]


def record(reports_dir: Path, run: RunRow, documents: Sequence[Mapping[str, Any]]) -> None:
    """Given a run and its JSON documents, write its rows into `<reports_dir>/history.sqlite3`.

    Concurrent runs wait for each other. A file that is damaged or not ours is renamed aside, with
    a warning. Raise sqlite3.Error or OSError where the disk or the permissions refuse.
    """
    file = reports_dir / FILE_NAME
    try:
        _write(file, run, documents)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in _SURROUNDINGS:
            raise
        aside = file.with_name(f"{FILE_NAME}.damaged-{run.stamp}")
        file.rename(aside)
        for suffix in ("-journal", "-wal", "-shm"):
            file.with_name(FILE_NAME + suffix).unlink(missing_ok=True)
        _log.warning("%s cannot be used (%s); kept as %s", file, error, aside.name)
        _write(file, run, documents)


def runs(reports_dir: Path) -> list[RunRow]:
    """Return every recorded run, newest first; empty where there is no usable history."""
    pages: dict[str, list[PageRow]] = {}
    query = "SELECT run, name, status, headline FROM pages"
    for stamp, page in _made(_page, _select(reports_dir, query)):
        pages.setdefault(stamp, []).append(page)
    query = "SELECT stamp, generated_at, status, demo FROM runs ORDER BY generated_at DESC"
    found = _made(_run, _select(reports_dir, query))
    return [dataclasses.replace(run, pages=tuple(pages.get(run.stamp, ()))) for run in found]


def _made(make: Callable[..., _Made], rows: Iterable[tuple[Any, ...]]) -> Iterator[_Made]:
    """Yield what is made of rows, but for those with values that nobody of us has written."""
    for row in rows:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            yield make(*row)


def _page(stamp: str, name: str, status: str, headline: str) -> tuple[str, PageRow]:
    if not isinstance(headline, str):
        raise TypeError
    return stamp, PageRow(printable(name), Status(status).value, printable(headline))


def _run(stamp: str, at: str, status: str, demo: int) -> RunRow:
    return RunRow(printable(stamp), _moment(at), Status(status).value, bool(demo), ())


def _measured(at: str, value: float) -> tuple[datetime, float]:
    if not _number(value):
        raise ValueError
    return _moment(at), float(value)


def _moment(at: str) -> datetime:
    return datetime.fromisoformat(at).astimezone(UTC)


def series(
    reports_dir: Path, key: str, *, volume: Path | str | None = None, name: str | None = None
) -> list[tuple[datetime, float]]:
    """Given a measurement's key, return its values over time, oldest first.

    `key` is a check's name or a field of a notebook's `data`, in the unit of its name; `volume`
    is the path of the database (`Settings.database`), without it every volume but the demos;
    `name` a notebook. Never creates the file; without a usable one the series is empty.
    """
    query = """
        SELECT m.generated_at, m.value FROM measurements m JOIN runs r ON r.stamp = m.run
        WHERE m.key = :key AND (:name IS NULL OR m.name = :name)
          AND (m.volume = :volume OR (:volume IS NULL AND NOT r.demo))
        ORDER BY m.generated_at
    """
    asked = {"key": key, "name": name, "volume": None if volume is None else volume_key(volume)}
    return [*_made(_measured, _select(reports_dir, query, asked))]


def volume_key(database: Path | str) -> str:
    """Given the path of a volume's database, return what its measurements are kept under."""
    return printable(os.path.realpath(str(database))) if str(database) else ""


def measurements(document: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Given a JSON document, return its numbers: key to value and unit.

    That is each check's numeric value and each top-level number in `data`.
    """
    found: dict[str, tuple[float, str]] = {}
    for key, value in document["data"].items():
        if _number(value):
            unit = key.rpartition("_")[2]
            found[key] = (value, unit if unit in UNITS else "")
    for check in document["checks"]:
        if _number(check.get("value")):
            found[check["name"]] = (check["value"], check.get("unit") or "")
    return found


def import_database() -> Any:
    """Return sqlite_utils.Database, imported without pandas: 0.3 s and 45 MB for unused types."""
    hidden = {"pandas", "numpy"} - sys.modules.keys()
    try:
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
        from sqlite_utils import Database
    finally:
        for name in hidden:
            del sys.modules[name]
    return Database


def _number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < sys.float_info.max  # type: ignore[arg-type]


def _write(file: Path, run: RunRow, documents: Sequence[Mapping[str, Any]]) -> None:
    """Write one run. Its row in `runs` comes last: without that row nothing of it is seen."""
    if file.is_symlink():
        raise _foreign()
    Database = import_database()  # noqa: N806
    at = run.generated_at.astimezone(UTC).isoformat(timespec="seconds")
    connection = sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level=None)
    with contextlib.closing(connection), databases.confined(connection):
        connection.execute("BEGIN IMMEDIATE")
        database = Database(connection)
        _prepare(database)
        for page, document in zip(run.pages, documents, strict=True):
            volume = volume_key(document["settings"].get("database") or "")
            failed = sum(check["status"] == "fail" for check in document["checks"])
            database["pages"].insert(
                {
                    "run": run.stamp,
                    **dataclasses.asdict(page),
                    "failed": failed,
                    "checks": len(document["checks"]),
                    "volume": volume,
                },
                replace=True,
            )
            database["measurements"].insert_all(
                (
                    {
                        "run": run.stamp,
                        "generated_at": at,
                        "volume": volume,
                        "name": page.name,
                        "key": key,
                        "value": float(value),
                        "unit": unit,
                    }
                    for key, (value, unit) in measurements(document).items()
                ),
                replace=True,
            )
        database["runs"].insert(
            {
                "stamp": run.stamp,
                "generated_at": at,
                "status": run.status,
                "demo": int(run.demo),
            },
            replace=True,
        )
        connection.commit()


def _prepare(database: Any) -> None:
    """Make the tables where the file is new; raise DatabaseError if it is somebody else's."""
    connection = database.conn
    if not _ours(connection):
        raise _foreign()
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    database["runs"].create(
        {"stamp": str, "generated_at": str, "status": str, "demo": int},
        pk="stamp",
        if_not_exists=True,
    )
    database["pages"].create(
        {
            "run": str,
            "name": str,
            "status": str,
            "headline": str,
            "failed": int,
            "checks": int,
            "volume": str,
        },
        pk=("run", "name"),
        if_not_exists=True,
    )
    database["measurements"].create(
        {
            "run": str,
            "generated_at": str,
            "volume": str,
            "name": str,
            "key": str,
            "value": float,
            "unit": str,
        },
        pk=("run", "name", "key"),
        if_not_exists=True,
    )
    database["measurements"].create_index(["key", "volume", "generated_at"], if_not_exists=True)


def _ours(connection: sqlite3.Connection) -> bool:
    """True for a new, empty file and for one that this version wrote, which has no view."""
    mark, version, tables, views = connection.execute(
        "SELECT * FROM pragma_application_id, pragma_user_version,"
        " (SELECT count(*), sum(type NOT IN ('table', 'index')) FROM sqlite_master)"
    ).fetchone()
    ours = (mark, version) == (APPLICATION_ID, SCHEMA_VERSION) and not views
    return ours or (mark, tables) == (0, 0)


def _foreign() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("it is not a history of this version")
    error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    return error


def _select(
    reports_dir: Path, query: str, values: Mapping[str, object] | None = None
) -> list[tuple[Any, ...]]:
    """Given a query, return its rows; none, and a warning, where the history cannot be read."""
    file = reports_dir.absolute() / FILE_NAME
    if not file.is_file():
        return []
    try:
        uri = f"{file.as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)
        with contextlib.closing(connection), databases.confined(connection):
            return connection.execute(query, values or {}).fetchall() if _ours(connection) else []
    except (sqlite3.Error, ValueError) as error:
        _log.warning("%s cannot be read, going on without it: %s", file, error)
        return []
