"""Run one notebook in a kernel of its own, and say in one line what stopped it.

The engine is papermill's; the kernel is pinned to this interpreter, talks over Unix sockets in a
scratch directory, and is gone with its children when this module is left, however it is left.
Measured with papermill 2.7, nbclient 0.11, ipykernel 7.4: a kernel that dies and a cell that
times out raise past papermill and leave cells marked as completed, `sys.exit(0)` counts as
success, unknown parameters only warn; so all of these are judged here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import math
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from papermill.inspection import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from nescord_ops import kernel
from nescord_ops.errors import ReportError
from nescord_ops.kernel import Nursery
from nescord_ops.show import printable

KERNELSPEC = {"name": "python3", "display_name": "python3", "language": "python"}
START_SECONDS = 60
_SOCKET_PATH = 107  # the longest path of a Unix socket, unix(7)
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_FROM_TEXT: Mapping[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "bool": lambda text: _TRUTH[text.lower()],
}
_log = logging.getLogger("nescord_ops.kernel")
_log.addHandler(logging.NullHandler())
_log.propagate = False


@dataclasses.dataclass(frozen=True, slots=True)
class Notebook:
    """A notebook as found: its declared parameters (name to type) or why it cannot run."""

    name: str
    content: Any
    declared: Mapping[str, str]
    problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """What ended a notebook early: one line, what to do, and where (`last`: in the last cell)."""

    kind: str
    summary: str
    hint: str
    last: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Executed:
    """The notebook with its outputs, what stopped it if anything did, and how long it took."""

    content: Any
    stop: Stop | None
    seconds: float


def read(path: Path, name: str) -> Notebook:
    """Given a notebook's path, return it with the parameters that it declares.

    A file that is no notebook, or has no cell tagged `parameters`, comes back with `problem`.
    """
    empty = nbformat.v4.new_notebook()
    try:
        content = nbformat.reads(path.read_text("utf-8"), as_version=4)
        nbformat.validate(content)
    except (OSError, UnicodeDecodeError, RecursionError, ValueError, KeyError) as error:
        reason = printable(str(error)).partition("\n")[0]
        return Notebook(name, empty, {}, f"{path.name} is not a readable notebook: {reason}")
    except (AttributeError, TypeError, nbformat.ValidationError):
        return Notebook(name, empty, {}, f"{path.name} is not a notebook")
    # The object, not its path: papermill formats paths, so braces in one break it.
    content.metadata["kernelspec"] = dict(KERNELSPEC)
    content = load_notebook_node(content)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # findings of a former run, where this one is refused
    if not any("parameters" in cell.metadata.tags for cell in content.cells):
        return Notebook(name, content, {}, "the notebook has no cell tagged `parameters`")
    found = inspect_notebook(content)
    return Notebook(name, content, {key: p["inferred_type_name"] for key, p in found.items()})


def typed(name: str, value: object, declared: str) -> object:
    """Given a parameter's value and its declared type, return the JSON scalar to pass.

    Text is converted, as it comes from the command line; nothing is guessed: `007` stays text
    where text is declared. Raise ReportError if the value does not fit the type.
    """
    if isinstance(value, str) and declared in _FROM_TEXT:
        with contextlib.suppress(ValueError, KeyError):
            value = _FROM_TEXT[declared](value.strip())
    if isinstance(value, int) and not isinstance(value, bool) and declared == "float":
        value = float(value)
    scalar = value is None or isinstance(value, str | bool | int | float)
    fits = scalar if declared == "None" else type(value).__name__ == declared
    if not (scalar and fits) or (isinstance(value, float) and not math.isfinite(value)):
        wanted = "a JSON scalar" if declared == "None" else f"of type {declared}"
        raise ReportError(
            f"parameter {name} is {printable(repr(value))}, not {wanted}",
            f"correct the value of {name}",
        )
    return value


class Kernels:
    """Every kernel of one run: where their sockets lie, who forks them, and one way to end them."""

    def __init__(self, nursery: Nursery, environment: Mapping[str, str]) -> None:
        self.nursery = nursery
        self.directory = Path(tempfile.mkdtemp(prefix="nescord-ops-kernels-", dir=_socket_home()))
        self.environment = {
            **environment,
            "ANONYMIZED_TELEMETRY": "False",
            "IPYTHONDIR": str(self.directory / "ipython"),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }
        self.stopped = False
        self.first_asked = threading.Event()
        self._running: list[_Manager] = []
        self._numbers = itertools.count()

    def manager(self) -> _Manager:
        """Return a manager for one more kernel; its process starts with the notebook."""
        file = self.directory / f"{next(self._numbers)}.json"
        manager = _Manager(
            transport="ipc", connection_file=str(file), client_factory=_Client, log=_log
        )
        manager.kernels = self
        self._running.append(manager)
        return manager

    def end(self, manager: _Manager) -> None:
        """End one kernel and its children, and forget it: its process number may be reused."""
        manager.collect()
        self._running.remove(manager)

    def stop(self) -> None:
        """End every kernel and its children now; the threads that wait for them return."""
        self.stopped = True
        for manager in tuple(self._running):
            manager.kill()


class _Manager(AsyncKernelManager):  # type: ignore[misc]
    """jupyter_client's manager for a kernel that `Kernels.nursery` forks and reaps."""

    kernels: Kernels
    pid: int | None = None
    code: int = 0

    @property
    def has_kernel(self) -> bool:
        return self.pid is not None

    async def start_kernel(self, **_: Any) -> None:
        self.write_connection_file()
        self.kernels.first_asked.set()
        self.pid = self.kernels.nursery.fork(self.connection_file, self.kernels.environment)
        if self.kernels.stopped:
            self.kill()

    async def _async_is_alive(self) -> bool:
        return self.pid is not None and kernel.alive(self.pid)

    is_alive = _async_is_alive  # jupyter_client's own client asks under the first name

    async def shutdown_kernel(self, *_: Any, **__: Any) -> None:
        self.kill()

    def collect(self) -> int:
        """End the kernel if it still runs, and return its exit code, negative for a signal."""
        self.kill()
        if self.pid is not None:
            with contextlib.suppress(ConnectionError):
                self.code = self.kernels.nursery.exit_code(self.pid)
            self.pid = None
        return self.code

    def kill(self) -> None:
        """End the kernel's whole process group; without a kernel nothing happens."""
        if self.pid is not None:
            # A kernel that was forked a moment ago leads no group yet.
            for end in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(self.pid, signal.SIGKILL)


class _Client(AsyncKernelClient):  # type: ignore[misc]
    """jupyter_client's client without its flush, 0.2 s of waiting for a kernel's old messages.

    And without its heartbeat, a thread that fails aloud when a kernel is ended as it starts; that
    a kernel lives is seen in /proc.
    """

    def start_channels(self, **_: bool) -> None:
        super().start_channels(hb=False)

    async def wait_for_ready(self, timeout: float = START_SECONDS) -> None:
        """Return when the kernel answers and its broadcasts arrive; raise RuntimeError if not."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and await self.is_alive():
            self.kernel_info()
            with contextlib.suppress(queue.Empty):
                reply = await self.get_shell_msg(timeout=1)
                await self.get_iopub_msg(timeout=0.2)
                self._handle_kernel_info_reply(reply)
                return
        raise RuntimeError("the kernel did not start")


@contextlib.contextmanager
def kernels(nursery: Nursery, environment: Mapping[str, str]) -> Iterator[Kernels]:
    """Given the kernels' environment, yield their keeper; leave no kernel and no file behind."""
    keeper = Kernels(nursery, environment)
    try:
        yield keeper
    finally:
        keeper.stop()
        shutil.rmtree(keeper.directory, ignore_errors=True)


def execute(
    notebook: Notebook, values: Mapping[str, object], keeper: Kernels, timeout_seconds: float
) -> Executed:
    """Given a notebook and its parameters, run it to its end or to what stops it.

    `timeout_seconds` is for the whole notebook. Safe to call from several threads: the process's
    directory is not touched. Never raises for what the notebook does.
    """
    began = time.monotonic()
    content = notebook.content
    if values:
        content = parameterize_notebook(content, dict(values), kernel_name="python3")
    manager = keeper.manager()
    try:
        _Engine.execute_notebook(
            content,
            "python3",
            progress_bar=False,
            manager=manager,
            deadline=began + timeout_seconds,
        )
        stop = _stop(content)
    except Exception as error:  # the engine's, not the cells': each has its line in the report
        stop = _stop(content, _reason(error, manager, timeout_seconds))
    finally:
        keeper.end(manager)
        _close_loop()
    return Executed(content, stop, time.monotonic() - began)


class _Engine(NBClientEngine):  # type: ignore[misc]
    """papermill's engine with a kernel manager of ours and a deadline for the notebook."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        deadline = options["deadline"]
        client = PapermillNotebookClient(
            nb_man,
            km=options["manager"],
            kernel_name=kernel_name,
            log=_log,
            shutdown_kernel="immediate",
            startup_timeout=START_SECONDS,
            timeout_func=lambda _: max(1, math.ceil(deadline - time.monotonic())),
        )
        client.execute(cleanup_kc=True)


def _reason(error: Exception, manager: _Manager, timeout_seconds: float) -> Stop:
    """What an exception of the engine's means, with the one thing to do about it."""
    if isinstance(error, CellTimeoutError):
        return Stop(
            "Timeout",
            f"did not finish within {timeout_seconds:g} s",
            "run it again with more time, or open the notebook in JupyterLab to see what is slow",
        )
    if isinstance(error, DeadKernelError):
        code = manager.collect()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return Stop(
            "DeadKernel",
            f"the notebook's Python process {how}",
            "often the memory ran out: free some, or run fewer notebooks at once",
        )
    line = printable(str(error)).strip().partition("\n")[0]
    return Stop(
        type(error).__name__,
        f"the notebook could not be run: {type(error).__name__}: {line}",
        "run it again; if it stays so, install the package again: ipykernel may be damaged",
    )


def _stop(content: Any, reason: Stop | None = None) -> Stop | None:
    """Given an executed notebook, return what stopped it, and write `reason` into its cell."""
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    for index, cell in enumerate(cells, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                return _raised(output, index, last=index == len(cells))
    if reason is None:
        return None
    begun = [n for n, c in enumerate(cells, 1) if c.metadata.papermill.get("start_time")]
    if not begun:
        return reason
    cell = cells[begun[-1] - 1]
    summary = f"cell {begun[-1]}: {reason.summary}"
    cell.metadata.papermill["status"] = "failed"
    cell.outputs.append(
        nbformat.v4.new_output(
            "error", ename=reason.kind, evalue=reason.summary, traceback=[f"Try: {reason.hint}"]
        )
    )
    return dataclasses.replace(reason, summary=summary)


def _raised(output: Any, index: int, *, last: bool) -> Stop:
    """What a cell's error output says: its first line, and the hint of an error of ours."""
    message = printable(output.evalue).strip().partition("\n")[0]
    summary = f"cell {index} raised {output.ename}: {message}".rstrip(": ")
    hint = next((line[5:] for line in output.traceback if line.startswith("Try: ")), "")
    hint = hint or "the traceback is in the report; open the notebook in JupyterLab to go on"
    return Stop(output.ename, summary[:300], printable(hint), last)


def _close_loop() -> None:
    """Close this thread's event loop; a cell that was given up leaves tasks waiting in it."""
    loop = ensure_event_loop()
    pending = asyncio.all_tasks(loop)
    for task in pending:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    loop.close()


def _socket_home() -> str | None:
    """The temporary directory, or /tmp where its path is too long for a socket's name."""
    longest = len(os.fsencode(tempfile.gettempdir())) + len(
        "/nescord-ops-kernels-12345678/99-ipc-5"
    )
    return "/tmp" if longest > _SOCKET_PATH else None  # noqa: S108 - a private directory in it
