"""What every frozen result shows of itself to a person: its fields, humanised and escaped."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any, TypeVar

from nescord_ops.show import SYMBOLS, Markup, amount, badge, clipped, moment, table

ITEMS = 50  # of a list that a result holds
CELL_LETTERS = 1000
LINE_LETTERS = 300
# A word in a field's name, and the unit that it says.
UNITS = {"bytes": "bytes", "usd": "USD", "seconds": "s", "days": "days"}
_T = TypeVar("_T")


class Result:
    """What every frozen result shows of itself to a person: its fields, humanised and escaped.

    The base of the results that have no table of their own. HTML has the exact values in titles;
    text is one short line. For programs there are the fields.
    """

    __slots__ = ()

    def __str__(self) -> str:
        shown = ((field.name, getattr(self, field.name)) for field in _fields(self))
        parts = [f"{_words(name)} {_text(name, value)}" for name, value in shown if value]
        return clipped(f"{type(self).__name__}: {', '.join(parts)}", LINE_LETTERS)

    def _repr_html_(self) -> str:
        return _fields_table(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": clipped(str(self), CELL_LETTERS), "text/html": self._repr_html_()}


class Listing(tuple[_T, ...]):
    """A tuple of results that a notebook shows as one table."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(str(item) for item in self[:ITEMS]) or "none"

    def _repr_html_(self) -> str:
        return _items_table(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": clipped(str(self), CELL_LETTERS), "text/html": self._repr_html_()}


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
            return clipped(", ".join(str(_text("", item)) for item in value[:ITEMS]), CELL_LETTERS)
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
        return clipped(str(value), CELL_LETTERS)
    if isinstance(value, str | PurePath):
        return clipped(str(value), CELL_LETTERS)
    return type(value).__name__


def _is_result(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _words(name: str) -> str:
    """Given a field's name, return its words without the unit, which the value has."""
    words = [word for word in name.split("_") if word not in ("bytes", "seconds", "usd")]
    return " ".join(words or [name]).capitalize()
