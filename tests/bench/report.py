"""How much faster are reports than the commands they replace? One run, one ratio.

The same notebooks on the same demo volume: through `report.run` in a fresh interpreter, and
through the `papermill` and `jupyter nbconvert` commands one after the other. Say which bytecode
state a figure was taken in: PYTHONDONTWRITEBYTECODE=1 and uncompiled packages make both slower.

    python tests/bench/report.py [NOTEBOOK...] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nescord_ops import demo, report

FLOOR = 4.0
BIN = Path(sys.executable).parent
OURS = """import sys
from pathlib import Path
from nescord_ops import report
out, app_dir, *names = sys.argv[1:]
run = report.run(names, options={"app_dir": app_dir}, out=Path(out))
sys.exit(run.exit_code)"""


def ours(names: list[str], app_dir: Path, out: Path) -> None:
    subprocess.run([sys.executable, "-c", OURS, out, app_dir, *names], check=False)


def theirs(names: list[str], app_dir: Path, out: Path) -> None:
    for name in names:
        executed = out / f"{Path(name).stem}.ipynb"
        given = ["-p", "app_dir", str(app_dir), "-k", "python3", "--no-progress-bar"]
        subprocess.run(
            [BIN / "papermill", name, executed, *given], check=False, stderr=subprocess.DEVNULL
        )
        convert = [BIN / "jupyter", "nbconvert", "--to", "html", executed]
        subprocess.run(convert, check=False, stderr=subprocess.DEVNULL)
        assert executed.with_suffix(".html").is_file(), name


def taken(run: Callable[[], None]) -> tuple[float, float]:
    """The seconds that a run takes, and the seconds of processor time of all its processes."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks; by default all that are shipped")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    names = [str(path) for path in report.find(asked.names).values()]
    with tempfile.TemporaryDirectory() as directory, demo.temporary() as volume:
        out = Path(directory)
        ratios = []
        for _ in range(asked.rounds):
            slow, slow_used = taken(lambda: theirs(names, volume.app_dir, out))
            fast, fast_used = taken(lambda: ours(names, volume.app_dir, out / "reports"))
            ratios.append(slow / fast)
            print(f"commands {slow:5.2f} s ({slow_used:5.2f} s of processor time)", end="   ")
            print(f"report {fast:5.2f} s ({fast_used:5.2f})   {slow / fast:.1f} times faster")
        published = [entry for entry in (out / "reports").iterdir() if entry.is_dir()]
        assert len(published) == asked.rounds
    bytecode = "not written" if sys.dont_write_bytecode else "written"
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    median = statistics.median(ratios)
    print(f"{len(names)} notebooks, bytecode {bytecode}, {load}: {median:.1f} times faster")
    return 0 if median >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
