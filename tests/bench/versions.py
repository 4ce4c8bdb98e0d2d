"""The tests with the lowest and the newest versions of everything, and stores that change hands.

    pip install uv
    python tests/bench/versions.py [--python python3.11 python3.14] [--only lowest] [-- tests ...]

Makes an environment for each Python and each end of the declared versions (uv resolves them), runs
the tests in it, and prints a row of a table in Markdown. With both ends, a store written by each is
then verified, backed up, drilled and restored by the other. What follows `--` is pytest's; without
it the whole default suite runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"
ENDS = {"lowest": "lowest-direct", "newest": "highest"}
SHOWN = ("chromadb", "numpy", "pandas", "papermill", "matplotlib")


def main() -> int:
    """Make the environments, run the tests in each, and exchange stores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--only", choices=ENDS)
    parser.add_argument("--dir", type=Path, help="where to work; 2 GB an environment")
    parser.add_argument("--no-tests", action="store_true", help="only let stores change hands")
    parser.add_argument("tests", nargs="*")
    options = parser.parse_args()
    ends = [options.only] if options.only else [*ENDS]
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        environments = {
            (python, end): _environment(Path(made) / f"{number}-{end}", python, end)
            for number, python in enumerate(options.python)
            for end in ends
        }
        sound = True
        print(f"| Python | ends | {' | '.join(SHOWN)} | tests |")
        print(f"|---|---|{'---|' * len(SHOWN)}---|")
        for (_, end), python in environments.items():
            cells, passed = _row(python, [] if options.no_tests else options.tests or ["tests"])
            print(f"| {cells[0]} | {end} | {' | '.join(cells[1:])} |", flush=True)
            sound &= passed
        for first in environments.values():
            for second in environments.values():
                if first != second:
                    sound &= _change_hands(first, second, Path(made))
    return int(not sound)


def _environment(directory: Path, python: str, end: str) -> Path:
    """Make an environment and return its interpreter."""
    subprocess.run([UV, "venv", "-q", "--seed", "--python", python, directory], check=True)
    interpreter = directory / "bin" / "python"
    command = [UV, "pip", "install", "-q", "--python", interpreter, "--resolution", ENDS[end]]
    subprocess.run([*command, "-e", f"{ROOT}[test]"], check=True)
    return interpreter


def _row(python: Path, tests: list[str]) -> tuple[list[str], bool]:
    """The cells of one environment, versions and outcome, and whether all its tests passed."""
    code = "import importlib.metadata as m, json, platform; "
    code += f"print(json.dumps([platform.python_version(), *map(m.version, {SHOWN!r})]))"
    cells = json.loads(subprocess.check_output([python, "-c", code]))
    if not tests:
        return [*cells, "not run"], True
    command = [python, "-m", "pytest", "-n", "2", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    found = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", done.stdout)
    return [*cells, ", ".join(found) or "no outcome"], done.returncode == 0


def _change_hands(writer: Path, reader: Path, root: Path) -> bool:
    """Let one environment write a store, and the other prove, back up and restore it."""
    app = Path(tempfile.mkdtemp(dir=root)) / "app"

    def run(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "nescord_ops", "--json", *words]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    steps = [run(writer, "demo", str(app))]
    steps.append(run(reader, "--app-dir", str(app), "verify"))
    steps.append(run(reader, "--app-dir", str(app), "backup", "create", "--drill"))
    identity = json.loads(steps[-1].stdout)["data"]["backup"]["id"]
    steps.append(run(writer, "--app-dir", str(app), "backup", "check", identity))
    there = app.with_name("there")
    steps.append(run(reader, "--app-dir", str(app), "restore", identity, "--to", str(there)))
    steps.append(run(writer, "--app-dir", str(app), "restore", identity))
    steps.append(run(writer, "--app-dir", str(app), "verify"))
    codes = [step.returncode for step in steps]
    names = (writer.parts[-3], reader.parts[-3])
    print("a store of {} in the hands of {}: exit codes {}".format(*names, codes), flush=True)
    for step in steps:
        if step.returncode:
            print(step.stdout[-1500:], step.stderr[-500:], file=sys.stderr)
    return not any(codes)


if __name__ == "__main__":
    sys.exit(main())
