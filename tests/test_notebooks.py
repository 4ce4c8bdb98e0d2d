"""The notebooks: thin, stripped, of one shape, run by nbval and by plain papermill."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo

from nescord_ops.checks import MIME
from nescord_ops.demo import Demo

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
PARAMETER = re.compile(r"(?P<name>\w+): (?:str|int|float|bool) = [^=|#]+  # \S.*")
COMMON = {"app_dir", "env_file", "database_url", "chroma_dir", "depth"}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "") -> list[dict[str, Any]]:
    found = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in found if not kind or cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_there_are_notebooks() -> None:
    assert {"verify", "capacity", "cost"} <= {path.stem for path in NOTEBOOKS}


@every_notebook
def test_outputs_are_stripped_and_ids_kept(path: Path) -> None:
    document = json.loads(path.read_text("utf-8"))
    assert document["metadata"] == {"kernelspec": KERNEL}
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    for cell in document["cells"]:
        assert set(cell["metadata"]) <= {"tags"}


@every_notebook
def test_the_shape_is_fixed(path: Path) -> None:
    found = cells(path)
    assert found[0]["cell_type"] == "markdown"
    assert re.match(r"# .+\n\n.+", source(found[0]), re.DOTALL)
    assert re.search(r"\bwrites?\b", source(found[0])), "say what it writes"
    assert found[1]["metadata"]["tags"] == ["parameters"]
    assert "load(" in source(found[2])
    assert any("## What to do next" in source(cell) for cell in cells(path, "markdown"))
    assert source(found[-1]).strip().endswith("raise_for_status()")
    assert any(re.search(r"^assert ", source(cell), re.MULTILINE) for cell in cells(path, "code"))


@every_notebook
def test_cells_are_thin(path: Path) -> None:
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try, ast.Lambda, ast.With)
    for cell in cells(path, "code"):
        assert source(cell).count("\n") < 10
        nodes = ast.walk(ast.parse(source(cell)))
        assert not [node for node in nodes if isinstance(node, forbidden)]


@every_notebook
def test_parameters_are_typed_explained_and_seen_by_papermill(path: Path) -> None:
    from papermill import inspect_notebook

    lines = source(cells(path)[1]).splitlines()
    matches = [PARAMETER.fullmatch(line) for line in lines]
    assert all(matches), lines
    names = {match["name"] for match in matches if match}
    assert names >= COMMON
    seen = inspect_notebook(str(path))
    assert set(seen) == names
    assert all(value["inferred_type_name"] and value["help"] for value in seen.values())


def test_nbval_runs_every_notebook_with_its_defaults(demo: MakeDemo, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "NESCORD_OPS_APP_DIR": str(demo().app_dir),  # the backup notebook writes to it
        "NESCORD_OPS_REPORTS_DIR": str(tmp_path),
    }
    command = [
        *(sys.executable, "-m", "pytest", "-p", "nbval", "--nbval-lax", "--nbval-current-env"),
        *("-q", "-p", "no:cacheprovider", "-o", "addopts=", str(ROOT / "notebooks")),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    count = sum(len(cells(path, "code")) for path in NOTEBOOKS)
    assert f"{count} passed" in done.stdout


@pytest.mark.parametrize("pair", [NOTEBOOKS[:2], NOTEBOOKS[2:4], NOTEBOOKS[4:]])
def test_plain_papermill_runs_every_notebook_unmodified(
    demo: MakeDemo, tmp_path: Path, pair: list[Path]
) -> None:
    app = demo().app_dir
    # jupyterlab's rfc3987_syntax takes 3 s of each start, for checks that nobody makes
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "rfc3987_syntax.py").touch()
    paths = [str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    running = {}
    for path in pair:  # two at once: a test runs on two cores
        command = [
            *(sys.executable, "-m", "papermill", str(path), str(tmp_path / path.name)),
            *("-p", "app_dir", str(app), "-p", "depth", "quick", "--no-progress-bar"),
        ]
        running[path] = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        )
    for path, process in running.items():
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said[-3000:]
        assert "not have parameter" not in said, "papermill only warns of those"
        assert MIME in (tmp_path / path.name).read_text("utf-8")


Run = Callable[[str], tuple[dict[str, Any], list[str]]]


@pytest.fixture(scope="module")
def run(base_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a function that runs code in a kernel as the lab's are: what it shows, its error."""
    from jupyter_client.manager import start_new_kernel

    app = tmp_path_factory.mktemp("lab") / "app"
    shutil.copytree(base_demo.app_dir, app)
    manager, client = start_new_kernel(
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.extra_extensions=nescord_ops.errors"],
        env={**os.environ, "NESCORD_OPS_APP_DIR": str(app)},
        cwd=str(app.parent),
    )

    def execute(code: str) -> tuple[dict[str, Any], list[str]]:
        shown: dict[str, Any] = {}
        error: list[str] = []

        def take(message: dict[str, Any]) -> None:
            content = message["content"]
            shown.update(content.get("data", {}))
            error.extend(content.get("traceback", ()))

        client.execute_interactive(code, output_hook=take, timeout=60)
        return shown, error

    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@every_notebook
def test_cells_run_in_any_order_that_makes_sense(run: Run, path: Path) -> None:
    code = {cell["id"]: source(cell) for cell in cells(path, "code")}
    run("%reset -f")
    first = [
        name for name in ("parameters", "settings", "take", "after", "verdict") if name in code
    ]
    rest = [name for name in code if name not in first]
    # bottom to top once the verdict is there, then again from a changed parameter on
    quick = re.sub(r'depth: str = "full"', 'depth: str = "quick"', code["parameters"])
    for parameters in (quick, quick + "\nchroma_dir = chroma_dir or 'data/chromadb'"):
        for name in [*first, *reversed(rest), "verdict"]:
            shown, error = run(parameters if name == "parameters" else code[name])
            assert error == [], name
    assert MIME in shown


def test_a_cell_that_is_run_too_early_says_what_to_run(run: Run) -> None:
    run("%reset -f")
    _, error = run("result = verify.run(settings)")
    assert error == [
        "NameError: name 'verify' is not defined",
        "Try: run the cells above this one first: Run > Run All Above Selected Cell",
    ]


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("load(app_dir='/nowhere\\x1b[31m')", "SettingsError: the bot's", "set DATABASE_URL"),
        ("raise ChecksFailed('Not safe.', 'restore')", "ChecksFailed: Not safe.", "restore"),
        ("{}['\\x1b[31mx']", "KeyError: ", "%tb in a new cell shows where"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "run the cell again"),
    ],
)
def test_an_error_is_a_message_and_a_hint(run: Run, code: str, message: str, hint: str) -> None:
    run("from nescord_ops.settings import load\nfrom nescord_ops.errors import ChecksFailed")
    _, error = run(code)
    assert len(error) == 2
    assert error[0].startswith(message)
    assert error[1].startswith(f"Try: {hint}")
    assert "\x1b" not in "".join(error)


def test_the_traceback_is_there_for_who_asks(run: Run) -> None:
    run("1 / 0")
    assert any("Traceback" in line for line in run("%tb")[1])
