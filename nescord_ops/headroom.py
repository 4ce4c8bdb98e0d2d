"""Is there room, and for how long? The checks of capacity, made from what it measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nescord_ops import chroma, show, volume
from nescord_ops.checks import Check, fail, none_of, ok, unknown, warn
from nescord_ops.database import MACHINE_HINT, RIGHTS_HINT

if TYPE_CHECKING:
    from nescord_ops.capacity import Capacity
    from nescord_ops.growth import Forecast

USED_WARN_RATIO, USED_FAIL_RATIO = 0.80, 0.95
FREE_FAIL_BYTES = 20 << 20
FULL_WARN_DAYS, FULL_FAIL_DAYS = 90, 14
RECLAIM_WARN_BYTES, RECLAIM_WARN_RATIO = 100_000_000, 0.10
FULL_DEPTH = "nescord-ops capacity --depth full"
NO_SIZE = "the volume's size is not known"
SIZE_HINT = "set NESCORD_OPS_VOLUME_GB to the size that Railway shows"


def checks(capacity: Capacity) -> Iterator[Check]:
    """Given what capacity measured, judge it."""
    yield _scan(capacity)
    yield _copy(capacity)
    yield _store(capacity, "database")
    yield _store(capacity, "chroma")
    yield _free(capacity)
    yield _growth(capacity)
    yield _dates(capacity)
    yield _forecast(capacity)
    yield _reclaimable(capacity)
    yield _orphans(capacity)
    yield _bloat(capacity)


def _scan(capacity: Capacity) -> Check:
    """Whether every file was counted; if not, all sizes are lower bounds."""
    seen = f"{capacity.entries:,} files and directories"
    if not capacity.complete:
        hint = "point DATABASE_URL at a directory that holds only the bot's data"
        return unknown("capacity.scan", f"the scan was ended after {seen}", hint)
    if capacity.unread_entries:
        text = f"{capacity.unread_entries:,} of {seen} could not be read: sizes are lower bounds"
        return unknown("capacity.scan", text, "run it as the bot's user or root")
    return ok("capacity.scan", f"{seen} were counted", value=capacity.entries, unit="entries")


def _copy(capacity: Capacity) -> Check:
    if capacity.depth == "quick":
        text = "quick depth reads sizes only, no tables and no dates"
        return unknown("capacity.copy", text, FULL_DEPTH, expected=True)
    if problem := capacity.problems.get("copy"):
        return unknown("capacity.copy", problem, "see that TMPDIR has room, and run it again")
    return ok("capacity.copy", "tables and dates were read from a copy of one moment")


def _store(capacity: Capacity, name: str) -> Check:
    """Whether a store is there and readable, and what it takes."""
    settings = capacity.settings
    path = settings.database if name == "database" else settings.chroma_dir / chroma.DATABASE
    variable = "DATABASE_URL" if name == "database" else "CHROMADB_PERSIST_DIRECTORY"
    title = f"capacity.{name}"
    if problem := capacity.problems.get(f"{name}.unread"):
        denied = not os.access(path, os.R_OK)
        return unknown(title, problem, RIGHTS_HINT if denied else MACHINE_HINT)
    if problem := capacity.problems.get(name):
        kind = volume.place(path).kind
        if kind == "denied" or (kind == "file" and not os.access(path, os.R_OK)):
            return unknown(title, problem, RIGHTS_HINT)
        hint = f"check {variable}; nescord-ops verify says what is wrong with it"
        return fail(title, problem, hint)
    if name == "chroma" and volume.place(settings.chroma_dir).kind == "link":
        counted = [c for c in capacity.components if c.name.startswith("chroma")]
        if not counted:
            text = f"{settings.chroma_dir} is a link out of the volume: nothing there is counted"
            return unknown(title, text, f"name the directory itself in {variable}")
    parts = [c for c in capacity.components if c.name.startswith(name)]
    size = sum(c.allocated_bytes for c in parts)
    text = f"{show.size(size)} allocated"
    if parts and not any(c.on_volume for c in parts):
        text += ", not on the volume"
    return ok(title, text, value=size, unit="bytes")


def _free(capacity: Capacity) -> Check:
    """Room that is left: for the bot to write, and for a database to be written anew beside it.

    `VACUUM` and a restore need the size of the larger store once more.
    """
    free, size = capacity.free_bytes, capacity.size_bytes
    if free is None or size is None:
        expected = capacity.settings.volume_mount is None
        hint = SIZE_HINT if expected else "attach the volume; nescord-ops verify says more"
        text = f"{NO_SIZE}: {show.size(capacity.used_bytes)} are used"
        return unknown("capacity.free", text, hint, expected=expected)
    used = 1 - free / size if size else 1.0
    database = capacity.bytes_of("database", "database_free", "database_wal")
    store = capacity.bytes_of(*(c.name for c in capacity.components if c.name.startswith("chroma")))
    rewrite = max(database, store)
    details = {"value": free, "unit": "bytes", "limit": rewrite}
    text = f"{show.size(free)} of {show.size(size)} free ({used:.0%} used)"
    hint = "grow the volume in Railway's dashboard, or give back what capacity lists"
    if used > USED_FAIL_RATIO or free < FREE_FAIL_BYTES:
        return fail("capacity.free", f"full: {text}", hint, **details)
    if used > USED_WARN_RATIO:
        return warn("capacity.free", f"nearly full: {text}", hint, **details)
    if free < rewrite:
        text += f"; a store of {show.size(rewrite)} cannot be vacuumed or restored beside itself"
        return warn("capacity.free", text, hint, **details)
    return ok("capacity.free", text, **details)


def _growth(capacity: Capacity) -> Check:
    grown = capacity.growth
    if grown is None:
        broken = capacity.depth == "full" and capacity.notes is None
        hint = "see the failed checks first" if broken else "it is known after some weeks of notes"
        if capacity.depth == "quick":
            hint = FULL_DEPTH
        return unknown("capacity.growth", capacity.growth_unknown, hint, expected=not broken)
    text = f"{show.size(grown.bytes_per_day)} a day over the last {grown.days:.0f} days"
    if grown.source == "history":
        text += ", measured by earlier reports"
    elif capacity.bytes_per_note:
        notes = grown.bytes_per_day / capacity.bytes_per_note
        text += f": {notes:.2g} notes a day, {show.size(capacity.bytes_per_note)} each"
    return ok("capacity.growth", text, value=round(grown.bytes_per_day), unit="bytes/day")


def _dates(capacity: Capacity) -> Check:
    """Notes without a usable date count as bytes and not as growth."""
    if capacity.undated_notes is None:
        expected = capacity.depth == "quick"
        text = "the notes' dates were not read"
        return unknown("capacity.dates", text, FULL_DEPTH if expected else "", expected=expected)
    rest = f"of {show.count(capacity.notes or 0, 'note')}"
    return none_of(
        "capacity.dates",
        capacity.undated_notes,
        "notes",
        good="every note has a date",
        bad=f"{rest} have no date, or one before Discord or in the future",
        one=f"{rest} has no date, or one before Discord or in the future",
        hint="they are left out of the growth: look at their created_at, and at the clock",
    )


def _forecast(capacity: Capacity) -> Check:
    """The day the volume is full, as far as capacity knows it."""
    name = "capacity.forecast"
    if capacity.forecast is not None:
        return forecast(name, capacity.forecast, "")
    sized = capacity.free_bytes is not None
    if not sized:
        expected = capacity.settings.volume_mount is None
        return unknown(name, f"no forecast: {NO_SIZE}", SIZE_HINT, expected=expected)
    broken = capacity.depth == "full" and capacity.notes is None
    return unknown(name, f"no forecast: {capacity.growth_unknown}", expected=not broken)


def forecast(name: str, full: Forecast | None, reason: str) -> Check:
    """Given a forecast, or why there is none, judge it: the likely day fails, the early one warns.

    The early day is that of one case in ten.
    """
    if full is None:
        return unknown(name, f"no forecast: {reason}")
    details = {"value": round(full.likely_days), "unit": "days", "limit": FULL_WARN_DAYS}
    text = f"full in {_days(full.likely_days)}, between {_days(full.early_days)} and "
    text += f"{_days(full.late_days)} in 8 of 10 cases"
    hint = "grow the volume in Railway's dashboard: it takes a minute, and cannot be undone"
    if full.likely_days < FULL_FAIL_DAYS:
        return fail(name, text, hint, **{**details, "limit": FULL_FAIL_DAYS})
    if full.early_days < FULL_WARN_DAYS:
        return warn(name, text, hint, **details)
    if full.early_at is None:
        text = "not full within ten years at this pace"
    return ok(name, text, **details)


def _days(days: float | None) -> str:
    """Days ahead as people say them."""
    if days is None or days > 3650:
        return "more than ten years"
    return show.count(round(days), "day") if days < 730 else f"{days / 365.25:.0f} years"


def _reclaimable(capacity: Capacity) -> Check:
    size = capacity.reclaimable_bytes
    whole = capacity.size_bytes or capacity.used_bytes
    limit = max(RECLAIM_WARN_BYTES, round(whole * RECLAIM_WARN_RATIO))
    details = {"value": size, "unit": "bytes", "limit": limit}
    text = f"{show.size(size)} could be given back"
    if size > limit:
        hint = "see the table of what could be given back, the largest first"
        return warn("capacity.reclaimable", text, hint, **details)
    return ok("capacity.reclaimable", text, **details)


def _orphans(capacity: Capacity) -> Check:
    if capacity.orphans is None:
        expected = capacity.depth == "quick"
        text = "which index directories are in use was not read"
        return unknown("capacity.orphans", text, FULL_DEPTH if expected else "", expected=expected)
    size = show.size(capacity.bytes_of("chroma_orphans"))
    return none_of(
        "capacity.orphans",
        capacity.orphans,
        "directories",
        good="every index directory is in use",
        bad=f"index directories belong to no collection: {size}, dead and billed",
        one=f"index directory belongs to no collection: {size}, dead and billed",
        hint="with the bot stopped: nescord-ops clean segments --apply",
    )


def _bloat(capacity: Capacity) -> Check:
    size = capacity.sparse_bytes
    details = {"value": size, "unit": "bytes", "limit": 0}
    if size:
        text = f"{capacity.sparse_file} claims {show.size(size)} more than it holds: not billed, "
        hint = "copy it only with tools that keep holes; rebuild the collection when convenient"
        return warn("capacity.bloat", text + "but a plain copy fills the volume", hint, **details)
    return ok("capacity.bloat", "files claim what they hold", **details)
