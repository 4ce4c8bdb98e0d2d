"""Every error that this package raises on purpose, each with a hint of what to do next.

OpsError                  what, where and which number; `hint` names the command to run
├── SettingsError         nothing is configured, or a value makes no sense
├── VolumeError           a place cannot be read or written, or has no room
├── UnreadError           the machine or our rights kept a file back: no word on the file itself
├── CaptureError          the two stores cannot be copied at one moment
├── BackupError           a backup cannot be taken, found, read or removed
├── StoreError            the store of backups cannot be read, written or believed
├── OffsiteError          an off-site copy cannot be pushed, found, read or believed
├── LabError              JupyterLab is not there, does not start, or has no place to work
├── ReportError           a notebook or a parameter that the runner refuses
└── ChecksFailed          raised by `Findings.raise_for_status()` only

Exit codes: 1 for a failed check, 2 for everything that could not be checked, and for misuse.
"""

from __future__ import annotations

import sys
from typing import Any

from nescord_ops.show import Text, printable

_AGAIN = "run the cells above this one first: Run > Run All Above Selected Cell"
_STOPPED = "run the cell again when you are ready; what it had begun was removed"
_TRACE = "%tb in a new cell shows where; if you changed nothing, report what it says"


class OpsError(Exception):
    """The base: the command line catches it once and prints `Error:` and `Try:`."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = Text(message)
        super().__init__(str(self.message))
        self.hint = printable(hint)

    def __str__(self) -> str:
        return str(self.message)

    def __format__(self, spec: str) -> str:
        """The message in a sentence, where its amounts keep their exact values."""
        return format(self.message, spec)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: the message and the hint."""
        return _lines(self, self.hint)


class SettingsError(OpsError):
    """Nothing is configured, or a value makes no sense."""


class VolumeError(OpsError):
    """A place cannot be read or written, or has no room."""


class UnreadError(OpsError):
    """The machine or our rights kept a file from being read, which says nothing about it."""


class CaptureError(OpsError):
    """The two stores cannot be copied at one moment."""


class BackupError(OpsError):
    """A backup cannot be taken, found, read or removed."""


class StoreError(OpsError):
    """The store of backups cannot be read, written or believed."""


class OffsiteError(OpsError):
    """An off-site copy cannot be pushed, found, read or believed."""


class LabError(OpsError):
    """JupyterLab is not there, does not start, or has no place to work."""


class ReportError(OpsError):
    """A notebook or a parameter that the runner refuses."""


class ChecksFailed(OpsError):  # noqa: N818 - a verdict, not a malfunction
    """At least one check failed (exit code 1) or could not be made (exit code 2)."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def load_ipython_extension(shell: Any) -> None:
    """Show every error in a notebook as a message and a hint; `%tb` still has the traceback.

    JupyterLab's kernels load this module as an IPython extension; reports keep tracebacks.
    """
    shell.set_custom_exc((Exception, KeyboardInterrupt), _show)


def _show(
    shell: Any, kind: type[BaseException], error: BaseException, trace: Any, **_: Any
) -> list[str]:
    """IPython's handler (`set_custom_exc`), which has to do all that `showtraceback` does."""
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace
    if isinstance(error, OpsError):
        lines = error._render_traceback_()
    else:
        hints = ((NameError, _AGAIN), (KeyboardInterrupt, _STOPPED))
        lines = _lines(error, next((h for each, h in hints if isinstance(error, each)), _TRACE))
    shell._showtraceback(kind, error, lines)
    return lines


def _lines(error: BaseException, hint: str) -> list[str]:
    """The message and the hint, without what a terminal would obey: both may quote the volume."""
    lines = [printable(f"{type(error).__name__}: {error}".removesuffix(": "))]
    return [*lines, f"Try: {printable(hint)}"] if hint else lines
