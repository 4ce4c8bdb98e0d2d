"""Put runs where people read them: atomically, indexed, recorded, and only so many.

A run is built in a hidden directory and renamed into place, so a reader never sees half of one.
Runs that publish at the same moment wait for each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nescord_ops import checks, history, render
from nescord_ops.checks import Status
from nescord_ops.errors import ReportError
from nescord_ops.show import printable

STAMP = re.compile(r"\d{8}T\d{6}Z(-\d+)?")
_BUILDING = ".building-"
_ABANDONED_SECONDS = 86_400
_DOCUMENT_BYTES = 16_000_000  # ours have some 50 kB


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One notebook's result: where it lies, what it came to, and how long it ran."""

    name: str
    status: Status
    headline: str
    html: Path
    notebook: Path
    json: Path
    seconds: float

    def moved(self, directory: Path) -> Page:
        """Return the page with its three files in another directory."""
        files = {
            kind: directory / getattr(self, kind).name for kind in ("html", "notebook", "json")
        }
        return dataclasses.replace(self, **files)


def write(building: Path, document: Mapping[str, Any], content: Any, seconds: float) -> Page:
    """Write one notebook's three files into the directory that is being built."""
    import nbformat

    name = document["name"]
    html, notebook, sidecar = (building / f"{name}.{kind}" for kind in ("html", "ipynb", "json"))
    texts = {
        html: render.page(content, document),
        notebook: nbformat.writes(content) + "\n",
        sidecar: json.dumps(document, ensure_ascii=False, indent=1) + "\n",
    }
    with _refusals():
        for file, text in texts.items():
            # Half characters from the volume become escapes, which JSON reads back.
            file.write_bytes(text.encode("utf-8", "backslashreplace"))
    seen = checks.headline(render.findings(document))
    status = Status(document["status"])
    return Page(name, status, seen, html, notebook, sidecar, seconds)


def publish(
    target: Path,
    building: Path,
    results: Sequence[tuple[Page, Mapping[str, Any]]],
    began: datetime,
    keep: int | None,
    *,
    demo: bool,
) -> str:
    """Record the run, rename it into place, renew the index and remove old runs; return its stamp.

    The history comes first: a row without a directory is not shown, and trends may have it.
    """
    with _refusals(), _locked(target):
        present = _present(target)
        _adopt(target, present)
        stamp = _free(began, present)
        rows = tuple(history.PageRow(p.name, p.status.value, p.headline) for p, _ in results)
        status = worst(page.status for page, _ in results)
        this = history.RunRow(stamp, began, status.value, demo, rows)
        history.record(target, this, [document for _, document in results])
        kept = sorted([stamp, *present], key=_order, reverse=True)[:keep]
        recorded = {row.stamp: row for row in history.runs(target)}
        index = building / "index.html"
        shown = [recorded[name] for name in kept if name in recorded]
        index.write_bytes(render.index(shown).encode("utf-8", "backslashreplace"))
        index = index.rename(target / f"{_BUILDING}index-{stamp}")
        building.rename(target / stamp)
        index.replace(target / "index.html")
        for name in set(present) - set(kept):
            shutil.rmtree(target / name, ignore_errors=True)
    return stamp


def _present(target: Path) -> list[str]:
    """The stamps of the runs in a reports directory; links and other people's names are left out.

    What a killed run left behind is removed after a day.
    """
    found = []
    with os.scandir(target) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                continue
            if _began(entry.name):
                found.append(entry.name)
            elif entry.name.startswith(_BUILDING):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > _ABANDONED_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)
    return found


def _adopt(target: Path, present: Sequence[str]) -> None:
    """Read runs that the history does not know back into it, from their JSON files."""
    recorded = {row.stamp for row in history.runs(target)}
    for stamp in sorted(set(present) - recorded):
        documents = []
        for file in sorted(target.joinpath(stamp).glob("*.json")):
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
            ):
                documents.append((_row(file, document := _document(file)), document))
        status = worst(Status(row.status) for row, _ in documents)
        began = _began(stamp)
        assert began
        row = history.RunRow(stamp, began, status.value, False, tuple(r for r, _ in documents))
        history.record(target, row, [document for _, document in documents])


def _document(file: Path) -> dict[str, Any]:
    """Read one JSON document of a run; raise ValueError, KeyError or TypeError if it is none."""
    if not file.is_file() or file.stat().st_size > _DOCUMENT_BYTES:
        raise ValueError("not one of ours")
    document: dict[str, Any] = json.loads(file.read_text("utf-8"))
    history.measurements(document)
    history.volume_key(document["settings"].get("database") or "")
    return document


def _row(file: Path, document: Mapping[str, Any]) -> history.PageRow:
    headline = checks.headline(render.findings(document))
    return history.PageRow(printable(file.stem), Status(document["status"]).value, headline)


def _began(stamp: str) -> datetime | None:
    """The time that a run's directory is named for; None if it is no run's name."""
    if STAMP.fullmatch(stamp):
        with contextlib.suppress(ValueError):
            return datetime.strptime(stamp.partition("-")[0], "%Y%m%dT%H%M%S%z")
    return None


def _free(began: datetime, present: Sequence[str]) -> str:
    """The run's stamp, with a suffix where a run of the same second exists."""
    stamp = f"{began:%Y%m%dT%H%M%SZ}"
    numbered = (f"{stamp}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([stamp], numbered) if name not in present)


def _order(stamp: str) -> tuple[str, int]:
    second, _, number = stamp.partition("-")
    return second, int(number or 1)


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of several verdicts; none at all is unknown."""
    seen = set(statuses)
    order = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK)
    return next((status for status in order if status in seen), Status.UNKNOWN)


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield a hidden directory in `target`; remove it unless it was renamed into place.

    Raise ReportError if it cannot be made.
    """
    directory = target / f"{_BUILDING}{secrets.token_hex(8)}"
    with _refusals():
        directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the disk or its permissions refuse into a ReportError."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise ReportError(
            f"the report cannot be written: {error}",
            "make room or get permission to write there, or name another directory with --out",
        ) from error


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Let one run at a time publish; the lock is on the directory itself and leaves no file."""
    handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
