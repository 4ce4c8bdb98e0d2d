"""What results show of themselves in a notebook: a table, one short line, everything escaped."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from IPython.core.formatters import DisplayFormatter

from nescord_ops import results, show
from nescord_ops.checks import Findings
from nescord_ops.figures import Table
from nescord_ops.settings import Settings

PACKAGE = Path(show.__file__).parent
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\udcff&\"'"
# Definitions, handles and what a run is made of: nobody is given one to look at.
NO_RESULTS = {
    *("causes.Message", "causes.Sign", "causes.Cause", "faults.Fault", "rules.Rule", "rules.Site"),
    *("checkout.Checkout", "client.Answer", "logline.Line", "manifests.Row", "readback.Entry"),
    *("remote.Remote", "runner.Notebook", "runner.Stop", "runner.Executed", "storefile.Store"),
    *("firstscreen.Number", "member.Task", "spark.Trend"),
    *(
        "notify.Problem",
        "notify.Message",
        "notify.Target",
        "notify.Outlets",
    ),  # addresses are secret
    *("stores.Stores", "stream.File", "stream.Record", "swap.Swap", "waste.Rows", "waste.Word"),
}


def frozen() -> Iterator[tuple[str, type]]:
    """Every public frozen dataclass of the package."""
    for path in sorted(PACKAGE.glob("*.py")):
        if path.stem == "__main__":
            continue
        module = importlib.import_module(f"nescord_ops.{path.stem}")
        for name, found in vars(module).items():
            own = isinstance(found, type) and found.__module__ == module.__name__
            public = own and not name.startswith("_") and dataclasses.is_dataclass(found)
            if public and found.__dataclass_params__.frozen:
                yield f"{path.stem}.{name}", found


FROZEN = dict(frozen())
RESULTS = {name: found for name, found in FROZEN.items() if name not in NO_RESULTS}


def filled(kind: Any, depth: int = 0) -> Any:
    """Return a value of a type, with hostile text wherever text can be, and lists too long."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        names = {**vars(sys.modules[kind.__module__]), "Settings": Settings}
        hints = typing.get_type_hints(kind, names)
        return kind(**{f.name: filled(hints[f.name], depth + 1) for f in dataclasses.fields(kind)})
    if origin in (typing.Union, types.UnionType):
        return filled(arguments[0], depth)
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        many = 60 if depth < 2 else 2
        kinds = [arguments[0]] * many if arguments[-1] is ... else arguments
        return tuple(filled(each, depth + 1) for each in kinds)
    if origin in (frozenset, set):
        return origin({filled(arguments[0])})
    if origin in (dict, Mapping):
        return {filled(arguments[0]): filled(arguments[1], depth + 1)}
    if origin is Sequence:
        return [filled(arguments[0], depth + 1)] * 2
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    values = {str: HOSTILE, Path: Path("/", HOSTILE), datetime: datetime(2026, 1, 2, tzinfo=UTC)}
    values |= {int: 12_345_678, float: 0.25, bool: False, object: HOSTILE, Any: HOSTILE}
    return values.get(kind)  # None for a handle, such as a process


class Tags(HTMLParser):
    """The names of the elements in a piece of HTML, which must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.open.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def bundle(value: object) -> dict[str, Any]:
    """What Jupyter would be sent for a value."""
    formatter = DisplayFormatter()
    formatter.active_types = formatter.format_types
    formats, _ = formatter.format(value)
    return dict(formats)


def test_the_list_of_what_is_no_result_names_no_stranger() -> None:
    assert FROZEN.keys() >= NO_RESULTS
    assert {"verify.Verification", "inventory.Backup", "restore.Restored"} <= RESULTS.keys()


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_shows_itself_short_and_escaped(name: str) -> None:
    formats = bundle(filled(RESULTS[name]))
    shown = formats.get("text/html", formats.get("image/svg+xml"))
    assert shown, "derive it from results.Result"
    text = formats["text/plain"]
    assert "\x1b" not in text
    if name == "figures.Figure":
        return  # matplotlib made the picture
    if not issubclass(RESULTS[name], Findings | Table):  # those have a line a check or row
        assert len(text) <= 400
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert not Tags(shown).seen & {"script", "img", "iframe", "a", "style"}
    shown.encode("utf-8")
    assert len(shown) < 300_000


def test_fields_are_humanised_and_the_exact_value_is_on_hover() -> None:
    from nescord_ops.volume import Space

    space = Space(total_bytes=5_000_000_000, used_bytes=1_234_567, free_bytes=0)
    assert str(space).startswith("Space: Total 5 GB, Used 1.23 MB")
    shown = space._repr_html_()
    assert 'title="1,234,567 bytes">1.23 MB</td>' in shown


def test_a_listing_is_a_table_of_its_items_and_still_a_tuple() -> None:
    from nescord_ops.volume import Usage

    items = results.Listing(Usage(size, size, 1, 0) for size in range(1000, 1070))
    assert items == tuple(items)
    shown = items._repr_html_()
    assert shown.count("<tr><td") == results.ITEMS
    assert "The first 50 of 70" in shown
    assert "<td></td>" not in results.Listing()._repr_html_()
