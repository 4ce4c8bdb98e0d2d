"""A series of measurements as a small line, and in words that say the same.

The line is inline SVG made here: it holds numbers only, needs no script and takes its colours from
the page. Where a run could not look, the line is broken.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from datetime import datetime

from nescord_ops import show

WIDTH, HEIGHT, MARGIN = 240, 48, 4  # of the drawing, in its own units
POINTS = 60  # as many as the eye tells apart

Point = tuple[datetime, float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Trend:
    """A measurement over time: `now` and `words` are text, `svg` is HTML, or empty."""

    label: str
    now: str
    words: str
    svg: show.Markup


def trend(label: str, unit: str, points: Sequence[Point], *, missing: str) -> Trend:
    """Given points in order of time (None: could not look), return line and words.

    `unit` is one of `show.quantity`; `missing` is what to say, and do, where nothing was measured.
    """
    seen = [(at, value) for at, value in points if value is not None]
    if not seen:
        return Trend(label, "not measured", missing, show.Markup())
    (first_at, first), (last_at, last) = seen[0], seen[-1]
    now = _text(last, unit)
    words = f"{now} on {_day(last_at)}"
    if len(seen) == 1:
        words += ", the only measurement so far"
    else:
        low, high = (choose(value for _, value in seen) for choose in (min, max))
        words = f"{_text(first, unit)} on {_day(first_at)}, {words}"
        if low == high:
            words += f", the same in all {len(seen):,} runs"
        else:
            words += f"; lowest {_text(low, unit)}, highest {_text(high, unit)}"
    if points[-1][1] is None:
        words += f"; not looked at on {_day(points[-1][0])}"
    line = svg(points, f"{label}: {words}") if len(seen) > 1 else show.Markup()
    return Trend(label, now, show.Text(words), line)


def svg(points: Sequence[Point], alternative: str) -> show.Markup:
    """Given points in order of time and a text alternative, return the line as inline SVG.

    At most POINTS are drawn, the highest of each stretch of time; at least one must have a value.
    """
    seen = thinned(points)
    values = [value for _, value in seen if value is not None]
    low, high = min(values), max(values)
    start, end = seen[0][0].timestamp(), seen[-1][0].timestamp()
    path, x, y = "", 0, 0
    gap = True
    for at, value in seen:
        if value is None:
            gap = True
            continue
        part = (at.timestamp() - start) / (end - start) if end > start else 1.0
        x = round(MARGIN + part * (WIDTH - 2 * MARGIN))
        rise = (value - low) / (high - low) if high > low else 0.5
        y = round(HEIGHT - MARGIN - rise * (HEIGHT - 2 * MARGIN))
        path += f"M{x},{y}h0" if gap else f"L{x},{y}"
        gap = False
    text = html.escape(show.printable(alternative))
    return show.Markup(
        f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text}">'
        f'<path d="{path}"/><circle cx="{x}" cy="{y}" r="3"/></svg>'
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """Given points in order of time, return at most POINTS + 1: peaks, and the last one."""
    if len(points) <= POINTS:
        return list(points)
    start = points[0][0]
    step = (points[-1][0] - start) / POINTS
    found: dict[int, Point] = {}
    for at, value in points[:-1]:
        number = int((at - start) / step) if step else 0
        _, highest = found.get(number, (at, None))
        if number not in found or (value is not None and (highest is None or value > highest)):
            found[number] = (at, value)
    return [*found.values(), points[-1]]


def _text(value: float, unit: str) -> str:
    return show.quantity(int(value) if value == int(value) and not unit else value, unit)


def _day(at: datetime) -> str:
    return show.moment(at).partition(" ")[0]
