"""Troubleshoot: every fault leads to its cause, and its fix, run as written, makes verify well."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import MakeDemo
from test_verify import TURNS, listing, turned

from nescord_ops import (
    backup,
    chroma_build,
    cli,
    figures,
    fixes,
    holders,
    logs,
    sample,
    settings,
    troubleshoot,
    verify,
)
from nescord_ops.causes import CAUSES, MESSAGES, SYMPTOMS
from nescord_ops.checks import Status
from nescord_ops.demo import Demo
from nescord_ops.diagnosis import Diagnosis, ranked
from nescord_ops.errors import SettingsError
from nescord_ops.faults import FAULTS
from nescord_ops.troubleshoot import Troubleshooting

CAUSE_OF = {
    "three-slash-url": "url-slashes",
    "query-string-file": "url-query",
    "wrong-dimension": "dimension",
    "lost-vectors": "index-lost",
    "torn-copy": "torn-store",
    "truncated-pickle": "index-damaged",
    "stale-vector": "stale-text",
    "leaked-deletion": "leaked-deletions",
    "orphan-segment": "orphan-segments",
    "sparse-bloat": "sparse-files",
    "corrupt-page": "database-damaged",
    "orphan-sync-row": "orphan-sync-rows",
    "no-write-permission": "no-permission",
    "no-fts": "no-keyword-search",
    "large-wal": "large-wal",
    "old-backups-only": "no-backup",
}
HARMLESS = {"no-fts": "known defect", "large-wal": "normal after a kill"}
Captured = pytest.CaptureFixture[str]


def run(demo: Demo, **options: object) -> Troubleshooting:
    return troubleshoot.run(settings.load(app_dir=demo.app_dir), **options)  # type: ignore[arg-type]


def shell(commands: Iterable[str], place: Path) -> None:
    """Run a fix as it is written, in a shell where nescord-ops is this checkout's."""
    place.mkdir(exist_ok=True)
    tool = place / "nescord-ops"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m nescord_ops "$@"\n')
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    script = "\n".join(("set -e", *commands))
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def add_note(demo: Demo) -> str:
    """Write a note as the bot does, newer than any backup; it waits for its vector."""
    key = "11111111-2222-4333-8444-555555555555"
    with sample.connect(demo.database) as connection:
        connection.execute(
            "INSERT INTO knowledge_notes SELECT ?, 'Newer', 'than the backup', tags, source_type,"
            " source_id, user_id, channel_id, guild_id, created_at, updated_at, NULL"
            " FROM knowledge_notes LIMIT 1",
            (key,),
        )
        connection.execute(
            "INSERT INTO sync_metadata(note_id, sync_status, chromadb_doc_id, embedding_hash)"
            " SELECT id, 'synced', 'note_' || id, 'x' FROM knowledge_notes WHERE id = ?",
            (key,),
        )
    return key


def test_the_healthy_demo_has_no_cause_and_nothing_changes(demo: MakeDemo) -> None:
    made = demo()
    before = listing(made.app_dir)
    found = run(made)
    assert found.status is Status.OK
    assert found.diagnoses == ()
    assert listing(made.app_dir) == before
    said = {check.name: check for check in found.checks}
    assert said["cause.none"].status is Status.OK
    assert said["looked.checks"].value == sum(
        c.status != "unknown" and c.name != verify.OUTLOOK
        for c in verify.run(found.settings).checks
    ) - (said["bot.holders"].status is Status.UNKNOWN)  # not every process can be looked into
    assert said["logs.read"].value == found.log.lines == 401


def test_what_is_wrong_with_the_data_comes_before_its_backups() -> None:
    found = (
        Diagnosis(name, symptoms, "", Status.FAIL, score, (), (), "", ("fix",), "")
        for name, symptoms, score in (("old", ("backup",), 9), ("torn", ("database",), 1))
    )
    ordered = ranked(found)
    assert [each.name for each in ordered] == ["torn", "old"]
    assert ordered[1].commands == ("# when the data is repaired:", "fix")


def test_every_fault_has_its_cause() -> None:
    assert CAUSE_OF.keys() == FAULTS.keys()
    assert set(CAUSE_OF.values()) <= {cause.name for cause in CAUSES}


@pytest.fixture(scope="module")
def backed_up(base_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The healthy volume with one backup. Copy it, do not change it."""
    app = shutil.copytree(base_demo.app_dir, tmp_path_factory.mktemp("backed-up") / "app")
    assert backup.create(settings.load(app_dir=app)).status is Status.OK
    return dataclasses.replace(base_demo, app_dir=app)


# their fix is that of lost vectors, or `clean`, which has tests of its own
ALIKE = (
    *("leaked-deletion", "orphan-segment", "orphan-sync-row", "stale-vector"),
    *("torn-copy", "truncated-pickle", "wrong-dimension"),
)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in FAULTS],
)
def test_each_fault_leads_to_its_cause_and_the_fix_makes_verify_well(
    fault: str, demo: MakeDemo, backed_up: Demo, tmp_path: Path
) -> None:
    if fault == "old-backups-only":
        made = demo()
    else:
        app = shutil.copytree(backed_up.app_dir, tmp_path / "app")
        made = dataclasses.replace(backed_up, app_dir=app)
    FAULTS[fault].plant(made)
    found = run(made)
    first = found.diagnoses[0]
    assert first.name == CAUSE_OF[fault]
    if fault in ("lost-vectors", "three-slash-url"):  # the page of verify offers the same
        seen = verify.run(found.settings)
        failed = {check.name for check in seen.checks if check.status is Status.FAIL}
        assert [fix.commands for fix in seen.fixes] == [first.commands]
        assert {*seen.fixes[0].checks} == failed
    if fault in HARMLESS:
        assert HARMLESS[fault] in first.says
        assert "no data is in danger" in first.says
        assert all(line.startswith("#") for line in first.commands)
        return
    shell(first.commands, tmp_path / "bin")
    after = verify.run(settings.load(app_dir=made.app_dir))
    assert Status.FAIL not in {check.status for check in after.checks}
    assert not turned(after).keys() & TURNS[fault].keys()


def test_a_symptom_shows_its_causes_and_no_others(demo: MakeDemo) -> None:
    made = demo("truncated-pickle", "leaked-deletion", "old-backups-only")
    assert [each.name for each in run(made).diagnoses] == [
        *("index-damaged", "no-backup", "leaked-deletions")
    ]
    for symptom, names in {
        "vectors": ["index-damaged"],
        "stale": ["leaked-deletions"],
        "backup": ["no-backup"],
        "full": [],
    }.items():
        assert [each.name for each in run(made, symptom=symptom).diagnoses] == names


def test_a_chroma_directory_that_is_gone_has_one_fix_which_leaves_the_notes(
    demo: MakeDemo, tmp_path: Path
) -> None:
    made = demo()
    backup.create(settings.load(app_dir=made.app_dir), drill=True)
    shutil.rmtree(made.chroma_dir)
    found = run(made)
    assert {each.commands for each in found.diagnoses} == {found.diagnoses[0].commands}
    assert "missing" in found.diagnoses[0].says
    shell(found.diagnoses[0].commands, tmp_path / "bin")
    assert verify.run(settings.load(app_dir=made.app_dir)).status is not Status.FAIL


def test_the_fix_of_vectors_keeps_the_notes_written_since_the_backup(
    demo: MakeDemo, tmp_path: Path
) -> None:
    made = demo()
    backup.create(settings.load(app_dir=made.app_dir))
    key = add_note(made)
    FAULTS["wrong-dimension"].plant(made)
    shell(run(made).diagnoses[0].commands, tmp_path / "bin")
    with sample.connect(made.database) as connection:
        count = "SELECT count(*) FROM knowledge_notes"
        status = f"SELECT sync_status FROM sync_metadata WHERE note_id = '{key}'"
        assert connection.execute(count).fetchone() == (301,)
        assert connection.execute(status).fetchone() == ("pending",)


def test_a_poisoned_backup_is_not_what_vectors_are_restored_from(demo: MakeDemo) -> None:
    made = demo()
    whole = backup.create(settings.load(app_dir=made.app_dir)).backup
    FAULTS["wrong-dimension"].plant(made)
    poisoned = backup.create(settings.load(app_dir=made.app_dir)).backup
    assert whole
    assert poisoned
    assert poisoned.good
    fix = "\n".join(run(made).diagnoses[0].commands)
    assert f"restore {whole.id} --only chroma" in fix


def test_without_a_backup_of_ours_the_bots_own_whole_one_is_named(demo: MakeDemo) -> None:
    made = demo("corrupt-page")
    (bots,) = made.backup_dir.glob("nescordbot_backup_*")
    assert f"restore {bots.name}" in "\n".join(run(made).diagnoses[0].commands)


def test_without_any_backup_the_fix_says_so(demo: MakeDemo) -> None:
    made = demo("corrupt-page", "old-backups-only")
    for path in made.backup_dir.iterdir():
        path.unlink()
    assert any("no backup to restore" in line for line in run(made).diagnoses[0].commands)


def test_a_symptom_without_support_says_what_was_looked_at_and_what_speaks_against_it(
    demo: MakeDemo,
) -> None:
    found = run(demo("stale-vector"), symptom="locked")
    assert found.diagnoses == ()
    assert found.status is Status.OK
    said = next(check.summary for check in found.checks if check.name == "cause.none")
    assert "the database is locked" in said
    assert "journal mode WAL" in said


def test_a_check_that_failed_speaks_against_nothing(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo()
    monkeypatch.setenv("RAILWAY_VOLUME_MOUNT_PATH", str(made.data_dir))
    found = run(made, symptom="permission", depth="quick")
    said = {check.name: check.summary for check in found.checks}
    assert "is mode 755" in said["cause.none"]
    assert "no volume is mounted" not in said["cause.none"]


def test_an_unknown_symptom_is_refused_with_the_known_ones(demo: MakeDemo) -> None:
    with pytest.raises(SettingsError) as caught:
        run(demo(), symptom="sad")
    assert all(name in caught.value.hint for name in SYMPTOMS)


def test_who_else_has_the_database_open_speaks_for_a_lock(demo: MakeDemo) -> None:
    made = demo()
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT 1 FROM"
    code += " kv_store').fetchall(); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(made.database)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    programs = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        for program in programs:
            assert program.stdout.readline() == b"open\n"
        (found,) = run(made, symptom="locked", depth="quick").diagnoses
    finally:
        for program in programs:
            program.communicate()
    assert all(str(program.pid) in found.evidence[0] for program in programs)


LOG = """2026-08-01 12:0{n}:00 | INFO     | nescordbot.runner | run_bot:148 | Starting NescordBot...
2026-08-01 12:0{n}:01 | CRITICAL | nescordbot.runner | check:90 | {text}
"""


@pytest.mark.parametrize(
    ("text", "symptom", "cause"),
    [
        ("Environment validation failed: DISCORD_TOKEN", "crash-loop", "settings"),
        ("Improper token has been passed.", "crash-loop", "settings"),
        ("MemoryError", "crash-loop", "memory"),
        ("something else", "crash-loop", "crashes"),
        ("database is locked", "locked", "locked"),
        ("database or disk is full", "full", "no-room"),
        ("attempt to write a readonly database", "permission", "no-permission"),
        ("[Errno 13] Permission denied: '/app/data/x'", "permission", "no-permission"),
        ("database disk image is malformed", "database", "database-damaged"),
        ("Failed to sync note: Gemini API error: 404", "unsearchable", "no-embedding"),
        ("Persist directory does not exist: /app/data/chromadb", "mount", "not-mounted"),
        ("Error loading hnsw index", "vectors", "index-damaged"),
        ("Could not connect to tenant default_tenant. Are you sure", "vectors", "chroma-version"),
    ],
)
def test_a_log_alone_leads_to_its_cause(
    text: str, symptom: str, cause: str, demo: MakeDemo, tmp_path: Path
) -> None:
    log = tmp_path / "bot.txt"
    log.write_text("".join(LOG.format(n=n, text=text) for n in range(4)))
    found = run(demo(), symptom=symptom, files=[log], depth="quick")
    assert found.diagnoses[0].name == cause
    assert found.status is Status.WARN


def test_a_log_without_times_is_not_said_to_be_of_never(demo: MakeDemo, tmp_path: Path) -> None:
    log = tmp_path / "railway.txt"
    log.write_text("ERROR: Persist directory does not exist: /app/chromadb\n")
    found = run(demo(), files=[log], depth="quick")
    (told,) = (check.summary for check in found.checks if check.name == "logs.read")
    assert told == "1 line, none with a time"
    assert "log, 1 time, without a time: Persist" in found.diagnoses[0].evidence[0]


def test_a_missing_log_is_expected_and_a_missing_named_one_is_not(demo: MakeDemo) -> None:
    made = demo()
    made.log_file.unlink()
    (told,) = (c for c in run(made, depth="quick").checks if c.name == "logs.read")
    assert told.expected
    found = run(made, depth="quick", files=[Path("/nowhere.log")])
    assert found.status is Status.UNKNOWN
    assert found.status.exit_code == 2


def test_what_no_cause_explains_is_not_hidden(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo("stale-vector")
    monkeypatch.setattr(troubleshoot, "CAUSES", [c for c in CAUSES if c.name != "stale-text"])
    found = run(made)
    assert found.diagnoses == ()
    assert "stores.stale" in {check.name for check in found.checks}


def test_every_check_that_may_fail_is_explained_by_a_cause() -> None:
    explained = {sign.check for cause in CAUSES for sign in cause.signs}
    source = "".join(
        Path(module.__file__ or "").read_text("utf-8")
        for module in map(importlib.import_module, (f"nescord_ops.{n}" for n in (
            "verify", "live", "places", "soundness", "agreement", "freshness",
        )))
    )  # fmt: skip
    named = set(re.findall(r'(?:fail|warn)\(\s*f?"([a-z]+\.[a-z_]+)"', source))
    assert len(named) > 20
    rest = {"capture.moment", "backups.count"}
    assert named - explained == {name for name in rest if name in named}


def test_the_catalogue_is_consistent() -> None:
    messages = {message.name for message in MESSAGES}
    assert len(messages) == len(MESSAGES)
    assert not [m.name for m in MESSAGES if re.search(r"\d", m.pattern)], "see logline.remembered"
    assert all(message.source for message in MESSAGES)
    for cause in CAUSES:
        assert set(cause.symptoms) <= SYMPTOMS.keys()
        assert set(cause.messages) <= messages
        assert cause.fix
    assert {symptom for cause in CAUSES for symptom in cause.symptoms} == SYMPTOMS.keys()


def test_commands_survive_any_name_of_the_bots_directory(demo: MakeDemo, tmp_path: Path) -> None:
    made = demo("three-slash-url", directory=tmp_path / "it's | a & b; $(touch x)")
    shell(run(made, depth="quick").diagnoses[0].commands, tmp_path / "bin")
    found = settings.load(app_dir=made.app_dir)
    assert found.database == made.data_dir / "nescordbot.db"
    assert found.database_meant is None
    assert found.database.is_file()
    made = demo("corrupt-page", directory=tmp_path / "two\nfalse")
    shell(run(made).diagnoses[0].commands, tmp_path / "bin")


def test_a_database_that_is_at_the_meant_place_already_is_kept(
    demo: MakeDemo, tmp_path: Path
) -> None:
    made = demo("three-slash-url")
    there = made.data_dir / "nescordbot.db"
    there.write_bytes(b"precious")
    shell(run(made, depth="quick").diagnoses[0].commands, tmp_path / "bin")
    assert (made.data_dir / "nescordbot.db.earlier").read_bytes() == b"precious"
    with sqlite3.connect(there) as connection:
        assert connection.execute("SELECT count(*) FROM knowledge_notes").fetchone() == (300,)


def test_what_is_kept_keeps_its_wal_and_takes_the_place_of_nothing(
    demo: MakeDemo, tmp_path: Path
) -> None:
    made = demo("three-slash-url")
    there, kept = made.data_dir / "nescordbot.db", made.data_dir / "nescordbot.db.earlier"
    kept.write_bytes(b"precious")
    killed = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode"
        " = WAL'); c.execute('CREATE TABLE late(x)'); c.commit(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", killed, there], check=True)
    shell(run(made, depth="quick").diagnoses[0].commands, tmp_path / "bin")
    assert kept.read_bytes() == b"precious"
    with sqlite3.connect(kept.with_name(f"{kept.name}.earlier")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("late",)]


def test_who_has_the_database_open_is_not_known_where_processes_cannot_be_looked_into(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(pid: int) -> Iterable[tuple[int, int]]:
        raise PermissionError

    made = demo()
    monkeypatch.setattr(holders, "_held", hidden)
    found = run(made, symptom="locked", depth="quick")
    (check,) = [check for check in found.checks if check.name == "bot.holders"]
    assert (check.status, check.expected) == (Status.UNKNOWN, True)
    assert "cannot be looked into" in check.summary
    with sqlite3.connect(made.database) as connection:
        connection.execute("SELECT 1 FROM kv_store").fetchall()
        other = "import sys; from nescord_ops import troubleshoot as t; from nescord_ops import"
        other += " settings, holders; holders._PROC = holders.Path('/nowhere')"
        other += "; print(t._holders(settings.load(app_dir=sys.argv[1])).summary)"
        command = [sys.executable, "-c", other, str(made.app_dir)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"process {os.getpid()} " in done.stdout


@pytest.mark.parametrize("written", ["  export DATABASE_URL = ", ""])
def test_a_variable_is_corrected_however_the_env_file_is_written(
    written: str, demo: MakeDemo, tmp_path: Path
) -> None:
    made = demo("three-slash-url")
    found = settings.load(app_dir=made.app_dir)
    line = f"DATABASE_URL={found.database_url}\n"
    text = made.env_file.read_text()
    assert line in text
    new = f"{written}{found.database_url}\n" if written else ""
    made.env_file.write_text(text.replace(line, new).rstrip("\n"))
    given = settings.load(app_dir=made.app_dir, database_url=found.database_url)
    shell(troubleshoot.run(given, depth="quick").diagnoses[0].commands, tmp_path / "bin")
    after = settings.load(app_dir=made.app_dir)
    assert (after.database, after.database_meant) == (made.data_dir / "nescordbot.db", None)
    assert after.volume_gb == found.volume_gb


def test_who_has_the_database_open_is_named_by_the_process(demo: MakeDemo) -> None:
    made = demo()
    names = fixes.names(settings.load(app_dir=made.app_dir))
    (locked,) = [cause for cause in CAUSES if cause.name == "locked"]
    (line,) = [each for each in fixes.script(locked.fix, names) if each.startswith("ls ")]
    with made.database.open("rb"):
        shown = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert f"/proc/{os.getpid()}/fd/" in shown.stdout


def test_what_the_bot_left_in_its_wal_meanwhile_is_moved_too(
    demo: MakeDemo, tmp_path: Path
) -> None:
    made = demo("three-slash-url")
    commands = run(made, depth="quick").diagnoses[0].commands
    source = settings.load(app_dir=made.app_dir).database
    killed = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode"
        " = WAL'); c.execute('UPDATE knowledge_notes SET title = ?', ('late',)); c.commit();"
        " os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", killed, source], check=True)
    assert source.with_name("nescordbot.db-wal").stat().st_size
    shell(commands, tmp_path / "bin")
    with sqlite3.connect(made.data_dir / "nescordbot.db") as connection:
        titles = connection.execute("SELECT DISTINCT title FROM knowledge_notes").fetchall()
    assert titles == [("late",)]


def test_on_railway_an_off_volume_database_is_backed_up_before_the_redeploy(
    demo: MakeDemo, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demo("three-slash-url")
    monkeypatch.setenv("RAILWAY_VOLUME_MOUNT_PATH", str(made.data_dir))
    names = fixes.names(settings.load(app_dir=made.app_dir))
    lines = fixes.script(["{move_database}"], names)
    saved = next(n for n, line in enumerate(lines) if "backup create --drill" in line)
    changed = next(n for n, line in enumerate(lines) if line.startswith("railway variable set"))
    assert saved < changed
    assert f"DATABASE_URL=sqlite:///{made.data_dir}/nescordbot.db" in lines[changed]
    assert f"NESCORD_OPS_BACKUP_DIR={made.data_dir}/backups " in lines[saved]
    assert not any(line.startswith(("mv", "sed")) for line in lines)


def test_settings_given_by_hand_are_in_the_commands(demo: MakeDemo) -> None:
    made = demo()
    given = settings.load(app_dir=made.app_dir, chroma_dir="/elsewhere/chromadb")
    assert "--chroma-dir /elsewhere/chromadb" in settings.command(given.to_dict())
    assert settings.command(settings.load(app_dir=made.app_dir).to_dict()) == (
        f"nescord-ops --app-dir {made.app_dir}"
    )


def test_the_command_shows_evidence_and_fix_and_exits_with_the_verdict(
    demo: MakeDemo, capsys: Captured
) -> None:
    place = str(demo("no-write-permission").app_dir)
    assert cli.run(["--app-dir", place, "troubleshoot", "--depth", "quick"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("A cause was found, and data is in danger.")
    assert "Because: access.volume" in shown
    assert f"chmod u+rwx -- {place}/data {place}/data/chromadb" in shown
    assert cli.run(["--app-dir", place, "--json", "troubleshoot", "--depth", "quick"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "troubleshoot"
    assert document["data"]["diagnoses"][0]["name"] == "no-permission"
    assert cli.run(["--app-dir", place, "troubleshoot", "--symptom", "sad"]) == 2


def test_hostile_text_of_a_log_is_escaped_and_masked_everywhere(
    demo: MakeDemo, tmp_path: Path, capsys: Captured
) -> None:
    token = "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs"
    text = f"<script>alert(1)</script> \x1b[31m\u202etoken={token} database is locked <@123456>"
    log = tmp_path / "bot.txt"
    log.write_text(LOG.format(n=1, text=text))
    made = demo()
    found = run(made, files=[log], depth="quick")
    outputs = [
        *(found.plans().html, found.groups().html, found.timeline().svg, found.text),
        *(found._repr_mimebundle_()["text/html"], json.dumps(found.to_dict())),
    ]
    cli.run(["--app-dir", str(made.app_dir), "troubleshoot", "--logs", str(log)])
    outputs.append(capsys.readouterr().out)
    for output in outputs:
        assert token not in output
        assert "<@123456>" not in output
        assert "\x1b" not in output
        assert "\u202e" not in output
    for html in outputs[:3]:
        assert "<script>" not in html


def test_the_figure_says_in_words_what_it_shows(demo: MakeDemo, tmp_path: Path) -> None:
    log = tmp_path / "bot.txt"
    log.write_text("".join(LOG.format(n=n, text="no") for n in range(4)))
    figure = run(demo(), files=[log], depth="quick").timeline()
    assert figure.alt.startswith("4 errors and 0 warnings from 2026-08-01 12:00 UTC")
    assert figure.alt in figure.svg
    log.write_text("")
    assert (
        "No line with a time"
        in run(demo.__call__(directory=tmp_path / "x"), files=[log], depth="quick").timeline().alt
    )


def test_no_time_that_a_line_claims_keeps_the_figure_from_being_drawn(tmp_path: Path) -> None:
    log, line = tmp_path / "bot.txt", "{} 12:00:00 | ERROR    | bot | x\n"
    for days in (["0001-01-01"], ["9999-12-31"], ["0001-01-01", "2026-08-01", "9999-12-31"]):
        log.write_text("".join(map(line.format, days)))
        said = figures.errors(logs.read([log])).alt
    assert said.startswith("1 error and 0 warnings from 2026-08-01 12:00 UTC to 2026-08-01 13:00")
    assert said.endswith("; 2 more at times that cannot be right.")


def test_the_bot_adds_what_the_fix_has_marked(demo: MakeDemo, tmp_path: Path) -> None:
    """Notes that are marked synced and are not in Chroma are added again by the bot."""
    made = demo()
    key = add_note(made)
    (found,) = run(made, symptom="unsearchable").diagnoses
    assert found.name == "not-synced"
    shell(found.commands, tmp_path / "bin")
    with sample.connect(made.database) as connection:
        pending = "SELECT note_id FROM sync_metadata WHERE sync_status = 'pending'"
        assert connection.execute(pending).fetchall() == [(key,)]
        connection.execute("UPDATE sync_metadata SET sync_status = 'synced'")
        records = [r for r in sample.records(connection) if r["id"] == f"note_{key}"]
    chroma_build.run(made.chroma_dir, "add", records=records)
    after = dataclasses.asdict(verify.run(settings.load(app_dir=made.app_dir)))["checks"]
    assert "stores.lost" not in {c["name"] for c in after if c["status"] == "fail"}


def test_the_readme_names_every_symptom() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    for symptom, words in SYMPTOMS.items():
        assert f"| `{symptom}` | {words} |" in readme
