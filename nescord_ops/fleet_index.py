"""The page above the reports of a fleet: one verdict, what to do, and a line for every volume."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nescord_ops import checks, overlap, render, show, todo
from nescord_ops.checks import Status
from nescord_ops.errors import ReportError

if TYPE_CHECKING:
    from nescord_ops.fleet import Fleet
    from nescord_ops.member import Outcome
    from nescord_ops.notify import Message


def headline(volumes: Sequence[Outcome]) -> str:
    """Given what became of the volumes, return the verdict in one sentence, then the counts."""
    status = checks.worst(each.status for each in volumes)
    seen = (page.headline.partition(".")[0] for each in volumes for page in each.pages)
    whole = not any(words.endswith("in what was looked at") for words in seen)
    opening = {
        Status.OK: "All healthy." if whole else "Nothing wrong in what was looked at.",
        Status.WARN: "Healthy, with warnings." if whole else "Warnings in what was looked at.",
        Status.FAIL: "Not safe.",
        Status.UNKNOWN: "Could not check.",
    }[status]
    words = {
        Status.FAIL: "failed",
        Status.UNKNOWN: "not checked",
        Status.WARN: "with warnings",
        Status.OK: "ok",
    }
    count = Counter(each.status for each in volumes)
    parts = ", ".join(f"{count[level]} {word}" for level, word in words.items() if count[level])
    return f"{opening} {show.count(len(volumes), 'volume')}: {parts}."


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold a fleet's directory for one run; raise ReportError if another one is at work there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with overlap.alone(out):
            yield
    except OSError as error:
        raise ReportError(
            f"the fleet's index cannot be written: {error}",
            "make room or get permission to write there, or name another directory with --out",
        ) from error


def write(made: Fleet) -> None:
    """Put `fleet.json` and `index.html` in place, each at once."""
    out = made.index.parent
    texts = {
        overlap.FLEET: json.dumps(made.to_dict(), ensure_ascii=False, indent=1) + "\n",
        "index.html": page(out, made.volumes, made.generated_at),
    }
    for name, text in texts.items():
        new = out / f"{overlap.BUILDING}{name}"
        new.write_bytes(text.encode("utf-8", "backslashreplace"))
        new.replace(out / name)


def verdicts(out: Path) -> dict[str, str]:
    """The volumes' verdicts of the last run in a fleet's directory; none if none can be read."""
    try:
        document = json.loads((out / overlap.FLEET).read_bytes())
        return {each["name"]: Status(each["status"]).value for each in document["volumes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def message(made: Fleet) -> Message:
    """Given a fleet's run, return the one message that tells of it."""
    from nescord_ops.notify import Message, Problem

    bad = [each for each in made.volumes if each.status.exit_code]
    opening = made.headline.partition(".")[0]
    recovered = not bad and any(Status(each).exit_code for each in made.before.values())
    found = [
        Problem(f"{each.name} {check.name}", check.status, check.summary, check.hint)
        for each in bad
        for check in each.checks
        if check.status.exit_code
    ]
    return Message(
        made.status,
        f"{opening}: {', '.join(each.name for each in bad)}" if bad else opening,
        problems=found,
        page=str(made.index),
        about=made.headline.partition(". ")[2],
        changed=any(made.before.get(each.name, "ok") != each.status for each in made.volumes),
        recovered=recovered,
    )


def page(out: Path, volumes: Sequence[Outcome], at: datetime) -> str:
    """Given what became of the volumes, worst first, return the page; its links are relative."""
    status = checks.worst(each.status for each in volumes)
    word, _, counts = headline(volumes).partition(". ")
    rows = [_row(out, each) for each in volumes]
    wanting = [row for row in rows if row["todo"]]
    text = render.filled(
        "fleet.html.j2",
        status=status.value,
        symbol=show.SYMBOLS[status],
        word=word,
        counts=counts,
        todo=wanting[: todo.TODO_LIMIT],
        more=len(wanting) - todo.TODO_LIMIT,
        volumes=rows,
        generated_at=at.isoformat(),
        time=show.moment(at),
    )
    return show.dated(text, at)


def _row(out: Path, each: Outcome) -> dict[str, Any]:
    """One volume's line. What lies on another machine is named, and nothing links to it."""
    here = bool(each.stamp) and (out / each.name / each.stamp).is_dir()
    index = out / each.name / "index.html"
    folder = quote(each.name)
    pages = [
        {
            "badge": show.Markup(show.badge(page.status)),
            "name": page.name,
            "headline": page.headline,
            "link": f"{folder}/{quote(each.stamp)}/{quote(page.name)}.html" if here else "",
        }
        for page in each.pages
    ]
    return {
        "name": each.name,
        "status": each.status.value,
        "badge": show.Markup(show.badge(each.status)),
        "headline": each.headline,
        "link": f"{folder}/index.html" if index.is_file() else "",
        "elsewhere": each.host if each.stamp and not here else "",
        "since": each.since and each.since.isoformat(),
        "since_time": show.moment(each.since),
        "ran": bool(each.stamp),
        "looked_at": each.looked_at and each.looked_at.isoformat(),
        "looked_at_time": show.moment(each.looked_at),
        "pages": pages,
        "todo": each.checks[:1] if each.status.exit_code else (),
    }
