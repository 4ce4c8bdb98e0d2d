"""Turn an executed notebook and its findings into one HTML file.

One file, no request, no script: a Content-Security-Policy stands behind the escaping. What may
come from the volume (streams, errors, plain text, titles) is escaped here; `text/html` outputs
are `show`'s, which escapes every string itself; figures are images, so nothing in them runs.
"""

from __future__ import annotations

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

from nescord_ops import __version__, checks, firstscreen, settings, show, todo
from nescord_ops.checks import MIME, Check, Status

CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
TEMPLATES = Path(__file__).with_name("templates")
PREFERRED = ("text/html", "image/svg+xml", "image/png", "text/plain")


def page(content: Any, document: Mapping[str, Any]) -> str:
    """Given an executed notebook and its JSON document, return the page."""
    story = _without_findings(content)
    seen = {**_banner(document), "title": _title(story) or document["name"], "parts": _parts(story)}
    resources = {"csp": CSP, "style": style(), "page": seen}
    text, _ = _exporter().from_notebook_node(story, resources=resources)
    assert isinstance(text, str)
    if document.get("demo"):
        place = html.escape(str(document["settings"].get("app_dir")))
        text = text.replace(f"--app-dir {place} ", f"--app-dir {settings.SAMPLE} ")
    text = text.replace("<pre>", '<pre tabindex="0">')  # it may scroll: reached with the keyboard
    return show.dated(text, _made_at(document))


def warm_up() -> None:
    """Render an empty page, so that the imports and the template are there when they are needed.

    It takes 0.5 s, as long as a kernel's start.
    """
    import nbformat

    cells = [nbformat.v4.new_markdown_cell("-"), nbformat.v4.new_code_cell("1")]
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    empty = {"name": "", "status": Status.UNKNOWN, "generated_at": moment, "tool_version": ""}
    page(nbformat.v4.new_notebook(cells=cells), {**empty, "settings": {}, "checks": [], "data": {}})


def _banner(document: Mapping[str, Any]) -> dict[str, Any]:
    """What stands above the story: the verdict, three numbers, what to do, and all checks."""
    seen = findings(document)
    name, status = document["name"], Status(document["status"])
    sentence, _, counts = f"{checks.headline(seen, name)}".partition(". ")
    changed = _changes(document, seen)
    shown = status
    if changed["unseen"] and not status.exit_code:
        shown, sentence = Status.UNKNOWN, todo.NOT_AGAIN
    now = _made_at(document)
    facts = (document["data"], seen, now, changed["unseen"], changed["began"])
    three = firstscreen.numbers(name, *facts)
    return {
        "name": name,
        "status": shown.value,
        "symbol": show.SYMBOLS[shown],
        "word": f"{sentence}.",
        "counts": counts,
        "volume": document["settings"].get("database", ""),
        "numbers": [
            {
                "number": number,
                "symbol": show.SYMBOLS[number.status],
                "clock": show.clock(number.at) if number.at else "",
            }
            for number in three
        ],
        **todo.steps(document, seen, three, changed["unseen"]),
        **changed,
        "table": todo.rows(seen, todo.tool(document)) if seen else "",
        "total": len(seen),
        "gone": settings.SAMPLE_GONE if document.get("demo") else "",
        "again": settings.SAMPLE_AGAIN,
        "generated_at": document["generated_at"],
        "time": show.moment(now),
        "json": _link(f"{name}.json"),
        "notebook": _link(f"{name}.ipynb"),
        "version": document["tool_version"],
    }


def _made_at(document: Mapping[str, Any]) -> datetime:
    """When a document was made, in UTC; a time without a zone is taken as UTC."""
    made = datetime.fromisoformat(document["generated_at"])
    return made.replace(tzinfo=made.tzinfo or UTC).astimezone(UTC)


def _changes(document: Mapping[str, Any], seen: Iterable[Check]) -> dict[str, Any]:
    """Since when it fails, and what is different from the run before; see the report's contract."""
    changes = document.get("changes")
    if not changes:
        return {"changes": None, "since": "", "unseen": 0, "began": None}
    failed = {check.name for check in seen if check.status is Status.FAIL}
    unseen = changes.get("unseen") or {}
    times = [at for name, at in (changes.get("since") or {}).items() if name in failed]
    since = todo.since(*times)
    healthy, previous = todo.since(changes.get("last_healthy")), todo.since(changes.get("previous"))
    said = ""
    if failed and since:
        new = not changes.get("previous") or failed <= {*changes["new"]}
        said = "First seen now" if new else f"Failing since {since}"
        said += f"; last healthy run {healthy}." if healthy else "; no healthy run is known."
    elif unseen:
        began = todo.since(*(each.get("since") for each in unseen.values()))
        checked = show.count(len(unseen), "check")
        said = f"{checked} that failed ({', '.join(unseen)}) not looked at again"
        said += f"; failing since {began}" if began else ""
    elif failed and not previous:
        said = "Since when is not known: this is the first run that is kept."
    rows = [
        (
            each["label"],
            *(show.amount(each.get(key), each["unit"]) for key in ("before", "now")),
            _difference(each),
        )
        for each in changes.get("measures") or ()
    ]
    return {
        "since": said,
        "unseen": len(unseen),
        "began": firstscreen.moment(min(times, default="")),
        "changes": {
            "same": len(failed),
            "previous": previous,
            "link": _link("..", changes["previous_run"], f"{document['name']}.html")
            if changes.get("previous_run")
            else "",
            "new": [*(changes.get("new") or ())],
            "resolved": [*(changes.get("resolved") or ())],
            "table": show.table(("", "Before", "Now", "Change"), rows) if rows else "",
        },
    }


def _difference(measure: Mapping[str, Any]) -> show.Amount:
    """How much a measure grew, with its sign."""
    before, now = measure.get("before"), measure.get("now")
    if before is None or now is None:
        return show.amount(None, "")
    change = show.amount(abs(now - before), measure["unit"])
    sign = "+" if now > before else "−" if now < before else "±"
    return show.Amount(f"{sign}{change!s}", f"{sign}{change.exact}")


def findings(document: Mapping[str, Any]) -> list[Check]:
    """Given a JSON document, return its checks; raise one of three errors if they are none.

    KeyError where one has no status, TypeError for other fields, ValueError for other values.
    """
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


def _title(story: Any) -> str:
    """Take the title out of a notebook's first cell: it stands on top of the page."""
    for cell in story.cells[:1]:
        first, _, rest = cell.source.partition("\n")
        if cell.cell_type == "markdown" and first.startswith("# "):
            cell.source = rest.strip()
            return str(first[2:].strip())
    return ""


def _parts(story: Any) -> list[dict[str, str]]:
    """Mark the cells that begin a part of the story; return their titles for the contents."""
    found: list[dict[str, str]] = []
    for cell in story.cells:
        heading = re.match(r"## (.+)", cell.source) if cell.cell_type == "markdown" else None
        if heading:
            cell.metadata["part"] = f"part-{len(found) + 1}"
            title = re.sub(r"[`*]", "", heading[1]).strip()
            found.append({"id": cell.metadata["part"], "title": title})
    return found


@cache
def style() -> str:
    """The style sheet, comments and indentation removed."""
    return re.sub(r"\n\s*", "\n", TEMPLATES.joinpath("style.css").read_text("utf-8"))


@cache
def _environment() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(
        autoescape=True, loader=loader, trim_blocks=True, lstrip_blocks=True, finalize=_finalized
    )


def _finalized(value: object) -> object:
    """What a template shows: text with the exact values of its amounts."""
    ours = isinstance(value, str) and not hasattr(value, "__html__")
    return show.titled(f"{value}") if ours else value


def filled(template: str, **values: Any) -> str:
    """Given a template of a page that is no notebook, and its values, return the page."""
    common = {"csp": CSP, "style": show.Markup(style()), "version": __version__}
    return str(_environment().get_template(template).render(**values, **common))


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
        filters={
            **{"plain": _plain, "short": show.printable, "best": _best},
            **{"alternative": _alternative, "image": _image},
        },
    )


def _plain(text: object) -> str:
    """Text of unknown origin as HTML: no ANSI, no controls, of a progress bar its last state."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in f"{text}".split("\n"))
    return show.titled("\n".join(lines))


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
    noise = r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>"
    svg = re.sub(noise, "", str(data["image/svg+xml"]), flags=re.S)
    svg = re.sub(r">\s+<", "><", svg.strip())
    return "data:image/svg+xml," + urllib.parse.quote(svg, safe=" '()*+,-./:;=?@_{}")


def _link(*parts: str) -> str:
    """A relative link made of file names."""
    return "/".join(urllib.parse.quote(show.printable(part)) for part in parts)
