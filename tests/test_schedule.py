"""Scheduled runs: one at a time, whole or not at all, kept in number, ended in time, logged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from test_report import make

from nescord_ops import checks, cli, compare, history, publish, report, terminal
from nescord_ops.checks import Check, Status
from nescord_ops.errors import ReportError

NOW = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S.*")
HOLD = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from nescord_ops import publish
with publish.building(Path(sys.argv[1]), datetime(2026, 11, 23, 22, 0, tzinfo=UTC)):
    print("held", flush=True)
    time.sleep(60)
"""
# Forks children that publish as fast as they can, kills each at some moment, and starts the next.
PUBLISHER = """
import json, os, random, signal, sys, time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from nescord_ops import memory, publish, render
from nescord_ops.checks import Status
out, rounds = Path(sys.argv[1]), int(sys.argv[2])
memory.import_database(), render.warm_up()
document = {"settings": {}, "checks": [], "data": {}}

def run(number):
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    with publish.building(out, at) as building:
        pages = []
        for name in ("verify", "cost"):
            files = [building / f"{name}.{kind}" for kind in ("html", "ipynb", "json")]
            for file in files:
                with file.open("w") as f:
                    for part in ('{"start": 1,', '"end": 2}'):
                        f.write(part), f.flush()
            pages.append((publish.Page(name, Status.OK, "Healthy.", *files, 0.1), document))
        publish.publish(out, building, pages, at, 3, demo=False)

number = 0
random.seed(7)
run(number)
print("first", flush=True)
for _ in range(rounds):
    number += 100  # a child's first run is later than all that were made
    child = os.fork()
    if not child:
        for more in range(1, 100):
            run(number + more)
        os._exit(0)
    time.sleep(random.uniform(0.001, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
run(number + 100)
"""


def put(
    out: Path, *seen: Check, at: datetime = NOW, keep: int | None = None, name: str = "verify"
) -> report.Run:
    """Publish a run of one notebook with these checks, as `report` does, without a kernel."""
    document = {
        "schema_version": 1, "name": name, "status": checks.verdict(seen).value,
        "generated_at": at.isoformat(), "tool_version": "1", "data": {}, "demo": False,
        "settings": {"database": "/volume/nescordbot.db"},
        "checks": [checks.plain(check) for check in seen],
    }  # fmt: skip
    with publish.building(out, at) as building:
        document["changes"] = compare.changes(out, document, at)
        content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
        page = publish.write(building, document, content, 0.1)
        stamp = publish.publish(out, building, [(page, document)], at, keep, demo=False)
    return report.Run(out / stamp, out / "index.html", (page.moved(out / stamp),))


def stamps(out: Path) -> list[str]:
    return sorted(entry.name for entry in out.iterdir() if publish.STAMP.fullmatch(entry.name))


def test_a_second_run_is_refused_at_once_and_a_killed_one_holds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "reports"
    name = make(tmp_path / "n.ipynb", "1")
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    assert other.stdout
    try:
        assert other.stdout.readline() == b"held\n"
        assert cli.run(["report", name, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert f"Error: another report is at work in {out}: process {other.pid}," in said
        assert "since 2026-11-23 22:00 UTC" in said
        assert f"Try: wait for it to end, or name another directory with --out; if it hangs, end " \
            f"it: kill {other.pid}" in said  # fmt: skip
        put(tmp_path / "elsewhere", checks.ok("a", "b"))
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert list(out.glob(".building-*")), "what the killed run left"
    (out / ".building-index-20260101T000000Z").write_text("half")
    put(out, checks.ok("a", "b"))
    assert {path.name for path in out.iterdir()} == {
        "20261123T220000Z", "index.html", history.FILE_NAME,
    }  # fmt: skip


def links(out: Path) -> list[str]:
    text = (out / "index.html").read_text("utf-8")
    assert text.rstrip().endswith("</html>")
    found = re.findall(r'href="(\d{8}T[^"]+)"', text)
    return [unquote(link).partition("#")[0] for link in found]


def look(out: Path) -> int:
    """Read everything as a visitor would; return how many files were whole."""
    whole = 0
    for link in links(out):
        try:
            text = (out / link).read_text("utf-8")
            own = link.endswith("/index.html")
            assert text.rstrip().endswith("</html>") if own else json.loads(text)["end"] == 2
            whole += 1
        except FileNotFoundError:
            assert link not in links(out), f"{link} leads nowhere"
    for stamp in stamps(out):
        try:
            there = sorted(path.name for path in (out / stamp).iterdir())
        except FileNotFoundError:
            continue
        if (out / stamp).exists():
            assert len(there) == 7, f"{stamp} is half a run: {there}"
    return whole


def test_a_reader_never_sees_half_a_run_while_runs_are_published_and_killed(tmp_path: Path) -> None:
    out = tmp_path / "reports"
    publisher = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(out), "25"], stdout=subprocess.PIPE
    )
    assert publisher.stdout
    try:
        assert publisher.stdout.readline() == b"first\n"
        whole = rounds = 0
        while publisher.poll() is None:
            whole, rounds = whole + look(out), rounds + 1
    finally:
        publisher.kill()
        publisher.wait()
        publisher.stdout.close()
    assert publisher.returncode == 0
    look(out)
    assert len(stamps(out)) <= 3
    assert not list(out.glob(".*"))
    assert whole > 20
    assert rounds > 5


def test_keep_counts_this_run_first_and_removes_nothing_that_is_no_run(tmp_path: Path) -> None:
    out = tmp_path / "reports"
    out.mkdir()
    foreign = ["20261399T000000Z", "20261123T220000Z.bak", "99991231", "notes"]
    for name in foreign:
        (out / name).mkdir()
        (out / name / "mine.json").write_text("{}")
    future = out / "20991231T000000Z"
    future.mkdir()
    run = put(out, checks.ok("a", "b"), keep=1)
    assert stamps(out) == [run.directory.name, foreign[0]]
    assert not future.exists()
    for number in range(1, 4):
        run = put(out, checks.ok("a", "b"), at=NOW + timedelta(hours=number), keep=2)
    assert stamps(out) == ["20261124T000000Z", "20261124T010000Z", foreign[0]]
    assert all((out / name / "mine.json").is_file() for name in foreign)


def test_no_page_leads_to_a_run_that_is_not_kept(tmp_path: Path) -> None:
    bad = checks.fail("a", "b", "c")

    def leading() -> dict[str, list[str]]:
        """Of each run that is kept, the runs that its page leads to, there or not."""
        pages = {path.parent.name: path.read_text() for path in tmp_path.glob("2*/verify.html")}
        assert all("Compared with" in text for text in [*pages.values()][1:])
        for page in [tmp_path / "index.html", *tmp_path.glob("2*/*.html")]:
            for link in re.findall(r'href="([^"#]+)', page.read_text()):
                assert link.startswith("data:") or (page.parent / unquote(link)).exists(), link
        return {run: re.findall(r'href="\.\./(2[^/"]+)/', pages[run]) for run in sorted(pages)}

    for day in range(4):
        put(tmp_path, bad if day else checks.ok("a", "b"), at=NOW + timedelta(days=day), keep=3)
    kept = stamps(tmp_path)
    assert leading() == {kept[0]: [], kept[1]: [kept[0]], kept[2]: [kept[1]]}
    put(tmp_path, bad, at=NOW + timedelta(days=4), keep=1)
    (last,) = stamps(tmp_path)
    assert leading() == {last: []}, "the run that it is compared with goes in the same run"
    shutil.rmtree(tmp_path / last)
    put(tmp_path, bad, at=NOW + timedelta(days=5))
    assert leading() == {stamps(tmp_path)[0]: []}, "somebody else removed it"
    document = json.loads(next(tmp_path.glob("2*/verify.json")).read_text())
    assert document["changes"]["previous_run"] == last


def test_damaged_runs_are_taken_as_they_are_and_the_index_leads_to_what_is_there(
    tmp_path: Path,
) -> None:
    out = tmp_path / "reports"
    whole = put(out, checks.ok("a", "b"), at=NOW - timedelta(days=2)).directory.name
    good = json.loads((out / whole / "verify.json").read_text())
    damaged = out / "20261101T000000Z"
    damaged.mkdir()
    bad: dict[str, object] = {
        "list": [], "text": "x", "status": {**good, "status": []}, "none": {**good, "checks": None},
        "settings": {**good, "settings": 3}, "data": {**good, "data": [1]},
        "changes": {**good, "changes": {"previous": "never"}},
    }  # fmt: skip
    for name, document in bad.items():
        (damaged / f"{name}.json").write_text(json.dumps(document))
    (damaged / "deep.json").write_text("[" * 100_000)
    (damaged / "bytes.json").write_bytes(b"\xff\xfe{")
    os.mkfifo(damaged / "pipe.json")
    (damaged / os.fsdecode(b"\xff.json")).write_text(json.dumps(good))
    (out / whole / "verify.html").unlink()
    put(out, checks.ok("a", "b"))
    assert [row.status for row in history.runs(out)][-1] == "ok", "of the one that can be read"
    assert {link.partition("/")[0] for link in links(out)} == {whole, "20261123T220000Z"}
    assert all((out / link).is_file() for link in links(out))


def test_the_time_limit_ends_a_notebook_that_will_not_end_and_all_that_it_left(
    tmp_path: Path,
) -> None:
    """It ignores the interrupt, starts a program in a session of its own, and forks a daemon."""
    mark = f"7{os.getpid()}"
    daemon = tmp_path / "daemon"
    cells = [
        f"import os, signal, subprocess, time\nsubprocess.Popen(['sleep', '{mark}'], "
        "start_new_session=True)",
        f"if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        open({str(daemon)!r}, 'w').write(str(os.getpid()))\n        time.sleep(600)\n"
        "    os._exit(0)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})\n"
        "while True: pass",
    ]
    name = make(tmp_path / "stubborn.ipynb", *cells)
    began = time.monotonic()
    run = report.run([name], out=tmp_path / "reports", timeout_seconds=6)
    assert time.monotonic() - began < 40
    assert run.exit_code == 2
    assert "cell 4: did not finish within 6 s" in run.pages[0].headline
    assert not running(int(daemon.read_text()))
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in read(p)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def running(pid: int) -> bool:
    return read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()[:1] not in ([], [b"Z"])


def test_without_a_terminal_each_step_is_a_line_with_its_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal.progress() as say:
        for text in ("copying \x1b[31mboth\nstores", "page 1 of 2,000", "page 999 of 2,000",
                     "pushing nescordbot_backup_20261123_220000: 3.5 MB",
                     "pushing nescordbot_backup_20261123_220000: 3.6 MB",
                     "pushing nescordbot_backup_20261124_220000: 900 kB"):  # fmt: skip
            say(text)
        monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
        say("page 2,000 of 2,000")
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    assert [line.partition(" ")[2] for line in lines] == [
        "copying both stores", "page 1 of 2,000",
        "pushing nescordbot_backup_20261123_220000: 3.5 MB",
        "pushing nescordbot_backup_20261124_220000: 900 kB", "page 2,000 of 2,000",
    ]  # fmt: skip


def test_on_a_terminal_one_line_says_what_runs_and_for_how_long() -> None:
    master, slave = os.openpty()
    code = """
        import time
        from nescord_ops.terminal import progress
        with progress() as say:
            say("running verify, [b]cost")
            time.sleep(1.3)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run(command, stderr=slave, check=True, env=environment)
    os.close(slave)
    shown = os.read(master, 65_536).decode()
    os.close(master)
    assert "0:00 running verify, [b]cost" in shown
    assert "0:01 running verify, [b]cost" in shown
    assert "2026-" not in shown


def test_a_reader_of_the_log_who_has_gone_is_no_failure() -> None:
    code = "from nescord_ops import terminal\nterminal.log('x')\nprint('on')"
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=write_end, stdout=subprocess.PIPE, check=False
    )
    os.close(write_end)
    assert done.stdout == b"on\n"


def test_a_directory_that_cannot_be_held_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReportError, match="cannot be written") as caught:
        put(tmp_path / "file", checks.ok("a", "b"))
    assert caught.value.hint
    assert Status.UNKNOWN.exit_code == caught.value.exit_code == 2
