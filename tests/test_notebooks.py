"""The notebooks: thin, stripped, of one shape, run by nbval and by plain papermill."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
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


def test_plain_papermill_runs_a_notebook_unmodified(base_demo: Demo, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "verify.ipynb")),
        *(str(tmp_path / "out.ipynb"), "-p", "app_dir", str(base_demo.app_dir)),
        *("-p", "depth", "quick", "--no-progress-bar"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert MIME in (tmp_path / "out.ipynb").read_text("utf-8")
