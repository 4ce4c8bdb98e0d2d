"""A sample volume to try the runbook on, healthy or with named faults planted.

`nescord-ops demo`, `--demo` and the tests all build their volumes here.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from nescord_ops import sample
from nescord_ops.errors import SettingsError, VolumeError
from nescord_ops.faults import FAULTS
from nescord_ops.sample import Demo
from nescord_ops.settings import OF_A_VOLUME
from nescord_ops.volume import claim, clear, remove_tree

__all__ = ["Demo", "create", "only_sample", "temporary"]

LARGEST = 1_000_000


def create(
    directory: Path,
    *,
    notes: int = 300,
    vectors: int | None = None,
    faults: Sequence[str] = (),
    now: datetime | None = None,
    seed: int = 0,
    note_bytes: int = 1000,
    backups: bool = True,
) -> Demo:
    """Build a sample volume in `directory`, the bot's working directory, and return it.

    The oldest `vectors` notes (default: all) are in Chroma, the others are backlog. `note_bytes`
    is the average size of a note's text in UTF-8. Everything but the ids that Chroma draws follows
    from the arguments. Raise VolumeError if the directory is not empty or cannot be written,
    SettingsError for an unknown fault, one that nothing is there for, or a number out of range;
    then the directory is empty.
    """
    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        raise SettingsError(
            f"no fault is named {unknown[0]!r}", "nescord-ops demo --fault list names them"
        )
    if not 1 <= notes <= LARGEST:
        raise SettingsError(
            f"{notes} notes: from 1 to {LARGEST:,} can be made", "choose another --notes"
        )
    demo = Demo(
        app_dir=claim(directory.absolute()),
        notes=notes,
        vectors=min(notes, notes if vectors is None else max(vectors, 0)),
        note_bytes=note_bytes,
        now=now or datetime.now(UTC),
        seed=seed,
    )
    with contextlib.ExitStack() as undo:
        undo.callback(_clear, demo.app_dir)
        try:
            sample.build(demo, backups=backups)
            for name in faults:
                FAULTS[name].plant(demo)
        except (OSError, sqlite3.Error) as error:
            hint = "see that there is room, and make it again"
            raise VolumeError(f"{directory} cannot be written: {error}", hint) from error
        undo.pop_all()
    return demo


def _clear(directory: Path) -> None:
    """Remove what was made in a directory that was empty."""
    with contextlib.suppress(OSError):
        clear(directory)


@contextlib.contextmanager
def temporary() -> Iterator[Demo]:
    """Build a sample volume in a temporary directory, which is removed afterwards."""
    root = Path(tempfile.mkdtemp(prefix="nescord-ops-demo-"))
    try:
        yield create(root / "app")
    finally:
        remove_tree(root)


@contextlib.contextmanager
def only_sample() -> Iterator[None]:
    """Hide the real volume's variables from this process, so that a sample's `.env` counts."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(OF_A_VOLUME)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
