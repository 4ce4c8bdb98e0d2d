"""Every error that this package raises on purpose, each with a hint of what to do next.

OpsError                  what, where and which number; `hint` names the command to run
├── SettingsError         nothing is configured, or a value makes no sense
├── VolumeError           a place cannot be read or written, or has no room
├── CaptureError          the two stores cannot be copied at one moment
├── BackupError           a backup cannot be taken, found, read or removed
├── StoreError            the store of backups cannot be read, written or believed
├── OffsiteError          an off-site copy cannot be pushed, found, read or believed
├── ReportError           a notebook or a parameter that the runner refuses
└── ChecksFailed          raised by `Findings.raise_for_status()` only

Exit codes: 1 for a failed check, 2 for everything that could not be checked, and for misuse.
"""

from __future__ import annotations


class OpsError(Exception):
    """The base: the command line catches it once and prints `Error:` and `Try:`."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: the message and the hint."""
        lines = [f"{type(self).__name__}: {self}"]
        return [*lines, f"Try: {self.hint}"] if self.hint else lines


class SettingsError(OpsError):
    """Nothing is configured, or a value makes no sense."""


class VolumeError(OpsError):
    """A place cannot be read or written, or has no room."""


class CaptureError(OpsError):
    """The two stores cannot be copied at one moment."""


class BackupError(OpsError):
    """A backup cannot be taken, found, read or removed."""


class StoreError(OpsError):
    """The store of backups cannot be read, written or believed."""


class OffsiteError(OpsError):
    """An off-site copy cannot be pushed, found, read or believed."""


class ReportError(OpsError):
    """A notebook or a parameter that the runner refuses."""


class ChecksFailed(OpsError):  # noqa: N818 - a verdict, not a malfunction
    """At least one check failed (exit code 1) or could not be made (exit code 2)."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
