"""Is the data safe? Every check of the runbook, from where the files lie to every vector.

`quick` reads live metadata only: places, permissions, sizes, headers and schema. `full` also
captures both stores at one moment and examines the copies. What was not looked at is `unknown`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import (
    chroma,
    database,
    diagnosis,
    freshness,
    inventory,
    live,
    places,
    room,
    show,
    swap,
)
from nescord_ops.checks import RESTORE_PROVEN, Check, Findings, Status, fail, ok, unknown, warn
from nescord_ops.doubt import guarded, suspects, unreadable, withdrawn
from nescord_ops.errors import CaptureError, OpsError, SettingsError, UnreadError, VolumeError
from nescord_ops.settings import Depth, Settings
from nescord_ops.snapshot import Snapshot, capture

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
            checks += [
                *_capture_checks(snapshot),
                *examine(snapshot, settings, round_trip=True),
            ]
            checks += _not_reached(checks)
            checks.append(_outlook(snapshot, settings, now))
            return dataclasses.replace(
                _verification(settings, checks, "full", standing),
                tables=_tables(snapshot),
                capture_seconds=snapshot.seconds,
                lock_seconds=snapshot.lock_seconds,
            )
    except CaptureError as error:
        checks.append(unknown("capture.moment", f"{error}", error.hint))
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
    suspected = suspects(found, snapshot)
    if not suspected:
        return found
    if why := unreadable(snapshot):
        return withdrawn(found, suspected, why)
    return _examined(snapshot, settings, round_trip=round_trip, again=True)


def _examined(
    snapshot: Snapshot, settings: Settings, *, round_trip: bool, again: bool = False
) -> tuple[Check, ...]:
    """One look at everything; with Chroma's client last, and on what looks damaged only `again`."""
    from nescord_ops import agreement, client, soundness, stores

    found: list[Check] = []
    if snapshot.database:
        copy = snapshot.database
        found += guarded("database.integrity", lambda: soundness.database_file(copy))
        found += guarded("database.foreign_keys", lambda: soundness.foreign_keys(copy))
    else:
        found.append(_missing("database", snapshot, settings.database))
    if not snapshot.chroma:
        return (*found, _missing("chroma", snapshot, settings.chroma_dir))
    root = snapshot.chroma
    found += guarded("chroma.integrity", lambda: soundness.chroma_file(root))
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
                found += guarded(name, lambda part=part: part(joined))  # type: ignore[misc]
            suspected = suspects(found, snapshot)
            if round_trip and (again or not suspected):
                found += guarded(
                    "chroma.roundtrip", lambda: client.round_trip(joined, sound=not suspected)
                )
    except (sqlite3.DatabaseError, UnreadError) as error:
        if isinstance(error, UnreadError) or database.of_the_machine(error):
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
            pool.submit(guarded, name, functools.partial(soundness.pages, file, name))
            for name, file in files.items()
        ]
        try:
            with stores.join(snapshot, settings) as joined:
                for name, part in parts.items():
                    found += guarded(name, lambda part=part: part(joined))  # type: ignore[misc]
        except (sqlite3.DatabaseError, UnreadError) as error:
            if isinstance(error, UnreadError) or database.of_the_machine(error):
                raise CaptureError(f"the copy: {error}", database.MACHINE_HINT) from error
            text = f"the store cannot be read: {error}"
            found.append(fail("chroma.sequence", text, "nescord-ops verify says what is wrong"))
        found = [*(check for page in pages for check in page.result()), *found]
    suspected = suspects(found, snapshot)
    why = unreadable(snapshot) if suspected else ""
    return withdrawn(found, suspected, why) if why else tuple(found)


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
    try:
        swap.refuse_unfinished(settings)
    except VolumeError as error:
        yield fail("location.swap", f"{error}", error.hint)
    yield from places.locations(settings)
    yield places.strays(settings)
    yield from places.access(settings)
    yield places.room(settings, room.space(settings))
    yield from live.stores(settings)
    yield from freshness.health(settings, now)
    yield live.versions()
