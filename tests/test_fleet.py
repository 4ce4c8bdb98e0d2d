"""Fleets: many volumes on any executor; one that fails, hangs or is lost holds up no other."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import MakeDemo
from test_marks import leaks
from test_page import browser, faults_of
from test_report import FAILING, FOUND, Tags, alive, make, wait_for

from nescord_ops import cli, fleet, fleet_index, history, member, publish, report
from nescord_ops.checks import Status
from nescord_ops.errors import ReportError
from nescord_ops.member import Outcome, Task

NOW = datetime(2026, 11, 24, 3, 15, tzinfo=UTC)
SLEEP = "86396"
# A notebook that does what the file `mode` in the bot's directory says.
MODES = f"""import subprocess, time
from pathlib import Path
from nescord_ops import settings
home = Path(app_dir)
mode = (home / "mode").read_text()
places = settings.load(app_dir=app_dir, env_file=env_file)
found = dataclasses.replace(found, settings=places)
if mode == "fails":
    {FAILING.splitlines()[0]}
    found = dataclasses.replace(found, checks=(good, bad))
if mode == "hangs":
    subprocess.run(["sleep", "{SLEEP}"])
while mode == "waits" and not (home / "go").exists():
    (home / "began").touch()
    time.sleep(0.02)
found"""
PARAMETERS = 'app_dir: str = ""\nenv_file: str = ""'


def volume(root: Path, name: str, mode: str = "") -> str:
    """Make a bot's directory that has nothing but its `.env`; return its entry of the file."""
    home = root / name
    home.mkdir(parents=True)
    (home / ".env").write_text(f"DATABASE_URL=sqlite:///data/{name}.db\n")
    (home / "mode").write_text(mode)
    return f'[[volume]]\nname = "{name}"\napp_dir = "volumes/{name}"\n'


def written(root: Path, *entries: str) -> Path:
    file = root / "fleet.toml"
    file.write_text("\n".join(entries), "utf-8")
    return file


def notebook(root: Path) -> str:
    return make(root / "probe.ipynb", FOUND, MODES, parameters=PARAMETERS)


class Impatient(ThreadPoolExecutor):
    """Threads that give the volume `hangs` five seconds, and the others their time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        tasks = [
            dataclasses.replace(task, deadline_seconds=5) if task.name == "hangs" else task
            for task in args
        ]
        return super().submit(fn, *tasks, **kwargs)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> fleet.Fleet:
    """One run in threads: a healthy volume, a failing one, one that hangs, one that is not there.

    The shell meanwhile holds the variables of yet another volume.
    """
    root = tmp_path_factory.mktemp("fleet")
    entries = [volume(root / "volumes", name, name) for name in ("healthy", "fails", "hangs")]
    gone = '[[volume]]\nname = "gone"\napp_dir = "volumes/gone"'
    (root / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch, Impatient(3) as pool:
        patch.setenv("TMPDIR", str(root / "tmp"))
        for name in ("DATABASE_URL", "CHROMADB_PERSIST_DIRECTORY", "RAILWAY_VOLUME_MOUNT_PATH"):
            patch.setenv(name, "/of/another/volume")
        patch.setenv("NESCORD_OPS_APP_DIR", "/of/another/volume")
        patch.setenv("DISCORD_TOKEN", "of-another-volume")
        return fleet.run(
            fleet.read(written(root, *entries, gone)),
            executor=pool,
            names=[notebook(root)],
            out=root / "out",
            now=NOW,
        )


def test_nothing_that_a_fleet_writes_holds_the_mark_of_an_amount(four: fleet.Fleet) -> None:
    assert leaks(four.index.parent) == []


def test_the_worst_volume_stands_first_and_decides(four: fleet.Fleet) -> None:
    seen = [(each.name, each.status) for each in four.volumes]
    unknown = Status.UNKNOWN
    assert seen == [
        ("fails", Status.FAIL), ("hangs", unknown), ("gone", unknown), ("healthy", Status.OK)
    ]  # fmt: skip
    assert (four.status, four.exit_code) == (Status.FAIL, 1)
    assert four.headline == "Not safe. 4 volumes: 1 failed, 2 not checked, 1 ok."
    for volumes, code in ((four.volumes[1:], 2), (four.volumes[3:], 0)):
        assert dataclasses.replace(four, volumes=volumes).exit_code == code


def test_each_volume_is_published_as_a_single_run_is(four: fleet.Fleet) -> None:
    for each in (four.volumes[0], four.volumes[3]):
        home = four.index.parent / each.name
        assert publish.STAMP.fullmatch(each.stamp)
        files = {file.name for file in (home / each.stamp).iterdir()}
        assert files == {"index.html", "probe.html", "probe.ipynb", "probe.json"}
        (run,) = history.runs(home)
        assert (run.stamp, run.status) == (each.stamp, each.status)
        assert f"{each.stamp}/probe.html" in (home / "index.html").read_text()
        assert each.since == each.looked_at == run.generated_at


def test_a_volume_that_hangs_is_unknown_and_leaves_nothing_behind(four: fleet.Fleet) -> None:
    hangs = four.volumes[1]
    assert hangs.checks[0].summary == "did not end within 5 s, and was stopped"
    assert "--deadline" in hangs.checks[0].hint
    assert 5 <= hangs.seconds < 5 + 2 * member.END_SECONDS + 1
    assert (hangs.stamp, hangs.since, hangs.looked_at) == ("", None, None)
    scratch = four.index.parent.parent / "tmp"
    wait_for(lambda: not alive(f"TMPDIR={scratch}", "environ"))
    assert list(scratch.iterdir()) == []
    assert list(four.index.parent.glob("hangs/*")) == []


def test_a_volume_that_is_not_there_says_which_entry_to_correct(four: fleet.Fleet) -> None:
    (check,) = four.volumes[2].checks
    assert check.name == member.RUN_CHECK
    assert re.search("the bot's directory .*/volumes/gone is not a directory", check.summary)
    assert check.hint == "mount its volume, or correct the entry of gone in the fleet's file"


def test_a_volume_sees_its_own_settings_and_nothing_of_the_shells(four: fleet.Fleet) -> None:
    root = four.index.parent.parent
    for name in ("healthy", "fails"):
        (file,) = four.index.parent.glob(f"{name}/*/probe.json")
        places = json.loads(file.read_text())["settings"]
        assert places["database"] == str(root / "volumes" / name / "data" / f"{name}.db")
        assert "/of/another" not in file.read_text()
        assert places["volume_mount"] is None
        assert not any(places["present"].values())


def test_the_index_links_what_is_there_and_names_the_rest(four: fleet.Fleet) -> None:
    text = four.index.read_text()
    links = {unquote(a["href"] or "") for tag, a in Tags(text).seen if tag == "a"}
    stamps = {each.name: each.stamp for each in four.volumes if each.stamp}
    pages = {f"{name}/{stamp}/probe.html" for name, stamp in stamps.items()}
    assert links == {"fleet.json", *pages, "healthy/index.html", "fails/index.html"}
    assert all((four.index.parent / link).is_file() for link in links)
    banner = text[text.index('class="verdict fail"') : text.index("Every volume")]
    for said in ("41 notes &lt;b&gt;lost&lt;/b&gt;", "→ restore them", "did not end within 5 s"):
        assert said in banner
    assert "never looked at" in text
    assert not {"script", "iframe", "form", "base"} & {tag for tag, _ in Tags(text).seen}
    assert json.loads((four.index.parent / "fleet.json").read_text()) == four.to_dict()
    assert not [file.name for file in four.index.parent.iterdir() if file.name.startswith(".")]


@browser
def test_the_page_of_a_fleet_is_usable_by_everybody(four: fleet.Fleet) -> None:
    assert faults_of([four.index], "light") == []
    assert faults_of([four.index], "dark", "color-contrast") == []


def test_what_travels_is_small_and_survives_the_journey(four: fleet.Fleet) -> None:
    for each in four.volumes:
        assert pickle.loads(pickle.dumps(each)) == each
        assert len(pickle.dumps(each)) < 4000
    task = Task("a", {"app_dir": "b"}, "c")
    assert pickle.loads(pickle.dumps(task)) == task
    assert pickle.loads(pickle.dumps(member.look)) is member.look


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[volume]]\nname=?", "cannot be read: .*line 2"),
        ("", "describes no volume"),
        ("volume = 3", "describes no volume"),
        ("volume = [3]", "volume 1 is no table"),
        ("[[volumes]]\nname='a'", "'volumes' at the top, and only"),
        ("[[volume]]\nname='a'\napp_dir='x'\nappdir='y'", "volume 1 has 'appdir'"),
        ("[[volume]]\napp_dir='x'", "volume 1 has no name"),
        ("[[volume]]\nname='a'\napp_dir=7", "volume 1: app_dir is no text"),
        ("[[volume]]\nname='a'\napp_dir=''", "volume 1: app_dir is no text"),
        ("[[volume]]\nname='a'\ndatabase_url='sqlite:////x'", "'a', has neither app_dir nor env"),
        *(
            (f"[[volume]]\nname='{name}'\napp_dir='x'", "volume 1 is named")
            for name in ("..", ".", "a/b", "/a", ".a", "a.b", "-a", "a b", "<b>", "a" * 61,
                         "20261124T031500Z", "index.html")
        ),
        (f"volume = {'[' * 100_000}", "cannot be read: .*recursion"),
        ("[[volume]]\nname='a'\napp_dir='x'\n[[volume]]\nname='A'\napp_dir='y'", "two volumes"),
        ('[[volume]]\nname="\\u00e9"\napp_dir="x"\n[[volume]]\nname="e\\u0301"\napp_dir="y"',
         "two volumes"),
        ("[[volume]]\nname='a'\napp_dir='x'\n[[volume]]\nname='b'\napp_dir='./x'", "same place"),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ReportError, match=said) as caught:
        fleet.read(file)
    assert caught.value.hint
    assert cli.run(["report", "--fleet", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "Try: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_paths_are_found_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/op")
    file = written(
        tmp_path,
        "[[volume]]\nname='東京-1'\napp_dir='../bots/one'\nchroma_dir='vectors'",
        "[[volume]]\nname='two'\nenv_file='two/.env'\ndatabase_url='sqlite:///x.db'",
        "[[volume]]\nname='three'\nenv_file='~/three.env'\napp_dir='/srv/three'",
        "[[volume]]\nname='four'\napp_dir='~nobody-of-this-name/four'",
    )
    monkeypatch.chdir("/")
    assert {each.name: each.options for each in fleet.read(file)} == {
        "東京-1": {"app_dir": f"{tmp_path.parent}/bots/one", "chroma_dir": "vectors"},
        "two": {
            "app_dir": f"{tmp_path}/two",
            "env_file": f"{tmp_path}/two/.env",
            "database_url": "sqlite:///x.db",
        },
        "three": {"app_dir": "/srv/three", "env_file": "/srv/op/three.env"},
        "four": {"app_dir": f"{tmp_path}/~nobody-of-this-name/four"},
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"volumes": ()}, "no volume"),
        ({"names": ["nothing-like-it"]}, "no notebook 'nothing-like-it'"),
        ({"parameters": {"app_dir": "/x"}}, "each volume has its own app_dir"),
        ({"keep": 0}, "keep is 0"),
        ({"jobs": 0}, "jobs is 0"),
        ({"deadline_seconds": math.nan}, "deadline is nan"),
        ({"timeout_seconds": 0}, "timeout is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    asked = {"volumes": [fleet.Volume("a", {"app_dir": "/x"})], **given}
    with pytest.raises(ReportError, match=said) as caught:
        fleet.run(**asked, out=tmp_path / "out")
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_the_index_of_a_single_volume_is_not_overwritten(tmp_path: Path) -> None:
    run = history.RunRow("20261124T031500Z", NOW, "ok", False, ())
    history.record(tmp_path, run, [])
    (tmp_path / "index.html").write_text("of one volume")
    with pytest.raises(ReportError, match="holds the reports of a single volume"):
        fleet.run([fleet.Volume("a", {"app_dir": "/x"})], out=tmp_path)
    assert (tmp_path / "index.html").read_text() == "of one volume"


def test_the_index_of_a_fleet_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "fleet.json").write_text("{}")
    with pytest.raises(ReportError, match="holds the reports of a fleet") as caught:
        report.run(["cost"], out=tmp_path, demo=True)
    assert "--out" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["fleet.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--app-dir", "x", "report", "--fleet", "f"], "leave out --app-dir"),
        (["report", "--fleet", "f", "--demo"], "leave out --demo"),
        (["report", "--fleet", "f", "--dask", "tcp://x", "--jobs", "2"], "leave out --jobs"),
        (["report", "--fleet", "/nowhere/f"], "name the fleet's TOML file"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli.run(arguments) == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_one_document_and_exits_with_the_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the last report of a volume that cannot be looked at is still found."""
    file = written(tmp_path, *(f"[[volume]]\nname='{n}'\napp_dir='{n}'" for n in "ab"))
    run = history.RunRow("20261124T031500Z", NOW, "ok", False, ())
    (tmp_path / "out" / "b").mkdir(parents=True)
    history.record(tmp_path / "out" / "b", run, [])
    command = ["report", "--fleet", str(file), "--jobs", "2", "--out", str(tmp_path / "out")]
    assert cli.run(["--json", *command]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["exit_code"]) == ("unknown", 2)
    seen = [(each["name"], each["looked_at"]) for each in document["volumes"]]
    assert seen == [("a", None), ("b", NOW.isoformat())]
    text = (tmp_path / "out" / "index.html").read_text()
    assert "last report <time" in text


def done(outcome: Outcome | BaseException) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    if isinstance(outcome, Outcome):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
    return future


class Odd(ThreadPoolExecutor):
    """An executor whose workers do what those of a cluster may do; it runs nothing."""

    def submit(self, _: Callable[..., Any], /, *args: Any, **__: Any) -> Future[Any]:
        (task,) = args
        if task.name == "refused":
            raise RuntimeError("cannot schedule new futures after shutdown")
        if task.name == "cancelled":
            future: Future[Outcome] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future
        if task.name == "never":
            return Future()
        if task.name == "foreign":
            return done("not an outcome")  # type: ignore[arg-type]
        if task.name == "raised":
            return done(ModuleNotFoundError("No module named 'nescord_ops'"))
        database = "/data/same.db" if task.name.startswith("twin") else f"/data/{task.name}.db"
        return done(Outcome(task.name, Status.OK, "Healthy.", stamp="s", database=database))


def test_whatever_an_executor_does_a_lost_volume_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "GRACE_SECONDS", 0.2)
    names = ("never", "refused", "cancelled", "foreign", "raised", "fine")
    volumes = [fleet.Volume(name, {"app_dir": f"/{name}"}) for name in names]
    made = fleet.run(volumes, executor=Odd(1), out=tmp_path / "out", deadline_seconds=0.1)
    seen = {each.name: each for each in made.volumes}
    assert made.exit_code == 2
    assert seen["fine"].status is Status.OK
    for name in names[:-1]:
        assert seen[name].status is Status.UNKNOWN, name
        assert seen[name].checks[0].hint
    assert "no worker gave an answer within 0.3 s" in seen["never"].headline
    assert "No module named 'nescord_ops'" in seen["raised"].headline
    assert "Its report lies on" not in made.index.read_text()


def test_two_volumes_with_one_database_are_not_both_looked_at(tmp_path: Path) -> None:
    volumes = [fleet.Volume(n, {"app_dir": f"/{n}"}) for n in ("twin1", "twin2", "other")]
    made = fleet.run(volumes, executor=Odd(1), out=tmp_path / "out")
    assert [each.status for each in made.volumes] == ["unknown", "unknown", "ok"]
    assert "has the same database, /data/same.db" in made.volumes[0].headline
    assert made.exit_code == 2


def test_two_fleets_in_one_directory_do_not_run_at_once(tmp_path: Path) -> None:
    volumes = [fleet.Volume("a", {"app_dir": "/a"})]
    with (
        fleet_index.alone(tmp_path),
        pytest.raises(ReportError, match="another report is at work") as caught,
    ):
        fleet.run(volumes, executor=Odd(1), out=tmp_path)
    assert caught.value.hint
    fleet.run(volumes, executor=Odd(1), out=tmp_path)


def test_one_message_tells_of_all_and_of_recovery(tmp_path: Path) -> None:
    volumes = [fleet.Volume(name, {"app_dir": f"/{name}"}) for name in ("raised", "fine")]
    made = fleet.run(volumes, executor=Odd(1), out=tmp_path)
    told = fleet_index.message(made)
    assert (told.status, told.verdict) == (Status.UNKNOWN, "Could not check: raised")
    assert (told.changed, told.recovered, told.page) == (True, False, str(made.index))
    (problem,) = told.problems
    assert problem.name == "raised fleet.run"
    assert problem.hint
    again = fleet_index.message(fleet.run(volumes, executor=Odd(1), out=tmp_path))
    assert not again.changed
    well = fleet_index.message(fleet.run(volumes[1:], executor=Odd(1), out=tmp_path))
    assert (well.status, well.problems, well.recovered) == (Status.OK, [], True)


def test_texts_of_a_volume_are_bounded_and_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m" + "x" * 100_000
    outcome = member.lost("a", hostile, "rm -r " + hostile)
    assert len(pickle.dumps(outcome)) < 4000
    assert outcome.checks[0].hint == "its report says what to do", "half a command is none"
    text = fleet_index.page(tmp_path, [outcome], NOW)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_since_is_the_first_of_the_unbroken_row() -> None:
    statuses = ["fail", "fail", "ok", "fail"]
    runs = [
        history.RunRow(f"{day}", NOW.replace(day=day), status, False, ())
        for day, status in zip((24, 23, 22, 21), statuses, strict=True)
    ]
    assert member._since(runs, Status.FAIL) == NOW.replace(day=23)
    assert member._since(runs, Status.OK) is None


def working(home: Path) -> list[int]:
    """The children that work on a volume."""
    ours = set(alive("nescord_ops.member"))
    return [pid for pid in alive(f"NESCORD_OPS_APP_DIR={home}", "environ") if pid in ours]


@contextlib.contextmanager
def killed(home: Path) -> Iterator[list[int]]:
    """Kill the worker of the volume that waits as soon as it works, then let the volume go on."""
    killed: list[int] = []

    def kill() -> None:
        wait_for((home / "began").exists, 60)
        (child,) = working(home)
        status = Path(f"/proc/{child}/status").read_text()
        (worker,) = re.findall(r"PPid:\s+(\d+)", status)
        os.kill(int(worker), signal.SIGKILL)
        wait_for(lambda: child not in working(home))
        killed.append(int(worker))
        (home / "go").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    yield killed
    thread.join()


def lost_and_found(root: Path, *others: str) -> tuple[tuple[fleet.Volume, ...], Path]:
    """A volume that waits to be let go, and others; return them and the first one's directory."""
    entries = [volume(root / "volumes", "waits", "waits")]
    entries += [volume(root / "volumes", name) for name in others]
    gone = '[[volume]]\nname = "gone"\napp_dir = "volumes/gone"'
    return fleet.read(written(root, *entries, gone)), root / "volumes" / "waits"


def assert_only_the_gone_is_lost(made: fleet.Fleet, root: Path) -> None:
    assert [each.name for each in made.volumes if each.status is Status.UNKNOWN] == ["gone"]
    assert [each.status for each in made.volumes[1:]] == [Status.OK] * (len(made.volumes) - 1)
    assert made.exit_code == 2
    for each in made.volumes[1:]:
        (run,) = history.runs(root / "out" / each.name)
        left = {path.name for path in (root / "out" / each.name).iterdir()}
        building = {name for name in left if name.startswith(".building-")}
        assert left - building == {run.stamp, "index.html", history.FILE_NAME}
        assert not building, "the child of the killed worker cleaned up"


def test_a_dask_worker_that_is_killed_loses_no_volume(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    volumes, home = lost_and_found(tmp_path)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    )
    with cluster, fleet.dask(cluster.scheduler_address) as executor, killed(home) as victims:
        made = fleet.run(
            volumes, executor=executor, names=[notebook(tmp_path)], out=tmp_path / "out"
        )
    assert len(victims) == 1
    assert_only_the_gone_is_lost(made, tmp_path)


def test_where_no_scheduler_answers_the_error_says_so() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(ReportError, match="no Dask scheduler answers") as caught:
        fleet.dask("127.0.0.1").__enter__()
    assert "tcp://" in caught.value.hint


@pytest.mark.slow
def test_a_pool_of_processes_that_breaks_loses_no_volume(tmp_path: Path) -> None:
    volumes, home = lost_and_found(tmp_path, "b", "c", "d")
    with ProcessPoolExecutor(2) as executor, killed(home) as victims:
        made = fleet.run(
            volumes, executor=executor, names=[notebook(tmp_path)], out=tmp_path / "out"
        )
    assert len(victims) == 1
    assert_only_the_gone_is_lost(made, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_fleet_leaves_no_child(tmp_path: Path, number: int) -> None:
    entries = [volume(tmp_path / "volumes", name, "hangs") for name in ("a", "b", "c")]
    file = written(tmp_path, *entries)
    code = "from nescord_ops.cli import main; main()"
    command = [sys.executable, "-c", code, "report", "--fleet", str(file), "--jobs", "2"]
    command += ["--out", str(tmp_path / "out"), notebook(tmp_path)]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    # a run in a shell's background has SIGINT ignored, and its children as well
    hears = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env=environment, text=True, preexec_fn=hears
    )
    wait_for(lambda: len(alive(SLEEP)) == 2, 60)
    process.send_signal(number)
    _, said = process.communicate(timeout=90)
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert process.returncode == 130
    wait_for(lambda: not working(tmp_path / "volumes" / "a"))
    for child in alive(SLEEP):  # an orphan of the notebook's own making, after SIGKILL
        os.kill(child, signal.SIGKILL)
    wait_for(lambda: not alive(f"TMPDIR={tmp_path / 'tmp'}", "environ"))
    assert not (tmp_path / "out" / "index.html").exists()


STARTING = """
import os, signal, subprocess, time
from nescord_ops import cli

start = subprocess.Popen.__init__

def slowly(self, command, **options):
    start(self, command, **options)
    if command[-1] == "nescord_ops.member":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

subprocess.Popen.__init__ = slowly
cli.main()
"""


def test_a_fleet_that_is_ended_while_it_starts_a_volume_does_not_wait_for_it(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, volume(tmp_path / "volumes", "a", "hangs"))
    command = [sys.executable, "-c", STARTING, "report", "--fleet", str(file)]
    command += ["--out", str(tmp_path / "out"), notebook(tmp_path)]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, b"Error: interrupted\n")
    assert not working(tmp_path / "volumes" / "a")


@pytest.mark.slow
def test_the_shipped_notebooks_run_for_every_volume(demo: MakeDemo, tmp_path: Path) -> None:
    healthy = demo(directory=tmp_path / "volumes" / "healthy")
    demo("lost-vectors", directory=tmp_path / "volumes" / "lost")
    entries = ['[[volume]]\nname = "lost"\napp_dir = "volumes/lost"']
    entries += ['[[volume]]\nname = "healthy"\nenv_file = "volumes/healthy/.env"']
    file = written(tmp_path, *entries)
    out = tmp_path / "out"
    for _ in range(2):
        assert cli.run(["report", "--fleet", str(file), "--out", str(out), "--keep", "1"]) == 1
    document = json.loads((out / "fleet.json").read_text())
    lost, well = document["volumes"]
    assert [lost["status"], well["name"]] == ["fail", "healthy"]
    assert well["status"] in ("ok", "warn")
    assert len(lost["pages"]) == len(well["pages"]) == 6
    assert well["database"] == str(healthy.app_dir / "data" / "nescordbot.db")
    for name in ("lost", "healthy"):
        runs = history.runs(out / name)
        assert len(runs) == 2
        assert [path.name for path in (out / name).glob("2*Z*")] == [runs[0].stamp]
    assert datetime.fromisoformat(lost["since"]) == history.runs(out / "lost")[1].generated_at
