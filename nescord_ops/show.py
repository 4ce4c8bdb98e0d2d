"""How values look to a person: bytes, dollars, ages, escaped text and small HTML tables.

Results keep exact numbers with their unit; only this module turns them into words. Everything
that is shown may come from the volume, so every string is escaped here.
"""

from __future__ import annotations

import dataclasses
import enum
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from nescord_ops.checks import Check, Status

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_NUMBER = ' class="number"'
_T = TypeVar("_T")
ITEMS = 50  # of a list that a result holds
CELL_LETTERS = 1000
LINE_LETTERS = 300
# A word in a field's name, and the unit that it says.
UNITS = {"bytes": "bytes", "usd": "USD", "seconds": "s", "days": "days"}
SYMBOLS = {"ok": "✓", "warn": "▲", "fail": "✕", "unknown": "?"}


def printable(text: str) -> str:
    """Given text from the volume, return it without ANSI, controls and half characters."""
    text = _CONTROL.sub("\ufffd", _ANSI.sub("", text))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def size(count: int | float | None) -> str:
    """Given bytes, return them as text in powers of 1000: 1_500_000 is `1.5 MB`."""
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "bytes":
        return f"{value:,.0f} {unit}"
    return f"{value:.3g} {unit}" if abs(value) < 99.95 else f"{value:.0f} {unit}"


def dollars(amount: float | None) -> str:
    """Given US dollars, return text with cents, and more digits below one cent."""
    if amount is None:
        return "unknown"
    digits = 2 if amount == 0 or abs(amount) >= 0.005 else 1 - math.floor(math.log10(abs(amount)))
    text = f"{abs(amount):,.{digits}f}"
    return f"{'-' if amount < 0 else ''}${text.rstrip('0') if digits > 2 else text}"


def age(seconds: float | None) -> str:
    """Given an age in seconds, return it as `3 h ago`; the future is said to be one."""
    if seconds is None:
        return "never"
    steps = ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h"), (math.inf, 86_400, "days"))
    step, unit = next((step, unit) for limit, step, unit in steps if abs(seconds) < limit)
    count = f"{abs(seconds) / step:.0f} {unit}"
    return f"{count} ago" if seconds >= 0 else f"in {count}"


def moment(when: datetime | None) -> str:
    """Given an aware time, return it in UTC to the minute."""
    return "never" if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def quantity(value: int | float | str | None, unit: str) -> str:
    """Given a value and its unit, return the text that a person reads."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"{value} {unit}".strip()
    if unit == "bytes":
        return size(value)
    if unit == "USD":
        return dollars(value)
    number = f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
    return f"{number} {unit}".strip()


def badge(status: Status | str, word: str = "") -> str:
    """Return a status as HTML that differs in shape and word, not in colour alone."""
    symbol = SYMBOLS[str(status)]
    return f'<span class="badge {status}">{symbol} {html.escape(word or str(status))}</span>'


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "", css: str = ""
) -> str:
    """Given columns and rows, return an HTML table, every cell escaped.

    A cell that is a `Markup` is taken as it is; numbers are aligned to the right.
    """
    cells = [[*row] for row in rows]
    # a column of numbers has its heading above the numbers
    first = cells[0] if cells else [""] * len(columns)
    head = "".join(
        f'<th scope="col"{_NUMBER if _is_number(cell) else ""}>{html.escape(column)}</th>'
        for column, cell in zip(map(printable, columns), first, strict=False)
    )
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in cells)
    title = f"<caption>{html.escape(printable(caption))}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="ops {html.escape(css)}">{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class Markup(str):
    """HTML that this package made and escaped itself."""

    __slots__ = ()


class Html:
    """A piece of HTML that a notebook shows; `text` is for everything else."""

    __slots__ = ("html", "text")

    def __init__(self, html: str, text: str = "") -> None:
        self.html = html
        self.text = text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text or self.html


class Amount(str):
    """A humanised quantity with its exact value, which HTML shows on hover."""

    exact: str

    def __new__(cls, text: str, exact: str) -> Amount:
        self = super().__new__(cls, text)
        self.exact = exact
        return self


def amount(value: int | float | None, unit: str) -> Amount:
    """Given a value and its unit, return it for a table: short on screen, exact in the title."""
    exact = "" if value is None else f"{value:,} {unit}".strip()
    return Amount(quantity(value, unit) or "unknown", exact)


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float | Amount)


def _cell(cell: object) -> str:
    if isinstance(cell, Markup):
        return f"<td>{cell}</td>"
    if isinstance(cell, Amount):
        return f'<td{_NUMBER} title="{html.escape(cell.exact)}">{html.escape(cell)}</td>'
    css = _NUMBER if _is_number(cell) else ""
    text = f"{cell:,}" if isinstance(cell, int) else printable(str("" if cell is None else cell))
    return f"<td{css}>{html.escape(text)}</td>"


def checks_table(title: str, status: Status, checks: Iterable[Check]) -> str:
    """Return the checks as HTML: worst first, what was seen, and what to do."""
    order = ("fail", "unknown", "warn", "ok")
    ranked = sorted(checks, key=lambda c: (order.index(c.status), c.expected))
    rows = [
        (
            Markup(badge(check.status, "not checked" if check.expected else "")),
            Markup(f"<code>{html.escape(check.name)}</code>"),
            Markup(
                html.escape(check.summary)
                + (f'<div class="hint">→ {html.escape(check.hint)}</div>' if check.hint else "")
            ),
        )
        for check in ranked
    ]
    heading = f"<p>{badge(status)} <strong>{html.escape(printable(title))}</strong></p>"
    return heading + table(("Status", "Check", "What was seen"), rows, css="checks")


class Result:
    """What every frozen result shows of itself to a person: its fields, humanised and escaped.

    The base of the results that have no table of their own. HTML has the exact values in titles;
    text is one short line. For programs there are the fields.
    """

    __slots__ = ()

    def __str__(self) -> str:
        shown = ((field.name, getattr(self, field.name)) for field in _fields(self))
        parts = [f"{_words(name)} {_text(name, value)}" for name, value in shown if value]
        return _cut(f"{type(self).__name__}: {', '.join(parts)}", LINE_LETTERS)

    def _repr_html_(self) -> str:
        return _fields_table(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": _cut(str(self), CELL_LETTERS), "text/html": self._repr_html_()}


class Listing(tuple[_T, ...]):
    """A tuple of results that a notebook shows as one table."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(str(item) for item in self[:ITEMS]) or "none"

    def _repr_html_(self) -> str:
        return _items_table(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": _cut(str(self), CELL_LETTERS), "text/html": self._repr_html_()}


def _fields(result: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(result) if field.repr]


def _fields_table(result: Any, inside: bool = False) -> str:
    rows = [
        (_words(field.name), _shown(field.name, getattr(result, field.name), inside))
        for field in _fields(result)
    ]
    return table(("", ""), rows, caption="" if inside else type(result).__name__, css="settings")


def _items_table(items: Sequence[Any]) -> str:
    """One row an item, the first ITEMS of them; what an item holds itself is counted."""
    names = [field.name for field in _fields(items[0])] if items else []
    rows = [[_text(name, getattr(item, name)) for name in names] for item in items[:ITEMS]]
    more = f"The first {ITEMS} of {len(items):,}" if len(items) > ITEMS else ""
    return table([_words(name) for name in names] or [""], rows, caption=more)


def _shown(name: str, value: Any, inside: bool) -> object:
    """Given a field, return a cell: nested results and lists as tables, one level deep."""
    if isinstance(value, enum.Enum) and value.value in SYMBOLS:
        return Markup(badge(value.value))
    if inside:
        return _text(name, value)
    if _is_result(value):
        return Markup(_fields_table(value, inside=True))
    if isinstance(value, tuple | list) and value:
        if all(_is_result(item) and type(item) is type(value[0]) for item in value):
            return Markup(_items_table(value))
        if not any(_is_result(item) or isinstance(item, tuple) for item in value):
            return _cut(", ".join(str(_text("", item)) for item in value[:ITEMS]), CELL_LETTERS)
    if isinstance(value, Mapping) and value:
        pairs = [(str(key), _text("", item)) for key, item in [*value.items()][:ITEMS]]
        return Markup(table(("", ""), pairs))
    return _text(name, value)


def _text(name: str, value: Any) -> object:
    """Given a field, return it as one cell: a number with its unit, a time, a count, short text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, int | float):
        if name == "mode":
            return f"{value:o}" if isinstance(value, int) else value
        if name in ("pid", "uid", "gid", "device"):
            return str(value)
        words = name.split("_")
        unit = next((unit for word, unit in UNITS.items() if word in words), "")
        return amount(value, unit) if unit or isinstance(value, float) else value
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, Mapping | tuple | list | set | frozenset):
        return f"{len(value):,} of them" if value else "none"
    if _is_result(value):
        return _cut(str(value), CELL_LETTERS)
    if isinstance(value, str | PurePath):
        return _cut(str(value), CELL_LETTERS)
    return type(value).__name__


def _is_result(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _words(name: str) -> str:
    """Given a field's name, return its words without the unit, which the value has."""
    words = [word for word in name.split("_") if word not in ("bytes", "seconds", "usd")]
    return " ".join(words or [name]).capitalize()


def _cut(text: str, letters: int) -> str:
    text = printable(text)
    return text if len(text) <= letters else f"{text[:letters]}…"
