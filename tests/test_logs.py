"""Logs: every format is understood, secrets never leave, memory stays small, hostile files too."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from nescord_ops import logpass, logs
from nescord_ops.demo import Demo
from nescord_ops.logline import fingerprint, mask
from nescord_ops.logpass import GROUPS
from nescord_ops.logs import Group, Hour, Log

T = "2026-08-01 12:00:0"
TRACEBACK = """Traceback (most recent call last):
  File "/app/src/nescordbot/services/database.py", line 150, in set
    await self.connection.execute(query)
sqlite3.OperationalError: database is locked

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/src/nescordbot/bot.py", line 12, in on_message
    await self.save()
nescordbot.errors.SaveError: note was not saved
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "bot.log"


def read(path: Path, content: str | bytes) -> Log:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return logs.read([path])


def only(found: Log) -> Group:
    (group,) = found.groups
    return group


def test_the_demos_log_is_calm(base_demo: Demo) -> None:
    found = logs.read([base_demo.log_file])
    lines = base_demo.log_file.read_text().splitlines()
    assert found.lines == len(lines) == 401
    assert found.levels == {"INFO": 401}
    assert only(found).message == "started"
    assert (found.starts, found.loops, found.without_zone) == (1, (), True)
    assert found.first_at == datetime.fromisoformat(f"{lines[0][:19]}+00:00")
    assert found.last_at == datetime.fromisoformat(f"{lines[-1][:19]}+00:00")
    assert sum(hour.records for hour in found.hours) == 401


FORMATS = {
    "file": f"{T}1 | ERROR    | nescordbot.bot | on_error:9 | disk I/O error",
    "colours": f"\x1b[31m{T}1 | ERROR    | nescordbot.bot | disk I/O error\x1b[0m",
    "discord": f"[{T}1] [ERROR   ] discord.client: disk I/O error",
    "plain": "ERROR: disk I/O error",
    "python": "ERROR:nescordbot:disk I/O error",
    "railway": "2026-08-01T12:00:01.123456789Z [ERRO] disk I/O error",
    "json": json.dumps({"message": "disk I/O error", "timestamp": "2026-08-01T12:00:01.12Z",
                        "severity": "error"}),
    "json of the bot's": json.dumps(
        {"message": f"\x1b[31m{T}1 | ERROR    | nescordbot.bot | disk I/O error\x1b[0m",
         "timestamp": "2026-08-01T12:00:01Z", "severity": "info"}),
    "zone": "2026-08-01T21:00:01+09:00 ERROR disk I/O error",
    "loose": "disk I/O error",
    "NUL": f"{T}1 | ERROR    | nescordbot.bot | on_error:9 | disk\0 I/O error",
    "UTF-16": f"{T}1 | ERROR    | nescordbot.bot | on_error:9 | disk I/O error".encode("utf-16-le"),
    "CRLF": f"{T}1 | ERROR    | nescordbot.bot | on_error:9 | disk I/O error\r",
    "cut": f"{T}1 | ERROR    | nescordbot.bot | x:9 | disk I/O error \xe3\x81".encode("latin1"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_level_time_and_known_message(name: str, log: Path) -> None:
    line = FORMATS[name]
    end = "\n".encode("utf-16-le") if name == "UTF-16" else b"\n"
    found = read(log, (line if isinstance(line, bytes) else line.encode()) + end)
    group = only(found)
    assert group.message == "disk_io"
    assert group.level == ("none" if name == "loose" else "ERROR")
    timeless = name in ("plain", "python", "loose", "UTF-16")
    assert group.first_at == (None if timeless else datetime(2026, 8, 1, 12, 0, 1, tzinfo=UTC))
    zoned = name in ("railway", "json", "json of the bot's", "zone")
    assert found.without_zone == (not zoned and not timeless)


def test_a_traceback_belongs_to_the_record_before_and_its_exception_is_what_counts(
    log: Path,
) -> None:
    text = f"{T}1 | ERROR    | nescordbot.bot | on_error:9 | Unhandled error\n{TRACEBACK}"
    text += f"{T}2 | INFO     | nescordbot.bot | on_ready:9 | fine\n"
    found = read(log, text)
    group = only(found)
    assert found.levels == {"ERROR": 1, "INFO": 1}
    assert found.lines == 13
    assert group.message == "locked"
    assert group.fingerprint == "nescordbot.errors.SaveError: note was not saved"
    assert group.example.startswith("Unhandled error ← sqlite3.OperationalError")


@pytest.mark.parametrize("count", [1, 3])
def test_a_traceback_alone_is_an_error_each_time(count: int, log: Path) -> None:
    group = only(read(log, TRACEBACK * count))
    assert (group.level, group.count, group.message) == ("ERROR", count, "locked")


def test_a_traceback_in_json_lines_is_one_record(log: Path) -> None:
    stamp = "2026-08-01T12:00:01Z"
    rows = [{"message": line, "timestamp": stamp, "severity": "error"}
            for line in TRACEBACK.splitlines()]  # fmt: skip
    group = only(read(log, "\n".join(map(json.dumps, rows)) + "\n"))
    assert (group.count, group.message) == (1, "locked")


def test_records_that_differ_in_ids_numbers_paths_and_quotes_are_one_group(log: Path) -> None:
    keys = ("0f0e0d0c-0b0a-4908-8706-050403020100", "1f0e0d0c-abcd-4908-8706-05040302010f")
    lines = (
        f"{T}{n} | WARNING  | nescordbot.x | y:{n} | note_{key} of 'user {n}' in /app/d{n}/x took"
        f" {n * 1234} ms, hash deadbeef{n}0\n"
        for n, key in enumerate(keys)
    )
    group = only(read(log, "".join(lines)))
    assert group.count == 2
    assert group.fingerprint == "note_<id> of <text> in <path> took <n> ms, hash <hex>"
    assert (group.first_at, group.last_at) == (
        datetime(2026, 8, 1, 12, tzinfo=UTC), datetime(2026, 8, 1, 12, 0, 1, tzinfo=UTC)
    )  # fmt: skip


def test_the_reason_is_the_message_and_not_what_wraps_it(log: Path) -> None:
    head = f"{T}1 | ERROR    | nescordbot.services.sync_manager | s:1 | Failed to sync note"
    text = f"{head} abc: database is locked\n{head} abc: something new\n"
    assert {group.message for group in read(log, text).groups} == {"locked", "sync_failed"}


def test_hours_are_counted_over_calm_and_loud_lines_in_any_order(log: Path) -> None:
    when = datetime(2026, 8, 1, 10, tzinfo=UTC)
    stamps = [when + timedelta(minutes=n) for n in range(180)]
    stamps = [*stamps[60:], *stamps[:60]]
    levels = [("INFO", "DEBUG", "INFO", "WARNING", "ERROR")[n % 5] for n in range(180)]
    text = "".join(
        f"{stamp:%F %T} | {level:8} | nescordbot.x | y:1 | text | DEBUG | {level}\n"
        for stamp, level in zip(stamps, levels, strict=True)
    )
    found = read(log, text)
    assert found.levels == {"WARNING": 36, "ERROR": 36, "INFO": 72, "DEBUG": 36}
    assert found.hours == tuple(Hour(when + timedelta(hours=n), 60, 12, 12) for n in range(3))


def starts(*minutes: float) -> str:
    when = datetime(2026, 8, 1, 12, tzinfo=UTC)
    return "".join(
        f"{when + timedelta(minutes=m):%F %T} | INFO     | nescordbot.runner | run_bot:148 |"
        " Starting NescordBot...\n"
        for m in minutes
    )


@pytest.mark.parametrize(
    ("minutes", "loops"),
    [
        ((0, 60, 120), []),
        ((0, 1), []),
        ((0, 1, 2), [3]),
        ((0, 5, 10, 15, 20), [5]),
        ((0, 1, 2, 600, 700, 701, 702, 703), [3, 4]),
        ((10, 9, 8, 7), []),
    ],
)
def test_several_starts_within_minutes_are_a_crash_loop(
    minutes: tuple[float, ...], loops: list[int], log: Path
) -> None:
    found = read(log, starts(*minutes))
    assert found.starts == len(minutes)
    assert [loop.starts for loop in found.loops] == loops


def test_a_start_that_is_printed_and_logged_is_one(log: Path) -> None:
    line = starts(0).strip()
    rows = [{"message": text, "timestamp": "2026-08-01T12:00:00Z", "severity": "info"}
            for text in ("🚀 Starting NescordBot...", line)]  # fmt: skip
    assert read(log, "\n".join(map(json.dumps, rows)) + "\n").starts == 1


TOKEN = "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs"
SECRETS = {
    f"logged in with {TOKEN}": TOKEN,
    "key sk-proj-abcdefghijklmnop1234": "sk-proj-abcdefghijklmnop1234",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv refused": "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "Authorization: Bearer abc.def-ghi": "abc.def-ghi",
    "headers {'authorization': 'Bot xyzxyzxyz'}": "xyzxyzxyz",
    "POST https://discord.com/api/webhooks/123456/abcDEF_-ghi 404": "abcDEF_-ghi",
    "https://user:hunter22@github.com/x failed": "hunter22",
    "hello <@123456789012345678> and <@!123>": "<@123456789012345678>",
    "in <#123456789012345678> by <@&99>": "<#123456789012345678>",
    "mail of jane.doe+x@example.co.jp bounced": "jane.doe+x@example.co.jp",
    "clone with ghp_16C7e42F292c6912E7710c838347Ae178B4a": "16C7e42F292c6912E7710c838347Ae178B4a",
    'config {"api_key": "q8z7y6x5w4"}': "q8z7y6x5w4",
    r"body: {\"token\": \"a1b2c3 d4e5\"}": "d4e5",
    r"DISCORD_TOKEN=\"x1y2z3w4\"": "x1y2z3w4",
    "run --api-key=k1l2m3n4": "k1l2m3n4",
    "db password = correct-horse": "correct-horse",
    "Discord token: **********wKWs": "**********wKWs",
    'password="correct horse battery"': "horse",
    'password="correct horse, cut off': "correct",
    "cookie: a=b;c=d,e&f": "c=d,e&f",
    "SECRET=abc": "abc",
    f"split {TOKEN[:30]}\x1b[0m{TOKEN[30:]}": TOKEN[40:],
    f"AGE-SECRET-KEY-1{'Q' * 58}": "Q" * 58,
}


@pytest.mark.parametrize("text", SECRETS)
def test_no_secret_is_in_any_result(text: str, log: Path) -> None:
    forms = (
        f"{T}1 | ERROR    | nescordbot.bot | x:1 | {text}\n",
        f"ERROR: {text}\n{TRACEBACK.replace('note was not saved', text)}",
        json.dumps({"message": text, "timestamp": f"{T}1Z", "severity": "error"}) + "\n",
        f"{T}1 | ERROR    | nescordbot.bot | x:1 | ".encode().decode() + "\0".join(text) + "\n",
    )
    for form in forms:
        kept = repr(dataclasses.asdict(read(log, form)))
        assert SECRETS[text] not in kept


@given(st.text(max_size=60), st.sampled_from([v for v in SECRETS.values() if v.startswith("MTk")]))
@example("x=", TOKEN)
def test_a_token_is_masked_whatever_stands_before_it(before: str, token: str) -> None:
    assert token not in mask(f"{before} {token}")


def test_what_is_no_secret_is_left() -> None:
    text = "Failed to get key 'guild': no such table: kv_store at 12:00 in src/nescordbot/bot.py:12"
    assert mask(text) == text


@given(st.binary(max_size=3000))
def test_any_bytes_are_read_and_every_line_is_counted(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    assume(not content.startswith(b"\x1f\x8b"))  # gzip is unpacked
    path = tmp_path_factory.getbasetemp() / "any.log"
    found = read(path, content)
    assert found.lines == (len(content.removesuffix(b"\n").split(b"\n")) if content else 0)
    assert found.problems == ()


def test_a_line_of_10_mb_is_cut_and_the_next_one_is_read(log: Path) -> None:
    head = f"{T}1 | ERROR    | nescordbot.bot | x:1 | "
    found = read(log, f"{head}{'x' * 10_000_000}\n{head}database is locked\n{'{' * 3_000_000}")
    assert (found.lines, found.cut_lines) == (3, 2)
    assert {group.message for group in found.groups} == {"", "locked"}
    assert max(len(group.example) for group in found.groups) <= 300


def test_a_message_that_repeats_itself_is_counted_to_the_last(log: Path) -> None:
    when = datetime(2026, 8, 1, 12, tzinfo=UTC)
    lines = [
        f"{when + timedelta(seconds=n):%F %T} | ERROR    | nescordbot.x | y:1 | Took {n} ms for"
        f" {n:08x}-1111-4111-8111-{n:012x}: database is locked\n"
        for n in range(5000)
    ]
    lines[2000] = f"{lines[2000][:-1]}, again\n"
    text = "".join(lines[:3000]) + TRACEBACK + "".join(lines[3000:])
    found = read(log, text + "ERROR: the last\n")
    assert found.levels == {"ERROR": 5001}
    assert found.lines == 5001 + TRACEBACK.count("\n")
    assert {group.message: group.count for group in found.groups} == {"locked": 5000, "": 1}
    locked = next(group for group in found.groups if group.message)
    assert locked.last_at == found.last_at == when + timedelta(seconds=4999)
    assert [hour.errors for hour in found.hours] == [3600, 1400]
    assert "SaveError" in repr(read(log, TRACEBACK.join([*lines[:20], *lines[:20]])).groups)


def test_groups_are_bounded_and_what_is_left_out_is_counted(log: Path) -> None:
    words = ("".join(chr(97 + int(d)) for d in f"{n:05}") for n in range(3 * GROUPS))
    lines = [f"ERROR: word {word}\n" for word in words]
    found = read(log, "".join([*lines, "ERROR: database is locked\n"]))
    assert len(found.groups) == GROUPS + 1
    assert found.ungrouped == 2 * GROUPS
    assert "locked" in {group.message for group in found.groups}


def test_hours_are_bounded_and_an_impossible_time_is_none(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logpass, "HOURS", 2)
    stamps = ("2026-99-99 12:00:00", "2026-08-01 12:00:00", "2026-08-01 13:00:00",
              "2026-08-01 14:00:00", "0000-00-00 00:00:00")  # fmt: skip
    found = read(
        log, "".join(f"{s} | INFO     | n.x | y:1 | z\n{s} | ERROR    | z\n" for s in stamps)
    )
    assert len(found.hours) == 2
    assert found.levels == {"ERROR": 5, "INFO": 5}
    assert found.last_at == datetime(2026, 8, 1, 14, tzinfo=UTC)
    (z,) = found.groups
    assert z.last_at == found.last_at


def test_rotated_files_are_read_oldest_first_packed_ones_too(log: Path) -> None:
    parts = starts(0, 1, 2).splitlines(keepends=True)
    log.with_name("bot.log.10.gz").write_bytes(gzip.compress(parts[0].encode()))
    log.with_name("bot.log.2").write_text(parts[1])
    log.write_text(parts[2])
    log.with_name("bot.logbook").write_text("no log")
    paths = logs.rotated(log)
    assert [path.name for path in paths] == ["bot.log.10.gz", "bot.log.2", "bot.log"]
    found = logs.read(paths)
    assert (found.starts, len(found.loops), len(found.files)) == (3, 1, 3)


def test_a_broken_off_gz_counts_as_far_as_it_goes(log: Path) -> None:
    whole = gzip.compress(
        "".join(f"ERROR: {os.urandom(40).hex()}\n" for _ in range(40_000)).encode()
    )
    log.write_bytes(whole[: len(whole) // 2])
    found = logs.read([log])
    assert "breaks off" in found.problems[0]
    assert found.levels["ERROR"] > 10_000


def test_what_is_no_regular_file_is_a_problem_and_never_waited_for(
    log: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(log)
    names = ("fifo", "link", "absent", "", "bot.log/x")
    log.write_text("ERROR: x\n")
    found = logs.read([*(tmp_path / name for name in names), log])
    assert len(found.problems) == len(names)
    assert found.files == (log,)
    assert only(found).count == 1


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    # VmHWM, unlike getrusage, says nothing of the process that this one was forked from
    code = (
        "import sys; from pathlib import Path; from nescord_ops import logs;"
        "found = logs.read([Path(sys.argv[1])]);"
        "print(found.lines, Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    line = f"{T}1 | ERROR    | nescordbot.bot | x:1 | one message of gigabytes, number 12345\n"
    calm = f"{T}1 | INFO     | nescordbot.bot | x:1 | one message of gigabytes, number 12345\n"
    path = tmp_path / "big.log"
    with path.open("w") as file:
        file.writelines(calm * 10_000 for _ in range(100))
        file.writelines(line * 1000 for _ in range(20))
        file.write("x" * 30_000_000)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    count, kilobytes = map(int, done.stdout.split())
    assert count == 1_020_001
    assert kilobytes < 100_000


def test_fingerprints_of_a_long_hostile_text_take_no_time() -> None:
    began = time.process_time()
    for text in ("'" * 4000, "/a" * 2000, "0a" * 2000, "a-" * 2000, "a=" * 2000, "a." * 2000):
        assert fingerprint(mask(text)) is not None
    for text in ("a-" * 2000, "a.-" * 1300, "\\" * 4000, "a\\" * 2000, 'token=\\"' * 500):
        for _ in range(20):
            mask(text)
    assert time.process_time() - began < 1
