"""Backups of a 612 MB volume, ours beside restic and borg in one run, as a table in Markdown.

    apt-get install restic borgbackup        (a tool that is absent is left out, and said so)
    python tests/bench/backup.py [--days 10] [--rounds 5] [--scale 1] [--persist] [--dir DIR]

Every step runs each tool once, one after the other, in a process of its own, with everything
synced before. Ours captures both stores at one moment into scratch space and stores the capture;
the others read the live files, which nothing writes to meanwhile. First backups and restores are
medians of the rounds, next backups and growth of the days.

Before each, 2 GB of memory are touched and freed: a virtual machine that gives free memory back to
its host takes up to 8 µs for each page that it gets anew, which is its time and not a tool's.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import workload

_OURS = """
import sys
from pathlib import Path
from nescord_ops import backup, settings
action, path, live, to = sys.argv[1:]
where = settings.load(
    app_dir=live,
    database_url=f"sqlite:///{live}/nescordbot.db",
    chroma_dir=f"{live}/chromadb",
    backup_dir=Path(path).parent,
)
if action == "restore":
    backup.materialise(where, backup.listing(where).backups[0].id, Path(to))
else:
    backup.create(where)
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """A program that makes backups: its commands, given repository, day, source and target."""

    name: str
    setup: Callable[[Path], list[str]] | None
    create: Callable[[Path, int, Path], list[str]]
    restore: Callable[[Path, int, Path, Path], list[str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What one run of a tool took."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    grown_bytes: int = 0


def _ours(action: str, repository: Path, live: Path, to: Path) -> list[str]:
    path = repository / "store.sqlite3"
    return [sys.executable, "-c", _OURS, action, str(path), str(live), str(to)]


TOOLS = (
    Tool(
        "ours",
        None,
        lambda repository, _day, live: _ours("create", repository, live, live),
        lambda repository, _day, live, to: _ours("restore", repository, live, to),
    ),
    Tool(
        "restic",
        lambda repository: ["restic", "-q", "init", "-r", str(repository)],
        lambda repository, _, live: ["restic", "-q", "-r", str(repository), "backup", str(live)],
        lambda repository, _day, _live, to: [
            *("restic", "-q", "-r", str(repository), "restore", "latest", "--target", str(to))
        ],
    ),
    Tool(
        "borg",
        lambda repository: ["borg", "init", "-e", "none", str(repository)],
        lambda repository, day, live: [
            *("borg", "create", "-C", "zstd,3", f"{repository}::day{day}", str(live))
        ],
        lambda repository, day, _live, _to: ["borg", "extract", f"{repository}::day{day}"],
    ),
)


def size(root: Path) -> int:
    """Return the bytes of all files below `root`."""
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())


def run(command: list[str], environment: Mapping[str, str], where: Path) -> Sample:
    """Run a command to its end and return what it took. Raise SystemExit if it fails."""
    os.sync()
    subprocess.run([sys.executable, "-c", "b'x' * (2 << 30)"], check=True)  # warm: see the module
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.chdir(where)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.execvpe(command[0], command, environment)
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Sample(time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


class Bench:
    """One benchmark: a workload, and a repository for each tool in a scratch directory."""

    def __init__(self, scratch: Path, work: workload.Workload) -> None:
        self.scratch = scratch
        self.work = work
        self.tools = [tool for tool in TOOLS if tool.name == "ours" or shutil.which(tool.name)]
        self.samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        self.environment = {
            **os.environ,
            **{"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(scratch / "cache")},
            **{"BORG_BASE_DIR": str(scratch / "borg"), "TMPDIR": str(scratch)},
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled, as pip leaves packages

    def repository(self, tool: Tool) -> Path:
        """Return where a tool keeps its backups."""
        return self.scratch / f"repository-{tool.name}"

    def fresh(self) -> None:
        """Give every tool an empty repository."""
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)
        for tool in self.tools:
            shutil.rmtree(self.repository(tool), ignore_errors=True)
            if tool.setup:
                run(tool.setup(self.repository(tool)), self.environment, self.scratch)

    def create(self, step: str, day: int) -> None:
        """Let every tool make a backup."""
        for tool in self.tools:
            repository = self.repository(tool)
            before = size(repository) if repository.exists() else 0
            command = tool.create(repository, day, self.work.root)
            sample = run(command, self.environment, self.scratch)
            grown = size(repository) - before
            self.samples[tool.name, step].append(dataclasses.replace(sample, grown_bytes=grown))

    def restore(self, day: int) -> None:
        """Let every tool restore its last backup, and compare ours with the others."""
        for tool in self.tools:
            target = self.scratch / f"out-{tool.name}"
            target.mkdir()
            command = tool.restore(self.repository(tool), day, self.work.root, target)
            self.samples[tool.name, "restore"].append(run(command, self.environment, target))
            if size(target) < 0.9 * size(self.work.root):
                raise SystemExit(f"{tool.name} restored {size(target)} bytes only")
            shutil.rmtree(target)

    def median(self, tool: str, step: str, field: str) -> float:
        """Return the median of one measure of a tool's step."""
        return statistics.median(getattr(one, field) for one in self.samples[tool, step])

    def table(self, days: int) -> str:
        """Return everything as a table, ours also as a share of restic's."""
        rows = [
            ("first backup, s", "first", "wall_seconds", 1.0),
            ("first backup, CPU s", "first", "cpu_seconds", 1.0),
            ("next backup, s", "next", "wall_seconds", 1.0),
            ("next backup, CPU s", "next", "cpu_seconds", 1.0),
            ("restore, s", "restore", "wall_seconds", 1.0),
            ("restore, CPU s", "restore", "cpu_seconds", 1.0),
            ("store after the first, MB", "first", "grown_bytes", 1e6),
            ("growth a day, MB", "next", "grown_bytes", 1e6),
        ]
        names = [tool.name for tool in self.tools]
        values = {
            title: [self.median(name, step, field) / unit for name in names]
            for title, step, field, unit in rows
        }
        values[f"store after {days} days, MB"] = [
            size(self.repository(tool)) / 1e6 for tool in self.tools
        ]
        values["peak memory, MB"] = [
            max(
                one.peak_bytes for (n, _), many in self.samples.items() if n == name for one in many
            )
            / 1e6
            for name in names
        ]
        with_restic = "restic" in names
        lines = [f"| | {' | '.join(names)} |{' ours / restic |' if with_restic else ''}"]
        lines.append("|---" * (len(names) + 1 + with_restic) + "|")
        for title, row in values.items():
            cells = [f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in row]
            if with_restic:
                cells.append(f"{row[0] / row[names.index('restic')]:.2f}")
            lines.append(f"| {title} | {' | '.join(cells)} |")
        return "\n".join(lines)


def main() -> None:
    """Build the workload, run everything, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--persist", action="store_true", help="let every day end in a persist")
    parser.add_argument("--dir", type=Path, help="where to work; 5 GB a scale of 1")
    options = parser.parse_args()
    for tool in TOOLS[1:]:
        if not shutil.which(tool.name):
            print(f"{tool.name} is absent: left out", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        scratch = Path(made)
        work = workload.build(scratch / "volume", scale=options.scale, persist=options.persist)
        bench = Bench(scratch, work)
        print(f"volume: {size(work.root) / 1e6:.0f} MB", file=sys.stderr)
        for _ in range(options.rounds):
            bench.fresh()
            bench.create("first", 0)
        for day in range(1, options.days + 1):
            workload.day(work, day, scale=options.scale)
            bench.create("next", day)
        for _ in range(options.rounds):
            bench.restore(options.days)
        kind = "every day ends in a persist" if options.persist else "vectors wait in the queue"
        print(f"{size(work.root) / 1e6:.0f} MB, {options.days} days, {kind}\n")
        print(bench.table(options.days))


if __name__ == "__main__":
    main()
