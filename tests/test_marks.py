"""The marks that carry exact amounts through sentences never reach a reader."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nescord_ops import checks, cli, errors, member, notify, show
from nescord_ops import demo as demos

# as it is, and as JSON writes it; the bytes alone occur in a database
MARK = re.compile(rb"(?:\x0e|\\u000e)-?\d[^\x0e\x0f]{0,40} (?:bytes|USD|s)(?:\x0f|\\u000f)")
SIZES = f"{show.size(12_345_678)} for {show.dollars(1.5)}, {show.age(7200)}"
Captured = pytest.CaptureFixture[str]


def leaks(*places: Path) -> list[str]:
    """The files in these places that hold a mark, as it is or as JSON writes it."""
    files = [file for place in places for file in sorted(place.rglob("*")) if file.is_file()]
    assert files
    return [str(file) for file in files if MARK.search(file.read_bytes())]


def test_a_mark_is_found(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(f"{show.size(1000)}", "utf-8")
    (tmp_path / "json").write_text(json.dumps([SIZES]), "utf-8")
    (tmp_path / "good").write_text(show.printable(SIZES), "utf-8")
    assert [Path(leak).name for leak in leaks(tmp_path)] == ["json", "text"]


def test_no_command_shows_or_writes_a_mark(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    demos.create(tmp_path / "app", notes=20, vectors=8, faults=["old-backups-only"])
    copies, reports, exported = (tmp_path / name for name in ("copies", "reports", "exported"))
    copies.mkdir()
    monkeypatch.setenv("NESCORD_OPS_OFFSITE_URL", str(copies))

    def run(*arguments: str, ways: tuple[str, ...] = ("", "--json")) -> str:
        out = ""
        for way in ways:
            given = [*filter(None, [way]), "--app-dir", str(tmp_path / "app"), *arguments]
            assert cli.run(given) in (0, 1, 2)
            out, told = capsys.readouterr()
            assert "--help" not in told, arguments
            assert not MARK.search(f"{out}{told}".encode()), arguments
        return out

    created = json.loads(run("backup", "create", ways=("--json",)))
    identity = created["data"]["backup"]["id"]
    for arguments in (
        ["capacity"], ["cost"], ["deploy"], ["clean"], ["troubleshoot", "--depth", "quick"],
        ["backup", "list"], ["offsite", "list"], ["restore", "--dry-run", identity],
        ["restore", "gone"],
    ):  # fmt: skip
        run(*arguments)
    for arguments in (
        ["verify", "--depth", "quick"], ["backup", "check"], ["backup", "drill", identity],
        ["backup", "export", identity, str(exported)], ["offsite", "push", "--plain", identity],
        ["offsite", "list"], ["offsite", "check", identity],
        ["offsite", "pull", identity, "--to", str(exported / "pulled")],
        ["offsite", "prune", "--keep", "1"], ["backup", "prune", "--keep", "1"],
        ["report", "capacity", "cost", "--out", str(reports)],
    ):  # fmt: skip
        run(*arguments, ways=("",))
    assert (exported / "pulled").is_dir()
    assert list(reports.glob("*/cost.ipynb"))
    assert leaks(tmp_path) == []


def test_no_error_or_message_or_fleet_holds_a_mark() -> None:
    error = errors.VolumeError(SIZES, SIZES)
    lost = member.lost("name", SIZES, SIZES)
    refused = errors.ChecksFailed(SIZES, SIZES)
    told = notify.of_error(error)
    texts = [str(error), *error._render_traceback_(), str(refused), refused.hint]
    texts += [f"{told.verdict}", told.body(), json.dumps(checks.plain(lost))]
    assert [text for text in texts if MARK.search(text.encode())] == []
    assert 'title="12,345,678 bytes"' in show.titled(checks.unknown("a", f"{error}").summary)
    assert all("12.3 MB for $1.50, 2 h ago" in text for text in texts[:1])
