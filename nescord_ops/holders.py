"""Who has files open: the question to ask before a file is replaced under a running bot.

Three witnesses: open descriptors and mapped files of every process, by device and inode
(proc(5)), and the locks that the kernel knows of. A SQLite connection in WAL mode holds one on
`-shm` for its whole life, so even a process that cannot be seen from here (another container on
the same volume) is noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from nescord_ops import show, volume
from nescord_ops.results import Result

_PROC = Path("/proc")
_FLOCK = "hhqqi"  # struct flock of fcntl(2), 64 bit: type, whence, start, length, pid


@dataclasses.dataclass(frozen=True, slots=True)
class Holder(Result):
    """A process and one of the files that it holds; pid 0 is one that cannot be seen from here."""

    pid: int
    command: str
    path: Path

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.command})" if self.pid else "a process unseen from here"
        return f"{who} has {self.path} open"


@dataclasses.dataclass(frozen=True, slots=True)
class Scan(Result):
    """Who holds the files, one entry a process, and which processes and files cannot be looked at.

    `complete` is False where there is no /proc: then only locks were asked for.
    """

    holders: tuple[Holder, ...]
    unseen: tuple[str, ...]
    complete: bool


def scan(roots: Iterable[Path]) -> Scan:
    """Given files and directories, return which other processes hold any file of theirs.

    Reads /proc and opens each file for a moment. That drops the POSIX locks that this process
    has on it, so call it with no connection of one's own to these files.
    """
    targets = {
        (seen.st_dev, seen.st_ino): path
        for root in roots
        for path, seen in volume.walk(root)
        if seen and stat.S_ISREG(seen.st_mode)
    }
    found: dict[int, Holder] = {}
    unseen = []
    pids = {int(entry.name) for entry in _PROC.glob("[0-9]*")}
    for pid in sorted(pids - {os.getpid()}):
        try:
            path = next((targets[key] for key in _held(pid) if key in targets), None)
        except OSError:
            if _is_program(pid):
                unseen.append(f"process {pid} ({_command(pid)})")
            continue
        if path:
            found[pid] = Holder(pid, _command(pid), path)
    for path in targets.values():
        try:
            locker = _locker(path)
        except OSError as error:
            unseen.append(f"{path} ({error.strerror})")
            continue
        if locker is not None:
            found.setdefault(locker, Holder(locker, _command(locker), path))
    ordered = tuple(found[pid] for pid in sorted(found))
    return Scan(ordered, tuple(unseen), complete=bool(pids))


def _held(pid: int) -> Iterator[tuple[int, int]]:
    """Device and inode of what a process has open or mapped; of one that ends meanwhile, less."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in (_PROC / f"{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                seen = entry.stat()
                yield seen.st_dev, seen.st_ino
        for line in (_PROC / f"{pid}/maps").read_bytes().splitlines():
            device, inode = line.split()[3:5]
            major, minor = (int(part, 16) for part in device.split(b":"))
            yield os.makedev(major, minor), int(inode)


def _locker(path: Path) -> int | None:
    """The pid of another process with a lock on the file, 0 for one that is unseen, or None.

    Raise OSError if the file is there and cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, asked))
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def _command(pid: int) -> str:
    """A process's name; not its arguments, which may hold a secret."""
    try:
        return show.printable((_PROC / f"{pid}/comm").read_text(errors="replace").strip())
    except OSError:
        return "unknown"


def _is_program(pid: int) -> bool:
    """Whether it is a program, which holds files, rather than a thread of the kernel's."""
    with contextlib.suppress(OSError):
        return bool((_PROC / f"{pid}/cmdline").read_bytes())
    return False
