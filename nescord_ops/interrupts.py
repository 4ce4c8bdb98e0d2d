"""SIGTERM and Ctrl-C end a command, even where Python loses the exception that says so.

What a signal's handler raises is only reported, and the program goes on, if the handler happens to
run in a weak reference's callback or in `__del__`. So the handler also leaves a note, which is
read at every line of progress, before anything is published, and at the end.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGINT. Once exec() has seen the very KeyboardInterrupt, `python -m` ends by it.

    It does so even where that is caught (CPython 3.11, pythonrun.c), and dataclasses use exec().
    """


_arrived = False


def watch() -> None:
    """From now on both signals raise Terminated; a shell's `&` has SIGINT ignored, and it stays."""
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGTERM, _arrive)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _arrive)


def arrived() -> bool:
    """Whether a signal has asked this process to end."""
    return _arrived


def check() -> None:
    """Raise Terminated if a signal has asked this process to end."""
    if _arrived:
        raise Terminated


def _unraisable(lost: UnraisableHookArgs) -> None:
    """Print no traceback of an exception that was lost and is noted."""
    if lost.exc_type is not Terminated:
        sys.__unraisablehook__(lost)


def _arrive(*_: object) -> None:
    global _arrived
    _arrived = True
    raise Terminated
