"""The command line: what it prints, where, and the code it exits with."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo

from nescord_ops import __version__, cli, history, index, interrupts, publish, terminal, verify
from nescord_ops.checks import fail, ok, unknown, warn
from nescord_ops.faults import FAULTS
from nescord_ops.settings import Settings, load

HEAVY = {"chromadb", "pandas", "matplotlib", "papermill", "pydantic", "numpy", "nbformat"}
Captured = pytest.CaptureFixture[str]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as the operator does, in a process of its own."""
    command = [sys.executable, "-m", "nescord_ops", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def found(settings: Settings, *checks: verify.Check) -> verify.Verification:
    return verify.Verification(settings, checks, "quick")


@pytest.fixture
def volume(demo: MakeDemo) -> str:
    return str(demo().app_dir)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from nescord_ops import cli; code = cli.run(['--help']);"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules}); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, _, modules = done.stdout.partition("MODULES ")
    for command in ("verify", "capacity", "cost", "troubleshoot", "report", "demo"):
        assert command in shown
    assert not HEAVY & set(modules.split())


def test_quick_verification_imports_neither_chromadb_nor_pandas(volume: str) -> None:
    code = (
        "import sys; from nescord_ops import cli;"
        f"cli.run(['--app-dir', {volume!r}, 'verify', '--depth', 'quick']);"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"chromadb", "pandas", "matplotlib"} & set(done.stdout.split("MODULES ")[1].split())


def test_an_option_in_the_wrong_place_is_said_to_belong_before_the_command() -> None:
    done = run("verify", "--app-dir", "/x")
    assert done.returncode == 2
    assert "goes before the command: nescord-ops --app-dir" in done.stderr
    assert "before" not in run("verify", "--ap").stderr


def test_every_command_has_a_sentence_of_help() -> None:
    for command in cli.app.registered_commands:
        assert command.callback
        assert (command.callback.__doc__ or "").split("\n")[0].endswith((".", "?"))


def test_version_is_the_packages(capsys: Captured) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"nescord-ops {__version__}\n"


def test_json_is_one_document_and_nothing_else(volume: str) -> None:
    done = run("--app-dir", volume, "--json", "verify", "--depth", "quick")
    document = json.loads(done.stdout)
    assert document["name"] == "verify"
    assert document["settings"]["app_dir"] == volume
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ([ok("a", "fine")], 0),
        ([warn("a", "so so", "look")], 0),
        ([ok("a", "fine"), unknown("b", "no mount", expected=True)], 0),
        ([ok("a", "fine"), fail("b", "gone", "restore"), unknown("c", "?")], 1),
        ([ok("a", "fine"), unknown("b", "no idea")], 2),
    ],
)
def test_the_exit_code_is_the_verdict(
    volume: str, monkeypatch: pytest.MonkeyPatch, checks: list[verify.Check], code: int
) -> None:
    monkeypatch.setattr(verify, "run", lambda settings, **_: found(settings, *checks))
    assert cli.run(["--app-dir", volume, "verify"]) == code
    assert cli.run(["--app-dir", volume, "--json", "verify"]) == code


def test_the_worst_check_stands_first_with_its_hint(
    volume: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    checks = (
        ok("fine", "all well"),
        unknown("mount", "none", expected=True),
        fail("bad", "x", "do y"),
    )
    monkeypatch.setattr(verify, "run", lambda settings, **_: found(settings, *checks))
    cli.run(["--app-dir", volume, "verify"])
    shown = capsys.readouterr().out
    assert shown.startswith("Your data is not safe. 1 failed")
    positions = [shown.index(text) for text in ("✕ fail", "→ do y", "✓ ok", "? not checked")]
    assert positions == sorted(positions)


def test_text_from_the_volume_is_neither_markup_nor_an_escape_sequence(
    volume: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    hostile = "[bold red]x[/] [link=http://e.example]y[/link] [/nothing] \x1b[31mred\x1b[0m\x07"
    monkeypatch.setattr(
        verify, "run", lambda settings, **_: found(settings, fail("a", hostile, hostile))
    )
    assert cli.run(["--app-dir", volume, "verify"]) == 1
    shown = capsys.readouterr().out
    assert "[bold red]x[/] [link=http://e.example]y[/link] [/nothing] red" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_an_error_is_two_lines_on_stderr(tmp_path: Path) -> None:
    done = run("verify", cwd=tmp_path, env={**os.environ, "NESCORD_OPS_APP_DIR": str(tmp_path)})
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("Error: nothing is configured")
    assert second.startswith("Try: ")
    assert "nescord-ops demo" in second


def test_json_may_stand_behind_the_command(volume: str) -> None:
    done = run("--app-dir", volume, "verify", "--depth", "quick", "--json")
    assert json.loads(done.stdout)["name"] == "verify"


def test_an_error_with_json_is_a_document_on_stdout(tmp_path: Path, capsys: Captured) -> None:
    assert cli.run(["--app-dir", str(tmp_path), "--json", "verify"]) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out).keys() == {"error", "hint"}
    assert shown.err == ""


@pytest.mark.parametrize(
    "arguments", [["no-such"], ["verify", "--no-such"], ["--app-dir"], ["demo"]]
)
def test_misuse_exits_2_and_says_so(arguments: list[str], capsys: Captured) -> None:
    assert cli.run(arguments) == 2
    assert "Traceback" not in (shown := capsys.readouterr().err)
    assert "Error" in shown
    assert cli.run(["--json", *arguments]) == 2
    assert json.loads(capsys.readouterr().out)["error"]


def test_a_surprise_is_a_short_error_and_a_traceback_only_with_debug(
    volume: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def surprise(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(verify, "run", surprise)
    assert cli.run(["--app-dir", volume, "verify"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Error: ZeroDivisionError: by nothing\nTry: run again with --debug")
    assert "Traceback" not in shown
    assert cli.run(["--app-dir", volume, "--debug", "verify"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_lack_of_threads_is_no_surprise(volume: str, capsys: Captured) -> None:
    usual = threading.stack_size(1 << 47)  # there are no more addresses than that
    try:
        assert cli.run(["--app-dir", volume, "verify"]) == 2
    finally:
        threading.stack_size(usual)
    shown = capsys.readouterr().err
    assert "Error: too little memory, or too few threads (RuntimeError: can't start" in shown
    assert "ulimit -a" in shown


def test_an_error_of_ours_shows_its_traceback_with_debug(tmp_path: Path, capsys: Captured) -> None:
    assert cli.run(["--app-dir", str(tmp_path), "--debug", "verify"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_sigterm_exits_130_even_when_a_module_is_being_imported(tmp_path: Path) -> None:
    """Python executes text to make a dataclass, and remembers what it saw there."""
    (tmp_path / "ends.py").write_text(
        "from nescord_ops import cli\n"
        "def run():\n"
        "    try:\n"
        "        exec('import os, signal; os.kill(os.getpid(), signal.SIGTERM)')\n"
        "    except KeyboardInterrupt:\n"
        "        return 130\n"
        "cli.run = run\n"
        "cli.main()\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-m", "ends"], check=False, env=environment)
    assert done.returncode == 130


class Thing:
    pass


def lose_a_sigterm() -> None:
    """Have SIGTERM arrive where Python only reports what its handler raises."""
    thing = Thing()
    _ = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    del thing


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command's handlers, in this process."""
    monkeypatch.setattr(interrupts, "_arrived", False)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    interrupts.watch()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("watched")
def test_a_sigterm_whose_exception_is_lost_exits_130(
    volume: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def verified(loaded: Settings, **_: Any) -> verify.Verification:
        lose_a_sigterm()
        return found(loaded, ok("a", "b"))

    monkeypatch.setattr(verify, "run", verified)
    assert cli.run(["--app-dir", volume, "verify"]) == 130
    assert capsys.readouterr().err == "Error: interrupted\n", "no traceback of what was lost"
    with terminal.progress() as say, pytest.raises(KeyboardInterrupt):
        say("going on")


@pytest.mark.usefixtures("watched")
def test_a_run_is_not_published_after_a_sigterm_whose_exception_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: Any) -> str:
        lose_a_sigterm()
        return ""

    monkeypatch.setattr(index, "page", late)
    began = datetime.now(UTC)
    with pytest.raises(KeyboardInterrupt), publish.building(tmp_path, began) as building:
        publish.publish(tmp_path, building, [], began, None, demo=False)
    assert [path.name for path in tmp_path.iterdir()] == [history.FILE_NAME]


def test_an_interrupt_exits_130(
    volume: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run", interrupt)
    assert cli.run(["--app-dir", volume, "verify"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_is_not_a_traceback(volume: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable,
        "-m",
        "nescord_ops",
        "--app-dir",
        volume,
        "verify",
        "--depth",
        "quick",
    ]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 2
    assert done.stderr == ""


@pytest.mark.parametrize(
    "line",
    [
        *("--json demo --fault list > /dev/full", "demo --fault list > /dev/full"),
        *("demo 2> /dev/full", "nonsense 2> /dev/full", "--debug --json demo > /dev/full 2>&1"),
    ],
)
def test_where_nobody_can_be_told_the_exit_code_still_is_2(line: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m nescord_ops {line}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_closed_stdout_is_no_failure() -> None:
    command = f"{shlex.quote(sys.executable)} -m nescord_ops demo --fault list >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_unicode_is_served() -> None:
    done = run("demo", "--fault", "list", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0


def test_demo_makes_a_volume_and_says_what_to_type_next(tmp_path: Path, capsys: Captured) -> None:
    place = tmp_path / "a demo"
    assert cli.run(["demo", str(place), "--notes", "5", "--fault", "no-fts"]) == 0
    shown = capsys.readouterr().out
    assert f"nescord-ops --app-dir '{place}' verify" in shown
    assert load(app_dir=place).database.is_file()
    assert cli.run(["demo", str(place)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_demo_names_its_faults(capsys: Captured) -> None:
    assert cli.run(["demo", "--fault", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FAULTS)
    assert cli.run(["--json", "demo", "--fault", "list"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == FAULTS.keys()


def test_a_demo_knows_nothing_of_the_real_volume_and_is_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:////nowhere/real.db")
    monkeypatch.setenv("RAILWAY_VOLUME_MOUNT_PATH", "/nowhere")
    assert cli.run(["--json", "verify", "--demo", "--depth", "quick"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["volume_mount"] is None
    assert settings["database"].startswith(settings["app_dir"])
    assert not Path(settings["app_dir"]).exists()
    assert os.environ["DATABASE_URL"] == "sqlite:////nowhere/real.db"
    assert cli.run(["deploy", "--demo"]) == 0
    assert capsys.readouterr().out.endswith("in a directory ./sample: nescord-ops demo sample\n")
