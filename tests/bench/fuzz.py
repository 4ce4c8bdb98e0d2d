"""Fuzz everything that parses what the volume holds, guided by coverage.

    python tests/bench/fuzz.py TARGET [--seconds 600] [--keep DIR]
    python tests/bench/fuzz.py --all [--seconds 600] [--jobs 2]

Needs atheris (`pip install atheris`), which drives libFuzzer with the coverage of `nescord_ops`.
The targets, and what must hold for each, are in `tests/fuzzing.py`. A run goes on after a defect;
each kind of defect is counted once, and its input is kept in DIR (default: fuzz-defects below the
temporary directory) to become a test. Prints a line a target: executions, edges covered by the
seeds and at the end, inputs in the corpus, peak memory, defects. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEMPORARY = "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()
FOREIGN = ["nescord_ops", "dotenv", "pickletools", "tomllib"]
HANG_SECONDS, MEMORY_MB = 60, 2048


def child(name: str, seconds: int, out: Path) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    for variable in ("DATABASE_URL", "RAILWAY_VOLUME_MOUNT_PATH", "NESCORD_OPS_BACKUP_DIR"):
        os.environ.pop(variable, None)
    sys.path.insert(0, str(TESTS))
    with atheris.instrument_imports(include=FOREIGN):
        import fuzzing

    target, home = fuzzing.TARGETS[name], out / "home"
    home.mkdir(exist_ok=True)
    shutil.rmtree(home)
    home.mkdir()
    kit = fuzzing.kit(home)
    corpus = out / "corpus"
    if not corpus.is_dir():
        corpus.mkdir()
        for number, seed in enumerate(target.seeds(kit)):
            (corpus / f"seed{number}").write_bytes(seed)
    (out / "ready").touch()

    def once(data: bytes) -> None:
        try:
            fuzzing.attempt(target, data, kit, home)
        except fuzzing.Defect as defect:
            digest = hashlib.sha256(defect.where.encode()).hexdigest()[:12]
            file = out / "defects" / f"{name}-{digest}"
            if not file.exists():
                file.write_bytes(data)
                with (out / "defects.jsonl").open("a") as log:
                    log.write(json.dumps({"file": file.name, "said": str(defect)[:300]}) + "\n")

    options = (
        f"-max_total_time={seconds}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={target.longest}", "-print_final_stats=1", f"-artifact_prefix={out}/stopped-",
    )  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    atheris.Fuzz()


def fuzz(name: str, seconds: int, keep: Path) -> tuple[str, int]:
    """Fuzz one target in child processes for so long; return its line and how many defects."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=TEMPORARY) as directory:
        out = Path(directory)
        (out / "defects").mkdir()
        began, runs, peak, edges, first, corpus, stopped = time.time(), 0, 0, 0, 0, 0, 0
        while (left := round(began + seconds - time.time())) > 0:
            with (out / "log").open("wb") as log:
                command = [sys.executable, __file__, name, "--child", str(left), "--keep", str(out)]
                code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
            said = (out / "log").read_text("utf-8", "replace")
            covered = [int(n) for n in re.findall(r"cov: (\d+)", said)]
            runs += max(map(int, re.findall(r"^#(\d+)\t", said, re.M)), default=0)
            edges, first = max(covered, default=edges), first or min(covered, default=0)
            corpus = max(map(int, re.findall(r"corp: (\d+)", said)), default=corpus)
            peak = max([peak, *map(int, re.findall(r"rss: (\d+)Mb", said))])
            if code and left > 5:
                stopped += 1
                keep.mkdir(parents=True, exist_ok=True)
                for file in out.glob("stopped-*"):
                    shutil.move(file, keep / f"{name}-{file.name}")
                (keep / f"{name}-{stopped}.log").write_text(said[-20_000:])
                if not (out / "ready").exists():
                    break
        log = out / "defects.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        for row in rows:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / "defects" / row["file"], keep)
            print(f"{name}: {row['file']}: {row['said']}", flush=True)
    took = time.time() - began
    defects = len(rows) + stopped
    return (
        f"{name:9} {took:6.0f} s {runs:>10,} runs {runs / took:>6.0f}/s  edges {first:>5,} to"
        f" {edges:>5,}  corpus {corpus:>5,}  {peak:>4} MB  defects {defects}"
        + (f", of them {stopped} stopped it" if stopped else "")
    ), defects


def main() -> int:
    """Fuzz what was asked for, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "fuzz-defects"))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.target[0], asked.child, asked.keep)
    names = asked.target
    if asked.all:
        sys.path.insert(0, str(TESTS))
        import fuzzing

        names = list(fuzzing.TARGETS)
    found = 0
    with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
        for line, defects in pool.map(lambda n: fuzz(n, asked.seconds, asked.keep), names):
            print(line, flush=True)
            found += defects
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
