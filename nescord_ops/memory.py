"""How much memory is left, in a container as well, and how to need less of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nescord_ops.errors import CaptureError

_GROUPS = Path("/sys/fs/cgroup")
# Of a group: its limit, what it uses, and which part of that is cache that can be given up.
_NEW = ("memory.max", "memory.current", "inactive_file")
_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
# Addresses that numpy with OpenBLAS takes, by itself and for each processor (numpy 2.4, measured).
_NUMPY_BYTES, _THREAD_BYTES = 64 << 20, 48 << 20


def available_bytes() -> int | None:
    """The memory that may still be used here: the container's limit, else the machine's; or None.

    Sources: cgroups(7), versions 2 and 1, all groups above this process's; proc(5) `MemAvailable`.
    """
    return min([*_of_groups(), *_of_machine()], default=None)


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Import what is imported here as if these modules were not installed; what is there stays."""
    hidden = set(names) - sys.modules.keys()
    try:
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)  # an interrupt may come before it is there


def import_database() -> Any:
    """Return sqlite_utils.Database, imported without pandas: 0.3 s and 45 MB for unused types."""
    with without("pandas", "numpy"):
        from sqlite_utils import Database
    return Database


def refuse_few_addresses() -> None:
    """Raise CaptureError if a limit of addresses (`ulimit -v`) leaves too few to load numpy.

    OpenBLAS ends the process with exit code 1 then, which means damage here.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or "numpy" in sys.modules:
        return
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return
    needed = _NUMPY_BYTES + (os.cpu_count() or 1) * _THREAD_BYTES
    if limit - used < needed:
        text = f"a limit of addresses leaves {limit - used:,} bytes, and {needed:,} are needed"
        raise CaptureError(text, "raise it (ulimit -v), or limit the memory by a control group")


def trim() -> None:
    """Give back what imports leave unused, 7 MB of 48 in a report's process; malloc_trim(3)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _of_groups() -> Iterator[int]:
    """What each group of this process has left, where it has a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, files = (_GROUPS / "memory", _OLD) if controllers else (_GROUPS, _NEW)
        group = top / name.lstrip("/")
        for each in (group, *group.parents):
            if each.is_relative_to(top):
                yield from _left(each, *files)


def _left(group: Path, limit_file: str, used_file: str, cache: str) -> Iterator[int]:
    try:
        limit = (group / limit_file).read_text().strip()
        if not limit.isdigit():
            return
        lines = (group / "memory.stat").read_text().splitlines()
        statistics = dict(line.split() for line in lines)
        used = int((group / used_file).read_text())
        yield int(limit) - used + int(statistics.get(cache, 0))
    except (OSError, ValueError):
        return  # the group is another container's, or this is no cgroup


def _of_machine() -> Iterator[int]:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return
