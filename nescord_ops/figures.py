"""Figures as SVG with a text alternative, legible on light and on dark paper.

matplotlib is imported when a figure is drawn, never by `import nescord_ops.figures`. Text stays
text (selectable, small files) and all colours are of middle lightness on a transparent ground,
because a page may invert them. The same result gives the same bytes. Nothing in a figure comes
from the volume but numbers and dates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from nescord_ops import show

if TYPE_CHECKING:
    from nescord_ops.capacity import Capacity
    from nescord_ops.cost import Cost
    from nescord_ops.logs import Log

BARS = 120
YEARS = range(2000, 2100)  # of a log; matplotlib has no room beside the first and the last year
WIDTH_INCHES = 5.6  # no wider, so that text is still legible on a phone
INK, FAINT = "#71777d", "#9aa0a6"
BLUE, TEAL, AMBER, RED = "#3b86b8", "#2f9583", "#b5842c", "#c25548"
COLOURS = {"database": BLUE, "chroma": TEAL, "bot": AMBER, "our": AMBER}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nescord-ops",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
}
_NOISE = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """A picture and what it says in words, for those who cannot see it and for terminals."""

    svg: str
    alt: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, str]]:
        data = {"image/svg+xml": self.svg, "text/plain": show.printable(self.alt)}
        return data, {"alt": f"{self.alt}"}


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A small table that shows itself, every cell escaped; see `show.table`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        lines = [self.columns, *self.rows]
        text = "\n".join("  ".join(show.printable(str(cell)) for cell in line) for line in lines)
        return {
            "text/html": show.table(self.columns, self.rows, caption=self.caption),
            "text/plain": f"{show.printable(self.caption)}\n{text}".strip(),
        }


def volume(capacity: Capacity) -> Figure:
    """What fills the volume: one bar a component, the largest on top."""
    parts = [c for c in capacity.components if c.on_volume and c.allocated_bytes]
    said = ", ".join(f"{c.label} {show.size(c.allocated_bytes)}" for c in parts) or "nothing"
    of = f" of {show.size(capacity.size_bytes)}" if capacity.size_bytes else ""
    with _canvas("What fills the volume", 0.75 + 0.3 * max(1, len(parts))) as (axes, draw):
        sizes = [c.allocated_bytes for c in parts]
        colours = [COLOURS.get(c.name.split("_")[0], FAINT) for c in parts]
        labels = [c.label for c in parts]
        bars = axes.barh(labels, sizes, color=colours, height=0.62)
        axes.bar_label(bars, [show.size(size) for size in sizes], padding=4, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, max(sizes, default=1) * 1.15)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return draw(f"{show.size(capacity.used_bytes)}{of} used: {said}.")


def growth(capacity: Capacity) -> Figure:
    """Bytes on the volume so far, and the next twelve months with an 80 % band and the limit."""
    grown, start = capacity.growth, capacity.used_bytes
    title = "Growth and forecast"
    if grown is None:
        return _empty(title, f"No forecast: {capacity.growth_unknown}.")
    ahead = [365 * step / 24 for step in range(25)]
    dates = [capacity.measured_at + timedelta(days=days) for days in ahead]
    low, likely, high = zip(
        *([start + added for added in grown.expected(days)] for days in ahead), strict=True
    )
    top = max(high[-1], *(value for _, value in grown.points))
    divisor, unit = _scale(top)
    limit = None if capacity.free_bytes is None else start + capacity.free_bytes
    shown = limit if limit and limit <= 3 * top else None  # a far limit would flatten the curve
    with _canvas(title, 3.2) as (axes, draw):
        past, sizes = zip(*grown.points, strict=True)
        axes.plot(past, _over(sizes, divisor), color=BLUE, linewidth=1.8)
        axes.fill_between(
            dates, _over(low, divisor), _over(high, divisor), color=TEAL, alpha=0.25, linewidth=0
        )
        axes.plot(dates, _over(likely, divisor), color=TEAL, linewidth=1.6, linestyle=(0, (5, 3)))
        if shown:
            place = (grown.points[0][0], shown / divisor)
            axes.axhline(shown / divisor, color=RED, linewidth=1.2)
            axes.annotate("full", place, (2, 3), textcoords="offset points", color=RED)
        _time_axis(axes)
        axes.set_ylabel(unit)
        axes.set_ylim(0, max(top, shown or 0) / divisor * 1.12)
        beyond = f" The volume is full at {show.size(limit)}." if limit else ""
        return draw(
            f"{show.size(start)} today, growing by {show.size(grown.bytes_per_day)} a day; in"
            f" twelve months between {show.size(low[-1])} and {show.size(high[-1])}, likely"
            f" {show.size(likely[-1])}.{beyond}"
        )


def projection(cost: Cost) -> Figure:
    """The bill of the next twelve months at the given price, with its band, and at list price."""
    title = "Cost over the next twelve months"
    if not cost.projection:
        return _empty(title, f"No projection: {cost.growth_unknown}.")
    months = [month.month for month in cost.projection]
    last = cost.projection[-1]
    given = [month.usd for month in cost.projection]
    listed = [month.list_usd for month in cost.projection]
    with _canvas(title, 3.0) as (axes, draw):
        low = [month.low_usd for month in cost.projection]
        high = [month.high_usd for month in cost.projection]
        axes.fill_between(months, low, high, color=BLUE, alpha=0.22, linewidth=0)
        axes.plot(months, given, color=BLUE, linewidth=1.8)
        axes.plot(months, listed, color=AMBER, linewidth=1.6, linestyle=(0, (5, 3)))
        for values, price, colour in (
            (given, cost.price, BLUE),
            (listed, cost.list_price, AMBER),
        ):
            text = f"at ${price.usd_per_gb_month:g}"
            place = (months[-1], values[-1])
            offset = {"textcoords": "offset points", "va": "center", "color": colour}
            axes.annotate(text, place, (5, 0), annotation_clip=False, **offset)
        axes.set_xlabel("months from now")
        axes.set_xticks(months[::3])
        _dollar_axis(axes, max([*high, *listed]))
        return draw(
            f"{show.dollars(given[0])} a month today and {show.dollars(last.usd)} in twelve months"
            f" (between {show.dollars(last.low_usd)} and {show.dollars(last.high_usd)}) at"
            f" ${cost.price.usd_per_gb_month:g} per GB-month; {show.dollars(last.list_usd)} at the"
            f" list price of ${cost.list_price.usd_per_gb_month:g}."
        )


def backups(cost: Cost) -> Figure:
    """What keeping one to ten backups as plain copies adds to the bill."""
    kept = cost.plain_copies
    misfit = next((copy.count for copy in kept if copy.fits is False), None)
    with _canvas("Plain copies of the data: cost a month", 2.8) as (axes, draw):
        counts = [copy.count for copy in kept]
        costs = [copy.usd for copy in kept]
        bars = axes.bar(counts, costs, color=BLUE, width=0.62)
        for bar, copy in zip(bars, kept, strict=True):
            if copy.fits is False:
                bar.set(facecolor="none", edgecolor=RED, linewidth=1.4)
        label = _dollar_format(max(costs))
        labels = [label(copy.usd) if copy.count in (1, 5, 10) else "" for copy in kept]
        axes.bar_label(bars, labels, padding=3, fontsize=9)
        axes.set_xticks(counts)
        axes.tick_params(length=0)
        axes.set_xlabel("copies kept" + ("" if misfit is None else "; outlined: do not fit"))
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        warning = "" if misfit is None else f" From {misfit} copies on the volume is too small."
        return draw(
            f"One copy of {show.size(kept[0].allocated_bytes)} costs {show.dollars(kept[0].usd)} a"
            f" month, ten cost {show.dollars(kept[-1].usd)}.{warning}"
        )


def errors(log: Log) -> Figure:
    """Errors and warnings over time, in at most BARS equal steps of whole hours."""
    title = "Errors and warnings over time"
    hours = [hour for hour in log.hours if hour.at.year in YEARS]
    if not hours:
        return _empty(title, "No line with a time that can be right was read.")
    first, last = hours[0].at, hours[-1].at
    began = max(first, log.first_at or first)
    ended = min(last + timedelta(hours=1), log.last_at or last)
    step = timedelta(hours=((last - first) // timedelta(hours=1)) // BARS + 1)
    bars = [first + step * number for number in range((last - first) // step + 1)]
    bad, meant = [0] * len(bars), [0] * len(bars)
    for hour in hours:
        place = (hour.at - first) // step
        bad[place] += hour.errors
        meant[place] += hour.warnings
    with _canvas(title, 2.6) as (axes, draw):
        of = {"width": step, "align": "edge"}
        axes.bar(bars, bad, color=RED, label="errors", **of)
        axes.bar(bars, meant, bottom=bad, color=AMBER, label="warnings, above them", **of)
        axes.legend(fontsize=8, frameon=False)
        axes.set_ylabel(f"in {step // timedelta(hours=1):,} h")
        axes.set_ylim(0, max(map(sum, zip(bad, meant, strict=True))) * 1.1 or 1)
        _time_axis(axes)
        worst = max(hours, key=lambda hour: (hour.errors, hour.warnings))
        drawn = sum(bad) + sum(meant)
        most = f"; most in the hour of {show.moment(worst.at)}" if drawn else ""
        if left := sum(hour.errors + hour.warnings for hour in log.hours) - drawn:
            most += f"; {left:,} more at times that cannot be right"
        return draw(
            f"{show.count(sum(bad), 'error')} and {show.count(sum(meant), 'warning')} from"
            f" {show.moment(began)} to {show.moment(ended)}{most}."
        )


@contextlib.contextmanager
def _canvas(title: str, height_inches: float) -> Iterator[tuple[Any, Callable[[str], Figure]]]:
    """Yield axes and the function that turns them into a Figure, given its words."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(title, loc="left", fontsize=11)

        def draw(alt: str) -> Figure:
            buffer = io.StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
            said = show.Text(alt)
            return Figure(_labelled(buffer.getvalue(), title, said), said)

        yield axes, draw


def _labelled(svg: str, title: str, alt: str) -> str:
    """The bare `<svg>` with a role, its title and its description as WAI-ARIA wants them."""
    svg = (
        _NOISE.sub("", svg).strip().replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    )
    svg = re.sub(r"\n\s*", "\n", svg)
    words = f"<title>{html.escape(title)}</title><desc>{html.escape(alt)}</desc>"
    opening, closing, rest = svg.partition(">")
    return f'{opening} role="img"{closing}{words}{rest}'


def _empty(title: str, reason: str) -> Figure:
    """A picture of nothing says why, in one line."""
    with _canvas(title, 0.9) as (axes, draw):
        axes.set_axis_off()
        axes.text(
            0, 0.5, textwrap.fill(show.printable(reason), 70), va="center", transform=axes.transAxes
        )
        return draw(reason)


def _scale(top: float) -> tuple[float, str]:
    """Given the largest number of bytes, return the divisor and the unit of an axis."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next(((size, unit) for size, unit in units if top >= size), (1.0, "bytes"))


def _over(values: Sequence[float], divisor: float) -> list[float]:
    return [value / divisor for value in values]


def _time_axis(axes: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    axes.grid(axis="y")


def _dollar_format(top: float, significant: int = 3) -> Callable[[float], str]:
    """Given the largest amount, return how every amount beside it is written: same digits."""
    digits = 2 if top >= 1 else min(9, significant - 1 - math.floor(math.log10(top or 1)))
    return lambda usd: f"${usd:,.{digits}f}"


def _dollar_axis(axes: Any, top: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    label = _dollar_format(top, 2)
    axes.set_ylim(0, (top or 1) * 1.12)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda usd, _: label(usd)))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
