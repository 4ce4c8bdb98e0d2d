"""One report at a time in a reports directory, and who is at work there.

The lock is flock(2) on the directory itself: the kernel drops it with the process, however that
ends, so it is never stale and leaves no file. Process and time are read off the name of the
directory that the run is building; they are there to be shown and decide nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import show
from nescord_ops.errors import ReportError

BUILDING = ".building-"
FLEET = "fleet.json"  # lies where a fleet's index is, and no single report may
_NAME = re.compile(rf"{re.escape(BUILDING)}(\d{{8}}T\d{{6}}Z)-(\d+)")


def building_name(began: datetime) -> str:
    """Return the hidden name of what this process builds: since when, and its process id."""
    return f"{BUILDING}{began:%Y%m%dT%H%M%SZ}-{os.getpid()}"


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Hold a reports directory for one run, and remove what killed runs left in it.

    Raise ReportError at once, naming the other run, if one is at work: a scheduled run that
    waited would only pile up behind one that hangs.
    """
    handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(target) from None
        _sweep(target)
        yield
    finally:
        os.close(handle)


def _busy(target: Path) -> ReportError:
    """The error that names the run at work by the directory that it builds."""
    text = f"another report is at work in {target}"
    hint = "wait for it to end, or name another directory with --out"
    with contextlib.suppress(OSError, ValueError):
        names = (_NAME.fullmatch(entry.name) for entry in target.iterdir())
        found = max(filter(None, names), key=lambda name: name[1])
        began = datetime.strptime(found[1], "%Y%m%dT%H%M%S%z")
        ago = show.age((datetime.now(UTC) - began).total_seconds())
        text += f": process {found[2]}, since {show.moment(began)} ({ago})"
        hint += f"; if it hangs, end it: kill {found[2]}"
    return ReportError(text, hint)


def _sweep(target: Path) -> None:
    """Remove everything that was being built or removed: with the lock held, nobody is at it."""
    with os.scandir(target) as entries:
        left = [entry for entry in entries if entry.name.startswith(BUILDING)]
    for entry in left:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)  # noqa: PTH108 - a name that may be no text
