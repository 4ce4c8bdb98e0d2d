"""Kernels by fork: one interpreter imports what notebooks need, and each kernel is a copy of it.

A kernel and its imports take 0.9 s of processor time, a copy 0.1 s; the copies share their
memory. They are processes of their own, in process groups of their own, as any kernel is.
Measured with ipykernel 7.4 and matplotlib 3.11 on Linux.

This file is also the program that forks, run by its path. It reads requests, one JSON document a
line, and answers each with one; when the process that started it ends, it ends, and with it every
kernel and whatever those have started, in whatever session (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

NEEDED = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.extensions.storemagic",
    "tornado.platform.asyncio",
    "nescord_ops.verify",
)
USUAL = (
    "nescord_ops.capacity",
    "nescord_ops.cost",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "matplotlib.dates",
)

_SUBREAPER = 36  # linux/prctl.h
_END_SECONDS = 5


class Nursery:
    """The interpreter that forks kernels, as seen by the process that asks for them."""

    def __init__(self, *, sparing: bool = False) -> None:
        """Start it; if `sparing`, without what only some notebooks need: 28 MB, 0.3 s in each."""
        # A session of its own: an interrupt from the terminal is the asking process's to handle.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # Chroma's threads: 4 MB less
        )
        self._lock = threading.Lock()
        with contextlib.suppress(BrokenPipeError):  # it was killed: who asks for a kernel is told
            self._send({"path": sys.path, "modules": [*NEEDED, *(() if sparing else USUAL)]})

    def fork(self, connection_file: str, environment: Mapping[str, str]) -> int:
        """Start a kernel and return its process id, which is its group's too."""
        pid = self._ask({"file": connection_file, "environment": dict(environment)})
        assert isinstance(pid, int)
        return pid

    def exit_code(self, pid: int) -> int:
        """Given the process id of a kernel that has ended, return its code, negative for a signal.

        To be asked once: the kernel is collected with it.
        """
        code = self._ask({"pid": pid})
        assert isinstance(code, int)
        return code

    def close(self) -> None:
        """End the interpreter, which ends all that still descends from it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._process.kill()
        self._process.wait()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _ask(self, request: Mapping[str, Any]) -> object:
        """Send a request and return the answer; raise OSError if nobody is there to give one."""
        assert self._process.stdout
        with self._lock:
            self._send(request)
            answer = self._process.stdout.readline()
        if not answer:
            raise ConnectionError("the process that starts kernels has ended")
        return json.loads(answer)


def alive(pid: int) -> bool:
    """Given the process id of a kernel that was not collected yet, return whether it runs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def serve() -> None:
    """Fork and report as asked until standard input ends; then end everything that was forked.

    What a notebook leaves behind becomes this process's child, so it is found.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        _serve()
    finally:
        _end_descendants()


def _serve() -> None:
    """Import what kernels need, then fork and report as asked, until standard input ends.

    The first kernel does not wait for `USUAL`: the longest notebook is asked for first.
    """
    # Unbuffered: select(2) sees what a buffer would hide.
    requests = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
    told = json.loads(requests.readline())
    sys.path[:] = told["path"]
    from nescord_ops import chroma_child, memory

    chroma_child.prepare(_fork)
    # A report needs no debugger: 10 MB and 0.1 s in every kernel, and its hooks in the notebook.
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    first = b""
    for name in told["modules"]:
        if not first and name in USUAL and select.select([requests], [], [], 0)[0]:
            first = requests.readline()
            _answer(json.loads(first))
        importlib.import_module(name)
    memory.trim()
    gc.freeze()
    for line in iter(requests.readline, b""):
        _answer(json.loads(line))


def _end_descendants() -> None:
    """Kill every process that descends from this one, for a few seconds at the most, and collect.

    In a container nobody else does: process 1 is the bot.
    """
    deadline = time.monotonic() + _END_SECONDS / 2
    while (found := _descendants()) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants() -> list[int]:
    """The living processes that descend from this one."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry))
    found = [*children.get(os.getpid(), ())]
    for pid in found:
        found += children.get(pid, ())
    return found


def _answer(request: Mapping[str, Any]) -> None:
    """Fork a kernel, or collect one that has ended, and write its process id or exit code."""
    if "pid" in request:
        answer = os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])
    else:
        answer = _fork()
        if answer == 0:
            _become_kernel(request["file"], request["environment"])
    os.write(1, json.dumps(answer).encode() + b"\n")


def _fork() -> int:
    """Fork; the copy leaves the old session and its streams."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
    return pid


def _become_kernel(connection_file: str, environment: Mapping[str, str]) -> None:
    """In the copy: be a kernel until it ends."""
    try:
        os.environ.clear()
        os.environ.update(environment)
        from ipykernel.kernelapp import IPKernelApp

        sys.argv[:] = ["ipykernel_launcher"]
        IPKernelApp.launch_instance(
            connection_file=connection_file,
            parent_handle=os.getppid(),
            argv=["--HistoryManager.hist_file=:memory:"],
        )
    finally:
        os._exit(0)


if __name__ == "__main__":
    # The file's own directory is not on the path (-P), so no module here hides one of Python's.
    serve()
