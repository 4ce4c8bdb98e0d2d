"""How much faster are reports than the commands they replace, and what memory do they need?

The same notebooks on the same demo volume, in turns: through `nescord-ops report`, and through the
`papermill` and `jupyter nbconvert` commands one after the other. Each state of the bytecode is made
in a directory of its own (PYTHONPYCACHEPREFIX), so no installed file is touched:

    written   every module that is imported has been compiled before, as in any installation
    own       all but nescord_ops itself: a checkout on a machine that writes no bytecode
    none      nothing at all, the standard library's neither, and nothing may be written

Memory is that of the whole process tree, sampled every 20 ms: the sum of PSS, which counts a page
that is shared once, and of RSS, which counts it in every process. PSS leaves out what programs
outside the tree share with it: measure on a quiet machine. With a writable memory cgroup (version 1
or 2), a run also has to survive in 512 MB.

    python tests/bench/report.py [NOTEBOOK...] [--rounds N] [--states written own none]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nescord_ops import demo, report

FLOOR = 7.0
LIMITS = {"": 400e6, "1": 250e6}  # --jobs: bytes
CONTAINER_BYTES = 512 << 20
BIN = Path(sys.executable).parent
STATES = ("written", "own", "none")


class Bench:
    """The notebooks, the volume and the places that both sides are given."""

    def __init__(self, root: Path, volume: demo.Demo, names: Sequence[str]) -> None:
        self.root, self.volume = root, volume
        self.paths = report.find(names)
        self.out = root / "reports"
        self.bytecode = root / "bytecode"
        self.runs = 0

    def environment(self, state: str) -> dict[str, str]:
        """The environment that makes a state of the bytecode; `first` compiles what it imports."""
        place = self.bytecode if state in ("first", "written") else self.root / state
        if state == "own":
            away = shutil.ignore_patterns("nescord_ops")
            shutil.copytree(self.bytecode, place, ignore=away, dirs_exist_ok=True)
        found = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        found |= {"PYTHONPYCACHEPREFIX": str(place), "NESCORD_OPS_REPORTS_DIR": str(self.out)}
        return found | ({} if place == self.bytecode else {"PYTHONDONTWRITEBYTECODE": "1"})

    def command(self, jobs: str = "") -> list[str]:
        """The command that is measured."""
        command = [sys.executable, "-m", "nescord_ops", "--app-dir", str(self.volume.app_dir)]
        command += ["report", "--out", str(self.out), *(["--jobs", jobs] if jobs else [])]
        return [*command, *map(str, self.paths.values())]

    def ours(self, environment: Mapping[str, str]) -> None:
        run = subprocess.run(self.command(), env=environment, stdout=subprocess.DEVNULL)
        assert run.returncode == 0, run.returncode
        self.runs += 1

    def theirs(self, environment: Mapping[str, str], at_most: int | None = None) -> None:
        for name, path in [*self.paths.items()][:at_most]:
            executed = self.root / f"{name}.ipynb"
            given = ["-p", "app_dir", str(self.volume.app_dir), "-k", "python3"]
            run = [BIN / "papermill", path, executed, *given, "--no-progress-bar"]
            convert = [BIN / "jupyter", "nbconvert", "--to", "html", executed]
            for command in (run, convert):
                nowhere = subprocess.DEVNULL
                subprocess.run(command, env=environment, check=True, stderr=nowhere)
            assert executed.with_suffix(".html").is_file(), name


def taken(run: Callable[[], None]) -> tuple[float, float]:
    """The seconds that a run takes, and the seconds of processor time of all its processes."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def speed(bench: Bench, state: str, rounds: int) -> bool:
    """Print the medians of both sides in turns and their ratio; return whether it is enough."""
    environment = bench.environment(state)
    slow, fast = [], []
    for _ in range(rounds):
        slow.append(taken(lambda: bench.theirs(environment)))
        fast.append(taken(lambda: bench.ours(environment)))
    ratio = statistics.median(s[0] / f[0] for s, f in zip(slow, fast, strict=True))
    (slow_s, slow_cpu), (fast_s, fast_cpu) = (
        map(statistics.median, zip(*side, strict=True)) for side in (slow, fast)
    )
    print(
        f"bytecode {state:8} commands {slow_s:6.1f} s ({slow_cpu:5.1f} s of processor time)", end=""
    )
    print(f"   report {fast_s:5.1f} s ({fast_cpu:5.1f})   {ratio:.1f} times faster", flush=True)
    return ratio >= FLOOR


def tree(root: int) -> Iterator[int]:
    """The process and its descendants."""
    children = collections.defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            children[parent].append(int(entry.parent.name))
    todo = [root]
    while todo:
        yield todo[-1]
        todo += children[todo.pop()]


def memory(bench: Bench, state: str, jobs: str) -> bool:
    """Print the peak memory of a run's process tree; return whether it is within the limit."""
    peaks: dict[str, int] = {"Pss": 0, "Rss": 0}
    nowhere = subprocess.DEVNULL
    environment = bench.environment(state)
    with subprocess.Popen(bench.command(jobs), env=environment, stdout=nowhere) as process:
        while process.poll() is None:
            sums = dict.fromkeys(peaks, 0)
            for pid in tree(process.pid):
                with contextlib.suppress(OSError):
                    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                        name, _, rest = line.partition(":")
                        if name in sums:
                            sums[name] += int(rest.split()[0]) * 1024
            peaks = {name: max(peak, sums[name]) for name, peak in peaks.items()}
            time.sleep(0.02)
    assert process.returncode == 0, process.returncode
    print(
        f"bytecode {state:8} --jobs {jobs or 'default':8} PSS {peaks['Pss'] / 1e6:4.0f} MB", end=""
    )
    print(f" (limit {LIMITS[jobs] / 1e6:.0f}), RSS {peaks['Rss'] / 1e6:4.0f} MB", flush=True)
    return peaks["Pss"] <= LIMITS[jobs]


def container(bench: Bench, jobs: str) -> bool:
    """Run in a cgroup of 512 MB, page cache and all; return whether the run survived it."""
    old = Path("/sys/fs/cgroup/memory")
    base, name = (old, "memory.limit_in_bytes") if old.is_dir() else (old.parent, "memory.max")
    group = base / f"nescord-ops-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(CONTAINER_BYTES))
    except OSError as error:
        print(f"no memory cgroup can be made here: {error.strerror}")
        return True
    try:
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        command = ["sh", "-c", enter, str(group), *bench.command(jobs), "--json"]
        run = subprocess.run(command, env=bench.environment("none"), capture_output=True)
        pages = json.loads(run.stdout)["pages"] if run.stdout else []
        print(
            f"512 MB, bytecode none, --jobs {jobs or 'default'}: exit code {run.returncode},",
            end=" ",
        )
        print(f"{len(pages)} pages, {', '.join(sorted({page['status'] for page in pages}))}")
        return run.returncode == 0
    finally:
        group.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks; by default all that are shipped")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--states", nargs="*", choices=STATES, default=("written", "none"))
    asked = parser.parse_args()
    good = []
    with tempfile.TemporaryDirectory() as directory, demo.temporary() as volume:
        bench = Bench(Path(directory), volume, asked.names)
        bench.ours(bench.environment("first"))
        bench.theirs(bench.environment("first"), at_most=1)
        for state in asked.states:
            good.append(speed(bench, state, asked.rounds))
        for state in asked.states:
            good += [memory(bench, state, jobs) for jobs in LIMITS]
        good += [container(bench, jobs) for jobs in LIMITS]
    print(f"{len(bench.paths)} notebooks, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
