"""The fault matrix: whatever fails around a command, the data and the backups are as before.

    python -m pytest tests/test_matrix.py -m slow -s    every cell, about an hour; prints the matrix

`tests/matrix/` says what a cell is and what is complained of. Here are the cells that have
found defects, a slice that is cheap enough for every day, and what every command is to exit with on
every volume of the demo's.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from matrix import cells, machine
from matrix.cells import Cell, Matrix
from matrix.machine import Fault, Machine
from matrix.world import HEALTHY, World

from nescord_ops.demo import Demo

SEED = 1
SLICE = [
    Cell("verify --depth quick", HEALTHY, "read-only"),
    Cell("backup create", HEALTHY, "full"),
    Cell("backup list", HEALTHY, "eacces"),
    Cell("backup prune --keep 1", HEALTHY, "sigkill-call"),
    Cell("backup check", HEALTHY, "clock"),
    Cell("offsite push", HEALTHY, "enospc-write"),
]


def possible() -> str:
    """Why the machine cannot be made to fail here, or nothing."""
    if os.geteuid() or not shutil.which("cc"):
        return "needs root and a C compiler"
    mounted = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    return "needs the right to mount" if mounted.returncode else ""


pytestmark = pytest.mark.skipif(bool(possible()), reason=possible())


@pytest.fixture(scope="module")
def small(base_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"), seed=SEED, base=base_demo)


def failing(ops: str, nth: int, number: int, *, sticky: bool = False) -> Fault:
    """The nth call of these kinds fails."""
    options = {"ops": ops, "nth": nth, "sticky": int(sticky), "errno": number}
    return lambda world, _chance, _usual: Machine(
        machine.shimmed(world, **options), untidy=sticky, told=str(options)
    )


def terminated(nth: int) -> Fault:
    """SIGTERM comes before the nth write, sync or rename."""
    options = {"ops": "wsn", "nth": nth, "signal": int(signal.SIGTERM), "main": 1}
    return lambda world, _chance, _usual: Machine(
        machine.shimmed(world, **options), codes=frozenset((130, -2)), told=str(options)
    )


def unreadable(world: World, *_: object) -> Machine:
    """The bot's directory is another user's."""
    return machine.denied(world, world.app, 0o700)


# What found a defect once: the command, what failed, and the exit code that is right.
FOUND = {
    "a demo on a full disk": ("demo --notes 5", failing("w", 9, errno.ENOSPC, sticky=True), 2),
    "a configuration on a full disk": ("deploy --write", failing("w", 2, errno.ENOSPC), 2),
    "a .env of somebody else's": ("backup list", unreadable, 2),
    "SIGTERM for the module": ("backup create", terminated(12), 130),
    "scratch that cannot be removed": (
        *("clean", failing("n", 4, errno.EACCES, sticky=True)),
        2,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_stays_mended(small: Matrix, name: str) -> None:
    command, fault, code = FOUND[name]
    outcome = small.run(Cell(command, HEALTHY, name), fault=fault, as_json=True)
    assert not outcome.complaints, outcome
    assert outcome.code == code, outcome


@pytest.mark.parametrize("cell", SLICE, ids=str)
def test_a_cell_of_every_kind(small: Matrix, cell: Cell) -> None:
    outcome = small.run(cell)
    assert not outcome.complaints, outcome


@pytest.mark.slow
@pytest.mark.parametrize("sweep", ["pairs", "machine", "triples"])
def test_every_cell(sweep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        outcomes = cells.sweep(Matrix(tmp_path, seed=SEED), cells.cells(sweep, seed=SEED))
        print(f"\n{cells.table(outcomes)}\n{sweep}: {len(outcomes)} cells, seed {SEED}")
    assert not [str(outcome) for outcome in outcomes if outcome.complaints]
