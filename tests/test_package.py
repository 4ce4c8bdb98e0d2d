"""The package: what the wheel carries, what an import costs, what the README promises."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import typer
import yaml

import nescord_ops
from nescord_ops import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
MODULES = sorted((ROOT / "nescord_ops").glob("*.py"))
GROUND = {"errors", "checks", "results", "settings", "show", "volume"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    target = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(target),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_carries_notebooks_templates_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"nescord_ops/notebooks/{notebook.name}" in names
    for file in (ROOT / "nescord_ops" / "templates").rglob("*.*"):
        assert str(file.relative_to(ROOT)) in names
    assert "nescord_ops/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]


def test_installed_without_the_checkout_the_demo_report_works(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    zipfile.ZipFile(wheel).extractall(packages)
    # the dependencies of this environment, without the editable install of the checkout
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = tmp_path / "venv" / "bin" / "python"
    out = tmp_path / "reports"
    code = "import sys, nescord_ops.cli; sys.argv[0] = 'nescord-ops'; nescord_ops.cli.main()"
    command = [python, "-c", code, "report", "--demo", "--depth", "quick", "--out", out]
    # nbconvert finds its own base templates by the environment that it was installed in
    environment = {**os.environ, "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter"))}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "index.html").exists()
    assert {page.stem for page in out.glob("*/*.html")} >= {"verify", "capacity", "cost"}
    where = subprocess.run(
        [python, "-c", "import nescord_ops; print(nescord_ops.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(packages) in where.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, nescord_ops.cli as c; c.run(['--help']);"
        "print(sorted({'chromadb', 'pandas', 'matplotlib', 'numpy', 'papermill', 'pydantic',"
        " 'nbconvert', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nescord_ops", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert nescord_ops.__version__ in done.stdout


def imports(path: Path) -> set[str]:
    """Names of modules of the package that a file imports at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "nescord_ops":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nescord_ops."):
            found.add((node.module or "").removeprefix("nescord_ops."))
    return found - {"__version__"}


def test_the_ground_floor_imports_nothing_above_it() -> None:
    for path in MODULES:
        if path.stem in GROUND:
            assert imports(path) <= GROUND, path.name


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    for path in MODULES:
        if path.stem not in ("cli", "__main__"):
            assert "cli" not in imports(path), path.name


def test_a_module_fits_in_one_reading() -> None:
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "nescord_ops", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    ).stdout
    commands = re.findall(r"^  (\w+)  +\S", help_text.split("Commands:")[1], re.MULTILINE)
    assert {"demo", "report", "verify", "capacity", "cost"} <= set(commands)
    for command in commands:
        assert f"nescord-ops {command}" in README


def blocks(*languages: str) -> list[str]:
    """The README's blocks of code in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def test_what_the_readme_has_one_type_is_a_command_with_its_options() -> None:
    text = "\n".join(b for b in blocks("sh", "yaml", "ini", "") if "[NAME...]" not in b)
    lines = re.findall(r"(?<![\w'/])(?:/\S+/bin/)?nescord-ops +([a-z-].*)", text)
    assert len(lines) > 40
    for line in lines:
        command = typer.main.get_command(cli.app)
        options = {"--json", "--debug"}
        for word in re.split(r"[#;>&)]", line)[0].split():
            if word.startswith("-"):
                options |= {name for each in command.params for name in each.opts}
                assert word in options, line
            else:
                command = getattr(command, "commands", {}).get(word, command)
        assert not hasattr(command, "commands") or "--help" in line, line


def test_the_reference_has_every_option_of_every_command() -> None:
    (reference,) = (block for block in blocks("") if "[NAME...]" in block)
    left = [typer.main.get_command(cli.app)]
    missing = []
    while left:
        command = left.pop()
        below = list(getattr(command, "commands", {}).values())
        left += below
        names = [] if below else [max(each.opts, key=len) for each in command.params]
        missing += [
            f"{command.name} {name}"
            for name in names
            if name.startswith("--") and not re.search(rf"(?<![\w-]){name}(?![\w-])", reference)
        ]
    assert missing == ["report --parameter"], "which stands there as -p"


def test_what_the_readme_has_one_schedule_with_can_be_read() -> None:
    (workflow,) = map(yaml.safe_load, blocks("yaml"))
    steps = workflow["jobs"]["notebooks"]["steps"]
    assert all("run" in step or "uses" in step for step in steps)
    assert [step["if"] for step in steps[-2:]] == ["always()"] * 2
    (units,) = blocks("ini")
    for name in ("service", "timer"):
        text = re.search(rf"^# nescord-report\.{name}\n((?:\S.*\n)+)", units, re.MULTILINE)
        assert text
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text[1])
        assert unit.has_section(name.capitalize())
    for script in (line for block in blocks("sh") for line in block.splitlines()):
        if script.startswith("sh -c "):
            subprocess.run(["sh", "-n", "-c", shlex.split(script)[2]], check=True)
            assert shlex.split(script)[2].endswith("exec BOT"), "SIGTERM is for the bot"


def test_ci_runs_the_readmes_test_command() -> None:
    command = next(line for line in README.splitlines() if "'.[test]'" in line)
    assert "pytest" in command
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")
