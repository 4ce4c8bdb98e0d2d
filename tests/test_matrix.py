"""The fault matrix: whatever fails around a command, the data and the backups are as before.

    python -m pytest tests/test_matrix.py -m slow -s    every cell, about an hour; prints the matrix

`tests/matrix/` says what a cell is and what is complained of. Here are the cells that have
found defects, a slice that is cheap enough for every day, and what every command is to exit with on
every volume of the demo's.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from matrix import cells, machine
from matrix.cells import Cell, Matrix
from matrix.commands import ALL
from matrix.machine import MACHINES, Fault, Machine
from matrix.world import HEALTHY, World

from nescord_ops import verify
from nescord_ops.checks import Status
from nescord_ops.demo import Demo
from nescord_ops.faults import FAULTS
from nescord_ops.snapshot import capture

SEED = 1
# The exit code of each command on the healthy volume and on each of `FAULTS`, in their order, with
# nothing else failing; all others are 0. 2 is: the database of three slashes has no backups beside.
CODES = {
    "report verify cost --depth quick --out": "01100000000001000",
    "report --out": "01111110000101000",
    "verify": "01111110000101000",
    "verify --depth quick": "01100000000001000",
    "deploy": "01100000000001000",
    "troubleshoot": "01111110000101000",
    "clean --apply": "00002220000000000",
    "backup create": "00001110000100000",
    "backup create --keep 2 --drill --push": "00001110000100000",
    "backup create --dry-run": "00001110000100000",
    "backup check": "02000000000000000",
    "backup drill": "02000000000000000",
    "backup export": "02000000000000000",
    "backup adopt": "02000000000000000",
    "restore --dry-run": "02100000000000000",
    "restore --to": "02000000000000000",
    "restore": "02100000000000000",
    "restore --only chroma": "02100000000000000",
    "offsite push": "02000000000000000",
}


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
        machine.shimmed(world, **options),
        untidy=sticky and ops in "on",
        stuck=sticky,
        told=str(options),
    )


def signalled(nth: int, number: signal.Signals) -> Fault:
    """A signal comes before the nth write, sync or rename."""
    options = {"ops": "wsn", "nth": nth, "signal": int(number), "main": 1}
    return lambda world, _chance, _usual: Machine(
        machine.shimmed(world, **options),
        codes=frozenset((130 if number == signal.SIGTERM else -9,)),
        untidy=number == signal.SIGKILL,
        told=str(options),
    )


def unreadable(world: World, *_: object) -> Machine:
    """The bot's directory is another user's."""
    return machine.denied(world, world.app, 0o700)


def unreadable_scratch(world: World, *_: object) -> Machine:
    """What was written into scratch space does not come back."""
    options = {"ops": "r", "nth": 1, "sticky": 1, "errno": errno.EIO, "path": world.root / "tmp"}
    return Machine(machine.shimmed(world, **options))


def bad_scratch(ops: str, nth: int) -> Fault:
    """From the nth call on, scratch space gives nothing back, or takes nothing."""
    options = {"ops": ops, "nth": nth, "sticky": 1, "errno": errno.EIO}
    return lambda world, _chance, _usual: Machine(
        machine.shimmed(world, path=world.root / "tmp", **options), untidy=True, stuck=True
    )


def bad_page(nth: int, *, of_store: bool = False, sticky: bool = False) -> Fault:
    """A page of the store, or of what lies in scratch space, does not come back."""
    options = {"ops": "r", "nth": nth, "sticky": int(sticky), "errno": errno.EIO}

    def fault(world: World, *_: object) -> Machine:
        path = world.settings.backup_dir if of_store else world.root / "tmp"
        return Machine(machine.shimmed(world, path=path, **options))

    return fault


def bad_archive(world: World, *_: object) -> Machine:
    """The disk does not give the bot's own archive back."""
    (archive,) = world.settings.backup_dir.glob("*.db.zip")
    return Machine(machine.shimmed(world, ops="r", nth=1, sticky=1, errno=errno.EIO, path=archive))


def bad_live(ops: str, nth: int, number: int, *, sticky: bool = False) -> Fault:
    """The nth call on the live data fails."""
    options = {"ops": ops, "nth": nth, "sticky": int(sticky), "errno": number}
    return lambda world, _chance, _usual: Machine(
        machine.shimmed(world, path=world.settings.database.parent, **options)
    )


def full_offsite(world: World, *_: object) -> Machine:
    """The place off the volume takes nothing."""
    options = {"ops": "w", "nth": 1, "sticky": 1, "errno": errno.ENOSPC}
    return Machine(machine.shimmed(world, path=world.root / "offsite", **options), stuck=True)


def few_addresses(world: World, *_: object) -> Machine:
    """A limit at which OpenBLAS ends the process."""
    return Machine(limits={resource.RLIMIT_AS: 120 << 20})


def bad_store(world: World, *_: object) -> Machine:
    """The disk does not give the store of backups back."""
    options = {"ops": "r", "nth": 1, "sticky": 1, "errno": errno.EIO}
    return Machine(machine.shimmed(world, path=world.settings.backup_dir, **options))


# The command, what fails, and the exit code that is right. Most of them have found defects.
EVERY_DAY: dict[str, tuple[str, Fault, int]] = {
    "a demo on a full disk": ("demo --notes 5", failing("w", 2, errno.ENOSPC), 2),
    "a configuration on a full disk": ("deploy --write", failing("w", 2, errno.ENOSPC), 2),
    "an env file of another user": ("backup list", unreadable, 2),
    "SIGTERM amid a backup": ("backup create", signalled(12, signal.SIGTERM), 130),
    "scratch that stays": ("clean", failing("n", 4, errno.EACCES, sticky=True), 2),
    "a read-only volume": ("verify --depth quick", MACHINES["read-only"], 1),
    "a full disk amid a backup": ("backup create", failing("w", 20, errno.ENOSPC), 2),
    "scratch that cannot be read": ("backup check", unreadable_scratch, 2),
    "a page that integrity_check cannot have": ("backup check", bad_page(20), 2),
    "a store that looks damaged once": ("backup check", bad_page(40, of_store=True), 0),
    "a backup that looks damaged once": ("backup drill", bad_page(40, of_store=True), 0),
    "a table that cannot be counted once": ("backup drill", bad_page(10), 0),
    "a backup that cannot be read to its end": (
        "backup drill",
        bad_page(40, of_store=True, sticky=True),
        2,
    ),
    "a store that is lost amid a drill": (
        "backup drill",
        bad_page(15, of_store=True, sticky=True),
        2,
    ),
    "an archive that cannot be read": ("backup check", bad_archive, 2),
    "SIGKILL amid a prune": ("backup prune --keep 1", signalled(20, signal.SIGKILL), -9),
    "a copy that cannot be read": ("verify", bad_scratch("r", 60), 2),
    "a restored copy that cannot be read": ("restore --to", bad_scratch("r", 20), 2),
    "a drill where Chroma cannot write": ("backup drill", bad_scratch("w", 50), 2),
    "backups that cannot be read": ("backup list", bad_store, 2),
    "backups that verify cannot read": ("verify --depth quick", bad_store, 2),
    "a live database that opens late": ("capacity", bad_live("o", 3, errno.EACCES), 2),
    "a live database that cannot be read": ("verify --depth quick", bad_live("r", 3, errno.EIO), 2),
    "too few addresses": ("verify", few_addresses, 2),
    "SIGTERM as scratch is made": ("clean", signalled(3, signal.SIGTERM), 130),
    "a backup that cannot be pushed": (
        "backup create --keep 2 --drill --push",
        full_offsite,
        2,
    ),
    "backups that look damaged once": ("verify --depth quick", bad_live("r", 11, errno.EIO), 0),
    "a full disk amid a push": ("offsite push", failing("w", 1, errno.ENOSPC, sticky=True), 2),
}


# The dearest of them run at night.
NIGHTLY = {
    "too few addresses",
    "a backup that cannot be pushed",
    "a drill where Chroma cannot write",
    "a restored copy that cannot be read",
    "SIGKILL amid a prune",
}
_NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in NIGHTLY else n for n in EVERY_DAY]


@pytest.mark.parametrize("name", _NAMES)
def test_nothing_is_lost_and_everything_is_said(small: Matrix, name: str) -> None:
    command, fault, code = EVERY_DAY[name]
    outcome = small.run(Cell(command, HEALTHY, name), fault=fault, as_json=True)
    assert not outcome.complaints, outcome
    assert outcome.code == code, outcome


@pytest.mark.parametrize("sticky", [0, 1])
def test_what_chroma_alone_cannot_read_is_no_damage(
    sticky: int, small: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small.world(HEALTHY)
    with capture(world.settings) as copy:
        # in the children only: this process is given everything
        options = {"ops": "r", "nth": 50, "sticky": sticky, "errno": errno.EIO, "path": copy.chroma}
        for name, value in machine.shimmed(world, **options).items():
            monkeypatch.setenv(name, value)
        (seen,) = [
            check
            for check in verify.examine(copy, world.settings, round_trip=True)
            if check.name == "chroma.roundtrip"
        ]
    assert seen.status is (Status.UNKNOWN if sticky else Status.OK), seen
    assert ("Input/output error" in seen.summary) is bool(sticky)


def test_the_matrix_starts_by_itself() -> None:
    tests = Path(__file__).parent
    path = f"{tests.parent}{os.pathsep}{tests}"
    command = [sys.executable, "-m", "matrix", "--help"]
    said = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert "--sweep" in said.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sweep", ["pairs", "machine", "triples"])
def test_every_cell(sweep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        outcomes = cells.sweep(Matrix(tmp_path, seed=SEED), cells.cells(sweep, seed=SEED))
        print(f"\n{cells.table(outcomes)}\n{sweep}: {len(outcomes)} cells, seed {SEED}")
    assert not [str(outcome) for outcome in outcomes if outcome.complaints]
    if sweep == "pairs":
        healthy = "0" * (1 + len(FAULTS))
        seen: dict[str, str] = {}
        for outcome in outcomes:
            seen[outcome.cell.command] = seen.get(outcome.cell.command, "") + str(outcome.code)
        assert seen == {name: CODES.get(name, healthy) for name in ALL}
