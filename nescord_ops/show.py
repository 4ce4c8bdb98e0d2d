"""How values look to a person: bytes, dollars, ages, escaped text and small HTML tables.

Results keep exact numbers with their unit; only this module turns them into words. Everything
that is shown may come from the volume, so every string is escaped here.

An amount keeps its exact value in a sentence: in an f-string it is a mark, the number and its unit
between two control characters. `titled` turns a mark into short text with the exact value in its
title, `printable` into the short text alone. What is shown is made of the number in the mark: a
mark that comes from the volume is an amount that is written there, and nothing else.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nescord_ops.checks import Check, Status

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\](?:[^\x07\x1b]*+(?:\x07|\x1b\\))?|\x1b.")
_MARK = re.compile(r"\x0e(-?\d{1,20}(?:\.\d{1,20})?(?:e[-+]\d\d)?) (bytes|USD|s)\x0f")
_CONTROL = re.compile(
    rf"{_MARK.pattern}|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_NUMBER = ' class="number"'
_TIME = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d) UTC\b")
_VERBATIM = re.compile(r"<(/?)(?:pre|code|time|style|title)\b")
LONG, WIDE = 12, 4  # more rows are folded; more columns may have to be scrolled on a phone
SYMBOLS = {"ok": "✓", "warn": "▲", "fail": "✕", "unknown": "?"}


def printable(text: str) -> str:
    """Given text from the volume, return it without ANSI, controls and half characters."""
    return _MARK.sub(_short, _marked(text))


def titled(text: str) -> Markup:
    """Given text as `printable` takes it, return it as HTML, amounts with their exact values."""
    return Markup(_MARK.sub(_with_title, html.escape(_marked(f"{text}"))))


def _marked(text: str) -> str:
    text = _CONTROL.sub(lambda seen: seen[0] if seen[1] else "\ufffd", _ANSI.sub("", text))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def amounts(text: str) -> list[tuple[int | float, str]]:
    """The exact amounts in a sentence, each with its unit, in their order."""
    return [(_number(seen), seen[2]) for seen in _MARK.finditer(f"{text}")]


def exactly(text: str, amounts: str) -> Text:
    """Given a sentence without its exact values and a line for each of them, return it with them.

    A value that the sentence does not show in its place is left out.
    """
    said = ""
    for line in amounts.splitlines():
        if seen := _MARK.fullmatch(f"\x0e{line}\x0f"):
            before, short, after = text.partition(_short(seen))
            said, text = (f"{said}{before}{seen[0]}", after) if short else (said, text)
    return Text(said + text)


class Text(str):
    """A sentence as `printable` returns it; it keeps its exact values in f-strings and in HTML."""

    marked: str

    def __new__(cls, text: str) -> Text:
        marked = _marked(f"{text}")
        self = super().__new__(cls, _MARK.sub(_short, marked))
        self.marked = marked
        return self

    def __format__(self, spec: str) -> str:
        return format(str(self), spec) if spec else self.marked


class Amount(Text):
    """A humanised quantity with its exact value, which HTML shows on hover."""

    exact: str

    def __new__(cls, text: str, exact: str = "", mark: str = "") -> Amount:
        self = str.__new__(cls, text)
        self.exact = exact
        self.marked = mark if _MARK.fullmatch(mark) else text
        return self


def _exactly(value: int | float, unit: str, text: str) -> Amount:
    return Amount(text, f"{value:,} {unit}", f"\x0e{value} {unit}\x0f")


def _amount(seen: re.Match[str]) -> Amount:
    """The amount that a mark is a mark of."""
    return {"bytes": size, "USD": dollars, "s": span}[seen[2]](_number(seen))


def _number(seen: re.Match[str]) -> int | float:
    return int(seen[1]) if seen[1].lstrip("-").isdecimal() else float(seen[1])


def _short(seen: re.Match[str]) -> str:
    return str(_amount(seen))


def _with_title(seen: re.Match[str]) -> str:
    known = _amount(seen)
    return f'<span title="{known.exact}">{known!s}</span>'


def clipped(text: str, letters: int) -> str:
    """Given text from the volume, return it printable and at most `letters` long."""
    text = printable(text)
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def count(number: int, one: str, many: str = "") -> str:
    """Given a number and a noun, return both, the noun in the number that the number has."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def size(count: int | float | None) -> Amount:
    """Given bytes, return them as text in powers of 1000: 1_500_000 is `1.5 MB`."""
    if count is None:
        return Amount("unknown")
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    digits = ",.0f" if unit == "bytes" else ".3g" if abs(value) < 99.95 else ".0f"
    return _exactly(count, "bytes", f"{value:{digits}} {unit}")


def dollars(amount: float | None) -> Amount:
    """Given US dollars, return text with cents, and more digits below one cent."""
    if amount is None:
        return Amount("unknown")
    digits = 2 if amount == 0 or abs(amount) >= 0.005 else 1 - math.floor(math.log10(abs(amount)))
    text = f"{abs(amount):,.{digits}f}"
    text = f"{'-' if amount < 0 else ''}${text.rstrip('0') if digits > 2 else text}"
    return _exactly(amount, "USD", text)


def age(seconds: float | None) -> Text:
    """Given an age in seconds, return it as `3 h ago`; the future is said to be one."""
    if seconds is None:
        return Text("never")
    return Text(f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}")


def span(seconds: float) -> Amount:
    """Given a length of time in seconds, return it in the unit that fits, without its sign."""
    steps = ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h"), (math.inf, 86_400, "days"))
    step, unit = next((step, unit) for limit, step, unit in steps if abs(seconds) < limit)
    return _exactly(seconds, "s", f"{abs(seconds) / step:,.0f} {unit}")


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
    if unit == "days" and abs(value) < 2 and value != round(value):
        return span(value * 86_400)
    number = f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
    return f"{number} {unit}".strip()


def badge(status: Status | str, word: str = "") -> str:
    """Return a status as HTML that differs in shape and word, not in colour alone."""
    symbol = SYMBOLS[str(status)]
    return f'<span class="badge {status}">{symbol} {html.escape(word or str(status))}</span>'


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    css: str = "",
    fold: bool = True,
) -> str:
    """Given columns and rows, return an HTML table, every cell escaped.

    A cell that is a `Markup` is taken as it is; numbers are aligned to the right. Of more than LONG
    rows the first are shown and the others folded, unless `fold` is off.
    """
    cells = [[*row] for row in rows]
    if not fold or len(cells) <= LONG:
        return _table(columns, cells, caption, css)
    shown, rest = cells[: LONG // 2], cells[LONG // 2 :]
    more = f"<summary>{len(rest):,} more rows</summary>{_table(columns, rest, '', css)}"
    return f"{_table(columns, shown, caption, css)}<details>{more}</details>"


def _table(
    columns: Sequence[str], cells: Sequence[Sequence[object]], caption: str, css: str
) -> str:
    # a column with numbers has its heading above them
    numbers = {n for row in cells for n, cell in enumerate(row) if _is_number(cell)}
    head = "".join(
        f'<th scope="col"{_NUMBER if n in numbers else ""}>{html.escape(printable(column))}</th>'
        for n, column in enumerate(columns)
    )
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in cells)
    body = body or f'<tr><td colspan="{len(columns)}">none</td></tr>'
    title = f"<caption>{titled(caption)}</caption>" if caption else ""
    # a wide one scrolls on a phone, and must be reached with the keyboard then
    wide = ' tabindex="0" role="group" aria-label="Table"' if len(columns) >= WIDE else ""
    return (
        f'<div class="scroll"{wide}><table class="ops {html.escape(css)}">{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class Markup(str):
    """HTML that this package made and escaped itself, as jinja2 knows it too."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


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
        title = f' title="{html.escape(cell.exact)}"' if cell.exact else ""
        return f"<td{_NUMBER}{title}>{html.escape(cell)}</td>"
    css = _NUMBER if _is_number(cell) else ""
    text = f"{cell:,}" if isinstance(cell, int) else "" if cell is None else f"{cell}"
    return f"<td{css}>{titled(text)}</td>"


def checks_table(title: str, status: Status, checks: Iterable[Check]) -> str:
    """Return the checks as HTML, worst first: what was seen, what to do; good ones folded."""
    ranked = _ranked(checks)
    bad = [check for check in ranked if not (check.status == "ok" or check.expected)]
    good = [check for check in ranked if check.status == "ok" or check.expected]
    heading = f"{badge(status)} <strong>{titled(title)}</strong>"
    if not bad:
        return f"<details><summary>{heading}</summary>{checks_rows(good)}</details>"
    table = f"<p>{heading}</p>{checks_rows(bad)}"
    if not good:
        return table
    unseen = sum(check.expected for check in good)
    counts = ((len(good) - unseen, "ok"), (unseen, "not checked"))
    words = ", ".join(f"{number} {word}" for number, word in counts if number)
    return f"{table}<details><summary>{words}</summary>{checks_rows(good)}</details>"


def checks_rows(checks: Iterable[Check]) -> str:
    """Return a table of the checks, worst first; those that say the same are one row."""
    rows = [
        (
            Markup(badge(check.status, "not checked" if check.expected else "")),
            Markup(_names(names)),
            Markup(
                titled(check.summary)
                + (f'<div class="hint">→ {titled(check.hint)}</div>' if check.hint else "")
            ),
        )
        for check, names in alike(_ranked(checks))
    ]
    return table(("Status", "Check", "What was seen"), rows, css="checks", fold=False)


def alike(checks: Iterable[Check]) -> list[tuple[Check, list[str]]]:
    """Given checks, return the first of those that say the same with the names of all of them.

    Where one cause keeps twenty checks from being made, they are one line. Only unknowns are taken
    together: what was seen is a line each.
    """
    found: dict[object, tuple[Check, list[str]]] = {}
    for check in checks:
        alone = check.status != "unknown"
        same = id(check) if alone else (check.summary, check.hint, check.expected)
        found.setdefault(same, (check, []))[1].append(check.name)
    return list(found.values())


def dated(page: str, now: datetime) -> str:
    """Given HTML, return it with `, 3 h ago` behind every time in UTC that its text names.

    `now` is when the page was made. Code, and what is marked as a time already, stays as it is.
    """
    parts, within = re.split(r"(<[^>]*>)", page), 0
    for place, part in enumerate(parts):
        if part.startswith("<"):
            verbatim = _VERBATIM.match(part)
            within += (-1 if verbatim[1] else 1) if verbatim else 0
        elif not within:
            parts[place] = _TIME.sub(lambda seen: _ago(seen, now), part)
    return "".join(parts)


def _ago(seen: re.Match[str], now: datetime) -> str:
    try:
        when = datetime.fromisoformat(f"{seen[1]}T{seen[2]}+00:00")
    except ValueError:
        return seen[0]
    return clock(when, f", {age((now - when).total_seconds())!s}")


def clock(when: datetime, more: str = "") -> str:
    """A time as HTML, in UTC to the minute, and `more` that is said of it."""
    stamp = when.astimezone(UTC).isoformat(timespec="seconds")
    return f'<time datetime="{stamp}">{moment(when)}{more}</time>'


def _ranked(checks: Iterable[Check]) -> list[Check]:
    from nescord_ops.checks import WORST_FIRST

    return sorted(checks, key=lambda check: (WORST_FIRST.index(check.status), check.expected))


def _names(names: Sequence[str]) -> str:
    codes = [f"<code>{html.escape(printable(name))}</code>" for name in names]
    if len(codes) == 1:
        return codes[0]
    return f"<details><summary>{len(codes)} checks</summary>{'<br>'.join(codes)}</details>"
