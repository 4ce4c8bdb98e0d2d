"""How fast is a log read? One ratio against `grep -c -E` for the same patterns, and the memory.

    python tests/bench/logs.py [DIR] [--mb 1000] [--rounds 5] [--kinds mix,colours,json,one,traces]

Writes logs of a size into DIR (default: a temporary directory): `mix`, the bot's file with 2 %
warnings and 2 % errors, some with tracebacks; `colours`, its standard output; `json`, as `railway
logs --json` prints it; `one`, a single error over and over; `traces`, an error with a traceback
each time. Prints the medians, their ratio to grep's in the C locale and in the default one, and the
peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nescord_ops.causes import MESSAGES

CHILD = """
import sys, time
from pathlib import Path
from nescord_ops import logs
start = time.perf_counter()
found = logs.read([Path(sys.argv[1])])
took = time.perf_counter() - start
print(took, Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0], found.lines)
"""
LEVELS = ("WARNING", "ERROR", "CRITICAL", r"Traceback \\(most recent call last\\)")
FRAME = '  File "/app/src/nescordbot/bot.py", line 120, in on_message\n    await self.process(m)\n'
TRACEBACK = (
    f"Traceback (most recent call last):\n{FRAME * 6}sqlite3.OperationalError: disk I/O error"
)


def lines(kind: str) -> Iterator[str]:
    """Yield records without end, each with its line feed."""
    draw, now = random.Random(1), datetime(2026, 1, 1, tzinfo=UTC)
    while True:
        now += timedelta(seconds=draw.random() * 4)
        chance = draw.random() if kind in ("mix", "colours", "json") else 1.0
        key = uuid.UUID(int=draw.getrandbits(128), version=4)
        level, text = "INFO", f"knowledge_manager | create_note:150 | Created note: {key}"
        if chance >= 0.995 or kind == "one":
            level, text = "ERROR", f"bot | on_error:9 | Unhandled error in event {draw.random()}"
            text += f"\n{TRACEBACK}" if kind != "one" else ""
        elif chance >= 0.98:
            level, text = (
                "ERROR",
                f"sync | sync:210 | Failed to sync note {key}: database is locked",
            )
        elif chance >= 0.96:
            level, text = "WARNING", f"chromadb_service | q:9 | Slow: {draw.randrange(9999)} ms"
        line = f"{now:%F %T} | {level:8} | nescordbot.services.{text}"
        if kind == "json":
            stamp = f"{now:%FT%T}.123456789Z"
            rows = ({"message": part, "timestamp": stamp, "severity": "info"}
                    for part in line.splitlines())  # fmt: skip
            line = "\n".join(map(json.dumps, rows))
        yield f"\x1b[32m{line}\x1b[0m\n" if kind == "colours" else f"{line}\n"


def write(path: Path, kind: str, size: int) -> None:
    """Write about `size` bytes: 20 MB of records, over and over."""
    part: list[str] = []
    length = 0
    for line in lines(kind):
        part.append(line)
        length += len(line)
        if length >= min(size, 20_000_000):
            break
    with path.open("w") as file:
        for _ in range(max(1, size // length)):
            file.writelines(part)


def grep(path: Path, locale: str) -> float:
    """Return the seconds that grep takes to count the lines that we look at."""
    pattern = "|".join((*LEVELS, *(message.pattern.replace("(?:", "(") for message in MESSAGES)))
    environment = {**os.environ, **({"LC_ALL": locale} if locale else {})}
    command = ["grep", "-c", "-E", pattern, str(path)]
    start = time.perf_counter()
    # not into /dev/null: grep stops at the first match where nobody reads
    subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Write what is missing, measure in turns, print a line a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default="mix,colours,json,one,traces")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for kind in asked.kinds.split(","):
            path = (asked.directory or Path(scratch)) / f"{kind}-{asked.mb}.log"
            if not path.exists():
                write(path, kind, asked.mb * 1_000_000)
            ours, plain, default, peak = [], [], [], 0
            for _ in range(asked.rounds):
                command = [sys.executable, "-c", CHILD, str(path)]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                ours.append(float(said.split()[0]))
                peak = max(peak, int(said.split()[1]))
                plain.append(grep(path, "C"))
                default.append(grep(path, ""))
            took = statistics.median(ours)
            print(
                f"{kind:8} {path.stat().st_size / 1e6:,.0f} MB in {took:.2f} s,"
                f" {path.stat().st_size / 1e6 / took:.0f} MB/s, peak {peak / 1000:.0f} MB;"
                f" times grep: {took / statistics.median(plain):.1f} (LC_ALL=C),"
                f" {took / statistics.median(default):.1f} (default locale);"
                f" load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            )


if __name__ == "__main__":
    main()
