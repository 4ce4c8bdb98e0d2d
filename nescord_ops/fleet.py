"""The same notebooks for many volumes, on any executor, with one index and one verdict.

Each volume's reports lie in `<out>/<name>/` exactly as a single run writes them; above them stand
`index.html` and `fleet.json`. A volume that fails, hangs or is lost with its worker is a line in
both, and holds up none of the others.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import re
import secrets
import threading
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nescord_ops import checks, fleet_index, history, member, publish, report, show
from nescord_ops.checks import Status
from nescord_ops.errors import ReportError
from nescord_ops.member import Outcome, Task
from nescord_ops.results import Result
from nescord_ops.show import printable

FILE_BYTES = 1_000_000
KEYS = ("name", *report.OPTIONS)
# It is a directory, a link and a word in a message: letters and digits of any script, - and _.
NAME = re.compile(r"[^\W_](?:[\w-]{0,58}[^\W_])?")
GRACE_SECONDS = 60.0  # for a worker to start, and to say that a volume was given up
EXAMPLE = '[[volume]] with name = "…" and app_dir = "…" or env_file = "…"'


@dataclasses.dataclass(frozen=True, slots=True)
class Volume(Result):
    """One volume of a fleet: its name, and the options of `settings.load` that lead to it."""

    name: str
    options: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Fleet(Result):
    """One run for all volumes; the worst outcome first. `before` has the last run's verdicts."""

    index: Path
    generated_at: datetime
    volumes: tuple[Outcome, ...]
    before: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def status(self) -> Status:
        """The worst of the volumes."""
        return checks.worst(each.status for each in self.volumes)

    @property
    def exit_code(self) -> int:
        """1 if a volume failed, else 2 if one could not be checked, else 0."""
        return self.status.exit_code

    @property
    def headline(self) -> str:
        """The verdict in one sentence, then the counts."""
        return fleet_index.headline(self.volumes)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON values."""
        return {
            "schema_version": checks.SCHEMA_VERSION,
            "status": self.status.value,
            "exit_code": self.exit_code,
            "headline": self.headline,
            **checks.plain(self),
        }


def read(file: Path) -> tuple[Volume, ...]:
    """Given a TOML file, return the volumes that it describes.

    `app_dir` and `env_file` are looked for from the file's directory; without `app_dir` it is the
    directory of `env_file`. `database_url` and `chroma_dir` are as the bot has them. Raise
    ReportError, which names the entry, for anything that makes no sense; whether the places exist
    is found out later, volume by volume.
    """
    file = file.expanduser().absolute()
    if not file.is_file() or file.stat().st_size > FILE_BYTES:
        raise ReportError(f"{file} is no file of at most 1 MB", "name the fleet's TOML file")
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ReportError(f"{file} cannot be read: {error}", "correct it") from error
    entries = document.pop("volume", None)
    if document:
        known = "only [[volume]] is known"
        raise ReportError(f"{file}: {_quoted(document)} at the top, and {known}", EXAMPLE)
    if not isinstance(entries, list) or not entries:
        raise ReportError(f"{file} describes no volume", f"write {EXAMPLE}")
    volumes = [_volume(file, number, entry) for number, entry in enumerate(entries, 1)]
    for one, other in itertools.combinations(volumes, 2):
        if _same(one.name) == _same(other.name):
            raise ReportError(f"{file}: two volumes are named {one.name!r}", "rename one of them")
        if one.options == other.options:
            both = f"{one.name!r} and {other.name!r}"
            raise ReportError(f"{file}: {both} are the same place", "correct or remove one of them")
    return tuple(volumes)


def run(
    volumes: Sequence[Volume],
    *,
    executor: Executor | None = None,
    names: Sequence[str] = (),
    depth: str = "full",
    parameters: Mapping[str, Any] | None = None,
    out: Path | None = None,
    keep: int | None = None,
    jobs: int = 1,
    timeout_seconds: float = 600,
    deadline_seconds: float = 1800,
    now: datetime | None = None,
    progress: Callable[[str], None] | None = None,
) -> Fleet:
    """Run notebooks for every volume, publish each below `out` and the index above them.

    Without an `executor`, `jobs` volumes at once in threads of this process, which share its
    processors; on one that is given, as many as it likes, with one notebook at a time each. It
    must see the volumes and `out` under the same paths. `timeout_seconds` is for each notebook,
    `deadline_seconds` for each volume from when it begins. Raise ReportError, before anything
    runs, for what cannot be meant, and if another fleet is at work in `out`.
    """
    say = progress or (lambda _: None)
    default = Path(os.environ.get("NESCORD_OPS_REPORTS_DIR") or "reports", "fleet")
    out = (out or default).absolute()
    limits = {"timeout": timeout_seconds, "deadline": deadline_seconds}
    _refuse(volumes, names, parameters or {}, out, keep, jobs, limits)
    began = (now or datetime.now(UTC)).astimezone(UTC)
    common: dict[str, Any] = {
        "notebooks": tuple(str(Path(n).absolute()) if n.endswith(".ipynb") else n for n in names),
        "depth": depth,
        "parameters": dict(parameters or {}),
        "keep": keep,
        "jobs": 1 if executor else max(1, len(os.sched_getaffinity(0)) // jobs),
        "timeout_seconds": timeout_seconds,
        "deadline_seconds": deadline_seconds,
        "run": secrets.token_hex(8),
    }
    tasks = [Task(each.name, each.options, str(out / each.name), **common) for each in volumes]
    done: dict[str, Outcome] = {}

    def finish(outcome: Outcome) -> None:
        done[outcome.name] = outcome
        say(f"{outcome.name}: {outcome.headline} ({outcome.seconds:.1f} s)")

    with fleet_index.alone(out):
        if executor:
            broken = _gather(executor, tasks, finish)
            if broken:
                # A pool of processes that broke takes along what it had not begun. Looking writes
                # nothing to a volume, so what was lost may be done again, here, one at a time.
                say(f"the pool broke; looking again at {show.count(len(broken), 'volume')}")
                _in_threads(broken, 1, finish)
        else:
            _in_threads(tasks, jobs, finish)
        outcomes = _judged([done[each.name] for each in volumes], out)
        made = Fleet(out / "index.html", began, tuple(outcomes), fleet_index.verdicts(out))
        fleet_index.write(made)
    return made


@contextlib.contextmanager
def dask(address: str) -> Iterator[Executor]:
    """Given the address of a Dask scheduler, yield its executor. Raise ReportError if none."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ReportError(
            "a Dask cluster needs distributed", "pip install 'nescord-ops[fleet]'"
        ) from error
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ReportError(
            f"no Dask scheduler answers at {printable(address)}: {error}",
            "name its address, such as tcp://10.0.0.5:8786; `dask scheduler` prints it",
        ) from error
    with client:
        yield client.get_executor(pure=False)


def _volume(file: Path, number: int, entry: object) -> Volume:
    """One entry of the file, its places resolved; raise ReportError for what makes no sense."""
    where = f"{file}: volume {number}"
    if not isinstance(entry, dict):
        raise ReportError(f"{where} is no table", f"write {EXAMPLE}")
    unknown = entry.keys() - set(KEYS)
    if unknown:
        raise ReportError(f"{where} has {_quoted(unknown)}", f"the keys are {', '.join(KEYS)}")
    for key, value in entry.items():
        if not isinstance(value, str) or not value or "\0" in value:
            raise ReportError(f"{where}: {key} is no text", f'write {key} = "…"')
    name = unicodedata.normalize("NFC", entry.get("name", ""))
    if not NAME.fullmatch(name) or publish.STAMP.fullmatch(name):
        raise ReportError(
            f"{where} is named {printable(name)!r}" if name else f"{where} has no name",
            "a name is at most 60 letters, digits, - and _, and begins and ends with one of"
            " the first two; it is also the directory of the volume's reports",
        )
    if not ("app_dir" in entry or "env_file" in entry):
        raise ReportError(
            f"{where}, {name!r}, has neither app_dir nor env_file",
            'write app_dir = "…", the bot\'s directory, or env_file = "…", its .env file',
        )
    options = {key: entry[key] for key in report.OPTIONS if key in entry}
    for key in ("app_dir", "env_file"):
        if key in options:
            expanded = os.path.expanduser(options[key])  # noqa: PTH111 - no error for ~nobody
            options[key] = os.path.normpath(file.parent / expanded)
    options.setdefault("app_dir", str(Path(options.get("env_file", "")).parent))
    return Volume(name, options)


def _refuse(
    volumes: Sequence[Volume],
    names: Sequence[str],
    parameters: Mapping[str, Any],
    out: Path,
    keep: int | None,
    jobs: int,
    limits: Mapping[str, float],
) -> None:
    """Raise ReportError for what cannot be meant."""
    if not volumes:
        raise ReportError("there is no volume to report on", f"write {EXAMPLE}")
    report.find(names)
    own = sorted(parameters.keys() & set(report.OPTIONS))
    if own:
        hint = "write it into the fleet's file, volume by volume"
        raise ReportError(f"each volume has its own {', '.join(own)}", hint)
    for what, seconds in limits.items():
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            raise ReportError(f"{what} is {seconds}", f"name seconds: --{what} 600")
    for what, number in (("keep", keep), ("jobs", jobs)):
        if number is not None and number < 1:
            raise ReportError(f"{what} is {number}", f"the least is {what}=1")
    if (out / history.FILE_NAME).exists():
        raise ReportError(
            f"{out} holds the reports of a single volume, and would lose its index",
            "name another directory with --out",
        )


def _in_threads(tasks: Sequence[Task], jobs: int, finish: Callable[[Outcome], None]) -> None:
    """Do the tasks in threads of this process; an interrupt ends their children."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            _gather(pool, tasks, finish)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            member.stop_all()
            raise


def _gather(
    executor: Executor, tasks: Sequence[Task], finish: Callable[[Outcome], None]
) -> list[Task]:
    """Do the tasks and call `finish` for each as it ends; return those that a broken pool lost.

    A task ends by its deadline. Where none has ended for that long, none will, and what is left
    is lost: its worker is stopped, cut off, or was never there.
    """
    running: dict[Future[Outcome], Task] = {}
    broken: list[Task] = []
    for task in tasks:
        try:
            running[executor.submit(member.look, task)] = task
        except BrokenExecutor:
            broken.append(task)
        except RuntimeError as error:  # shut down meanwhile
            finish(_lost(task, error))
    waiting = set(running)
    while waiting:
        longest = max(running[future].deadline_seconds for future in waiting) + GRACE_SECONDS
        done, waiting = concurrent.futures.wait(
            waiting, longest, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
            wrong = _error(future)
            if isinstance(wrong, BrokenExecutor):
                broken.append(running[future])
            else:
                finish(_lost(running[future], wrong) if wrong else future.result())
        if not done:
            for future in waiting:
                future.cancel()
                summary = f"no worker gave an answer within {longest:g} s"
                hint = "see whether the workers run and have nothing else to do, then run it again"
                finish(member.lost(running[future].name, summary, hint))
            break
    return broken


def _error(future: Future[Outcome]) -> BaseException | None:
    """What went wrong with a future that is done, or came back as anything but an outcome."""
    if future.cancelled():
        return RuntimeError("it was cancelled")
    error = future.exception()
    if error is None and not isinstance(future.result(), Outcome):
        return TypeError("the answer is of another version of nescord-ops")
    return error


def _lost(task: Task, error: BaseException) -> Outcome:
    """The outcome of a task that the executor gave up."""
    line = printable(str(error)).strip().partition("\n")[0]
    return member.lost(
        task.name,
        f"the executor lost its run: {type(error).__name__}: {line}",
        "see why its worker ended, often memory, and that every worker has this nescord-ops",
    )


def _judged(outcomes: Sequence[Outcome], out: Path) -> list[Outcome]:
    """The outcomes, worst first, with what only all of them together show.

    Two volumes with one database are one that was looked at twice and one that was not looked at.
    A volume without a run has the time of its last one.
    """
    count = Counter((each.host, each.database) for each in outcomes if each.database)
    judged = []
    for each in outcomes:
        if not each.stamp:
            earlier = history.runs(out / each.name)
            each = dataclasses.replace(each, looked_at=earlier[0].generated_at if earlier else None)
        elif count[each.host, each.database] > 1:
            again = member.lost(
                each.name,
                f"another volume of the fleet has the same database, {each.database}",
                "correct app_dir, env_file or DATABASE_URL of the one that is wrong",
            )
            status = checks.worst([each.status, again.status])
            headline = again.headline if status is again.status else each.headline
            seen = (*again.checks, *each.checks)[: member.CHECKS_LIMIT]
            each = dataclasses.replace(each, status=status, headline=headline, checks=seen)
        judged.append(each)
    return sorted(judged, key=lambda each: checks.WORST_FIRST.index(each.status))


def _same(name: str) -> str:
    """What two names have in common that a file system or a reader may not tell apart."""
    return unicodedata.normalize("NFKC", name).casefold()


def _quoted(names: Any) -> str:
    return ", ".join(repr(printable(str(name))) for name in sorted(names))
