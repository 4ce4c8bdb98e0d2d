"""What every command shares: its options, its settings, and how results are written.

Results go to stdout, as a table or as one JSON document; progress and errors go to stderr: on a
terminal as one line that moves, elsewhere (cron, a container's log) as lines with their time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from nescord_ops import interrupts
from nescord_ops.show import SYMBOLS, alike, printable

if TYPE_CHECKING:
    from rich.text import Text

    from nescord_ops.checks import Findings
    from nescord_ops.settings import Settings

Demo = Annotated[bool, typer.Option("--demo", help="Use a sample volume, made for this run.")]
Depth = Annotated[
    str, typer.Option(help="quick reads live metadata; full examines a copy.", metavar="quick|full")
]
LOG_SECONDS = 60.0  # a step that only counts on has a line in the log this often
_COUNTING = re.compile(r"\b\d[\d.,]*( ?(bytes|[kMGT]B))?\b")


@dataclasses.dataclass(slots=True)
class Invocation:
    """The options that stand before the command; `options` are keywords of `settings.load`.

    `sample` says that the command was about a sample, which is gone.
    """

    options: dict[str, str] = dataclasses.field(default_factory=dict)
    json: bool = False
    debug: bool = False
    sample: bool = False


@contextlib.contextmanager
def resolved(call: Invocation, demo: bool = False, *, required: bool = True) -> Iterator[Settings]:
    """Yield the settings, of the configured volume or of a sample that is removed afterwards."""
    from nescord_ops import settings

    if not demo:
        yield settings.load(**call.options, required=required)
        return
    from nescord_ops.demo import only_sample, temporary

    call.sample = True
    with only_sample(), progress() as say:
        say("making a sample volume")
        with temporary() as sample:
            yield settings.load(app_dir=sample.app_dir)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that says on stderr what is being done; it may be called by any thread.

    It raises Terminated if a signal has asked this process to end.
    """
    if not sys.stderr.isatty():
        yield _Log()
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        began = time.monotonic()

        def say(text: str) -> None:
            interrupts.check()
            status.update(_Elapsing(text, began))

        yield say


def log(text: str) -> None:
    """Write one line with its time in UTC on stderr; nobody there to read it is no failure."""
    line = printable(text).replace("\n", " ")
    with contextlib.suppress(OSError, ValueError):
        typer.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", err=True)


class _Log:
    """Progress without a terminal: a line for each step, and one a minute while a step counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        interrupts.check()
        step = _COUNTING.sub("#", text)
        now = time.monotonic()
        with self._lock:
            if now - self._seen.get(step, -LOG_SECONDS) >= LOG_SECONDS:
                self._seen[step] = now
                log(text)


@dataclasses.dataclass(frozen=True, slots=True)
class _Elapsing:
    """What is being done, and for how long, as of the moment at which rich draws it."""

    text: str
    began: float

    def __rich__(self) -> Text:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        return as_text(f"{minutes}:{seconds:02} {self.text}")


def finish(call: Invocation, findings: Findings) -> None:
    """Show findings and exit with their code."""
    from nescord_ops.checks import WORST_FIRST

    if call.json:
        write_json(findings.to_dict())
    else:
        typer.echo(printable(findings.headline))
        rows = []
        ranked = sorted(findings.checks, key=lambda c: (c.expected, WORST_FIRST.index(c.status)))
        for check, names in alike(ranked):
            text = as_text(check.summary)
            if check.hint:
                text.append(f"\n→ {printable(check.hint)}", style="dim")
            if len(names) > 1:
                text.append(f"\n{', '.join(names)}", style="dim")
            name = check.name if len(names) == 1 else f"{len(names)} checks"
            rows.append(("not checked" if check.expected else check.status, name, text))
        write_table(rows)
        if call.sample:
            write_gone()
    raise typer.Exit(findings.status.exit_code)


def write_gone() -> None:
    """Say that the sample is removed, and how the commands that were shown can be tried."""
    from nescord_ops.settings import SAMPLE_AGAIN, SAMPLE_GONE

    typer.echo(f"{SAMPLE_GONE} {SAMPLE_AGAIN}")


def write_table(rows: Sequence[tuple[str, str, Text]]) -> None:
    """Write status, name and text as a table; statuses differ in symbol and word, not in colour.

    Rendered before it is written, so that rich does not answer a closed pipe with its own exit.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "magenta"}
    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("Status", "Name", "What was seen"):
        table.add_column(title, no_wrap=title == "Status", overflow="fold")
    for status, name, text in rows:
        status = str(status)
        table.add_row(
            as_text(f"{SYMBOLS.get(status, '?')} {status}", styles.get(status, "dim")),
            as_text(name),
            text,
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    with console.capture() as captured:
        console.print(table)
    typer.echo(captured.get(), nl=False)


def as_text(text: str, style: str = "") -> Text:
    """Text from the volume for rich: never read as markup, no control characters."""
    from rich.text import Text

    return Text(printable(text), style=style)


def write_json(document: object) -> None:
    """Write one JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
