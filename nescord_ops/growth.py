"""How fast the data grows, and when the volume is full: a random walk with drift.

The notes' own dates say how many were written each day, earlier reports say how full the volume
was. Either way the daily increments give a mean and a spread, and the forecast's uncertainty has
both parts: days differ from each other, and the mean itself is only an estimate. (The drift
method, with its prediction interval: Hyndman and Athanasopoulos, Forecasting: Principles and
Practice, 3rd edition, sections 5.2 and 5.5, otexts.com/fpp3.) A straight line through cumulative
sums would claim far too much precision, because each sum contains the one before.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from nescord_ops import show
from nescord_ops.results import Result

WINDOW_DAYS = 90  # what is older says little about the pace of today
MIN_DAYS = 14
MIN_RUNS = 5  # measurements on different days
HORIZON_DAYS = 3650
POINTS = 90  # as many as a figure can show
EARLIEST = "2015-05-13"  # the day Discord opened: no message is older
Z = 1.2816  # one date in ten is earlier, one in ten later (80 % interval)
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"

Point = tuple[datetime, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Notes(Result):
    """The notes by day: (midnight UTC, how many were written), oldest first.

    `undated` have a date that is no date, lies before Discord or in the future.
    """

    count: int
    undated: int
    by_day: tuple[tuple[datetime, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Growth(Result):
    """The pace over the last `days`: `bytes_per_day`, and the variance of one day around it.

    `source` is `notes` or `history`. `points` are (time, bytes on the volume) for the figure.
    """

    source: str
    since: datetime
    days: float
    bytes_per_day: float
    variance_per_day: float
    points: tuple[Point, ...]

    def expected(self, days: float) -> tuple[float, float, float]:
        """Given days ahead, return the bytes added by then: low, likely and high (80 %)."""
        likely = self.bytes_per_day * days
        margin = Z * math.sqrt(self.variance_per_day * (days + days * days / self.days))
        return max(0.0, likely - margin), likely, likely + margin


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast(Result):
    """When the volume is full: in days, and as dates where they lie within HORIZON_DAYS.

    One case in ten is earlier than `early`, one in ten later than `late`; `late_days` is None
    where the growth might as well be none.
    """

    early_days: float
    likely_days: float
    late_days: float | None
    early_at: datetime | None
    likely_at: datetime | None
    late_at: datetime | None


def read_notes(connection: sqlite3.Connection, now: datetime) -> Notes:
    """Given a connection to a copy, count `knowledge_notes` by the day of `created_at`.

    SQLite groups, and only days that can be true are kept, so memory does not grow with the notes.
    Raise sqlite3.DatabaseError if the table is missing or damaged.
    """
    (count,) = connection.execute("SELECT count(*) FROM knowledge_notes").fetchone()
    rows = connection.execute(
        "SELECT date(substr(created_at, 1, 10)) AS day, count(*) FROM knowledge_notes"
        " WHERE typeof(created_at) = 'text' AND substr(created_at, 1, 10) GLOB ?"
        " AND day BETWEEN ? AND ? GROUP BY day ORDER BY day",
        (_DAY, EARLIEST, f"{now + timedelta(days=1):%Y-%m-%d}"),
    )
    by_day = tuple(
        (datetime.fromisoformat(day).replace(tzinfo=UTC), written) for day, written in rows
    )
    return Notes(count, count - sum(written for _, written in by_day), by_day)


def from_notes(notes: Notes, bytes_per_note: float, used_bytes: int, now: datetime) -> Growth | str:
    """Given the notes by day and the size of one, return the growth, or why it is not known."""
    if not notes.by_day:
        return "no note has a usable date" if notes.count else "there are no notes yet"
    today = _midnight(now)
    first = min(notes.by_day[0][0], today)
    if (today - first).days < MIN_DAYS:
        return (
            f"the notes cover {show.count((today - first).days, 'day')}, and {MIN_DAYS} are needed"
        )
    written: dict[datetime, int] = {}
    for day, count in notes.by_day:
        written[min(day, today)] = written.get(min(day, today), 0) + count
    behind = sum(written.values())
    points = []
    for number in range((today - first).days + 1):
        day = first + timedelta(days=number)
        behind -= written.get(day, 0)
        points.append((day, max(0.0, used_bytes - bytes_per_note * behind)))
    return _fit("notes", points, "no note was written")


def from_history(series: Iterable[Point], used_bytes: int, now: datetime) -> Growth | str:
    """Given how full earlier runs found the volume, return the growth, or why it is not known."""
    by_day = {_midnight(at): value for at, value in sorted(series) if at < now}
    points = sorted({**by_day, _midnight(now): float(used_bytes)}.items())
    if len(points) == 1:
        return "no earlier report measured this volume"
    return _fit("history", points, "the volume did not fill")


def _fit(source: str, points: Sequence[Point], nothing: str) -> Growth | str:
    """Given (time, bytes) in order, return mean and variance of the last WINDOW_DAYS."""
    start = points[-1][0] - timedelta(days=WINDOW_DAYS)
    recent = [point for point in points if point[0] >= start]
    days = _days(recent[0], recent[-1])
    if len(recent) < MIN_RUNS or days < MIN_DAYS:
        made = f"{show.count(len(recent), 'day')} within {show.count(round(days), 'day')}"
        return f"reports of the last {WINDOW_DAYS} days were made on {made}, too few"
    pace = (recent[-1][1] - recent[0][1]) / days
    if pace <= 0:
        return f"{nothing} in the last {show.count(round(days), 'day')}"
    steps = [(_days(a, b), b[1] - a[1]) for a, b in itertools.pairwise(recent)]
    variance = sum((grown - pace * step) ** 2 / step for step, grown in steps) / (len(steps) - 1)
    return Growth(source, recent[0][0], days, pace, variance, _thinned(points))


def _days(start: Point, end: Point) -> float:
    return (end[0] - start[0]).total_seconds() / 86_400


def forecast(growth: Growth, free_bytes: int, now: datetime) -> Forecast:
    """Given the growth and the free bytes, return when they are used up.

    Solves pace·h ± Z·sqrt(variance·(h + h²/days)) = free for h, the days ahead.
    """
    pace, spread = growth.bytes_per_day, Z * Z * growth.variance_per_day
    square = pace * pace - spread / growth.days
    linear = 2 * pace * free_bytes + spread
    root = math.sqrt(max(0.0, linear * linear - 4 * square * free_bytes * free_bytes))
    early = 2 * free_bytes * free_bytes / (linear + root) if free_bytes else 0.0
    likely = free_bytes / pace
    late = (linear + root) / (2 * square) if square > 0 else None
    dates = (None if d is None else _date(d, now) for d in (early, likely, late))
    return Forecast(early, likely, late, *dates)


def _date(days: float, now: datetime) -> datetime | None:
    return now + timedelta(days=days) if days <= HORIZON_DAYS else None


def _midnight(when: datetime) -> datetime:
    return when.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most POINTS of many points, evenly chosen, both ends included."""
    if len(points) <= POINTS:
        return tuple(points)
    step = (len(points) - 1) / (POINTS - 1)
    return tuple(points[round(number * step)] for number in range(POINTS))
