"""Is the data safe? Every check of the runbook, from where the files lie to every vector.

`quick` reads live metadata only: places, permissions, sizes, headers and schema. `full` also
captures both stores at one moment and examines the copies. What was not looked at is `unknown`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from nescord_ops import (
    __version__,
    chroma,
    database,
    diagnosis,
    freshness,
    inventory,
    places,
    show,
    volume,
)
from nescord_ops.checks import RESTORE_PROVEN, Check, Findings, Status, fail, ok, unknown, warn
from nescord_ops.doubt import refused, suspects, unreadable, withdrawn
from nescord_ops.errors import CaptureError, OpsError, SettingsError, UnreadError, VolumeError
from nescord_ops.settings import Depth, Settings
from nescord_ops.snapshot import Snapshot, capture

WAL_WARN_BYTES = 16 << 20
DELAY_WARN_SECONDS = 5.0
DEEP = (
    *("capture.moment", "database.integrity", "database.foreign_keys", "chroma.integrity"),
    *("chroma.collection", "chroma.dimension", "chroma.distance", "chroma.index"),
    *("chroma.vectors", "chroma.sequence", "chroma.orphans", "chroma.bloat"),
    *("stores.lost", "stores.backlog", "stores.deleted", "stores.residue", "stores.foreign"),
    *("stores.sync", "stores.interrupted", "stores.stale", "stores.hashes"),
    *("chroma.roundtrip", "chroma.search"),
)
OUTLOOK = "access.forecast"


@dataclasses.dataclass(frozen=True, slots=True)
class Verification(Findings):
    """What verify found. `tables` are the bot's tables with rows and bytes (full depth only).

    `capture_seconds` is the time to copy both stores, `lock_seconds` how long Chroma's writers
    waited for it; both None where nothing was captured. `standing` is how the backups stand, None
    where that could not be looked at. `fixes` are what to type against what failed.
    """

    name = "verify"

    settings: Settings
    checks: tuple[Check, ...]
    depth: Depth
    tables: tuple[database.Table, ...] = ()
    capture_seconds: float | None = None
    lock_seconds: float | None = None
    standing: freshness.Standing | None = None
    fixes: tuple[diagnosis.Fix, ...] = ()

    def tables_by_size(self) -> show.Html:
        """Return the bot's tables with rows and bytes, largest first."""
        rows = ((t.name, t.rows, show.amount(t.allocated_bytes, "bytes")) for t in self.tables)
        return show.Html(show.table(("Table", "Rows", "Size with indices"), rows))


def run(
    settings: Settings,
    *,
    depth: str = "full",
    now: datetime | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Given settings, return every check. Raise SettingsError for another depth.

    Writes one small file each into the database's and Chroma's directory, and removes it; `full`
    also writes a copy into scratch space. Nothing else on the volume changes, but for the `-shm`
    that SQLite itself keeps beside a database whose bot runs or was killed.
    """
    if depth not in ("quick", "full"):
        raise SettingsError(f"depth is {depth!r}", "use quick or full")
    now = now or datetime.now(UTC)
    checks = [*_shallow(settings, now)]
    standing = freshness.standing(settings)
    if depth == "quick":
        why = "not looked at in quick depth"
        hint = "nescord-ops verify --depth full"
        checks += [unknown(n, why, hint, expected=True) for n in (OUTLOOK, *DEEP)]
        return _verification(settings, checks, "quick", standing)
    try:
        with capture(settings, progress) as snapshot:
            checks += _capture_checks(snapshot)
            checks += examine(snapshot, settings, round_trip=True)
            checks += _not_reached(checks)
            checks.append(_outlook(snapshot, settings, now))
            return dataclasses.replace(
                _verification(settings, checks, "full", standing),
                tables=_tables(snapshot),
                capture_seconds=snapshot.seconds,
                lock_seconds=snapshot.lock_seconds,
            )
    except CaptureError as error:
        checks.append(unknown("capture.moment", str(error), error.hint))
        checks += _not_reached(checks)
    return _verification(settings, checks, "full", standing)


def _verification(
    settings: Settings, checks: list[Check], depth: Depth, standing: freshness.Standing | None
) -> Verification:
    fixes = diagnosis.fixes_of(checks, settings)
    judged = _with_command(checks, settings)
    return Verification(settings, judged, depth, standing=standing, fixes=fixes)


def _with_command(checks: list[Check], settings: Settings) -> tuple[Check, ...]:
    """Say in the hints to restore a backup which one, or where none is proven what to do then."""
    if not any(RESTORE_PROVEN in check.hint for check in checks):
        return tuple(checks)
    hint = "type what nescord-ops troubleshoot prints"
    with contextlib.suppress(OpsError):
        proven = inventory.listing(settings, looking=True).newest_proven
        hint = f"{RESTORE_PROVEN} (nescord-ops restore {proven.id})" if proven else hint
    return tuple(
        dataclasses.replace(check, hint=check.hint.replace(RESTORE_PROVEN, hint))
        for check in checks
    )


def _not_reached(checks: list[Check]) -> list[Check]:
    """The deep checks that damage or absence kept from being made, so that none just vanishes."""
    made = {check.name for check in checks}
    why = "could not be looked at: see the other checks"
    return [unknown(name, why) for name in DEEP if name not in made]


def examine(
    snapshot: Snapshot, settings: Settings, *, round_trip: bool = False
) -> tuple[Check, ...]:
    """Given a snapshot, return the checks I1 to I12 of its copies, and Chroma's own if asked.

    What damage makes unreadable is `unknown`, beside the `fail` that names the damage, which is
    seen twice before it is believed: see `doubt`. A round trip uses Chroma's copy up.
    """
    found = _examined(snapshot, settings, round_trip=round_trip)
    if not suspects(found):
        return found
    if why := unreadable(snapshot):
        return withdrawn(found, why)
    return _examined(snapshot, settings, round_trip=round_trip, again=True)


def _examined(
    snapshot: Snapshot, settings: Settings, *, round_trip: bool, again: bool = False
) -> tuple[Check, ...]:
    """One look at everything; with Chroma's client last, and on what looks damaged only `again`."""
    from nescord_ops import agreement, client, soundness, stores

    found: list[Check] = []
    if snapshot.database:
        copy = snapshot.database
        found += _guarded("database.integrity", lambda: soundness.database_file(copy))
        found += _guarded("database.foreign_keys", lambda: soundness.foreign_keys(copy))
    else:
        found.append(_missing("database", snapshot, settings.database))
    if not snapshot.chroma:
        return (*found, _missing("chroma", snapshot, settings.chroma_dir))
    root = snapshot.chroma
    found += _guarded("chroma.integrity", lambda: soundness.chroma_file(root))
    parts = [
        ("chroma.collection", soundness.collection),
        ("chroma.index", soundness.index),
        ("chroma.vectors", soundness.vectors),
        ("chroma.sequence", soundness.sequence),
        ("chroma.orphans", soundness.orphans),
        ("chroma.bloat", soundness.bloat),
    ]
    between = [
        ("stores.lost", agreement.lost),
        ("stores.deleted", agreement.deleted),
        ("stores.sync", agreement.sync),
        ("stores.stale", agreement.stale),
    ]
    try:
        with stores.join(snapshot, settings) as joined:
            for name, part in [*parts, *(between if joined.has_notes else [])]:
                found += _guarded(name, lambda part=part: part(joined))  # type: ignore[misc]
            suspected = suspects(found)
            if round_trip and (again or not suspected):
                found += _guarded(
                    "chroma.roundtrip", lambda: client.round_trip(joined, sound=not suspected)
                )
    except (sqlite3.DatabaseError, LookupError) as error:
        if database.of_the_machine(error):
            text = f"could not be read: {error}"
            found.append(unknown("chroma.collection", text, database.MACHINE_HINT))
        elif Status.FAIL not in {check.status for check in found}:
            hint = "check CHROMADB_PERSIST_DIRECTORY"
            found.append(fail("chroma.collection", f"the store cannot be read: {error}", hint))
    return tuple(found)


def glance(snapshot: Snapshot, settings: Settings) -> tuple[Check, ...]:
    """Given a snapshot, return the checks that tell a whole copy from a torn or damaged one.

    A fifth of the time of `examine`: `quick_check` in place of `integrity_check` (each page and
    its order, not each index entry), the index files, every id's vector, the sequence numbers.
    """
    from nescord_ops import soundness, stores

    assert snapshot.database
    assert snapshot.chroma
    notes, root = snapshot.database, snapshot.chroma
    files = {"database.integrity": notes, "chroma.integrity": root / chroma.DATABASE}
    parts = {
        "chroma.index": soundness.index,
        "chroma.vectors": soundness.vectors,
        "chroma.sequence": soundness.sequence,
    }
    found: list[Check] = []
    # SQLite works without Python's lock, so its checks cost no time beside the reading of ids
    with ThreadPoolExecutor(1) as pool:
        pages = [
            pool.submit(_guarded, name, functools.partial(soundness.pages, file, name))
            for name, file in files.items()
        ]
        try:
            with stores.join(snapshot, settings) as joined:
                for name, part in parts.items():
                    found += _guarded(name, lambda part=part: part(joined))  # type: ignore[misc]
        except (sqlite3.DatabaseError, LookupError) as error:
            if database.of_the_machine(error):
                raise CaptureError(f"the copy: {error}", database.MACHINE_HINT) from error
            text = f"the store cannot be read: {error}"
            found.append(fail("chroma.sequence", text, "nescord-ops verify says what is wrong"))
        found = [*(check for page in pages for check in page.result()), *found]
    why = unreadable(snapshot) if suspects(found) else ""
    return withdrawn(found, why) if why else tuple(found)


def _guarded(name: str, part: Callable[[], Iterable[Check]]) -> list[Check]:
    """Run one examination; damage that stops it is an `unknown` check of that name."""
    found: list[Check] = []
    try:
        found.extend(part())
    except (sqlite3.Error, OpsError, OSError, ValueError) as error:
        hint = getattr(error, "hint", "") or "see the failed checks first"
        if isinstance(error, OSError) or database.of_the_machine(error):
            hint = database.MACHINE_HINT
        found.append(unknown(name, f"could not be read: {show.printable(str(error))}", hint))
    return found


def _missing(name: str, snapshot: Snapshot, path: Path) -> Check:
    """A store that could not be copied at all: the inspection of its place says more."""
    reason = snapshot.problems.get(name, f"{path} could not be copied")
    return fail(f"{name}.integrity", reason, f"check the settings; else {RESTORE_PROVEN}")


def _outlook(snapshot: Snapshot, settings: Settings, now: datetime) -> Check:
    """When the volume is full, as capacity judges it; not known is no fault of the data's."""
    from nescord_ops import capacity, headroom

    try:
        found = capacity.outlook(settings, snapshot, now)
    except (sqlite3.DatabaseError, OSError) as error:
        text = f"no forecast: the notes' dates could not be read: {show.printable(str(error))}"
        return unknown(OUTLOOK, text, expected=True)
    check = headroom.forecast(OUTLOOK, *found)
    if check.status is Status.UNKNOWN:
        return unknown(OUTLOOK, check.summary, expected=True)
    return check


def _tables(snapshot: Snapshot) -> tuple[database.Table, ...]:
    if not snapshot.database:
        return ()
    try:
        with database.open_copy(snapshot.database) as connection:
            return database.tables(connection)
    except sqlite3.DatabaseError:
        return ()


def _capture_checks(snapshot: Snapshot) -> Iterator[Check]:
    if snapshot.problems:
        why = "; ".join(snapshot.problems.values())
        yield unknown("capture.moment", f"not copied: {why}", "see the failed checks")
        return
    delay = snapshot.lock_seconds
    text = f"both stores were copied at one moment, {show.moment(snapshot.taken_at)}; "
    text += f"Chroma's writers waited {delay * 1000:,.0f} ms at the most"
    details = {"value": round(delay, 3), "unit": "s", "limit": DELAY_WARN_SECONDS}
    if delay > DELAY_WARN_SECONDS:
        yield warn("capture.moment", text, "run it when the bot is idle", **details)
    else:
        yield ok("capture.moment", text, **details)


def _shallow(settings: Settings, now: datetime) -> Iterator[Check]:
    """The checks that need no copy."""
    yield places.url(settings)
    yield from places.locations(settings)
    yield places.strays(settings)
    yield from places.access(settings)
    yield places.room(settings)
    yield from _database(settings)
    yield from _chroma(settings)
    yield from freshness.health(settings, now)
    yield _versions()


def _database(settings: Settings) -> Iterator[Check]:
    """The live database: header, WAL, schema and migrations (I12)."""
    path = settings.database
    if volume.place(path).kind != "file":
        return
    try:
        header = database.read_header(path)
    except (VolumeError, UnreadError) as error:
        yield refused("database.file", error, f"stop the bot and {RESTORE_PROVEN}")
        return
    size = header.file_bytes
    yield ok("database.file", f"SQLite, {show.size(size)}", value=size, unit="bytes")
    if header.wal_mode:
        yield ok("database.journal", "journal mode WAL", value="wal", limit="wal")
    else:
        hint = "the bot sets WAL itself: is another program writing to this file?"
        text = "journal mode is not WAL: readers block the bot"
        yield warn("database.journal", text, hint, value="delete", limit="wal")
    details = {"value": header.wal_bytes, "unit": "bytes", "limit": WAL_WARN_BYTES}
    text = f"{show.size(header.wal_bytes)} of the newest notes are in the -wal file"
    if header.wal_bytes > WAL_WARN_BYTES:
        hint = "normal after a crash: never delete it; start the bot, which folds it in"
        yield warn("database.wal", text, hint, **details)
    else:
        yield ok("database.wal", text, **details)
    yield from _guarded("database.schema", lambda: _schema(path))


def _schema(path: Path) -> Iterator[Check]:
    with database.open_live(path) as connection:
        tables = database.table_names(connection)
        recorded = database.migrations(connection) if "schema_migrations" in tables else []
    missing = [name for name in database.BOT_TABLES if name not in tables]
    if missing:
        hint = "is this the bot's database? check DATABASE_URL; else restore a backup"
        yield fail("database.schema", f"no table {', '.join(missing)}", hint)
        return
    yield ok("database.schema", f"{len(tables)} tables, the bot's among them", value=len(tables))
    gaps = [str(version) for version in database.MIGRATIONS if version not in recorded]
    if gaps:
        hint = "start the bot once: it migrates by itself; else look for the error in its log"
        text = f"{'migration' if len(gaps) == 1 else 'migrations'} {', '.join(gaps)} not recorded"
        yield warn("database.migrations", text, hint, value=len(gaps), unit="migrations")
    else:
        yield ok("database.migrations", f"migrations 1 to {max(recorded)} are recorded")
    if database.SEARCH_TABLE in tables:
        yield ok("database.search", f"{database.SEARCH_TABLE} exists")
    else:
        text = f"{database.SEARCH_TABLE} does not exist although migration 5 is recorded"
        hint = "a known defect of the bot: keyword search finds nothing; no data is lost"
        yield warn("database.search", text, hint)


def _chroma(settings: Settings) -> Iterator[Check]:
    """The live Chroma directory from outside: its SQLite file and the headers of its indices."""
    root = settings.chroma_dir
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        return
    try:
        header = database.read_header(root / chroma.DATABASE)
    except (VolumeError, UnreadError) as error:
        yield refused(
            "chroma.file", error, f"check CHROMADB_PERSIST_DIRECTORY; else {RESTORE_PROVEN}"
        )
        return
    size = header.file_bytes
    yield ok("chroma.file", f"{chroma.DATABASE}, {show.size(size)}", value=size, unit="bytes")


def _versions() -> Check:
    """What this ran with: a store opened by a newer chromadb is migrated, with no way back."""
    found = {"nescord-ops": __version__, "Python": platform.python_version()}
    found["SQLite"] = sqlite3.sqlite_version
    try:
        found["chromadb"] = metadata.version("chromadb")
    except metadata.PackageNotFoundError:
        return unknown("versions", "chromadb is not installed", "pip install chromadb")
    return ok("versions", ", ".join(f"{name} {version}" for name, version in found.items()))
