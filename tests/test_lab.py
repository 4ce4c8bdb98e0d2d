"""The lab: a working copy that overwrites nothing, and a real JupyterLab in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo

from nescord_ops import cli, lab, report
from nescord_ops.errors import LabError
from nescord_ops.results import Result

NOTEBOOK = json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def placed(directory: Path) -> dict[str, lab.Placed]:
    return {each.path.name: each for each in lab.copy(directory)}


def test_the_working_copy_is_made_once_and_left_alone(tmp_path: Path) -> None:
    first = placed(tmp_path / "mine")
    assert set(first) == {path.name for path in report.find().values()}
    assert all(each.new for each in first.values())
    shipped = report.find()["verify"]
    assert lab._digest(json.loads(first["verify.ipynb"].path.read_text("utf-8"))) == lab._digest(
        json.loads(shipped.read_text("utf-8"))
    )
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*/*")}
    assert not any(each.new for each in placed(tmp_path / "mine").values())
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*/*")}
    assert after == before


def change(path: Path, what: str) -> bytes:
    """Edit or run a notebook as its operator would, and return its bytes."""
    document = json.loads(path.read_text("utf-8"))
    if what == "edited":
        document["cells"][1]["source"] = ['depth: str = "quick"  # mine']
    else:
        cell = next(cell for cell in document["cells"] if cell["cell_type"] == "code")
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "evidence"}]
    path.write_text(json.dumps(document), "utf-8")
    return path.read_bytes()


@pytest.mark.parametrize("what", ["edited", "run", "foreign", "broken", "dangling"])
def test_a_newer_notebook_goes_beside_what_the_operator_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    mine = tmp_path / "verify.ipynb"
    if what in ("edited", "run"):
        lab.copy(tmp_path)
        content = change(mine, what)
        assert lab.copy(tmp_path)
        assert not (tmp_path / "verify-2.ipynb").exists(), "ours is no newer"
        newer = lab._digest
        monkeypatch.setattr(lab, "_digest", lambda document: "newer " + newer(document))
    elif what == "dangling":
        mine.symlink_to(tmp_path / "nowhere")
        content = b""
    else:
        mine.write_text(NOTEBOOK if what == "foreign" else "{", "utf-8")
        content = mine.read_bytes()
    found = placed(tmp_path)["verify-2.ipynb"]
    assert (found.new, found.beside) == (True, mine)
    assert mine.is_symlink() if what == "dangling" else mine.read_bytes() == content
    again = placed(tmp_path)["verify-2.ipynb"]
    assert (again.new, again.beside) == (False, mine)


def test_a_copy_that_nobody_touched_is_replaced_by_a_newer_one(tmp_path: Path) -> None:
    mine = placed(tmp_path)["verify.ipynb"].path
    document = json.loads(mine.read_text("utf-8"))
    document["cells"] = document["cells"][:3]
    document["metadata"][lab.MARK]["copied_from"] = lab._digest(document)
    mine.write_text(json.dumps(document), "utf-8")
    assert placed(tmp_path)["verify.ipynb"].new
    assert len(json.loads(mine.read_text("utf-8"))["cells"]) > 3
    assert {path.stem for path in tmp_path.iterdir()} == set(report.find())


def test_a_full_disk_leaves_no_half_of_a_notebook(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(LabError, match="cannot be written"):
            lab.copy(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_installed_notebooks_are_refused_as_a_working_copy(tmp_path: Path) -> None:
    home = report.find()["verify"].parent
    link = tmp_path / "link"
    link.symlink_to(home)
    before = {path: path.read_bytes() for path in home.iterdir()}
    for place in (home, link, home / ".." / home.name):
        with pytest.raises(LabError, match="as they were installed"):
            lab.copy(place)
    assert {path: path.read_bytes() for path in home.iterdir()} == before


def test_without_jupyterlab_the_hint_is_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda _: None)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["lab", "--demo", "--no-browser"]) == 2
    assert capsys.readouterr().err.endswith("Try: pip install 'nescord-ops[lab]'\n")
    assert list(tmp_path.iterdir()) == []


def test_with_nothing_configured_it_says_so_and_copies_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["--app-dir", str(tmp_path), "lab", "--no-browser"]) == 2
    assert "nothing is configured" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_kernels_are_given_what_was_given_and_no_more(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = demo().app_dir
    monkeypatch.chdir(app.parent)
    shutil.copy(app / ".env", app / "other.env")
    where = {
        "NESCORD_OPS_APP_DIR": str(app),
        "NESCORD_OPS_REPORTS_DIR": str(app.parent / "reports"),
    }
    assert lab._variables({"app_dir": "app", "env_file": "", "database_url": ""}) == where
    given = {"app_dir": "app", "env_file": "app/other.env", "chroma_dir": "data/chromadb"}
    assert lab._variables(given) == {
        **where,
        "NESCORD_OPS_ENV_FILE": str(app / "other.env"),
        "CHROMADB_PERSIST_DIRECTORY": "data/chromadb",
    }


def hostile_jupyter(directory: Path) -> dict[str, str]:
    """A machine whose own Jupyter has another python3, no token, and listens to everybody."""
    spec = directory / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(argv))
    config = directory / "config"
    config.mkdir()
    server = {"ServerApp": {"ip": "0.0.0.0", "token": ""}, "IdentityProvider": {"token": ""}}
    (config / "jupyter_server_config.json").write_text(json.dumps(server))
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH")
    return {
        **dict.fromkeys(names, str(config)),
        "JUPYTER_PATH": str(directory / "share"),
        "JUPYTER_TOKEN": "",
        "HOME": str(directory),
        "IPYTHONDIR": str(directory / "ipython"),
    }


def started(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The document that `--json lab` prints when it can be used."""
    text = ""
    assert process.stdout
    for line in process.stdout:
        text += line
        with contextlib.suppress(ValueError):
            return dict(json.loads(text))
    raise AssertionError(text)


@pytest.fixture
def page() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 1000})
        browser.close()


def mentioned(text: str) -> list[str]:
    """The processes whose command line or environment has `text` in it, but this one."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text.encode() in (each / "cmdline").read_bytes() and each.name != str(os.getpid()):
                found.append(each.name)
    return found


def test_jupyterlab_shows_the_verdict_and_an_error_and_leaves_nothing(
    page: Any, tmp_path: Path
) -> None:
    scratch = tmp_path / "t"
    scratch.mkdir()
    environment = {**os.environ, **hostile_jupyter(tmp_path / "h"), "TMPDIR": str(scratch)}
    environment["DATABASE_URL"] = "sqlite:////nowhere/real.db"
    command = [sys.executable, "-m", "nescord_ops", "--json", "lab", str(tmp_path / "copy")]
    process = subprocess.Popen(
        [*command, "--demo", "--no-browser", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "said").open("w"),
        env=environment,
        text=True,
    )
    asked: list[str] = []
    try:
        document = started(process)
        host = document["url"].split("/")[2]
        assert host.startswith("127.0.0.1:")
        (settings,) = scratch.glob("nescord-ops-lab-*/config/*.json")
        assert stat.S_IMODE(settings.parent.parent.stat().st_mode) == 0o700
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://{host}/api/contents")
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        page.goto(document["url"])
        page.get_by_text("python3 | Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.get_by_text("Healthy", exact=False).first.wait_for(timeout=60_000)
        page.get_by_text("python3 | Idle").wait_for(timeout=60_000)
        page.locator("table.checks").first.scroll_into_view_if_needed()
        page.screenshot(path=str(tmp_path / "verdict.png"))
        page.keyboard.press("Escape")
        page.keyboard.press("b")
        page.keyboard.press("Enter")
        page.keyboard.insert_text("load(app_dir='/nowhere')")
        page.keyboard.press("Shift+Enter")
        said = page.locator(".jp-OutputArea-output", has_text="SettingsError").last
        said.wait_for(timeout=60_000)
        page.screenshot(path=str(tmp_path / "error.png"))
        lines = said.inner_text().strip().splitlines()
        assert lines[0] == "SettingsError: the bot's directory /nowhere is not a directory"
        assert lines[1].startswith("Try: set DATABASE_URL")
        assert len(lines) == 2
    finally:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)  # as a terminal that closes while it ends
        code = process.wait(60)
    assert code == 0
    assert "received signal" not in (tmp_path / "said").read_text()
    assert {url.split("/")[2] for url in asked if not url.startswith(("data:", "blob:"))} == {host}
    assert mentioned(str(scratch)) == []
    assert list(scratch.iterdir()) == []


def test_nohup_keeps_it_it_knows_no_address_and_its_death_is_told(
    demo: MakeDemo, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "nescord_ops", "--json", "--app-dir", str(demo().app_dir)]
    process = subprocess.Popen(
        ["nohup", *command, "lab", str(tmp_path / "copy"), "--no-browser", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "said").open("w"),
        env={**os.environ, "NESCORD_OPS_PING_URL": "https://ping/secret"},
        text=True,
    )
    try:
        started(process)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (server,) = map(int, tasks.read_text().split())
        assert b"secret" not in Path(f"/proc/{server}/environ").read_bytes()
        os.kill(server, signal.SIGKILL)
        code = process.wait(60)
    finally:
        process.kill()
    assert code == 2
    assert json.loads(process.stdout.read())["error"] == "JupyterLab ended with code -9"


def test_the_lab_shows_itself_without_its_token() -> None:
    assert issubclass(lab.Lab, Result)
    shown = lab.Lab("http://x/?token=secret", Path("/d"), (), None)  # type: ignore[arg-type]
    assert "secret" not in repr(shown) + str(shown) + shown._repr_html_()
