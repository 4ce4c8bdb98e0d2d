"""What a machine's fault can look like: damage of a copy whose disk did not give it back.

SQLite and Chroma call a page malformed that the disk did not give (chromadb 1.5.9, SQLite 3.40,
measured), so no copy is called damaged before every byte of it could be read.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from nescord_ops import show, volume
from nescord_ops.checks import Check, Status, fail, unknown
from nescord_ops.database import MACHINE_HINT, of_damage, of_the_machine
from nescord_ops.errors import CaptureError, OpsError, StoreError, UnreadError
from nescord_ops.snapshot import Snapshot
from nescord_ops.storefile import CHECK_HINT

# Failures of these say that the copy itself is no good; others are about what the bot put in it.
DAMAGE = {"database.integrity"} | {
    f"chroma.{name}" for name in ("integrity", "index", "vectors", "sequence")
}
_OF_THE_COPY = DAMAGE | {"chroma.collection"}  # without which none of Chroma's is looked at
_Read = TypeVar("_Read")
CLIENT = {"chroma.roundtrip", "chroma.search"}


def suspects(checks: Iterable[Check], copy: Snapshot) -> set[str]:
    """Given what was seen of a copy, return the names of failures that a disk may have caused.

    What is not in the copy was not read.
    """
    present = {"database": copy.database, "chroma": copy.chroma}
    absent = {f"{store}.integrity" for store, path in present.items() if not path}
    return {check.name for check in _bad(checks, _OF_THE_COPY - absent)}


def unread(checks: Iterable[Check]) -> Check | None:
    """Given what was seen of a copy, return a check of damage that the machine kept from being."""
    return next((c for c in checks if c.name in _OF_THE_COPY and _kept_from(c)), None)


def refuse_unread(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Return what was seen of a copy, which is then good or damaged.

    Raise CaptureError for one that could not be looked at: it is neither.
    """
    if kept := unread(checks):
        raise CaptureError(f"{kept.name} {kept.summary}; nothing was stored", kept.hint)
    return checks


def damage(checks: Iterable[Check], absent: Iterable[str] = ()) -> tuple[Check, ...]:
    """Given what was seen of a copy, return the checks that say it is damaged.

    A store that is `absent` is not damaged, nor is one that the machine kept us from reading.
    """
    names = DAMAGE - {f"{store}.integrity" for store in absent}
    return tuple(_bad(checks, names))


def _bad(checks: Iterable[Check], names: set[str]) -> Iterator[Check]:
    bad = (check for check in checks if check.name in names and check.status.exit_code)
    return (check for check in bad if not _kept_from(check))


def _kept_from(check: Check) -> bool:
    return check.status is Status.UNKNOWN and check.hint == MACHINE_HINT


def unreadable(copy: Snapshot) -> str:
    """Read every byte of a copy that is no hole; return why one could not be read, or nothing."""
    for store in filter(None, (copy.database, copy.chroma)):
        for path, _ in volume.walk(store):
            try:
                volume.read_through(path)
            except OSError as error:
                return f"{path.name}: {error.strerror}"
    return ""


def withdrawn(checks: Iterable[Check], names: set[str], why: str) -> tuple[Check, ...]:
    """Return the checks with every failure of these names, or of Chroma's, made an unknown."""
    names = names | CLIENT
    text = f"the copy could not be read: {why}"
    changes = {"status": Status.UNKNOWN, "summary": text, "hint": MACHINE_HINT}
    return tuple(
        dataclasses.replace(check, **changes, value=None)  # type: ignore[arg-type]
        if check.name in names and check.status.exit_code
        else check
        for check in checks
    )


def read_twice(read: Callable[[], _Read]) -> _Read:
    """Read a store of backups, once more if it looks damaged: the disk may have failed."""
    try:
        return read()
    except StoreError as error:
        if not of_damage(error.__cause__):
            raise
    return read()


def refused(name: str, error: OpsError, hint: str) -> Check:
    """Given why a live file was refused, return that check: unknown if the machine kept it back."""
    if isinstance(error, UnreadError):
        return unknown(name, f"{error}", error.hint)
    return fail(name, f"{error}", hint)


def undone(name: str, text: str, error: OpsError | OSError, command: str) -> Check:
    """Return the check of what could not be done, a failure only if the error says damage."""
    cause, hint = error.__cause__, getattr(error, "hint", "")
    damaged = hint == CHECK_HINT and not (isinstance(cause, OSError) or of_the_machine(cause))
    say = fail if damaged else unknown
    return say(name, f"{text}: {error}", f"{command}; {hint}" if hint else command)


def guarded(name: str, part: Callable[[], Iterable[Check]]) -> list[Check]:
    """Run one examination; damage that stops it is an `unknown` check of that name."""
    found: list[Check] = []
    try:
        found.extend(part())
    except (sqlite3.Error, OpsError, OSError, ValueError) as error:
        hint = getattr(error, "hint", "") or "see the failed checks first"
        if isinstance(error, OSError) or of_the_machine(error):
            hint = MACHINE_HINT
        found.append(unknown(name, f"could not be read: {show.printable(str(error))}", hint))
    return found
