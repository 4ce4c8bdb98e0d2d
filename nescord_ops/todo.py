"""What a page says to do, first of all: the worst, with what to type, and what is behind it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nescord_ops import checks, firstscreen, settings, show
from nescord_ops.checks import Check, Status

TODO_LIMIT = 8
NOT_AGAIN = "What failed was not looked at again"
_BARE = re.compile("nescord-ops (?!--app-dir )")  # a fix has the call that works from anywhere


def steps(
    document: Mapping[str, Any],
    seen: Iterable[Check],
    three: Sequence[firstscreen.Number],
    unseen: int,
) -> dict[str, Any]:
    """What to do: the worst first, with a command each; what has the same cause is behind it."""
    called = tool(document)
    levels = {
        level: [check for check in seen if check.status is level and not check.expected]
        for level in checks.WORST_FIRST[:-1]
    }
    first = next((level for level in levels if levels[level]), None)
    chosen = show.alike(levels[first]) if first else []
    changes = document.get("changes") or {}
    kept = {Status.FAIL: "since", Status.WARN: "warned"}.get(first or Status.OK, "")
    now = since(document["generated_at"])  # what began in this run has no "since"
    began = {name: at for name, at in (changes.get(kept) or {}).items() if since(at) != now}
    fixes = _fixes(document, chosen, began)
    fixed = {name for each in fixes for name in each["checks"]}
    rest = [(check, names) for check, names in chosen if check.name not in fixed]
    told: set[str] = set()
    todo = []
    for check, names in rest[:TODO_LIMIT]:
        hint, command = f"{check.hint}", firstscreen.command(check.hint, called)
        if command == hint.replace("nescord-ops", called, 1):
            hint = ""
        if command:
            hint = hint.replace(f" ({command.replace(called, 'nescord-ops', 1)})", "")
        todo.append(
            {
                "badge": show.badge(check.status),
                "summary": show.titled(check.summary),
                "hint": hint,
                "command": "" if command in told else command,
                "names": ", ".join(names),
                "since": since(began.get(check.name)),
            }
        )
        told.add(command)
    behind = [
        {"title": _behind(level, len(found)), "table": rows(found, called)}
        for level, found in levels.items()
        if found and level is not first
    ]
    word, remark, command = firstscreen.later(document["name"], three, called)
    asked = any(
        not check.hint.removeprefix("# ").startswith(checks.NOTHING_TO_DO) for check, _ in chosen
    )
    if unseen:
        word = f"{NOT_AGAIN}."
    if unseen and document["name"] in ("verify", "capacity", "troubleshoot", "deploy"):
        remark, command = "Look again at what failed:", f"{called} {document['name']}"
    elif asked and (document["name"] == "troubleshoot" or (fixes and not rest)):
        remark, command = "When it is done, look again:", f"{called} verify"
    elif asked:
        remark, command = "Causes, and their fixes as commands:", f"{called} troubleshoot"
    return {
        **{"fixes": fixes, "todo": todo, "more": len(rest) - len(todo)},
        "behind": behind,
        "quiet": word,
        "remark": remark,
        "next": "" if command in told else command,
    }


def tool(document: Mapping[str, Any]) -> str:
    """How `nescord-ops` is called on a page: a sample that is gone, where it can be made again."""
    if document.get("demo"):
        return f"nescord-ops --app-dir {settings.SAMPLE}"
    return settings.command(document["settings"])


def _fixes(
    document: Mapping[str, Any], chosen: Iterable[tuple[Check, list[str]]], began: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The fixes that a document has for its gravest checks; see `diagnosis.Fix`.

    Of troubleshoot's, each of its causes is such a check.
    """
    failed, data = {check.name: check for check, _ in chosen}, document["data"]
    causes = [{**each, "checks": [f"cause.{each['name']}"]} for each in data.get("diagnoses") or ()]
    found: list[dict[str, Any]] = []
    for fix in data.get("fixes") or causes:
        names = [name for name in fix["checks"] if name in failed]
        if not names:
            continue
        found.append(
            {
                "badge": show.badge(failed[names[0]].status),
                "says": fix["says"],
                "checks": names,
                "since": since(*(began.get(name) for name in names)),
                "seen": [(name, show.titled(failed[name].summary)) for name in names],
                "plan": fix.get("plan") or "",
                "steps": _steps(fix["commands"]),
            }
        )
    return found


def _steps(lines: Iterable[str]) -> list[dict[str, str]]:
    """The lines of a fix as steps: what a person does, or a command and what it is for.

    A remark that ends in a colon says what the next command is for.
    """
    steps, said = [], ""
    for line in lines:
        remark = line.removeprefix("# ") if line.startswith("#") else ""
        if remark.endswith(":"):
            said = f"{said} {remark}".strip()
            continue
        steps.append({"says": remark or said, "command": "" if remark else line})
        said = ""
    return [*steps, *([{"says": said, "command": ""}] if said else [])]


def rows(seen: Sequence[Check], tool: str) -> str:
    """The checks as a table, commands in the hints called so that they work from anywhere."""
    return show.checks_rows(
        dataclasses.replace(c, hint=_BARE.sub(lambda _: f"{tool} ", f"{c.hint}")) for c in seen
    )


def _behind(level: Status, number: int) -> str:
    """The title of what is folded behind the failures."""
    if level is Status.WARN:
        return show.count(number, "warning")
    return f"{show.count(number, 'check')} could not be made; mend what is above first"


def since(*times: object) -> str:
    """The earliest of the history's times as the page says it; empty where none is one."""
    known = [*filter(None, map(firstscreen.moment, times))]
    return show.moment(min(known)) if known else ""
