"""`verify --depth full` against the least that looking at everything costs, in one run.

    python tests/bench/verify.py DIR [--scale 1]

The least: `PRAGMA integrity_check` on both databases, and reading every file once. Builds the
volume (200,000 notes of 600 bytes, 40,000 vectors; minutes) unless DIR holds it. Prints medians,
the ratio, and the peak memory of verify and of its child processes.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

from nescord_ops import demo, settings, volume

CHILD = """
import json, resource, sys, time
from nescord_ops import settings, verify
found = settings.load(app_dir=sys.argv[1])
start = time.perf_counter()
result = verify.run(found, depth="full")
peak = [resource.getrusage(who).ru_maxrss * 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
bad = [c.name for c in result.checks if c.status != "ok" and not c.expected]
print(json.dumps([time.perf_counter() - start, *peak, result.lock_seconds, bad]))
"""


def least(app: Path) -> float:
    """Return the seconds of integrity_check on both databases and of reading every file."""
    found = settings.load(app_dir=app)
    start = time.perf_counter()
    for path in (found.database, found.chroma_dir / "chroma.sqlite3"):
        connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    for root in (found.database, found.chroma_dir):
        for path, seen in volume.walk(root):
            if seen and path.is_file():
                with path.open("rb", buffering=0) as file:
                    while file.read(1 << 20):
                        pass
    return time.perf_counter() - start


def main() -> None:
    """Build what is missing, measure both in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    app = options.directory / f"scale-{options.scale:g}"
    if not (app / ".env").exists():
        demo.create(
            app,
            notes=int(200_000 * options.scale),
            vectors=int(40_000 * options.scale),
            note_bytes=600,
            backups=False,
        )
    size = volume.usage(app / "data").allocated_bytes
    base, ours, runs = [], [], []
    for _ in range(options.rounds):
        base.append(least(app))
        command = [sys.executable, "-c", CHILD, str(app)]
        run = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        ours.append(run[0])
        runs.append(run)
    floor, median = statistics.median(base), statistics.median(ours)
    print(f"volume            {size / 1e6:,.0f} MB")
    print(f"least             {floor:.2f} s  (integrity_check of both, every file read once)")
    print(f"verify full       {median:.2f} s  ratio {median / floor:.2f}")
    print(
        f"peak memory       {max(r[1] for r in runs) / 1e6:.0f} MB, child processes "
        f"{max(r[2] for r in runs) / 1e6:.0f} MB"
    )
    print(f"Chroma's lock     {max(r[3] for r in runs):.3f} s at the most")
    print(f"not ok            {runs[-1][4]}")


if __name__ == "__main__":
    main()
