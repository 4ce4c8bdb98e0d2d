"""What fills the volume, what could be given back, and when it is full.

`quick` stats live files and reads two headers. `full` also copies both stores at one moment, and
reads tables, Chroma's parts and the notes' dates from the copies. Nothing is written to the volume.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from nescord_ops import chroma, database, doubt, footprint, growth, headroom, history, show
from nescord_ops.checks import Check, Findings
from nescord_ops.errors import CaptureError, SettingsError, UnreadError, VolumeError
from nescord_ops.figures import Table
from nescord_ops.footprint import Component, Scan
from nescord_ops.growth import Forecast, Growth, Notes
from nescord_ops.prices import PLANS
from nescord_ops.results import Result
from nescord_ops.room import room_of
from nescord_ops.settings import Depth, Settings
from nescord_ops.snapshot import Progress, Snapshot, capture

LIVE = (
    *("database", "chroma_store", "chroma_documents"),
    *("chroma_search", "chroma_queue", "chroma_vectors"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Reclaimable(Result):
    """Bytes that do not have to be there: how many they are, how many come back, and how."""

    label: str
    takes_bytes: int
    gives_bytes: int
    how: str


@dataclasses.dataclass(frozen=True, slots=True)
class Inside(Result):
    """What the copies say; None for what is not known.

    `problems` holds a reason under `database`, `chroma`, `notes` or `copy`, and of a store that the
    machine or our rights keep back under `database.unread` or `chroma.unread`.
    """

    tables: tuple[database.Table, ...] = ()
    chroma_tables: tuple[database.Table, ...] = ()
    used_segments: frozenset[str] | None = None
    notes: Notes | None = None
    problems: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity(Findings):
    """What capacity found; sizes in bytes, None for what is not known.

    For `size_source` to `overhead_bytes` see Room. `tables`, `notes`, `undated_notes`, `orphans`
    and `bytes_per_note` come from copies, in full depth only. `unread_entries` could not be looked
    at; with `complete` false the scan ended early. `growth_unknown` says why there is no growth,
    `problems` what could not be read.
    """

    name = "capacity"

    settings: Settings
    checks: tuple[Check, ...]
    depth: Depth
    measured_at: datetime
    size_source: str
    size_bytes: int | None
    used_bytes: int
    free_bytes: int | None
    overhead_bytes: int | None
    components: tuple[Component, ...]
    entries: int
    unread_entries: int
    complete: bool
    sparse_bytes: int
    sparse_file: str
    tables: tuple[database.Table, ...]
    reclaimable: tuple[Reclaimable, ...]
    reclaimable_bytes: int
    orphans: int | None
    notes: int | None
    undated_notes: int | None
    bytes_per_note: int | None
    growth: Growth | None
    growth_unknown: str
    forecast: Forecast | None
    problems: Mapping[str, str]

    def bytes_of(self, *names: str) -> int:
        """Given names of components, return their allocated bytes on the volume."""
        return sum(c.allocated_bytes for c in self.components if c.on_volume and c.name in names)

    def volume_table(self) -> Table:
        """Size, used and free of the volume, and what share of each plan's volume is used."""
        rows = [
            (f"Size ({self.size_source})", self.size_bytes, ""),
            ("The file system's own", self.overhead_bytes, _share(self.overhead_bytes, self)),
            ("Used", self.used_bytes, _share(self.used_bytes, self)),
            ("Free", self.free_bytes, _share(self.free_bytes, self)),
        ]
        for plan in PLANS:
            share = f"{self.used_bytes / plan.volume_bytes:.1%} used"
            rows.append((f"Limit of the {plan.name} plan", plan.volume_bytes, share))
        shown = [(label, show.amount(count, "bytes"), share) for label, count, share in rows]
        return Table(("The volume", "Bytes", "Share"), shown)

    def components_table(self) -> Table:
        """One row a component: bytes allocated and apparent, files, share of what is used."""
        rows = [
            (
                c.label if c.on_volume else f"{c.label} (not on the volume)",
                show.amount(c.allocated_bytes, "bytes"),
                show.amount(c.apparent_bytes, "bytes"),
                c.files or show.Amount("", ""),
                f"{c.allocated_bytes / max(1, self.used_bytes):.1%}" if c.on_volume else "",
            )
            for c in self.components
        ]
        return Table(("Component", "Allocated", "Apparent", "Files", "Of used"), rows)

    def tables_table(self) -> Table:
        """One row a table of the notes database, indices included, largest first."""
        rows = [(t.name, t.rows, show.amount(t.allocated_bytes, "bytes")) for t in self.tables]
        return Table(("Table", "Rows", "Allocated"), rows)

    def reclaimable_table(self) -> Table:
        """What could be given back, how much of it, and how."""
        rows = [
            (
                item.label,
                show.amount(item.takes_bytes, "bytes"),
                show.amount(item.gives_bytes, "bytes"),
                item.how,
            )
            for item in self.reclaimable
        ]
        return Table(("What", "Takes", "Gives back", "How"), rows)


def run(
    settings: Settings,
    *,
    depth: str = "full",
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Capacity:
    """Given settings, return bytes, growth, forecast and checks. Raise SettingsError for a depth.

    Reads live files' sizes and headers; `full` also copies both stores into scratch space. What
    is missing or damaged becomes a check, never an error.
    """
    if depth not in ("quick", "full"):
        raise SettingsError(f"depth is {depth!r}", "use quick or full")
    now = now or datetime.now(UTC)
    seen = footprint.scan(settings)
    free_pages, problems = _headers(settings)
    inside = _look_inside(settings, now, progress) if depth == "full" else Inside()
    components = footprint.components(
        seen,
        free_bytes=free_pages,
        chroma_tables=inside.chroma_tables,
        used_segments=inside.used_segments,
    )
    room = room_of(settings, components)
    per_note = _bytes_per_note(components, inside.notes)
    pace = _growth(settings, room.used_bytes, inside, per_note, now)
    grown = None if isinstance(pace, str) else pace
    full = None
    if grown and room.free_bytes is not None:
        full = growth.forecast(grown, room.free_bytes, now)
    reclaimable = tuple(_reclaimable(components, seen))
    used = inside.used_segments
    found = Capacity(
        settings=settings,
        checks=(),
        depth="full" if depth == "full" else "quick",
        measured_at=now,
        size_source=room.source,
        size_bytes=room.size_bytes,
        used_bytes=room.used_bytes,
        free_bytes=room.free_bytes,
        overhead_bytes=room.overhead_bytes,
        components=components,
        entries=seen.entries,
        unread_entries=seen.unread,
        complete=seen.complete,
        sparse_bytes=seen.sparse_bytes,
        sparse_file=seen.sparse_file,
        tables=inside.tables,
        reclaimable=reclaimable,
        reclaimable_bytes=sum(item.gives_bytes for item in reclaimable),
        orphans=None if used is None else len(seen.segments.keys() - used),
        notes=inside.notes.count if inside.notes else None,
        undated_notes=inside.notes.undated if inside.notes else None,
        bytes_per_note=None if per_note is None else round(per_note),
        growth=grown,
        growth_unknown=pace if isinstance(pace, str) else "",
        forecast=full,
        problems={**inside.problems, **problems},
    )
    return dataclasses.replace(found, checks=tuple(headroom.checks(found)))


def outlook(settings: Settings, snapshot: Snapshot, now: datetime) -> tuple[Forecast | None, str]:
    """Given a snapshot, return when the volume is full, or None and why that is not known.

    As `run` does, but directories of deleted collections count as vectors. Raise
    sqlite3.DatabaseError if the notes are damaged.
    """
    components = footprint.components(footprint.scan(settings), free_bytes=_headers(settings)[0])
    room = room_of(settings, components)
    if room.free_bytes is None:
        return None, headroom.NO_SIZE
    inside = Inside()
    if snapshot.database:
        with database.open_copy(snapshot.database) as connection:
            inside = Inside(notes=growth.read_notes(connection, now))
    per_note = _bytes_per_note(components, inside.notes)
    pace = _growth(settings, room.used_bytes, inside, per_note, now)
    if isinstance(pace, str):
        return None, pace
    return growth.forecast(pace, room.free_bytes, now), ""


def _headers(settings: Settings) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes of free pages in both live stores, and why a store cannot be read."""
    free: dict[str, int] = {}
    problems: dict[str, str] = {}
    stores = {"database": settings.database, "chroma": settings.chroma_dir / chroma.DATABASE}
    for name, path in stores.items():
        try:
            header = database.read_header(path)
        except UnreadError as error:
            problems[f"{name}.unread"] = str(error)
        except VolumeError as error:
            problems[name] = str(error)
        else:
            key = "chroma_store" if name == "chroma" else name
            free[key] = header.free_pages * header.page_bytes
    return free, problems


def _look_inside(settings: Settings, now: datetime, progress: Progress | None) -> Inside:
    """Copy both stores and read what the copies hold; what cannot be read is a problem."""
    try:
        with capture(settings, progress) as snapshot:
            return _read(snapshot, now)
    except CaptureError as error:
        return Inside(problems={"copy": f"{error}: {error.hint}"})


def _read(snapshot: Snapshot, now: datetime, *, again: bool = False) -> Inside:
    """Read both copies; damage is seen twice before it is believed: see `doubt`."""
    found = Inside()
    problems = dict(snapshot.problems)
    if snapshot.database:
        try:
            with database.open_copy(snapshot.database) as connection:
                found = dataclasses.replace(found, tables=database.tables(connection))
                found = dataclasses.replace(found, notes=growth.read_notes(connection, now))
        except sqlite3.DatabaseError as error:
            name = "copy" if database.of_the_machine(error) else "database"
            problems[name] = f"{snapshot.database.name}: {error}"
    if snapshot.chroma:
        try:
            with database.open_copy(snapshot.chroma / chroma.DATABASE) as connection:
                found = dataclasses.replace(
                    found,
                    chroma_tables=database.tables(connection),
                    used_segments=_vector_segments(connection),
                )
        except sqlite3.DatabaseError as error:
            name = "copy" if database.of_the_machine(error) else "chroma"
            problems[name] = f"{chroma.DATABASE}: {error}"
    if problems == snapshot.problems or again:
        return dataclasses.replace(found, problems=problems)
    if why := doubt.unreadable(snapshot):
        return Inside(problems={"copy": f"the copy could not be read: {why}"})
    return _read(snapshot, now, again=True)


def _vector_segments(connection: sqlite3.Connection) -> frozenset[str]:
    """The directories that a copy of `chroma.sqlite3` still refers to."""
    rows = connection.execute("SELECT id FROM segments WHERE scope = 'VECTOR'")
    return frozenset(str(name) for (name,) in rows)


def _bytes_per_note(components: tuple[Component, ...], notes: Notes | None) -> float | None:
    """What a note takes in both stores together, tables, indices, text and vector included."""
    if not notes or not notes.count:
        return None
    return sum(c.allocated_bytes for c in components if c.name in LIVE) / notes.count


def _growth(
    settings: Settings, used_bytes: int, inside: Inside, per_note: float | None, now: datetime
) -> Growth | str:
    """The growth that earlier reports measured, else that of the notes, or why there is none.

    Reports see backups and logs grow too, so they are preferred.
    """
    volume = settings.database_meant or settings.database
    series = history.series(settings.reports_dir, "used_bytes", volume=volume, name=Capacity.name)
    measured = growth.from_history(series, used_bytes, now)
    if isinstance(measured, Growth):
        return measured
    if inside.notes:
        return growth.from_notes(inside.notes, per_note or 0.0, used_bytes, now)
    return "the notes' dates were not read, and " + measured


def _reclaimable(components: tuple[Component, ...], seen: Scan) -> Iterator[Reclaimable]:
    """What does not have to be on the volume; only what takes bytes is named."""
    takes = {c.name: c for c in components if c.on_volume}
    ways = {
        "database_free": "with the bot stopped: nescord-ops clean pages --apply",
        "chroma_free": "with the bot stopped: nescord-ops clean pages --apply",
        "chroma_orphans": "with the bot stopped: nescord-ops clean segments --apply",
    }
    for name, how in ways.items():
        if name in takes:
            size = takes[name].allocated_bytes
            yield Reclaimable(takes[name].label, size, size, how)
    kept = next((b for b in seen.backups if b.has_database and b.has_chroma), None)
    kept = kept or next(iter(seen.backups), None)
    old = sum(b.allocated_bytes for b in seen.backups if b is not kept)
    if old and "bot_backups" in takes:
        size = takes["bot_backups"].allocated_bytes
        text = "once a newer backup is proven, move the older ones off the volume or delete them: "
        text += "nescord-ops backup adopt, then nescord-ops clean backups --apply"
        yield Reclaimable(takes["bot_backups"].label, size, min(old, size), text)
    if "database_wal" in takes:
        text = "normal: the bot folds it in when it runs. It holds notes: never delete it by hand"
        yield Reclaimable(
            takes["database_wal"].label, takes["database_wal"].allocated_bytes, 0, text
        )
    if seen.sparse_bytes:
        text = f"{show.size(seen.sparse_bytes)} are claimed, not held, and not billed:"
        yield Reclaimable(
            "Sparse files", 0, 0, f"{text} copy such files only with tools that keep holes"
        )


def _share(count: int | None, capacity: Capacity) -> str:
    if count is None or not capacity.size_bytes:
        return ""
    return f"{count / capacity.size_bytes:.1%}"
