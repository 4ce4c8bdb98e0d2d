"""Notifications: who is told what and when, by real servers on loopback, and what never happens."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import FAILING, FOUND, HOSTILE, make
from test_schedule import LINE, NOW, put

from nescord_ops import checks, cli, notify
from nescord_ops.checks import Status
from nescord_ops.errors import SettingsError
from nescord_ops.notify import Message, Problem

TOKEN = "geHeim-TOKEN_9"
EVIL = (
    "@everyone @here <@&123> <@1> <#1> [ok](https://evil.example) **b** ||s|| `c` ```\n# big\n"
    "-# small <t:1:R> <:x:1> https://evil.example \u202e"
)
BAD = checks.fail("agreement.lost", "41 notes lost", "nescord-ops restore ID")
GOOD = checks.ok("agreement.lost", "nothing lost")


class Service(http.server.ThreadingHTTPServer):
    """What Discord, a ping service and the rest of the internet answer; remembers what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def hook(self, kind: int, token: str = TOKEN) -> str:
        return f"{self.url}/api/webhooks/{kind}/{token}"

    def paths(self, method: str) -> list[str]:
        return [path for how, path, _ in self.got if how == method]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.server.got.append(("GET", self.path, None))
        self.answer(500 if "/down" in self.path else 200, b"OK")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append(("POST", self.path, body))
        kind = re.search(r"/webhooks/(\d+)/", self.path)
        match kind and int(kind[1]):
            case 1:
                self.discord(body)
            case 2:
                self.answer(404, b'{"message": "Unknown Webhook", "code": 10015}')
            case 3:
                self.answer(200, b"<html>log in to the hotel's network")
            case 4:  # busy once
                busy = len(self.server.paths("POST")) < 2
                self.answer(429 if busy else 204, b"", {"Retry-After": "0.01"})
            case 5:  # a byte now and then, for ever
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    for _ in range(300):
                        self.wfile.write(b" ")
                        time.sleep(0.1)
            case 6:
                self.answer(302, b"", {"Location": f"{self.server.url}/elsewhere"})
            case 7:
                self.wfile.write(b"\x00\xff no HTTP at all\r\n")
            case 8:
                time.sleep(10)
            case 9:
                self.answer(500, f"{self.path} {TOKEN}".encode())
            case _:
                self.answer(200, b"")

    def discord(self, body: dict[str, Any]) -> None:
        """As documented under Execute Webhook; its CDN refuses Python's own User-Agent."""
        content = body.get("content")
        text = isinstance(content, str) and 0 < len(content.encode("utf-16-le")) // 2 <= 2000
        if self.headers["User-Agent"].startswith("Python"):
            self.answer(403, b"error code: 1010")
        elif not text or self.headers["Content-Type"] != "application/json":
            self.answer(400, b'{"code": 50006}')
        else:
            self.answer(200, b'{"id": "1", "type": 0}') if "wait=true" in self.path else (
                self.answer(204, b"")
            )

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(notify, "TRY_SECONDS", 0.5)
    monkeypatch.setattr(notify, "TOTAL_SECONDS", 1.5)
    monkeypatch.setattr(notify, "_PAUSE_SECONDS", 0.01)
    served = Service()
    threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def message(status: Status = Status.FAIL, **more: Any) -> Message:
    found = (Problem("verify agreement.lost", Status.FAIL, "41 notes lost", "restore them"),)
    return Message(status, "Not safe: verify", found, "/reports/20261123T220000Z", **more)


def test_discord_is_told_the_verdict_the_failed_checks_and_what_to_do(service: Service) -> None:
    sent = message(about="/app/data/nescordbot.db", note="Since yesterday: 1 new failure.")
    assert notify.outlets([service.hook(1)]).tell(sent) == []
    ((_, path, body),) = service.got
    assert path == f"/api/webhooks/1/{TOKEN}?wait=true"
    assert body["content"] == (
        "**✕ Not safe: verify**\n```\n/app/data/nescordbot.db\nSince yesterday: 1 new failure.\n"
        "✕ verify agreement.lost: 41 notes lost\n  → restore them\n"
        "Report: /reports/20261123T220000Z\n```"
    )
    assert body["allowed_mentions"] == {"parse": []}


def test_a_verdict_with_a_price_is_told_whole(tmp_path: Path) -> None:
    run = put(tmp_path / "reports", GOOD)
    page = dataclasses.replace(run.pages[0], headline="The volume costs $0.04 a month. 5 ok.")
    sent = notify.of_run(dataclasses.replace(run, pages=(page,)), {})
    assert sent.title == "✓ The volume costs $0.04 a month"


@settings(max_examples=60)
@given(
    st.text(), st.text(), st.lists(st.tuples(st.text(max_size=900), st.text(max_size=900)))
)  # fmt: skip
def test_no_text_gets_out_of_its_code_block_or_over_discords_limit(
    verdict: str, about: str, found: list[tuple[str, str]]
) -> None:
    listed = [Problem(EVIL + a[:5], Status.FAIL, a + EVIL, b + EVIL) for a, b in found]
    listed += [Problem("𝐀" * 400, Status.FAIL, "𝐀" * 400, "𝐀" * 400)]
    sent = Message(Status.FAIL, verdict + EVIL, listed, about * 50, about, EVIL)
    kept: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notify, "_request", lambda _, body: kept.append(body) or b"")
        notify._discord("https://discord.com/api/webhooks/1/x", sent)
    content = json.loads(kept[0])["content"]
    assert len(content.encode("utf-16-le")) // 2 <= 2000
    opening, block, closing = content.split("```")
    assert closing == ""
    assert "`" not in block
    assert re.fullmatch(r"\*\*✕ [^*`<>@\[\]|~#_\n\\]*\*\*\n", opening)
    assert "\u202e" not in content


def test_many_problems_are_cut_to_whole_ones_and_counted() -> None:
    listed = [Problem(f"verify c{n}", Status.FAIL, "x" * 100, "y" * 50) for n in range(40)]
    text = Message(Status.FAIL, "Not safe", listed, "/reports/run").body()
    assert text.count("✕ verify c") == text.count("  → ")
    more = re.search(r"… and (\d+) more\nReport: /reports/run$", text)
    assert more
    assert text.count("✕ ") + int(more[1]) == 40


def test_other_services_are_told_through_apprise_without_mentions_or_links(
    service: Service,
) -> None:
    pytest.importorskip("apprise")
    address = f"json://127.0.0.1:{service.server_port}/{TOKEN}"
    sent = Message(Status.FAIL, "Not safe", (Problem("a", Status.FAIL, EVIL, "go on"),), "/r")
    assert notify.outlets([address]).tell(sent) == []
    ((_, path, body),) = service.got
    assert path == f"/{TOKEN}"
    assert body["title"] == "✕ Not safe"
    assert "go on" in body["message"]
    for hostile in ("@everyone", "@here", "<@", "<#", "]("):
        assert hostile not in body["message"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (2, "HTTP 404"),
        (3, "the answer does not say that the message was stored"),
        (5, "no end after 1.5 s"),
        (6, "HTTP 302"),
        (7, "BadStatusLine"),
        (8, "no end after 1.5 s|no answer in 0.5 s"),
        (9, "HTTP 500"),
    ],
)
def test_what_does_not_arrive_is_a_line_in_time_without_the_address(
    service: Service, kind: int, said: str
) -> None:
    began = time.monotonic()
    lines = notify.outlets([service.hook(kind)], service.url + "/ok").tell(message())
    assert time.monotonic() - began < 8, "all of it together, on a slow machine"
    assert len(lines) == 1
    assert re.fullmatch(rf"notification 1 \(127.0.0.1\) was not delivered: ({said})", lines[0])
    assert service.paths("GET") == ["/ok/fail"], "the ping went all the same, and no redirect"


def test_an_address_that_cannot_be_sent_says_so() -> None:
    began = time.monotonic()
    (line,) = notify.outlets([], "http://127.0.0.1:9/\u00fc").tell(message())
    assert time.monotonic() - began < 2.5, "and is not tried again, which takes three"
    assert line == "ping (127.0.0.1) was not delivered: UnicodeEncodeError"


def test_who_is_busy_is_asked_again_and_who_is_gone_is_not(service: Service) -> None:
    assert notify.outlets([service.hook(4)]).tell(message()) == []
    assert len(service.got) == 2
    notify.outlets([service.hook(2)]).tell(message())
    assert len(service.got) == 3
    notify.outlets([], f"{service.url}/down").tell(message())
    assert len(service.got) == 3 + notify.TRIES


@pytest.mark.parametrize(
    ("ping", "status", "path"),
    [
        ("/uuid", Status.OK, "/uuid"),
        ("/uuid", Status.WARN, "/uuid"),
        ("/uuid/", Status.FAIL, "/uuid/fail"),
        ("/uuid", Status.UNKNOWN, "/uuid/fail"),
        ("/uuid?create=1", Status.FAIL, "/uuid/fail?create=1"),
    ],
)
def test_the_ping_says_success_or_failure(
    service: Service, ping: str, status: Status, path: str
) -> None:
    """And says it whether or not a message is due."""
    assert notify.outlets([], service.url + ping).tell(message(status)) == []
    assert service.paths("GET") == [path]


def test_failures_and_recoveries_are_told_by_default_and_changes_or_all_on_demand(
    service: Service, tmp_path: Path
) -> None:
    """A history of real runs: healthy, failing twice, not looked at, healthy again twice."""
    unseen = checks.unknown("agreement.lost", "not looked at", "--depth full", expected=True)
    other = checks.ok("access.mount", "there")
    story = [(GOOD,), (BAD,), (BAD,), (unseen, other), (GOOD,), (GOOD,)]
    told: dict[str, list[int]] = {when: [] for when in notify.WHEN}
    titles = []
    for day, found in enumerate(story):
        run = put(tmp_path / "reports", *found, at=NOW + timedelta(days=day))
        sent = notify.of_run(run, notify.before(run))
        titles.append(sent.title)
        for when in notify.WHEN:
            before = len(service.got)
            assert notify.outlets([service.hook(1)], when=when).tell(sent) == []
            told[when] += [day] * (len(service.got) - before)
    assert told == {"failure": [1, 2, 4], "change": [1, 3, 4], "always": [0, 1, 2, 3, 4, 5]}
    assert titles == [
        "✓ Your data is safe", *["✕ Your data is not safe: verify"] * 2,
        "✓ Nothing wrong in what was looked at", "✓ Your data is safe again", "✓ Your data is safe",
    ]  # fmt: skip


def test_a_first_run_that_fails_is_a_change_and_another_volume_is_no_recovery(
    tmp_path: Path,
) -> None:
    run = put(tmp_path / "reports", BAD)
    sent = notify.of_run(run, notify.before(run))
    assert (sent.changed, sent.recovered, sent.about) == (True, False, "/volume/nescordbot.db")
    assert [(p.name, p.hint) for p in sent.problems] == [
        ("verify agreement.lost", "nescord-ops restore ID")
    ]
    run = put(tmp_path / "reports", GOOD, name="cost", at=NOW + timedelta(days=1))
    assert not notify.of_run(run, notify.before(run)).recovered


@pytest.mark.parametrize(
    "url",
    ["", "discord", "https://example.org/x", "https://discord.com/api/webhooks/1", "ftp://a/b",
     "http://[/api/webhooks/1/x", "javascript:alert(1)//webhooks/1/x"],
)  # fmt: skip
def test_an_address_that_nobody_can_use_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        notify.outlets([f"{url}{TOKEN}" if url.endswith("/x") else url or " "])
    assert caught.value.hint
    assert TOKEN not in f"{caught.value} {caught.value.hint}"
    if url:
        assert url not in str(caught.value)


@pytest.mark.parametrize(
    "ping", ["hc-ping.com/x", "ftp://x/y", "http://", "http://a b/", "https://[/"]
)
def test_a_ping_address_must_be_one(ping: str) -> None:
    with pytest.raises(SettingsError, match="not shown"):
        notify.outlets([], ping)
    assert notify.outlets([], "", "failure", {notify.PING: "https://hc-ping.com/x"}).ping


def test_without_apprise_discord_works_and_the_rest_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    assert notify.outlets([f"https://discord.com/api/v10/webhooks/1/{TOKEN}"]).targets
    arguments = ["report", "--demo", "--out", str(tmp_path / "reports"), "--notify"]
    assert cli.run([*arguments, f"tgram://{TOKEN}/1"]) == 2
    said = capsys.readouterr()
    assert "apprise is not installed" in said.err
    assert "Try: pip install 'nescord-ops[notify]'" in said.err
    assert TOKEN not in said.err + said.out
    assert not (tmp_path / "reports").exists()


def test_a_run_tells_and_keeps_its_verdict_and_the_secret_when_nobody_answers(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole command: addresses from the environment and `.env`, a log, one JSON document."""
    cells = [FOUND, FAILING, "import os\nprint(dict(os.environ))", f"print({HOSTILE!r})"]
    name = make(tmp_path / "n.ipynb", *cells)
    out = tmp_path / "reports"
    (tmp_path / ".env").write_text(f"NESCORD_OPS_PING_URL={service.url}/{TOKEN}\n")
    urls = [service.hook(1), service.hook(9)]
    monkeypatch.setenv(notify.NOTIFY, " ".join(urls))
    call = ["--json", "--app-dir", str(tmp_path), "report", name, "--out", str(out)]
    assert cli.run(call) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["status"] == "fail"
    lines = shown.err.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), shown.err
    told = [line.partition(" ")[2] for line in lines]
    assert told[0].startswith("reporting on ")
    assert told[1] == "running n"
    assert re.fullmatch(r"n: Not safe\. 1 failed, 1 ok\. \(\d+\.\d s\)", told[2])
    assert re.fullmatch(rf"published {out}/\d{{8}}T\d{{6}}Z", told[3])
    assert told[4] == "next: n agreement.lost: 41 notes <b>lost</b> → restore them"
    assert told[5] == "warning: notification 2 (127.0.0.1) was not delivered: HTTP 500"
    assert len(told) == 6
    assert service.paths("GET") == [f"/{TOKEN}/fail"]
    assert (
        "41 notes <b>lost</b>"
        in next(b for _, path, b in service.got if "hooks/1/" in path)["content"]
    )
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert TOKEN.encode() not in kept + shown.out.encode() + shown.err.encode()


def test_a_report_that_could_not_be_made_is_told_too_and_a_demo_tells_nobody_on_its_own(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(notify.NOTIFY, service.hook(1))
    monkeypatch.setenv(notify.PING, f"{service.url}/uuid")
    name = make(tmp_path / "n.ipynb", "1")
    call = ["--app-dir", str(tmp_path), "report", name, "--out", str(tmp_path / "file")]
    assert cli.run(call) == 2
    assert service.paths("GET") == ["/uuid/fail"]
    content = next(body for _, _, body in service.got if body)["content"]
    assert content.startswith(
        "**? Could not check: no report was made**\n```\n? report: the report"
    )
    assert cli.run([*call, "--demo"]) == 2
    assert len(service.got) == 2


def test_a_fleet_sends_one_message_and_one_ping_for_all(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("\n".join(f"[[volume]]\nname='{n}'\napp_dir='{n}'" for n in ("a", "b")))
    command = ["report", "--fleet", str(file), "--out", str(tmp_path / "out")]
    assert cli.run([*command, "--notify", service.hook(1), "--ping", f"{service.url}/ping/1"]) == 2
    ping, (method, path, body) = sorted(service.got, key=lambda got: got[0])  # sent at once
    assert (method, path) == ("POST", f"/api/webhooks/1/{TOKEN}?wait=true")
    assert body["content"].startswith("**? Could not check: a, b**\n")
    assert {"? a fleet.run", "? b fleet.run"} <= {
        line.partition(":")[0] for line in body["content"].splitlines()
    }
    assert ping[:2] == ("GET", "/ping/1/fail")
