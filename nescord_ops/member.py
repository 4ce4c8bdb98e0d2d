"""One volume of a fleet: what runs on an executor, in a process of its own that can be ended.

`look` may run in a thread, in another process or on another machine. It starts a child with the
variables of that volume alone, so that nothing leaks from one volume into the next, and ends it
with its kernels at the deadline, so that a volume that hangs holds up nobody. The child ends too
when whoever started it ends. This file is also the program of the child.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from nescord_ops import checks, history, interrupts, render, report, settings
from nescord_ops.checks import Check, Status
from nescord_ops.errors import OpsError, SettingsError
from nescord_ops.history import PageRow
from nescord_ops.results import Result
from nescord_ops.settings import OF_A_VOLUME, SECRETS
from nescord_ops.show import clipped, printable

RUN_CHECK = "fleet.run"
END_SECONDS = 10.0  # to clean up before it is killed, and to be gone after
ANSWER_BYTES = 262_144
TEXT_LIMIT, CHECKS_LIMIT, PAGES_LIMIT = 500, 3, 50
_cut = functools.partial(clipped, letters=TEXT_LIMIT)
_running: set[subprocess.Popen[bytes]] = set()


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What is to be run for one volume: plain values, which any executor can carry.

    `run` differs from run to run: an executor that remembers results (Dask) never gives an old one.
    """

    name: str
    options: Mapping[str, str]
    reports: str
    notebooks: tuple[str, ...] = ()
    depth: str = "full"
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keep: int | None = None
    jobs: int | None = None
    timeout_seconds: float = 600
    deadline_seconds: float = 1800
    run: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome(Result):
    """What became of one volume; small whatever the volume holds.

    `checks` are the worst of those that failed or could not be made. `stamp` is the run's directory
    below the volume's reports; without one nothing was published, and the volume is `unknown`.
    `since` is the first of the unbroken row of runs with this verdict, `looked_at` the last run.
    """

    name: str
    status: Status
    headline: str
    checks: tuple[Check, ...] = ()
    pages: tuple[PageRow, ...] = ()
    stamp: str = ""
    since: datetime | None = None
    looked_at: datetime | None = None
    database: str = ""
    host: str = ""
    seconds: float = 0.0


def look(task: Task) -> Outcome:
    """Run the notebooks for one volume in a child process and return what became of it.

    Returns within `deadline_seconds` and a little, and never raises for what the volume does.
    """
    began = time.monotonic()
    try:
        outcome = _started(task)
    except (OSError, subprocess.SubprocessError) as error:
        hint = "free memory, processes or temporary space, and run it again"
        outcome = lost(task.name, f"its process could not be started: {error}", hint)
    return dataclasses.replace(
        outcome, host=socket.gethostname(), seconds=round(time.monotonic() - began, 3)
    )


def lost(name: str, summary: str, hint: str) -> Outcome:
    """Return the outcome of a volume whose run came to nothing: unknown, never ok."""
    seen = _short(checks.unknown(RUN_CHECK, summary, hint))
    return Outcome(name, Status.UNKNOWN, f"Could not check. {seen.summary}", (seen,))


def stop_all() -> None:
    """End the children that threads of this process wait for; the threads then return."""
    for process in tuple(_running):
        _hang_up(process)


def environment(task: Task) -> dict[str, str]:
    """The child's variables: this process's, without those that belong to one volume."""
    hidden = (*OF_A_VOLUME, *SECRETS, "PKM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return {**kept, "NESCORD_OPS_APP_DIR": task.options["app_dir"]}


def _started(task: Task) -> Outcome:
    """Start the child, give it the task, and wait for its answer or its deadline."""
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=errors,
            env=environment(task),
            start_new_session=True,
        )
        _running.add(process)
        late = False
        try:
            assert process.stdin
            if not interrupts.arrived():  # while it was started, unseen by `stop_all`
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(dataclasses.asdict(task)).encode() + b"\n")
                    process.stdin.flush()
                process.wait(task.deadline_seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(process)
            _running.discard(process)
        return _read(answer) or _silent(task, process.returncode, errors, late=late)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child: it may clean up, then it is killed; one that even that cannot end is left."""
    _hang_up(process)
    for number in (None, signal.SIGKILL):
        if number:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
            return


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    """Close the child's standard input, which it takes for its end."""
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _read(answer: IO[bytes]) -> Outcome | None:
    """The outcome that a child wrote; None if it wrote none."""
    answer.seek(0)
    try:
        values = json.loads(answer.read(ANSWER_BYTES))
    except ValueError:
        return None
    seen = tuple(Check(**{**c, "status": Status(c["status"])}) for c in values["checks"])
    times = {
        key: datetime.fromisoformat(values[key]) if values[key] else None
        for key in ("since", "looked_at")
    }
    pages = tuple(PageRow(**page) for page in values["pages"])
    status = Status(values["status"])
    return Outcome(**{**values, **times, "status": status, "checks": seen, "pages": pages})


def _silent(task: Task, code: int | None, errors: IO[bytes], *, late: bool) -> Outcome:
    """The outcome of a child that gave none."""
    if late:
        return lost(
            task.name,
            f"did not end within {task.deadline_seconds:g} s, and was stopped",
            "see whether its volume answers at all (ls), or give it more time with --deadline",
        )
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
    said = printable(errors.read().decode("utf-8", "replace")).strip().rpartition("\n")[2]
    how = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
    return lost(
        task.name,
        f"its process {how} before it had an answer{f': {said}' if said else ''}",
        "often the memory ran out: free some, or look at fewer volumes at once",
    )


def main() -> None:
    """Be the child: read one task from standard input, run it, write one outcome."""
    answer = open(os.dup(1), "w", encoding="utf-8")  # noqa: SIM115
    os.dup2(2, 1)  # whatever prints does not spoil the answer
    task = Task(**json.loads(sys.stdin.buffer.readline()))
    interrupts.watch()
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        outcome = _run(task)
    except SettingsError as error:
        hint = f"mount its volume, or correct the entry of {task.name} in the fleet's file"
        outcome = lost(task.name, str(error), hint)
    except OpsError as error:
        outcome = lost(task.name, str(error), error.hint)
    except Exception as error:
        hint = "run it alone with nescord-ops --debug report, and report what it says"
        outcome = lost(task.name, f"{type(error).__name__}: {error}", hint)
    with answer:
        json.dump(checks.plain(outcome), answer)


def _end_with_starter() -> None:
    """When standard input ends, so did whoever waits for us: clean up and end."""
    while os.read(0, 4096):
        pass
    # To the main thread, which waits for a lock: a signal to any other does not wake it.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)


def _run(task: Task) -> Outcome:
    """Run the notebooks as a single run does; raise OpsError if nothing could be published."""
    load: Any = settings.load
    load(**task.options)  # a volume that is not there is told from here at once
    reports = Path(task.reports)
    _wait_for(reports)
    made = report.run(
        task.notebooks,
        options=task.options,
        depth=task.depth,
        parameters=task.parameters,
        out=reports,
        keep=task.keep,
        jobs=task.jobs,
        timeout_seconds=task.timeout_seconds,
    )
    worst = next(page for page in made.pages if page.status is made.status)
    documents = [json.loads(page.json.read_bytes()) for page in made.pages]
    places = (str(each["settings"].get("database") or "") for each in documents)
    runs = history.runs(reports)
    return Outcome(
        task.name,
        made.status,
        _cut(worst.headline),
        tuple(_short(check) for check in _worst(documents)),
        tuple(PageRow(p.name, p.status.value, _cut(p.headline)) for p in made.pages)[:PAGES_LIMIT],
        made.directory.name,
        _since(runs, made.status),
        runs[0].generated_at if runs else datetime.now(UTC),
        _cut(next(filter(None, places), "")),
    )


def _wait_for(reports: Path) -> None:
    """Give a run that is being ended time to go: its worker was killed, and this is a second try.

    One that is at work stays, and the report says so.
    """
    deadline = time.monotonic() + END_SECONDS
    with contextlib.suppress(OSError):
        handle = os.open(reports, os.O_RDONLY | os.O_DIRECTORY)
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                time.sleep(0.1)
        finally:
            os.close(handle)


def _worst(documents: list[dict[str, Any]]) -> list[Check]:
    """The worst checks of a run that are not healthy, each once: verify and others look at some."""
    ranked: dict[tuple[str, str], Check] = {}
    for level in checks.WORST_FIRST[:-1]:
        for check in (check for each in documents for check in render.findings(each)):
            if check.status is level and not check.expected:
                ranked.setdefault((check.name, check.summary), check)
    return [*ranked.values()][:CHECKS_LIMIT]


def _since(runs: list[history.RunRow], status: Status) -> datetime | None:
    """When the unbroken row of runs with this verdict began, newest first given."""
    began = None
    for run in runs:
        if run.status != status:
            break
        began = run.generated_at
    return began


def _short(check: Check) -> Check:
    """The check with texts of bounded length. A hint holds commands, and half of one is none."""
    hint = check.hint if len(check.hint) <= TEXT_LIMIT else "its report says what to do"
    return dataclasses.replace(
        check,
        name=_cut(check.name),
        summary=_cut(check.summary),
        hint=hint,
        value=_cut(check.value) if isinstance(check.value, str) else check.value,
        limit=_cut(check.limit) if isinstance(check.limit, str) else check.limit,
    )


if __name__ == "__main__":
    main()
