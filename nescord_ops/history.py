"""Every run's verdicts and numbers in `history.sqlite3`, for trends, forecasts and the index.

A lost history costs trends and nothing else, so a damaged or foreign file never stops a report:
it is put aside when the next run is written, and reads as empty until then. Numbers are kept per
volume (the resolved path that its DATABASE_URL means), so that a demo's never mix with real ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from nescord_ops import database as databases
from nescord_ops import memory
from nescord_ops.checks import Status
from nescord_ops.results import Result
from nescord_ops.show import amounts, exactly, printable

FILE_NAME = "history.sqlite3"
APPLICATION_ID = 0x4E4F5053  # "NOPS", so that a file that is not ours is known
SCHEMA_VERSION = 1
LOCK_SECONDS = 30.0
CHANGES = dict.fromkeys(("run", "name", "previous", "changed", "standing"), str)
# The exact amounts in a sentence of a page, a line each; they are measurements as well.
_AMOUNTS = """(
    SELECT coalesce(group_concat(said, char(10)), '') FROM (
      SELECT iif(value = CAST(value AS INTEGER), CAST(value AS INTEGER), value) || ' ' || unit
        AS said FROM measurements m WHERE m.run = p.run AND m.name = p.name
        AND m.key BETWEEN '{0}.' AND '{0}/' ORDER BY m.key))"""
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
class PageRow(Result):
    """One notebook's verdict in one run, and in words what changed since the run at `previous`.

    `previous` is ISO 8601 UTC, empty where there was none. `standing`: a check fails, or did when
    it was last looked at; `since`: the first run of the oldest such failure, as `previous`.
    """

    name: str
    status: str
    headline: str
    previous: str = ""
    changed: str = ""
    standing: bool = False
    since: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RunRow(Result):
    """One run; `stamp` is the name of its directory, `volume` the first that a page names."""

    stamp: str
    generated_at: datetime
    status: str
    demo: bool
    pages: tuple[PageRow, ...]
    volume: str = ""


def record(reports_dir: Path, run: RunRow, documents: Sequence[Mapping[str, Any]]) -> None:
    """Given a run and its JSON documents, write its rows into `<reports_dir>/history.sqlite3`.

    A file that is damaged or not ours is renamed aside, with a warning. Raise sqlite3.Error or
    OSError where the disk or the permissions refuse.
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


def runs(reports_dir: Path, *, since: datetime | None = None) -> list[RunRow]:
    """Return the recorded runs, of `since` and later, newest first; empty without a history."""
    asked = {"since": "" if since is None else iso(since)}
    found: dict[str, list[PageRow]] = {}
    volumes: dict[str, str] = {}
    query = f"""
        SELECT p.run, p.volume, p.name, p.status, p.headline, coalesce(c.changed, ''),
          {_AMOUNTS.format("headline")}, {_AMOUNTS.format("changed")},
          coalesce(c.previous, ''), coalesce(c.standing, '{{}}')
        FROM pages p JOIN runs r ON r.stamp = p.run
        LEFT JOIN changes c ON c.run = p.run AND c.name = p.name
        WHERE r.generated_at >= :since ORDER BY p.rowid
    """
    for stamp, volume, row in made(_page, select(reports_dir, query, asked)):
        found.setdefault(stamp, []).append(row)
        volumes[stamp] = volumes.get(stamp) or volume
    query = """
        SELECT stamp, generated_at, status, demo FROM runs WHERE generated_at >= :since
        ORDER BY generated_at DESC, rowid DESC
    """
    return [
        dataclasses.replace(
            run, pages=tuple(found.get(run.stamp, ())), volume=volumes.get(run.stamp, "")
        )
        for run in made(_run, select(reports_dir, query, asked))
    ]


def made(make: Callable[..., _Made], rows: Iterable[tuple[Any, ...]]) -> Iterator[_Made]:
    """Yield what is made of rows, but for those with values that nobody of us has written."""
    for row in rows:
        with contextlib.suppress(ValueError, TypeError, OverflowError, RecursionError):
            yield make(*row)


def _page(stamp: str, volume: str, name: str, status: str, *rest: Any) -> tuple[str, str, PageRow]:
    if not all(isinstance(text, str) for text in (stamp, volume, *rest)):
        raise TypeError
    headline, changed, *amounts, previous, standing = rest
    told = [exactly(*each) for each in zip((headline, changed), amounts, strict=True)]
    if previous:
        _moment(previous)
    seen = (printable(name), Status(status).value, told[0], previous, told[1])
    return stamp, printable(volume), PageRow(*seen, standing != "{}", _since(standing))


def _run(stamp: str, at: str, status: str, demo: int) -> RunRow:
    return RunRow(printable(stamp), _moment(at), Status(status).value, bool(demo), ())


def _measured(at: str, value: float) -> tuple[datetime, float]:
    if not is_number(value):
        raise ValueError
    return _moment(at), float(value)


def _moment(at: str) -> datetime:
    when = datetime.fromisoformat(at).astimezone(UTC)
    if not 3 <= when.year < datetime.max.year:  # the calendar looks back, and a month ahead
        raise ValueError(at)
    return when


def points(
    reports_dir: Path, name: str, key: str, volume: str, since: datetime
) -> list[tuple[datetime, float | None]]:
    """Given a notebook, a measurement's key and a volume's key, return a value for each run.

    Oldest first; None where the run did not measure it. Without a key: how many checks fail, or did
    when they were last looked at; None where the notebook could not look.
    """
    query = """
        SELECT r.generated_at, m.value, p.failed, p.status, c.standing
        FROM pages p JOIN runs r ON r.stamp = p.run
        LEFT JOIN changes c ON c.run = p.run AND c.name = p.name
        LEFT JOIN measurements m ON m.run = p.run AND m.name = p.name AND m.key = ?
        WHERE p.name = ? AND p.volume = ? AND NOT r.demo AND r.generated_at >= ?
        ORDER BY r.generated_at, r.rowid
    """

    def point(
        at: str, value: float | None, failed: int, status: str, standing: str | None
    ) -> tuple[datetime, float | None]:
        if not key and status != "unknown":
            value = failed if standing is None else len(json.loads(standing))
        return (_moment(at), None) if value is None else _measured(at, value)

    return [*made(point, select(reports_dir, query, (key, name, volume, iso(since))))]


def series(
    reports_dir: Path, key: str, *, volume: Path | str | None = None, name: str | None = None
) -> list[tuple[datetime, float]]:
    """Given a measurement's key, return its values over time, oldest first.

    `key` is a check's name or a field of a notebook's `data`, in the unit of its name; `volume`
    is the path of the database that is meant (`volume_of`), without it every volume but the demos;
    `name` a notebook. Never creates the file; without a usable one the series is empty.
    """
    query = """
        SELECT m.generated_at, m.value FROM measurements m JOIN runs r ON r.stamp = m.run
        WHERE m.key = :key AND (:name IS NULL OR m.name = :name)
          AND (m.volume = :volume OR (:volume IS NULL AND NOT r.demo))
        ORDER BY m.generated_at
    """
    asked = {"key": key, "name": name, "volume": None if volume is None else volume_key(volume)}
    return [*made(_measured, select(reports_dir, query, asked))]


def volume_key(database: Path | str) -> str:
    """Given the path of a volume's database, return what its measurements are kept under."""
    return printable(os.path.realpath(str(database))) if str(database) else ""


def volume_of(places: Mapping[str, Any]) -> str:
    """Given settings, return their volume's key: a wrong DATABASE_URL makes no other volume."""
    return volume_key(str(places.get("database_meant") or places.get("database") or ""))


def measurements(document: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Given a JSON document, return its numbers: key to value and unit.

    That is each check's numeric value and each top-level number in `data`.
    """
    found: dict[str, tuple[float, str]] = {}
    for key, value in document["data"].items():
        if is_number(value):
            unit = key.rpartition("_")[2]
            found[printable(key)] = (value, unit if unit in UNITS else "")
    for check in document["checks"]:
        if is_number(check.get("value")):
            found[printable(check["name"])] = (check["value"], printable(check.get("unit") or ""))
    return found


def iso(when: datetime) -> str:
    """Given an aware time, return it as the history writes it: ISO 8601 in UTC, to the second."""
    return when.astimezone(UTC).isoformat(timespec="seconds")


def select(
    reports_dir: Path, query: str, values: Mapping[str, object] | Sequence[object] = ()
) -> list[tuple[Any, ...]]:
    """Given a query, return its rows; none, and a warning, where the history cannot be read."""
    file = reports_dir.absolute() / FILE_NAME
    try:
        if not file.is_file():
            return []
        uri = f"{file.as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)
        with contextlib.closing(connection), databases.confined(connection):
            if not _ours(connection):
                return []
            known = "SELECT 1 FROM sqlite_master WHERE name = 'changes'"
            if not connection.execute(known).fetchone():
                connection.execute(f"CREATE TEMP TABLE changes ({', '.join(CHANGES)})")
            return connection.execute(query, values).fetchall()
    except (OSError, sqlite3.Error, ValueError) as error:
        _log.warning("%s cannot be read, going on without it: %s", file, error)
        return []


def is_number(value: object) -> bool:
    """Whether a value of unknown origin can be drawn and compared."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < sys.float_info.max


def _write(file: Path, run: RunRow, documents: Sequence[Mapping[str, Any]]) -> None:
    """Write one run. Its row in `runs` comes last: without that row nothing of it is seen."""
    if file.is_symlink() or databases.names_another(file):
        raise _foreign()
    Database = memory.import_database()  # noqa: N806
    at = iso(run.generated_at)
    found = [volume_of(document["settings"]) for document in documents]
    # A notebook that broke off names no volume; the others of its run do.
    volumes = [volume or next(filter(None, found), "") for volume in found]
    connection = sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level=None)
    with contextlib.closing(connection), databases.confined(connection):
        connection.execute("BEGIN IMMEDIATE")
        database = Database(connection)
        _prepare(database)
        for page, document, volume in zip(run.pages, documents, volumes, strict=True):
            failed = sum(check["status"] == "fail" for check in document["checks"])
            database["pages"].insert(
                {
                    "run": run.stamp,
                    "name": page.name,
                    "status": page.status,
                    "headline": page.headline,
                    "failed": failed,
                    "checks": len(document["checks"]),
                    "volume": volume,
                },
                replace=True,
            )
            exact = [
                (f"{field}.{number:03}", amount)
                for field in ("headline", "changed")
                for number, amount in enumerate(amounts(getattr(page, field)))
            ]
            standing = _standing(document.get("changes"), at)
            if standing is not None:
                database["changes"].insert(
                    {
                        "run": run.stamp,
                        "name": page.name,
                        "previous": page.previous,
                        "changed": page.changed,
                        "standing": json.dumps(standing),
                    },
                    replace=True,
                )
            common = {"run": run.stamp, "generated_at": at, "volume": volume, "name": page.name}
            database["measurements"].insert_all(
                (
                    {**common, "key": key, "value": float(value), "unit": unit}
                    for key, (value, unit) in (*measurements(document).items(), *exact)
                ),
                replace=True,
            )
        database["runs"].insert(
            {"stamp": run.stamp, "generated_at": at, "status": run.status, "demo": int(run.demo)},
            replace=True,
        )
        connection.commit()


def _since(standing: str) -> str:
    """When the oldest of what stands began; empty where that is not said."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return min((iso(_moment(v["since"])) for v in json.loads(standing).values()), default="")
    return ""


def _standing(changes: object, at: str) -> dict[str, dict[str, str]] | None:
    """Given a document's `changes`, return the checks that fail, or did when last looked at."""
    if not isinstance(changes, dict):
        return None
    since, unseen = changes.get("since"), changes.get("unseen")
    if not isinstance(since, dict) or not isinstance(unseen, dict):
        return None
    return {**unseen, **{name: {"since": began, "seen": at} for name, began in since.items()}}


def _prepare(database: Any) -> None:
    """Make the tables where the file is new; raise DatabaseError if it is somebody else's."""
    connection = database.conn
    if not _ours(connection):
        raise _foreign()
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    columns = {"stamp": str, "generated_at": str, "status": str, "demo": int}
    database["runs"].create(columns, pk="stamp", if_not_exists=True)
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
    database["pages"].create_index(["name", "volume"], if_not_exists=True)
    database["changes"].create(CHANGES, pk=("run", "name"), if_not_exists=True)
    texts = ("run", "generated_at", "volume", "name", "key")
    database["measurements"].create(
        {**dict.fromkeys(texts, str), "value": float, "unit": str},
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
