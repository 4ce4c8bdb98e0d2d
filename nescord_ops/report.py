"""Run the notebooks and publish what they found: HTML, JSON, an index, a history, an exit code.

A run is built in a hidden directory and renamed into place, so a reader never sees half of one.
Whatever a notebook does, it ends as a page: what was not looked at is `unknown`, never ok.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import resource
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nescord_ops import (
    __version__,
    checks,
    compare,
    memory,
    overlap,
    publish,
    render,
    snapshot,
    succession,
)
from nescord_ops.checks import Status
from nescord_ops.errors import ReportError
from nescord_ops.kernel import Nursery
from nescord_ops.publish import Page
from nescord_ops.results import Result
from nescord_ops.settings import OF_A_VOLUME, OUR_SECRETS, Settings
from nescord_ops.show import Text, printable

if TYPE_CHECKING:
    from nescord_ops.runner import Executed, Kernels, Notebook

OPTIONS = ("app_dir", "env_file", "database_url", "chroma_dir")  # of settings.load
RUN_CHECK = "notebook.run"
# Of the process of two kernels: with 60 one does not start, with 16 zmq aborts; and each one more.
OPEN_FILES, KERNEL_FILES = 80, 16
# What a run takes at its peak, and each notebook in it, where no bytecode is written.
RUN_BYTES, NOTEBOOK_BYTES = 150_000_000, 125_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Run(Result):
    """One run of the notebooks, as it was published."""

    directory: Path
    index: Path
    pages: tuple[Page, ...]
    demo: bool = False

    @property
    def status(self) -> Status:
        """The worst of the pages."""
        return checks.worst(page.status for page in self.pages)

    @property
    def exit_code(self) -> int:
        """1 if a page failed, else 2 if one could not be checked, else 0."""
        return self.status.exit_code

    @property
    def changed(self) -> str:
        """What changed since the previous run, in a sentence."""
        rows = (page.row for page in self.pages)
        return compare.line((row.name, row.previous, row.changed) for row in rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON values."""
        verdict = {"status": self.status.value, "exit_code": self.exit_code}
        return {**checks.plain(self), **verdict, "changed": self.changed}


def run(
    names: Sequence[str] = (),
    *,
    options: Mapping[str, str] | None = None,
    depth: str = "full",
    parameters: Mapping[str, object] | None = None,
    out: Path | None = None,
    keep: int | None = None,
    demo: bool = False,
    jobs: int | None = None,
    timeout_seconds: float = 600,
    now: datetime | None = None,
    progress: Callable[[str], None] | None = None,
) -> Run:
    """Run notebooks, each in a kernel of its own, and publish the run below `out`.

    `names` are shipped notebooks or paths of others; none means every shipped one. `options` are
    the keywords of `settings.load`, for every notebook that declares them; `parameters` go where
    they are declared. `timeout_seconds` is for each notebook. With `keep`, only that many run
    directories stay. With `demo`, a sample volume is made, reported on and removed. Raise
    ReportError, with nothing published, for a notebook that is not known, a parameter of the wrong
    type, or if `out` cannot be written; SettingsError if there is no volume. With a parameter that
    no notebook has, no notebook runs, and every page says so.
    """
    if keep is not None and keep < 1:
        raise ReportError(f"keep is {keep}", "keep at least the run that is being made: keep=1")
    say = progress or (lambda _: None)
    if not 0 < timeout_seconds <= threading.TIMEOUT_MAX:
        raise ReportError(f"timeout_seconds is {timeout_seconds}", "name seconds: --timeout 600")
    paths = find(names)
    workers = jobs or _at_once()
    _refuse_few_files(min(workers, len(paths)))

    with contextlib.ExitStack() as stack:
        # What notebooks that are ended by force leave in TMPDIR; gone after the last of them.
        room = stack.enter_context(snapshot.scratch(0))
        nursery = stack.enter_context(contextlib.closing(Nursery(sparing=workers == 1)))
        # With jupyterlab's extras `import jsonschema` (nbformat does it) compiles a grammar for
        # three seconds; without that module only the optional check of `iri` formats is missing.
        sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
        # papermill's places in clouds, which a report has no use for
        with memory.without("boto3", "azure", "gcsfs", "pyarrow", "github"):
            from nescord_ops import runner

        options, parameters = _settled(options or {}, parameters or {}, demo=demo)
        notebooks = [runner.read(path, name) for name, path in paths.items()]
        notebooks = _refuse_unknown(notebooks, parameters)
        values = _values(notebooks, {"depth": depth}, parameters)
        found = None if demo else _volume(notebooks, options)
        default = Path(os.environ.get("NESCORD_OPS_REPORTS_DIR") or "reports")
        target = (out or (found.reports_dir if found else default)).absolute()
        if (target / overlap.FLEET).exists():
            text = f"{target} holds the reports of a fleet, and would lose its index"
            raise ReportError(text, "name another directory with --out")
        place = _place(found) if found else {}
        began = (now or datetime.now(UTC)).astimezone(UTC)
        building = stack.enter_context(publish.building(target, began))
        if found:
            succession.take_over(target, found)
        if demo:
            say("making a sample volume")
            options = _sample(stack)
        for notebook in notebooks:
            chosen = {k: v for k, v in options.items() if v and k in notebook.declared}
            values[notebook.name].update(chosen)
        done: dict[str, tuple[Page, Mapping[str, Any]]] = {}

        def finish(notebook: Notebook, executed: Executed) -> None:
            document = _document(notebook, executed, began)
            document["settings"] = document["settings"] or place
            document["demo"] = demo
            document["changes"] = compare.changes(target, document, began, demo=demo)
            page = publish.write(building, document, executed.content, executed.seconds)
            done[page.name] = (page, document)
            say(f"{page.name}: {page.headline} ({page.seconds:.1f} s)")
            if at_work:
                say(f"running {', '.join(at_work)}")

        environment = {**_environment(target, demo=demo), "TMPDIR": str(room)}
        keeper = stack.enter_context(runner.kernels(nursery, environment))
        at_work: list[str] = []

        def work(notebook: Notebook) -> Executed:
            at_work.append(notebook.name)
            say(f"running {', '.join(at_work)}")
            try:
                return runner.execute(notebook, values[notebook.name], keeper, timeout_seconds)
            finally:
                at_work.remove(notebook.name)

        volume = "a sample volume" if demo else place.get("database", "no volume")
        say(f"reporting on {volume}: {', '.join(paths)}; {min(workers, len(paths))} at once")
        memory.trim()
        _execute(notebooks, work, keeper, workers, finish)
        ordered = [done[notebook.name] for notebook in notebooks]
        stamp = publish.publish(target, building, ordered, began, keep, demo=demo)
        say(f"published {target / stamp}")
    pages = tuple(page.moved(target / stamp) for page, _ in ordered)
    return Run(target / stamp, target / "index.html", pages, demo)


def _refuse_few_files(at_once: int) -> None:
    """Raise ReportError under a limit of open files at which kernels do not start, or abort."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = OPEN_FILES + KERNEL_FILES * max(0, at_once - 2)
    if 0 <= limit < needed:
        text = f"only {limit} files may be open at once, and a report takes {needed}"
        raise ReportError(text, "ulimit -n 1024, and run it again")


def find(names: Sequence[str] = ()) -> dict[str, Path]:
    """Given names or paths of notebooks, return name to path; no names means every shipped one.

    Shipped notebooks are looked for in the installed package, then beside it in its checkout.
    Raise ReportError for what does not exist, and for two notebooks of one name.
    """
    package = Path(__file__).parent
    homes = (package / "notebooks", package.parent / "notebooks")
    home = next((home for home in homes if home.is_dir()), homes[0])
    shipped = {path.stem: path for path in home.glob("*.ipynb")}
    first = ("verify", "capacity", "cost", "backup", "troubleshoot", "deploy")
    ordered = sorted(shipped, key=lambda n: (first.index(n) if n in first else len(first), n))
    found: dict[str, Path] = {}
    for name in names or ordered:
        given = Path(name)
        path = given if given.suffix == ".ipynb" else shipped.get(name)
        if path is None or not path.is_file():
            raise ReportError(
                f"there is no notebook {printable(name)!r}",
                f"name one of {', '.join(ordered)}, or the path of an .ipynb file",
            )
        key = printable(path.stem)
        if found.setdefault(key, path) != path:
            raise ReportError(f"two notebooks are named {key!r}", "rename one of them")
    if not found:
        raise ReportError(f"no notebooks in {home}", "install the package again")
    return found


def _settled(
    options: Mapping[str, str], parameters: Mapping[str, object], *, demo: bool
) -> tuple[dict[str, str], dict[str, object]]:
    """Take parameters that are settings for the settings that they are.

    Raise ReportError where a demo, which has its own, is given one.
    """
    places = {name: str(parameters[name]) for name in OPTIONS if parameters.get(name)}
    if demo and places:
        raise ReportError(f"a demo has its own {', '.join(places)}", "leave out --demo")
    rest = {name: value for name, value in parameters.items() if name not in OPTIONS}
    return ({} if demo else {**options, **places}), rest


def _refuse_unknown(notebooks: Sequence[Notebook], given: Mapping[str, object]) -> list[Notebook]:
    """Given a parameter that no notebook declares, return every notebook as one that cannot run.

    Each then has a page that says so: a typing error in a crontab is found where reports are read.
    """
    known = {name for notebook in notebooks for name in notebook.declared}
    unknown = sorted(given.keys() - known)
    if not unknown:
        return [*notebooks]
    problem = (
        f"no notebook has a parameter {', '.join(printable(name) for name in unknown)}; "
        f"the parameters are {', '.join(sorted(known)) or 'none'}"
    )
    return [dataclasses.replace(each, problem=each.problem or problem) for each in notebooks]


def _values(
    notebooks: Sequence[Notebook], common: Mapping[str, object], given: Mapping[str, object]
) -> dict[str, dict[str, object]]:
    """What each notebook is given: `common` where declared, `given` where declared and anywhere."""
    from nescord_ops.runner import typed

    return {
        notebook.name: {
            name: typed(name, value, notebook.declared[name])
            for name, value in {**common, **given}.items()
            if name in notebook.declared
        }
        for notebook in notebooks
    }


def _volume(notebooks: Sequence[Notebook], options: Mapping[str, Any]) -> Settings | None:
    """The volume to report on, if a notebook is about one; raise SettingsError if there is none."""
    if not any("app_dir" in notebook.declared for notebook in notebooks):
        return None
    from nescord_ops import settings

    return settings.load(**options)


def _place(settings: Settings) -> dict[str, str]:
    """The settings of a notebook that ends without showing its own."""
    both = {"database": settings.database, "database_meant": settings.database_meant}
    return {name: printable(str(path)) for name, path in both.items() if path}


def _sample(stack: contextlib.ExitStack) -> dict[str, str]:
    """Make a sample volume that `stack` removes; return the options that lead to it."""
    from nescord_ops.demo import temporary

    sample = stack.enter_context(temporary())
    return {"app_dir": str(sample.app_dir), "env_file": str(sample.env_file)}


def _environment(target: Path, *, demo: bool) -> dict[str, str]:
    """The kernels' environment; a demo's knows nothing of the operator's real volume."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not (demo and name.startswith(OF_A_VOLUME)) and name not in OUR_SECRETS
    }
    return {**inherited, "NESCORD_OPS_REPORTS_DIR": str(target)}


def _execute(
    notebooks: Sequence[Notebook],
    work: Callable[[Notebook], Executed],
    keeper: Kernels,
    workers: int,
    finish: Callable[[Notebook, Executed], None],
) -> None:
    """Run the notebooks by `work`, in parallel; call `finish` for each in this thread."""
    from nescord_ops.runner import Executed, Stop

    for notebook in notebooks:
        if notebook.problem:
            hint = "correct the parameter or the notebook, or run the others by name"
            stop = Stop("Refused", notebook.problem, hint)
            finish(notebook, Executed(notebook.content, stop, 0.0))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        running = {}
        try:
            for notebook in notebooks:
                if not notebook.problem:
                    running[pool.submit(work, notebook)] = notebook
                    # The first, which takes longest, has its kernel before the nursery is complete.
                    keeper.first_asked.wait(1)
            if workers == 1:  # where memory is short, pages are made when the kernels are gone
                concurrent.futures.wait(running)
            _import_the_rest()
            for future in concurrent.futures.as_completed(running):
                finish(running[future], future.result())
        except BaseException:
            # The pool waits for its threads, and they for their kernels.
            pool.shutdown(wait=False, cancel_futures=True)
            keeper.stop()
            raise


def _at_once() -> int:
    """How many notebooks to run at once: one a core, while the memory that is left lasts."""
    room = memory.available_bytes()
    fit = len(os.sched_getaffinity(0)) if room is None else (room - RUN_BYTES) // NOTEBOOK_BYTES
    return max(1, min(len(os.sched_getaffinity(0)), fit))


def _import_the_rest() -> None:
    """Import what the end needs while the kernels start: 0.8 s of imports cost nothing here."""
    memory.import_database()
    render.warm_up()
    memory.trim()


def _document(notebook: Notebook, executed: Executed, began: datetime) -> dict[str, Any]:
    """The JSON document: the notebook's last findings, and what stopped it if that is news."""
    from nescord_ops.runner import Stop

    document = _findings(executed.content)
    stop = executed.stop
    if document is None:
        document = {
            "schema_version": checks.SCHEMA_VERSION,
            "status": Status.UNKNOWN.value,
            "generated_at": began.isoformat(timespec="seconds"),
            "tool_version": __version__,
            "settings": {},
            "checks": [],
            "data": {},
        }
        missing = "the notebook ended without showing any findings"
        stop = stop or Stop("NoFindings", missing, "let its last cells show the findings")
    elif stop and stop.kind == "ChecksFailed" and stop.last:
        stop = None if Status(document["status"]).exit_code else stop
    document["name"] = notebook.name
    if stop is not None:
        document["checks"].append(checks.plain(checks.unknown(RUN_CHECK, stop.summary, stop.hint)))
        if document["status"] != Status.FAIL:
            document["status"] = Status.UNKNOWN.value
    return document


def _findings(content: Any) -> dict[str, Any] | None:
    """The last findings that an executed notebook shows; None if there are none that make sense."""
    shown = [
        output["data"][checks.MIME]
        for cell in content.cells
        for output in cell.get("outputs", ())
        if checks.MIME in output.get("data", {})
    ]
    try:
        # Through JSON text: plain dictionaries, and no number that JSON cannot hold.
        document = json.loads(json.dumps(shown[-1]), parse_constant=lambda _: None)
        Status(document["status"])
        datetime.fromisoformat(document["generated_at"])
        for check in document["checks"]:
            # only pages know the exact values; in JSON, history and messages it is plain text
            texts = (key for key in ("summary", "hint") if isinstance(check.get(key), str))
            check |= {key: Text(check[key]) for key in texts}
        render.findings(document)
        whole = isinstance(document["settings"], dict) and isinstance(document["data"], dict)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return document if whole else None
