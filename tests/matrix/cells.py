"""Cells: a command, a volume and a fault, run in a copy of a world and judged."""

from __future__ import annotations

import dataclasses
import random
import shutil
import tempfile
import threading
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matrix import complaints as complaints_of
from matrix.commands import ALL, COMMANDS, WHOLE_REPORT, Command
from matrix.machine import MACHINES, TELLING, UNMEASURED, Fault, Healthy, Machine, execute, shimmed
from matrix.world import HEALTHY, World, build, bytes_of, files, logical, look
from nescord_ops import restore
from nescord_ops.demo import Demo
from nescord_ops.faults import FAULTS


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One command on one volume while one thing fails."""

    command: str
    volume: str
    machine: str
    number: int = 0  # another draw

    def __str__(self) -> str:
        again = f" #{self.number}" if self.number else ""
        return f"{self.command} | {self.volume} | {self.machine}{again}"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell came to: its exit code, seconds, and complaints."""

    cell: Cell
    code: int
    seconds: float
    complaints: tuple[str, ...]
    told: str
    output: str = dataclasses.field(repr=False, default="")

    def __str__(self) -> str:
        text = f"{self.cell} ({self.told}): {self.code} in {self.seconds:.1f} s"
        said = self.output.splitlines()[:12] if self.complaints else []
        return "\n    ".join([text, *self.complaints, *said])


class Matrix:
    """The worlds, made when they are first needed, and the cells that run in copies of them."""

    def __init__(self, root: Path, *, seed: int = 1, base: Demo | None = None) -> None:
        self.root, self.seed = root, seed
        self._base = base
        self._lock = threading.RLock()
        self._worlds: dict[str, World] = {}
        self._usual: dict[str, Healthy] = {}
        self._new: dict[str, dict[str, Any]] = {}
        self._fine: dict[tuple[str, str], int] = {}

    def world(self, volume: str) -> World:
        """The world of a volume with one fault of the demo's, or with several joined by +."""
        with self._lock:
            if volume not in self._worlds:
                root = self.root / "worlds" / volume
                if volume == HEALTHY:
                    made = build(root, self._base)
                else:
                    made = self.world(HEALTHY).copy(root)
                    for name in volume.split("+"):
                        FAULTS[name].plant(made.demo)
                self._worlds[volume] = made
            return self._worlds[volume]

    def usual(self, command: Command) -> Healthy:
        """Measure a command on the healthy volume, once."""
        with self._lock:
            if command.name not in self._usual:
                world = self._fresh(HEALTHY)
                environment = shimmed(world, ops="rwson", count=1)
                seconds = execute(world, command, Machine(environment)).seconds
                lines = world.beside(".shim").read_text().splitlines()
                most = max(lines, key=lambda line: int(line.split()[1])).split()[3:]
                calls = {word[0]: int(word[1:]) for word in most}
                self._remove(world)
                self._usual[command.name] = Healthy(seconds, calls)
            return self._usual[command.name]

    def new(self, command: Command, volume: str) -> dict[str, Any]:
        """What the stores are after a restore or a clean-up that nothing disturbs."""
        restores = command.name.startswith("restore")
        key = "restore" if restores else volume
        with self._lock:
            if key not in self._new:
                world = self._fresh(volume)
                if restores:
                    target = world.root / "out" / "reference"
                    restore.run(self.world(HEALTHY).settings, world.ids["B"], to=target)
                    database = bytes_of(files(target))["nescordbot.db"]
                    vectors = bytes_of(files(target / "chromadb"))
                    self._new[key] = {"database": database, "chroma": vectors}
                else:
                    execute(world, command, Machine())
                    self._new[key] = logical(world)
                self._remove(world)
            return self._new[key]

    def fine(self, command: Command, volume: str) -> int:
        """The exit code of a command on a volume when nothing fails around it, found once."""
        key = (command.name, volume)
        if key not in self._fine:
            world = self._fresh(volume)
            self._fine[key] = execute(world, command, Machine()).code
            self._remove(world)
        return self._fine[key]

    def _fresh(self, volume: str) -> World:
        source = self.world(volume)
        with self._lock:
            (self.root / "cells").mkdir(exist_ok=True)
            root = Path(tempfile.mkdtemp(dir=self.root / "cells"))
        root.rmdir()
        return source.copy(root)

    def _remove(self, world: World) -> None:
        shutil.rmtree(world.root, ignore_errors=True)
        for suffix in (".shim", ".shim.once", ".bot"):
            world.beside(suffix).unlink(missing_ok=True)

    def run(
        self, cell: Cell, *, as_json: bool | None = None, fault: Fault | None = None
    ) -> Outcome:
        """Run one cell and judge it; with `fault`, that one in place of the machine's."""
        command = ALL[cell.command]
        chance = random.Random(f"{self.seed} {cell}")
        as_json = chance.random() < 0.5 if as_json is None else as_json
        measured = not fault and cell.machine not in UNMEASURED
        usual = self.usual(command) if measured else Healthy(0, {})
        world = self._fresh(cell.volume)
        before = look(world)
        machine = (fault or MACHINES[cell.machine])(world, chance, usual)
        try:
            result = execute(world, command, machine, as_json=as_json)
        finally:
            for work in machine.afterwards:
                work()
        complaints = [
            *complaints_of.of_the_process(result, machine, as_json=as_json),
            *complaints_of.of_what_is_left(world, machine),
        ]
        if result.code == 1 and cell.machine not in TELLING:
            fine = self.fine(command, cell.volume)
            complaints += complaints_of.of_the_verdict(result, fine, as_json=as_json)
        if "live" in command.writes and not machine.bot:
            new = self.new(command, cell.volume)
            complaints += complaints_of.of_the_swap(world, command, result.code, before, new)
        complaints += complaints_of.of_the_data(world, command, machine, result.code, before)
        log = world.beside(".shim")
        hit = log.read_text().splitlines()[:1] if log.exists() else []
        said = result.err[-1000:] + result.out[-1500:]
        self._remove(world)
        told = "; ".join([machine.told, *hit])
        return Outcome(cell, result.code, result.seconds, tuple(complaints), told, said)


def cells(sweep: str, *, seed: int = 1, triples: int = 150) -> list[Cell]:
    """The cells of a sweep: pairs, machine, triples."""
    volumes = [HEALTHY, *FAULTS]
    if sweep == "pairs":
        commands = [*COMMANDS, WHOLE_REPORT.name]
        return [Cell(command, volume, "fine") for command in commands for volume in volumes]
    machines = [name for name in MACHINES if name != "fine"]
    if sweep == "machine":
        faulty = (HEALTHY, "leaked-deletion+orphan-segment", "large-wal")
        return [
            Cell(command, volume, machine)
            for command in COMMANDS
            for machine in machines
            for volume in faulty
        ]
    chance = random.Random(seed)
    return [
        Cell(chance.choice([*COMMANDS]), chance.choice([*FAULTS]), chance.choice(machines), n)
        for n in range(1, triples + 1)
    ]


def sweep(matrix: Matrix, wanted: Sequence[Cell]) -> list[Outcome]:
    """Run cells two at a time; print what is wrong as it is found."""

    def run(cell: Cell) -> Outcome:
        try:
            return matrix.run(cell)
        except Exception:
            said = f"the matrix itself: {traceback.format_exc()[-900:]}"
            return Outcome(cell, 99, 0.0, (said,), "")

    outcomes = []
    with ThreadPoolExecutor(2) as pool:
        for number, outcome in enumerate(pool.map(run, wanted), 1):
            outcomes.append(outcome)
            if outcome.complaints:
                print(f"[{number}/{len(wanted)}] {outcome}", flush=True)
    return outcomes


def table(outcomes: Iterable[Outcome]) -> str:
    """A row a command, a column a fault: the exit codes that were seen, `!` where it complained."""
    outcomes = list(outcomes)
    by_machine = len({o.cell.machine for o in outcomes}) > 1
    columns = list(dict.fromkeys(o.cell.machine if by_machine else o.cell.volume for o in outcomes))
    rows: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        column = outcome.cell.machine if by_machine else outcome.cell.volume
        rows.setdefault(outcome.cell.command, {}).setdefault(column, []).append(outcome)
    lines = [f"{number:2} {name}" for number, name in enumerate(columns)]
    width = max(map(len, rows))
    shown = {}
    for name, row in rows.items():
        shown[name] = []
        for column in columns:
            seen = row.get(column, [])
            codes = "/".join(map(str, dict.fromkeys(o.code for o in seen)))
            shown[name].append(codes + "!" * any(o.complaints for o in seen))
    widths = [max(2, *(len(row[i]) for row in shown.values())) for i in range(len(columns))]
    lines.append(f"{'':{width}}  " + " ".join(f"{i:>{w}}" for i, w in enumerate(widths)))
    for name, row in shown.items():
        lines.append(
            f"{name:{width}}  " + " ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True))
        )
    return "\n".join(lines)
