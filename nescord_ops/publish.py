"""Put runs where people read them: atomically, indexed, recorded, and only so many.

A run is built in a hidden directory and renamed into place, so a reader never sees half of one,
and an old one is renamed out of sight before it is removed. One run at a time (`overlap`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nescord_ops import checks, compare, history, index, interrupts, overlap, render
from nescord_ops.checks import Status
from nescord_ops.errors import ReportError
from nescord_ops.results import Result
from nescord_ops.show import printable

STAMP = re.compile(r"\d{8}T\d{6}Z(-\d+)?")
_EARLIER = re.compile(rf'<a href="\.\./({STAMP.pattern})/[^"<>]*">(.*?)</a>')


@dataclasses.dataclass(frozen=True, slots=True)
class Page(Result):
    """One notebook's result: where it lies, what it came to, how long it ran, what changed."""

    name: str
    status: Status
    headline: str
    html: Path
    notebook: Path
    json: Path
    seconds: float
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def row(self) -> history.PageRow:
        """What the history keeps of it."""
        return _row(self.name, self.status, self.headline, self.changes)

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
        notebook: nbformat.writes(_without_marks(content)) + "\n",
        sidecar: json.dumps(document, ensure_ascii=False, indent=1) + "\n",
    }
    with _refusals():
        for file, text in texts.items():
            _write(file, text)
    seen = checks.headline(render.findings(document), name)
    status = Status(document["status"])
    changes = document.get("changes", {})
    return Page(name, status, seen, html, notebook, sidecar, seconds, changes)


def _without_marks(content: Any) -> Any:
    """The notebook, its findings and figures told in plain words: pages show the exact values."""
    for cell in content.cells:
        for output in cell.get("outputs", ()):
            told = (output.get("data", {}), checks.MIME), (output.get("metadata", {}), "alt")
            for place, key in told:
                if key in place:
                    place[key] = checks.plain(place[key])
    return content


def _write(file: Path, text: str) -> None:
    """Write text; half characters from the volume become escapes, which JSON reads back."""
    file.write_bytes(text.encode("utf-8", "backslashreplace"))


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

    The caller holds the directory (`building`). The history comes first: a row without a directory
    is not shown, and trends may have it. With `keep`, this run and the newest others stay; what is
    no run of ours is never removed. Raise Terminated if a signal has asked this process to end.
    """
    interrupts.check()
    with _refusals():
        present = _present(target)
        stamp = _free(began, present)
        rows = tuple(page.row for page, _ in results)
        status = checks.worst(page.status for page, _ in results)
        this = history.RunRow(stamp, began, status.value, demo, rows)
        history.record(target, this, [document for _, document in results])
        others = sorted(present, key=_order, reverse=True)
        keeping = {stamp, *(others if keep is None else others[: keep - 1])}
        oldest = min(began - timedelta(days=index.TREND_DAYS), *map(_second, keeping))
        known = [
            _whole(target, row) if row.stamp in keeping and row.stamp != stamp else row
            for row in history.runs(target, since=oldest)
        ]
        new, run_page = building / ".index", building / "index.html"
        if not run_page.exists():
            row = next((row for row in known if row.stamp == stamp), this)
            _write(run_page, index.run_page(row))
        links = {
            row.stamp: _link(building if row.stamp == stamp else target / row.stamp, row)
            for row in known
            if row.stamp in keeping
        }
        _write(new, index.page(known, links, target))
        for page, _ in results:
            _unlink(page.html, keeping, building / ".page")
        interrupts.check()
        new = new.rename(target / f"{overlap.BUILDING}index-{stamp}")
        building.rename(target / stamp)
        new.replace(target / "index.html")
        for name in set(present) - keeping:
            _remove(target / name)
            for page_file in _after(target, name, keeping):
                _unlink(page_file, keeping, target / f"{overlap.BUILDING}page")
    return stamp


def _present(target: Path) -> list[str]:
    """The stamps of the runs in a reports directory, without links and other people's names."""
    with os.scandir(target) as entries:
        return [e.name for e in entries if e.is_dir(follow_symlinks=False) and _is_run(e.name)]


def _is_run(name: str) -> bool:
    """Whether a directory is named as a run's is: of a time that exists."""
    try:
        return bool(STAMP.fullmatch(name) and _second(name))
    except ValueError:
        return False


def _whole(target: Path, row: history.RunRow) -> history.RunRow:
    """The run with the pages that are there: the index has no link that leads nowhere."""
    try:
        there = {entry.name for entry in os.scandir(target / row.stamp)}
    except OSError:
        there = set()
    pages = (p for p in row.pages if {f"{p.name}.html", f"{p.name}.json"} <= there)
    return dataclasses.replace(row, pages=tuple(pages))


def _remove(run: Path) -> None:
    """Remove an old run as a whole; one that cannot be is left for the next run to remove."""
    hidden = run.with_name(f"{overlap.BUILDING}old-{run.name}")
    with contextlib.suppress(OSError):
        run.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _after(target: Path, removed: str, keeping: Collection[str]) -> Iterator[Path]:
    """The pages of kept runs that were compared with a run that is removed."""
    query = "SELECT run, name FROM changes WHERE previous = ?"
    for run, name in history.select(target, query, (history.iso(_second(removed)),)):
        if run in keeping and "/" not in str(name):
            yield target / run / f"{name}.html"


def _unlink(page: Path, keeping: Collection[str], new: Path) -> None:
    """Take out of a page what leads to runs that are not kept; `new` is where it is written."""

    def kept(link: re.Match[str]) -> str:
        return link[0] if link[1] in keeping else link[3]

    with contextlib.suppress(OSError, ValueError):
        text = page.read_text("utf-8")
        changed = _EARLIER.sub(kept, text)
        if changed != text:
            _write(new, changed)
            new.replace(page)


def _adopt(target: Path, present: Sequence[str]) -> None:
    """Read runs that the history does not know back into it, from their JSON files."""
    recorded = {stamp for (stamp,) in history.select(target, "SELECT stamp FROM runs")}
    for stamp in sorted(set(present) - recorded, key=_order):
        documents = []
        for file in sorted(target.joinpath(stamp).glob("*.json")):
            with contextlib.suppress(*compare.NO_DOCUMENT):
                document = compare.document(file)
                history.measurements(document)
                history.volume_of(document["settings"])
                headline = checks.headline(render.findings(document), file.stem)
                changes = document.get("changes", {})
                verdict = Status(document["status"])
                page = _row(printable(file.stem), verdict, headline, changes)
                documents.append((page, document))
        status = checks.worst(Status(row.status) for row, _ in documents)
        began = _second(stamp)
        demo = any(document.get("demo") for _, document in documents)
        pages = tuple(row for row, _ in documents)
        row = history.RunRow(stamp, began, status.value, demo, pages)
        history.record(target, row, [document for _, document in documents])


def _row(name: str, status: Status, headline: str, changes: Mapping[str, Any]) -> history.PageRow:
    previous = changes.get("previous") or ""
    if previous:
        previous = history.iso(datetime.fromisoformat(previous))
    changed = compare.words(changes) if changes else ""
    return history.PageRow(name, status.value, headline, previous, changed)


def _link(directory: Path, row: history.RunRow) -> str:
    """The link to a run: its own page, else its first notebook's; empty where it has none."""
    if directory.joinpath("index.html").exists():
        return f"{row.stamp}/index.html"
    return next((f"{row.stamp}/{quote(page.name)}.html" for page in row.pages), "")


def _free(began: datetime, present: Sequence[str]) -> str:
    """The run's stamp, with a suffix where a run of the same second exists."""
    stamp = f"{began:%Y%m%dT%H%M%SZ}"
    numbered = (f"{stamp}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([stamp], numbered) if name not in present)


def _order(stamp: str) -> tuple[str, int]:
    second, _, number = stamp.partition("-")
    return second, int(number or 1)


def _second(stamp: str) -> datetime:
    return datetime.strptime(stamp.partition("-")[0], "%Y%m%dT%H%M%S%z")


@contextlib.contextmanager
def building(target: Path, began: datetime) -> Iterator[Path]:
    """Hold `target` for one run and yield a hidden directory in it, removed unless it was renamed.

    Runs that the history has lost are read back into it first: this run is compared with them.
    Raise ReportError if it cannot be made, or if another run is at work there.
    """
    with contextlib.ExitStack() as stack:
        with _refusals():
            target.mkdir(parents=True, exist_ok=True)
            stack.enter_context(overlap.alone(target))
            directory = target / overlap.building_name(began)
            directory.mkdir()
            _adopt(target, _present(target))
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
