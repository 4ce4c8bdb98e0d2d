"""Turn an executed notebook and its findings into one HTML file, and the runs into an index.

One file, no request, no script: a Content-Security-Policy stands behind the escaping. What may
come from the volume (streams, errors, plain text, titles) is escaped here; `text/html` outputs
are `show`'s, which escapes every string itself; figures are images, so nothing in them runs.
"""

from __future__ import annotations

import base64
import copy
import html
import re
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from nescord_ops import __version__, checks, show
from nescord_ops.checks import MIME, Check, Status
from nescord_ops.history import RunRow

CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
TEMPLATES = Path(__file__).with_name("templates")
PREFERRED = ("text/html", "image/svg+xml", "image/png", "text/plain")
TODO_LIMIT = 8


def page(content: Any, document: Mapping[str, Any]) -> str:
    """Given an executed notebook and its JSON document, return the page."""
    resources = {"csp": CSP, "style": _style(), "page": _banner(document)}
    text, _ = _exporter().from_notebook_node(_without_findings(content), resources=resources)
    assert isinstance(text, str)
    return text


def index(runs: Iterable[RunRow]) -> str:
    """Given the runs, newest first, return the index page; its links are relative."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(TEMPLATES))
    return environment.get_template("runs.html.j2").render(
        runs=[_row(run) for run in runs],
        csp=CSP,
        style=_Safe(_style()),
        version=__version__,
    )


def warm_up() -> None:
    """Render an empty page, so that the imports and the template are there when they are needed.

    It takes 0.5 s, as long as a kernel's start.
    """
    import nbformat

    cells = [nbformat.v4.new_markdown_cell("-"), nbformat.v4.new_code_cell("1")]
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    empty = {"name": "", "status": Status.UNKNOWN, "generated_at": moment, "tool_version": ""}
    page(nbformat.v4.new_notebook(cells=cells), {**empty, "settings": {}, "checks": []})


def _row(run: RunRow) -> dict[str, Any]:
    """One line of the index, with everything but the badges still to be escaped."""
    pages = [
        {
            "badge": _Safe(show.badge(page.status)),
            "name": page.name,
            "headline": page.headline,
            "html": _link(run.stamp, f"{page.name}.html"),
            "json": _link(run.stamp, f"{page.name}.json"),
        }
        for page in run.pages
    ]
    return {
        "badge": _Safe(show.badge(run.status)),
        "generated_at": run.generated_at.isoformat(),
        "time": show.moment(run.generated_at),
        "demo": run.demo,
        "pages": pages,
    }


class _Safe(str):
    """HTML that this package made and escaped itself, as jinja2 knows it."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def _banner(document: Mapping[str, Any]) -> dict[str, Any]:
    """What stands above the story: the verdict, what to do, and the table of all checks."""
    seen = findings(document)
    status = Status(document["status"])
    title = checks.headline(seen)
    word, _, counts = title.partition(". ")
    ranked = [
        check
        for level in (Status.FAIL, Status.UNKNOWN, Status.WARN)
        for check in seen
        if check.status is level and not check.expected
    ]
    todo = [
        {"badge": show.badge(check.status), "summary": check.summary, "hint": check.hint}
        for check in ranked[:TODO_LIMIT]
    ]
    name = document["name"]
    return {
        "name": name,
        "status": status.value,
        "symbol": show.SYMBOLS[status],
        "word": word,
        "counts": counts,
        "volume": document["settings"].get("database", ""),
        "todo": todo,
        "more": len(ranked) - len(todo),
        "table": show.checks_table(title, status, seen),
        "open": bool(status.exit_code),
        "total": len(seen),
        "generated_at": document["generated_at"],
        "time": show.moment(datetime.fromisoformat(document["generated_at"])),
        "json": _link(f"{name}.json"),
        "notebook": _link(f"{name}.ipynb"),
        "version": document["tool_version"],
    }


def findings(document: Mapping[str, Any]) -> list[Check]:
    """Given a JSON document, return its checks; raise ValueError or TypeError if they are none."""
    found = [Check(**{**check, "status": Status(check["status"])}) for check in document["checks"]]
    if not all(map(_is_right, found)):
        raise ValueError("a check with a value of the wrong type")
    return found


def _is_right(check: Check) -> bool:
    """Whether a check that was read back has the types of one that was made."""
    texts = (check.name, check.summary, check.hint, check.unit)
    numbers = (n for n in (check.value, check.limit) if not (n is None or isinstance(n, str)))
    return all(isinstance(text, str) for text in texts) and all(
        isinstance(n, int | float) and abs(n) < sys.float_info.max for n in numbers
    )


def _without_findings(content: Any) -> Any:
    """The notebook without the findings' JSON, and without the table that the page shows on top."""
    content = copy.deepcopy(content)
    holders = []
    for cell in content.cells:
        for output in cell.get("outputs", ()):
            if output.get("data", {}).pop(MIME, None) is not None:
                holders.append(output)
    if holders:
        holders[-1].metadata["shown_above"] = True
    return content


@cache
def _style() -> str:
    """The style sheet, comments and indentation removed."""
    return re.sub(r"\n\s*", "\n", TEMPLATES.joinpath("style.css").read_text("utf-8"))


@cache
def _exporter() -> Any:
    from nbconvert.exporters.html import HTMLExporter
    from traitlets.config import Config

    config = Config()
    config.TagRemovePreprocessor.remove_cell_tags = {"remove"}
    return HTMLExporter(
        config=config,
        template_name="page",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
        filters={"plain": _plain, "best": _best, "alternative": _alternative, "image": _image},
    )


def _plain(text: object) -> str:
    """Text of unknown origin as HTML: no ANSI, no controls, of a progress bar its last state."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in str(text).split("\n"))
    return html.escape(show.printable("\n".join(lines)))


def _best(data: Mapping[str, Any]) -> str:
    """The MIME type that a page shows of an output; empty where there is none."""
    return next((kind for kind in PREFERRED if kind in data), "")


def _alternative(output: Any, cell: Any) -> str:
    """A figure's text alternative.

    The output's metadata {"image/svg+xml": {"alt": …}} or {"alt": …}, else the cell's metadata
    {"alt": …}, else the output's own plain text, as long as that is not an object's repr.
    """
    kind = _best(output.data)
    metadata = output.get("metadata", {})
    text = str(output.data.get("text/plain", ""))
    candidates = (
        metadata.get(kind, {}).get("alt"),
        metadata.get("alt"),
        cell.metadata.get("alt"),
        "" if text.startswith("<") else text,
    )
    return str(next(filter(None, candidates), "Figure without a description"))


def _image(data: Mapping[str, Any]) -> str:
    """An output's picture as a data URI; an SVG in an `img` can neither run nor load anything."""
    if _best(data) == "image/png":
        return "data:image/png;base64," + re.sub(r"[^A-Za-z0-9+/=]", "", str(data["image/png"]))
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", _svg(data), flags=re.S)
    svg = re.sub(r">\s+<", "><", svg.strip())
    return "data:image/svg+xml," + urllib.parse.quote(svg, safe=" '()*+,-./:;=?@_{}")


def _svg(data: Mapping[str, Any]) -> str:
    value = data["image/svg+xml"]
    return value if isinstance(value, str) else base64.b64decode(value).decode("utf-8", "replace")


def _link(*parts: str) -> str:
    """A relative link made of file names."""
    return "/".join(urllib.parse.quote(show.printable(part)) for part in parts)
