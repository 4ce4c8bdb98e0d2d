"""Off-site copies: whole or invisible, readable with standard tools, and never trusted blindly."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import os
import random
import re
import shlex
import shutil
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paramiko
import pyrage
import pytest
import zstandard
from conftest import MakeDemo
from pyrage import x25519

from nescord_ops import (
    backup,
    cli,
    copies,
    cost,
    demo,
    freshness,
    inventory,
    keys,
    offsite,
    remote,
    store,
    volume,
)
from nescord_ops.checks import Status
from nescord_ops.errors import BackupError, OffsiteError, OpsError, SettingsError, StoreError
from nescord_ops.settings import Settings, load

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
ID = "nescordbot_backup_20260102_120000"
Captured = pytest.CaptureFixture[str]


@dataclasses.dataclass(frozen=True)
class Site:
    """A volume with one backup, an identity, and a directory to push to."""

    settings: Settings
    key: Path
    place: Path

    def of(self, **changes: Any) -> Settings:
        return dataclasses.replace(self.settings, **changes)

    @property
    def objects(self) -> dict[str, int]:
        """Everything at the place, with its size."""
        return {path.name: path.stat().st_size for path in self.place.iterdir()}

    def document(self) -> Any:
        return json.loads((self.place / f"{ID}.json").read_text())

    def rewrite(self, document: Any) -> None:
        (self.place / f"{ID}.json").write_text(json.dumps(document))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of 60 notes with one backup in its store. Copy it, do not change it."""
    root = tmp_path_factory.mktemp("offsite") / "app"
    demo.create(root, notes=60, now=NOON, backups=False)
    assert backup.create(load(app_dir=root), now=NOON).backup
    return root


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Site:
    app = shutil.copytree(made, tmp_path / "app")
    recipient = keys.keygen(tmp_path / "identity")
    place = tmp_path / "place"
    settings = dataclasses.replace(
        load(app_dir=app), offsite_url=str(place), age_recipient=recipient
    )
    return Site(settings, tmp_path / "identity", place)


def contents(root: Path) -> dict[str, tuple[int, int, bytes | None]]:
    """Everything below `root`: mode, mtime and content by name."""
    found = {}
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (seen.st_mode, seen.st_mtime_ns, content)
    return found


def laid_out(settings: Settings, to: Path, identity: str = ID) -> dict[str, Any]:
    with store.open_store(settings.backup_dir / "store.sqlite3") as opened:
        store.extract(opened, identity, to)
    return contents(to)


def empty(site: Site, tmp_path: Path) -> Settings:
    """The settings of a new machine: nothing is there but what the operator has kept."""
    app = tmp_path / "new"
    app.mkdir(exist_ok=True)
    here = load(app_dir=app, database_url="sqlite:///data/nescordbot.db")
    return dataclasses.replace(
        here, offsite_url=site.settings.offsite_url, age_recipient=site.settings.age_recipient
    )


def refused(site: Site, tmp_path: Path, words: str) -> OpsError:
    """A pull is refused for that reason, with a hint, and adds nothing."""
    new = empty(site, tmp_path)
    for to in (None, tmp_path / "to"):
        with pytest.raises(OpsError, match=words) as caught:
            offsite.pull(new, ID, identity=site.key, to=to)
        assert caught.value.hint
        assert not (tmp_path / "to").exists()
        assert not (new.backup_dir / "store.sqlite3").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("nescord-ops-scratch")]
    return caught.value


# A copy, and what it is


def test_what_was_pushed_comes_back(site: Site, tmp_path: Path) -> None:
    done = offsite.push(site.settings, ID, now=NOON)
    assert done.status is Status.OK
    assert sorted(site.objects) == [f"{ID}.json", f"{ID}.tar.zst.age"]
    (copy,) = offsite.listing(site.settings)
    assert (copy.id, copy.taken_at, copy.pushed_at, copy.fault) == (ID, NOON, NOON, "")
    before = laid_out(site.settings, tmp_path / "before")
    offsite.pull(site.settings, ID, identity=site.key, to=tmp_path / "to")
    assert contents(tmp_path / "to") == before
    new = empty(site, tmp_path)
    offsite.pull(new, ID, identity=site.key)
    assert laid_out(new, tmp_path / "after") == before


def test_a_pulled_generation_keeps_its_evidence_but_no_proof(site: Site, tmp_path: Path) -> None:
    checked = {"at": NOON.isoformat(), "outcome": "ok", "reason": ""}
    facts = {"proven_at": NOON.isoformat(), "checked": checked, "drill": True}
    with store.open_store(site.settings.backup_dir / "store.sqlite3") as opened:
        store.note(opened, ID, facts)
    offsite.push(site.settings, ID)
    new = empty(site, tmp_path)
    offsite.pull(new, ID, identity=site.key)
    then, now = (backup.find(settings, ID) for settings in (site.settings, new))
    for key in ("rows", "collections", "stores", "originals", "versions", "findings", "expected"):
        assert now.evidence[key] == then.evidence[key]
    assert (now.kind, now.taken_at, now.good, now.proven_at) == ("pulled", NOON, True, None)
    assert "checked" not in now.evidence
    (drilled,) = (c for c in freshness.health(new, NOON) if c.name == "backups.drill")
    assert drilled.status is Status.WARN, "nobody is at work on a pulled one"
    assert now.evidence["offsite"]["sha256"] == then.evidence["offsite"]["sha256"]


def test_a_failed_drill_is_not_forgotten_by_pushing_and_pulling(site: Site, tmp_path: Path) -> None:
    drilled = {"at": NOON.isoformat(), "outcome": "failed", "reason": "no ids"}
    with store.open_store(site.settings.backup_dir / "store.sqlite3") as opened:
        store.note(opened, ID, {"drilled": drilled})
    done = offsite.push(site.settings, ID)
    assert {c.name: c.status.value for c in done.checks}["offsite.sound"] == "warn"
    new = empty(site, tmp_path)
    offsite.pull(new, ID, identity=site.key)
    assert not backup.find(new, ID).good


def test_what_a_drill_found_is_not_forgotten_by_a_check_of_the_bytes(site: Site) -> None:
    with store.open_store(site.settings.backup_dir / "store.sqlite3") as opened:
        (generation,) = store.generations(opened)
        rows = {**generation.evidence["rows"], "knowledge_notes": 61}
        store.note(opened, ID, {"rows": rows})
    offsite.push(site.settings, ID)
    drilled = offsite.check(site.settings, ID, identity=site.key)
    assert drilled.status is Status.FAIL
    fault = offsite.listing(site.settings)[0].fault
    assert fault.startswith("a drill failed: ")
    for _ in range(2):
        assert offsite.check(site.settings, ID).status is Status.FAIL
        assert offsite.listing(site.settings)[0].fault == fault
    assert offsite.push(site.settings, ID).copies[0].fault == "", "pushed anew"


def test_a_copy_is_checked_where_the_store_is_damaged(site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    (site.settings.backup_dir / "store.sqlite3").write_bytes(b"no store any more" * 1000)
    for identity in (None, site.key):
        found = {c.name: c for c in offsite.check(site.settings, ID, identity=identity).checks}
        assert found["offsite.stream"].status is Status.OK
        assert found["offsite.compared"].status is Status.WARN
    assert "damaged or no store" in found["offsite.compared"].summary
    with pytest.raises(OpsError, match="damaged or no store"):
        offsite.pull(site.settings, ID, identity=site.key)
    offsite.pull(site.settings, ID, identity=site.key, to=tmp_path / "to")


def test_an_old_copy_that_is_pulled_is_not_the_newest_backup(site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    new = dataclasses.replace(site.settings, backup_dir=tmp_path / "other")
    newer = backup.create(new, now=NOON + DAY).backup
    assert newer
    offsite.pull(new, ID, identity=site.key)
    assert [b.id for b in backup.listing(new).generations] == [newer.id, ID]


def test_the_json_holds_sizes_digests_and_versions(site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    document = site.document()
    content = (site.place / f"{ID}.tar.zst.age").read_bytes()
    assert document["sha256"] == hashlib.sha256(content).hexdigest()
    assert document["stream_bytes"] == len(content)
    assert document["versions"]["nescord-ops"]
    files = {file["path"]: file for file in document["record"]["files"]}
    for name, (_, mtime_ns, data) in laid_out(site.settings, tmp_path / "out").items():
        digest = None if data is None else hashlib.sha256(data).hexdigest()
        assert (files[name]["sha256"], files[name]["mtime_ns"]) == (digest, mtime_ns)


def test_the_tar_is_the_same_every_time(site: Site) -> None:
    offsite.push(site.settings, ID, plain=True, now=NOON)
    first = (site.place / f"{ID}.tar.zst").read_bytes()
    shutil.rmtree(site.place)
    offsite.push(site.settings, ID, plain=True, now=NOON + DAY)
    assert (
        zstandard.ZstdDecompressor().stream_reader(first).read()
        == (
            zstandard.ZstdDecompressor().stream_reader((site.place / f"{ID}.tar.zst").read_bytes())
        ).read()
    )


def test_a_second_push_does_nothing_and_says_so(site: Site) -> None:
    offsite.push(site.settings, ID)
    before = contents(site.place)
    done = offsite.push(site.settings, ID)
    assert "nothing was done" in done.checks[0].summary
    assert contents(site.place) == before


@pytest.mark.parametrize("loss", ["missing", "shorter", "json"])
def test_a_copy_that_is_not_whole_is_pushed_again(site: Site, loss: str) -> None:
    offsite.push(site.settings, ID)
    sealed = site.place / f"{ID}.tar.zst.age"
    if loss == "missing":
        sealed.unlink()
    elif loss == "shorter":
        os.truncate(sealed, 1000)
    else:
        (site.place / f"{ID}.json").write_text("{")
    assert offsite.listing(site.settings)[0].fault
    offsite.push(site.settings, ID)
    assert not offsite.listing(site.settings)[0].fault
    assert offsite.check(site.settings, ID, identity=site.key).status is Status.OK


def test_the_same_id_of_another_volume_is_not_overwritten(site: Site) -> None:
    offsite.push(site.settings, ID)
    document = site.document()
    document["record"]["taken_at"] = (NOON + DAY).isoformat()
    site.rewrite(document)
    before = contents(site.place)
    with pytest.raises(OffsiteError, match="another backup of the id"):
        offsite.push(site.settings, ID)
    assert contents(site.place) == before


def test_unencrypted_needs_plain_and_is_said(site: Site, tmp_path: Path) -> None:
    bare = site.of(age_recipient="")
    with pytest.raises(OffsiteError, match="no age recipient") as caught:
        offsite.push(bare, ID)
    assert "keygen" in caught.value.hint
    assert not site.place.exists()
    done = offsite.push(bare, ID, plain=True)
    assert {c.name: c.status.value for c in done.checks}["offsite.sealed"] == "warn"
    assert stat.S_IMODE((site.place / f"{ID}.tar.zst").stat().st_mode) == 0o600
    offsite.pull(bare, ID, to=tmp_path / "to")
    assert contents(tmp_path / "to") == laid_out(bare, tmp_path / "before")


def test_one_of_the_bots_own_is_adopted_first(demo: MakeDemo, tmp_path: Path) -> None:
    settings = load(app_dir=demo().app_dir)
    settings = dataclasses.replace(settings, offsite_url=str(tmp_path / "place"))
    (bots, *_) = (b for b in inventory.listing(settings).backups if b.kind == "bot")
    with pytest.raises(BackupError, match="one of the bot's own") as caught:
        offsite.push(settings, bots.id, plain=True)
    assert "adopt" in caught.value.hint


# Without this project


def shell(command: str, cwd: Path) -> None:
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, cwd=cwd)


def test_the_readmes_line_restores_it_with_debians_tools(site: Site, tmp_path: Path) -> None:
    (line,) = re.findall(r"^age -d .*$", README, re.MULTILINE)
    offsite.push(site.settings, ID)
    shutil.copy(site.key, site.place / "nescord-ops.key")
    shell(line.replace("ID", ID), site.place)
    assert {name: facts[2] for name, facts in contents(site.place / ID).items()} == {
        name: facts[2] for name, facts in laid_out(site.settings, tmp_path / "out").items()
    }
    inside = json.loads((site.place / f"{ID}.record.json").read_text())
    assert inside == site.document()["record"]
    assert not offsite.listing(site.settings)[0].fault  # nothing there was written over


def test_what_debians_tools_packed_is_pulled(site: Site, tmp_path: Path) -> None:
    shell("age-keygen -o theirs 2> public", tmp_path)
    recipient = (tmp_path / "public").read_text().split()[-1]
    settings = site.of(age_recipient=recipient)
    offsite.push(settings, ID)
    shell(f"age -d -i ../theirs {ID}.tar.zst.age | zstd -d | tar -x -C ..", site.place)
    shell(f"tar -c {ID} {ID}.record.json | zstd -3 -T2 | age -r {recipient} > place/s", tmp_path)
    (site.place / "s").rename(site.place / f"{ID}.tar.zst.age")
    content = (site.place / f"{ID}.tar.zst.age").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    site.rewrite({**site.document(), "sha256": digest, "stream_bytes": len(content)})
    offsite.pull(settings, ID, identity=tmp_path / "theirs", to=tmp_path / "to")
    assert contents(tmp_path / "to") == laid_out(settings, tmp_path / "out")


def test_debians_age_reads_our_identity(tmp_path: Path) -> None:
    recipient = keys.keygen(tmp_path / "ours")
    shell(f"test $(age-keygen -y ours) = {recipient}", tmp_path)


# Keys


def test_an_identity_is_private_and_never_overwritten(tmp_path: Path) -> None:
    os.umask(before := os.umask(0))
    with contextlib.ExitStack() as stack:
        stack.callback(os.umask, before)
        os.umask(0)
        keys.keygen(tmp_path / "identity")
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o600
    held = (tmp_path / "identity").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("identity", "link", "absent/identity"):
        with pytest.raises(OffsiteError) as caught:
            keys.keygen(tmp_path / name)
        assert caught.value.hint
    assert (tmp_path / "identity").read_bytes() == held
    assert not (tmp_path / "elsewhere").exists()


SECRET = "AGE-SECRET-KEY-1QQQQQSECRETSECRET"
BAD_IDENTITIES = {
    "nothing": b"",
    "a comment": b"# created: today\n",
    "broken": f"# x\n{SECRET}\n".encode(),
    "no text": b"\xff\xfe" + SECRET.encode(),
    "encrypted": b"age-encryption.org/v1\n" + SECRET.encode(),
}


@pytest.mark.parametrize("kind", BAD_IDENTITIES)
def test_an_identity_that_is_none_is_said_and_not_shown(
    kind: str, site: Site, tmp_path: Path
) -> None:
    offsite.push(site.settings, ID)
    (tmp_path / "bad").write_bytes(BAD_IDENTITIES[kind])
    with pytest.raises(OffsiteError) as caught:
        offsite.pull(site.settings, ID, identity=tmp_path / "bad", to=tmp_path / "to")
    assert caught.value.hint
    assert "SECRET" not in "".join(traceback.format_exception(caught.value)) + caught.value.hint


def test_the_wrong_key_and_no_key_are_said(site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    new = empty(site, tmp_path)
    with pytest.raises(OffsiteError, match="no identity was named") as caught:
        offsite.pull(new, ID)
    assert "--identity" in caught.value.hint
    keys.keygen(tmp_path / "another")
    for act in (offsite.pull, offsite.check):
        with pytest.raises(OffsiteError, match="not encrypted to this identity"):
            act(new, ID, identity=tmp_path / "another")
    assert not (new.backup_dir / "store.sqlite3").exists()
    assert not offsite.listing(new)[0].fault


def test_a_secret_key_in_the_place_of_the_recipient_is_not_shown(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = site.key.read_text().split()[-1]
    monkeypatch.setenv("NESCORD_OPS_AGE_RECIPIENT", secret)
    with pytest.raises(SettingsError, match="no age recipient") as caught:
        load(app_dir=site.settings.app_dir)
    assert secret not in str(caught.value) + caught.value.hint
    with pytest.raises(OffsiteError):
        keys.recipients("age1qqqqqqq")


def test_a_password_in_the_url_stays_out_of_sight(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv(
        "NESCORD_OPS_OFFSITE_URL", "sftp://me:pass@w/ord@127.0.0.1:1/there?key=zebra"
    )
    monkeypatch.setenv("NESCORD_OPS_AGE_RECIPIENT", site.settings.age_recipient)
    app = ["--app-dir", str(site.settings.app_dir)]
    here = load(app_dir=site.settings.app_dir)
    shown = repr(here) + json.dumps(here.to_dict()) + here._repr_html_()
    assert cli.run([*app, "--debug", "offsite", "push", ID]) == 2
    assert cli.run([*app, "--json", "verify", "--depth", "quick"]) in (0, 1, 2)
    captured = capsys.readouterr()
    shown += captured.out + captured.err
    assert "sftp://***@127.0.0.1:1/there?***" in shown
    assert "pass@" not in shown
    assert "zebra" not in shown


# Nothing half-visible


def harm(settings: Settings) -> None:
    """Damage the last page of the store."""
    path = settings.backup_dir / "store.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        (number, data) = db.execute("SELECT max(number), data FROM page").fetchone()
        db.execute("UPDATE page SET data = ? WHERE number = ?", (data[:-1] + b"!", number))


def test_a_record_too_long_to_be_read_back_is_not_pushed(site: Site) -> None:
    """As of a volume with thousands of directories, or tables, that nobody removed."""
    rows = dict.fromkeys((f"{number:040}" for number in range(80_000)), 1)
    with store.open_store(site.settings.backup_dir / "store.sqlite3") as opened:
        assert store.note(opened, ID, {"rows": rows}).intact
    with pytest.raises(OffsiteError, match="too long to be read back") as caught:
        offsite.push(site.settings, ID)
    assert "nescord-ops clean" in caught.value.hint
    assert site.objects == {}


def test_a_damaged_generation_is_refused_in_the_middle(site: Site) -> None:
    harm(site.settings)
    with pytest.raises(StoreError, match="damaged") as caught:
        offsite.push(site.settings, ID)
    assert caught.value.hint
    assert site.objects == {}


def test_a_damaged_generation_does_not_replace_what_is_left_of_its_copy(site: Site) -> None:
    offsite.push(site.settings, ID)
    (site.place / f"{ID}.json").write_text("{")
    before = contents(site.place)
    harm(site.settings)
    with pytest.raises(StoreError, match="damaged"):
        offsite.push(site.settings, ID)
    assert contents(site.place) == before


def test_what_was_left_half_pushed_is_removed_and_nothing_else(site: Site) -> None:
    site.place.mkdir()
    other = "nescordbot_backup_20251231_000000"
    left = [f"{other}.tar.zst.age", f"{other}.json.part", f"{ID}.tar.zst.age.part"]
    foreign = ["photos.tar.zst", "notes.json", f"{other}.txt", "x.part"]
    for name in left + foreign:
        (site.place / name).write_bytes(b"half")
    assert offsite.listing(site.settings) == ()
    offsite.push(site.settings, ID)
    assert sorted(site.objects) == sorted([*foreign, f"{ID}.json", f"{ID}.tar.zst.age"])
    (site.place / ID).write_bytes(b"foreign")
    assert [copy.id for copy in offsite.listing(site.settings)] == [ID]  # or prune would miscount


def slowly(settings: Settings, seconds: float = 60.0) -> subprocess.Popen[bytes]:
    """Push in another process, which stops in the middle for a while."""
    code = """
        import sys, time
        from nescord_ops import keys, offsite, settings, stream
        real = stream._through
        def slow(cipher, read, give, keys):
            def wait(data):
                give(data)
                give.count = getattr(wait, "count", 0)
                wait.count = getattr(wait, "count", 0) + 1
                if wait.count == 3:
                    print("half", flush=True)
                    time.sleep(float(sys.argv[3]))
            real(cipher, read, wait, keys)
        stream._through = lambda *all: slow(*all)
        offsite.push(settings.load(app_dir=sys.argv[1]), sys.argv[2])
    """
    code = code.replace('                give.count = getattr(wait, "count", 0)\n', "")
    environment = {
        **os.environ,
        "NESCORD_OPS_OFFSITE_URL": settings.offsite_url,
        "NESCORD_OPS_AGE_RECIPIENT": settings.age_recipient,
    }
    command = [sys.executable, "-c", textwrap.dedent(code), str(settings.app_dir), ID, str(seconds)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline() == b"half\n"
    return child


def test_a_killed_push_leaves_nothing_visible_and_runs_again(site: Site) -> None:
    child = slowly(site.settings)
    child.kill()
    child.wait()
    assert offsite.listing(site.settings) == ()
    assert all(name.endswith(".part") for name in site.objects)
    offsite.push(site.settings, ID)
    assert sorted(site.objects) == [f"{ID}.json", f"{ID}.tar.zst.age"]
    assert offsite.check(site.settings, ID, identity=site.key).status is Status.OK


def test_the_store_is_free_and_other_pushes_wait_while_one_is_at_work(site: Site) -> None:
    child = slowly(site.settings)
    try:
        with pytest.raises(OffsiteError, match="another push is at work"):
            offsite.push(site.settings, ID)
        started = time.monotonic()
        assert backup.create(site.settings).backup
        assert time.monotonic() - started < 20
    finally:
        child.kill()
        child.wait()


# Buckets, and bad servers


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an S3 server in a process of its own, with a bucket `bucket`."""
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    request = urllib.request.Request(
                        f"http://127.0.0.1:{port}/bucket", method="PUT"
                    )
                    urllib.request.urlopen(request, timeout=5).close()
                    break
                time.sleep(0.1)
            yield port
        finally:
            server.terminate()


AWS_SECRET = "wJalrSECRETbPxRfiCY"


def bucket(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Point S3's own variables at a port of this machine."""
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def in_bucket(
    site: Site, s3: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Settings:
    """The settings of the site with a prefix of its own in the bucket."""
    bucket(monkeypatch, s3)
    return site.of(offsite_url=f"s3://bucket/{request.node.name}/deep")


def test_a_bucket_gives_back_what_was_pushed(
    site: Site, in_bucket: Settings, tmp_path: Path
) -> None:
    assert offsite.listing(in_bucket) == ()
    offsite.push(in_bucket, ID)
    assert offsite.check(in_bucket, ID).status is Status.OK
    assert "nothing was done" in offsite.push(in_bucket, ID).checks[0].summary
    new = dataclasses.replace(empty(site, tmp_path), offsite_url=in_bucket.offsite_url)
    offsite.pull(new, ID, identity=site.key)
    assert laid_out(new, tmp_path / "after") == laid_out(in_bucket, tmp_path / "before")
    (copy,) = offsite.listing(in_bucket)
    assert (copy.status, copy.fault) == (Status.OK, "")


def test_an_object_is_sent_in_parts_and_appears_when_it_is_whole(
    in_bucket: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 5 << 20)
    place = remote.connect(in_bucket.offsite_url)
    name = f"{ID}.tar.zst"
    content = random.Random(1).randbytes(12 << 20)
    with remote.upload(place, name, 0) as taking:
        for start in range(0, len(content), 1 << 16):
            taking.write(content[start : start + (1 << 16)])
        assert remote.names(place) == {}
        assert len(uploads(place)) == 1
    assert b"".join(remote.chunks(place, name, len(content))) == content

    def broken() -> None:
        with remote.upload(place, "other", 0) as taking:
            taking.write(content)
            taking.flush()
            raise StoreError("a page is damaged")

    with pytest.raises(StoreError):
        broken()
    assert list(remote.names(place)) == [name]
    assert uploads(place) == []


def uploads(place: remote.Remote) -> list[str]:
    found = place.files.call_s3("list_multipart_uploads", Bucket="bucket")
    keys_ = [upload["Key"] for upload in found.get("Uploads", [])]
    return [key for key in keys_ if key.startswith(place.root.partition("/")[2])]


def test_uploads_that_were_killed_are_swept_by_the_next_push(in_bucket: Settings) -> None:
    place = remote.connect(in_bucket.offsite_url)
    for name in (f"{ID}.tar.zst.age", "of-somebody-else"):
        file = place.files.open(place.path(name), "wb", autocommit=False, block_size=5 << 20)
        file.write(bytes(6 << 20))
        file.flush()
    assert len(uploads(place)) == 2
    offsite.push(in_bucket, ID)
    assert [name.rpartition("/")[2] for name in uploads(place)] == ["of-somebody-else"]


def test_a_bucket_that_does_not_exist_is_said(
    site: Site, in_bucket: Settings, tmp_path: Path
) -> None:
    nowhere = dataclasses.replace(in_bucket, offsite_url="s3://no-such-bucket/prefix")
    for act in (offsite.push, offsite.check, offsite.pull):
        with pytest.raises(OffsiteError, match="no such bucket") as caught:
            act(nowhere, ID, **_new(act, tmp_path))
        assert "make the bucket" in caught.value.hint
    with pytest.raises(OffsiteError, match="no such bucket"):
        offsite.listing(nowhere)
    with pytest.raises(OffsiteError, match="no such bucket"):
        offsite.listing(site.of(offsite_url=str(tmp_path / "absent")))


def _new(act: Any, tmp_path: Path) -> dict[str, Any]:
    return {"to": tmp_path / "to"} if act is offsite.pull else {}


class Files(paramiko.SFTPServerInterface):
    """The files below `root`, over SFTP."""

    root = Path()

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def answer(self, work: Callable[[], Any]) -> Any:
        try:
            done = work()
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        return paramiko.SFTP_OK if done is None or isinstance(done, Path) else done

    def seen(self, path: Path) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(path.stat(), path.name)

    def list_folder(self, path: str) -> Any:
        return self.answer(lambda: [self.seen(each) for each in self.at(path).iterdir()])

    def stat(self, path: str) -> Any:
        return self.answer(lambda: self.seen(self.at(path)))

    lstat = stat

    def open(self, path: str, flags: int, _attr: Any) -> Any:
        def opened() -> paramiko.SFTPHandle:
            file = os.fdopen(os.open(self.at(path), flags, 0o600), "r+b" if flags & 3 else "rb")
            handle = paramiko.SFTPHandle(flags)
            handle.readfile = handle.writefile = file  # type: ignore[attr-defined]
            return handle

        return self.answer(opened)

    def remove(self, path: str) -> Any:
        return self.answer(self.at(path).unlink)

    def posix_rename(self, old: str, new: str) -> Any:
        return self.answer(lambda: self.at(old).rename(self.at(new)))

    def mkdir(self, path: str, _attr: Any) -> Any:
        return self.answer(self.at(path).mkdir)


class Anybody(paramiko.ServerInterface):
    """Lets one user in."""

    def check_auth_password(self, username: str, password: str) -> int:
        right = (username, password) == ("me", "zebra")
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_channel_request(self, _kind: str, _number: int) -> int:
        return paramiko.OPEN_SUCCEEDED


@contextlib.contextmanager
def sftp(root: Path) -> Iterator[int]:
    """Yield the port of an SFTP server of this machine with the files of a directory."""
    host_key = paramiko.RSAKey.generate(2048)
    interface = type("Here", (Files,), {"root": root})
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    transport = paramiko.Transport(server.accept()[0])
                    stack.callback(transport.close)
                    transport.add_server_key(host_key)
                    transport.set_subsystem_handler("sftp", paramiko.SFTPServer, interface)
                    transport.start_server(server=Anybody())

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])


def test_a_server_with_ssh_gives_back_what_was_pushed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    with sftp(tmp_path / "far") as port:
        there = site.of(offsite_url=f"sftp://me:zebra@127.0.0.1:{port}/deep/place")
        with pytest.raises(OffsiteError, match="no such bucket, directory"):
            offsite.listing(there)
        offsite.push(there, ID)
        names = {f"{ID}.json", f"{ID}.tar.zst.age"}
        assert {path.name for path in (tmp_path / "far/deep/place").iterdir()} == names
        assert offsite.check(there, ID).status is Status.OK
        offsite.pull(there, ID, identity=site.key, to=tmp_path / "to")
        assert contents(tmp_path / "to") == laid_out(there, tmp_path / "before")
        offsite.push(there, ID)
        assert backup.find(there, ID).evidence["offsite"]["url"].startswith("sftp://***@127.0.0.1")
        wrong = site.of(offsite_url=f"sftp://me:horse@127.0.0.1:{port}/deep/place")
        with pytest.raises(OffsiteError, match=r"(?i)authentication") as caught:
            offsite.listing(wrong)
        assert "horse" not in "".join(traceback.format_exception(caught.value))


@contextlib.contextmanager
def answering(status: int) -> Iterator[int]:
    """Yield the port of a server that answers with a status, or hangs (0)."""
    over = threading.Event()

    class Answer(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            if not status:
                over.wait(60)
                return
            code = {403: "AccessDenied", 500: "InternalError"}[status]
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            over.set()
            server.shutdown()
            thread.join()


SERVERS = {403: "no permission", 500: "InternalError|500|no", 0: "did not answer within"}


@pytest.mark.parametrize(
    "status", [403, *(pytest.param(s, marks=pytest.mark.slow) for s in (500, 0))]
)
def test_a_bad_server_is_said_in_bounded_time(
    status: int, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"mode": "standard", "max_attempts": 2}
    monkeypatch.setitem(remote._S3_OPTIONS["config_kwargs"], "retries", quick)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 3.0 if status == 0 else 30.0)
    monkeypatch.setattr(remote, "_CLEANING_SECONDS", 1.0)
    with answering(status) as port:
        bucket(monkeypatch, port)
        settings = site.of(offsite_url="s3://bucket/prefix")
        for act in (offsite.push, offsite.check, offsite.pull):
            started = time.monotonic()
            with pytest.raises(OffsiteError, match=SERVERS[status]) as caught:
                act(settings, ID, **_new(act, tmp_path))
            assert time.monotonic() - started < 20
            assert caught.value.hint
            assert AWS_SECRET not in "".join(traceback.format_exception(caught.value))
    assert "offsite" not in backup.find(settings, ID).evidence


def test_a_command_ends_while_the_server_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a process does not wait for threads that do."""
    with answering(0) as port:
        bucket(monkeypatch, port)
        code = "from nescord_ops import cli, remote; remote.ANSWER_SECONDS = 2; cli.main()"
        app = ["--app-dir", str(site.settings.app_dir)]
        environment = {**os.environ, "NESCORD_OPS_OFFSITE_URL": "s3://bucket/prefix"}
        done = subprocess.run(
            [sys.executable, "-c", code, *app, "offsite", "push", ID, "--plain"],
            env=environment,
            timeout=15,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "did not answer within 2 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"mode": "standard", "max_attempts": 1}
    monkeypatch.setitem(remote._S3_OPTIONS["config_kwargs"], "retries", quick)
    bucket(monkeypatch, free_port())
    with pytest.raises(OffsiteError, match="connect") as caught:
        offsite.push(site.of(offsite_url="s3://bucket/prefix"), ID)
    assert "see that the server is up" in caught.value.hint


def test_a_place_of_no_kind_is_said(site: Site) -> None:
    with pytest.raises(OffsiteError, match="not known") as caught:
        offsite.listing(site.settings, "ftpx://host/path")
    assert "NESCORD_OPS_OFFSITE_URL" in caught.value.hint


def test_a_secret_at_the_end_of_a_long_message_is_not_shown_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "zebra-crossing")
    for length in range(280, 310):
        error = remote._explained("s3://bucket", OSError("x" * length + "zebra-crossing"))
        assert "ze" not in str(error)


@pytest.mark.parametrize("missing", ["s3fs", "paramiko"])
def test_a_package_that_is_absent_is_named(missing: str, site: Site) -> None:
    extra = {"s3fs": "s3", "paramiko": "sftp"}[missing]
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom nescord_ops import cli; cli.main()"
    environment = {**os.environ, "NESCORD_OPS_OFFSITE_URL": f"{extra}://host/path"}
    command = [sys.executable, "-c", code, "--app-dir", str(site.settings.app_dir)]
    done = subprocess.run(
        [*command, "offsite", "list"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"Try: pip install 'nescord-ops[{extra}]'" in done.stderr


class Chaos:
    """A TCP proxy that cuts, delays and fails connections at random, the same for the same seed."""

    def __init__(self, port: int, seed: int, rate: float) -> None:
        self.port, self.rate, self.rng = port, rate, random.Random(seed)
        self.harmed = 0
        self.hanging = False
        self.server = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def here(self) -> int:
        return int(self.server.getsockname()[1])

    def close(self) -> None:
        self.server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                fate = self.rng.choice(["refuse", "fail", "cut up", "cut down", "delay"])
                fate = fate if self.rng.random() < self.rate else ""
                after = self.rng.randrange(1, 400_000)
                self.harmed += bool(fate)
                threading.Thread(
                    target=self._serve, args=(client, fate, after), daemon=True
                ).start()

    def _serve(self, client: socket.socket, fate: str, after: int) -> None:
        with client, contextlib.suppress(OSError):
            if fate == "refuse":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if fate == "fail":
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
                return
            if fate == "delay":
                time.sleep(0.3)
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                limits = (
                    after if fate == "cut up" else None,
                    after if fate == "cut down" else None,
                )
                up = threading.Thread(target=self._copy, args=(client, server, limits[0]))
                up.start()
                self._copy(server, client, limits[1])
                up.join()

    def _copy(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        done = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                while self.hanging:
                    time.sleep(0.05)
                if limit is not None:
                    data = data[: limit - done]
                target.sendall(data)
                done += len(data)
                if done == limit:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def endure(site: Site, settings: Settings, chaos: Chaos, tmp_path: Path, rounds: int) -> list[str]:
    """Push and pull through the proxy; return how each came out. What succeeds is whole."""
    expected = laid_out(settings, tmp_path / "expected")
    outcomes = []
    for number in range(rounds):
        here = dataclasses.replace(settings, offsite_url=f"{settings.offsite_url}/{number}")
        for act in ("push", "pull"):
            to = tmp_path / f"to{number}"
            try:
                if act == "push":
                    offsite.push(here, ID)
                else:
                    offsite.pull(here, ID, identity=site.key, to=to)
                    assert contents(to) == expected
                    shutil.rmtree(to)
                outcomes.append(f"{act} ok")
            except OffsiteError:
                assert not to.exists()
                outcomes.append(f"{act} refused")
    return outcomes


def test_a_server_that_hangs_in_the_middle_leaves_nothing_visible(
    in_bucket: Settings, s3: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(remote, "_CLEANING_SECONDS", 0.5)
    chaos = Chaos(s3, seed=0, rate=0)
    bucket(monkeypatch, chaos.here)

    def hang(text: str) -> None:
        chaos.hanging = text.startswith("pushing")

    started = time.monotonic()
    with pytest.raises(OffsiteError, match="did not answer within 2 s") as caught:
        offsite.push(in_bucket, ID, progress=hang)
    assert time.monotonic() - started < 10
    assert caught.value.hint
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 60.0)
    bucket(monkeypatch, s3)
    assert offsite.listing(in_bucket) == ()
    offsite.push(in_bucket, ID)
    chaos.hanging = False  # what was on its way arrives now, too late
    time.sleep(1)
    assert offsite.check(in_bucket, ID).status is Status.OK
    assert uploads(remote.connect(in_bucket.offsite_url)) == []
    chaos.close()


def survive(
    site: Site,
    settings: Settings,
    port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounds: int,
    rate: float,
) -> None:
    chaos = Chaos(port, seed=rounds, rate=rate)
    bucket(monkeypatch, chaos.here)
    try:
        outcomes = endure(site, settings, chaos, tmp_path, rounds)
    finally:
        chaos.close()
    bucket(monkeypatch, port)
    pushed = 0
    for number in range(rounds):
        here = dataclasses.replace(settings, offsite_url=f"{settings.offsite_url}/{number}")
        for copy in offsite.listing(here):  # what is visible is whole
            assert not copy.fault
            assert offsite.check(here, ID).status is Status.OK
            pushed += 1
        offsite.push(here, ID)
        assert len(remote.names(remote.connect(here.offsite_url))) == 2
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    print(f"{rounds} rounds, {chaos.harmed} connections harmed: {counts}")
    assert chaos.harmed >= rounds
    assert pushed >= outcomes.count("push ok")
    assert outcomes.count("pull ok")


@pytest.mark.slow
def test_a_bad_network_costs_time_and_nothing_else(
    site: Site, in_bucket: Settings, s3: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survive(site, in_bucket, s3, tmp_path, monkeypatch, rounds=2, rate=0.25)


@pytest.mark.slow
def test_a_hundred_pushes_and_pulls_over_a_bad_network(
    site: Site, in_bucket: Settings, s3: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retries = {"mode": "standard", "max_attempts": 2}  # few enough that some pushes and pulls fail
    monkeypatch.setitem(remote._S3_OPTIONS["config_kwargs"], "retries", retries)
    survive(site, in_bucket, s3, tmp_path, monkeypatch, rounds=100, rate=0.4)


# Damage and malice


def test_any_damaged_byte_is_noticed_without_a_key(site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    path = site.place / f"{ID}.tar.zst.age"
    whole = path.read_bytes()
    rng = random.Random(3)
    for _ in range(8):
        harmed = bytearray(whole)
        harmed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(harmed)
        assert offsite.check(site.settings, ID).status is Status.FAIL
        assert offsite.listing(site.settings)[0].fault
        refused(site, tmp_path, "damaged|not those that were pushed|not encrypted to this identity")
    path.write_bytes(whole[:-100_000])
    assert offsite.check(site.settings, ID).status is Status.FAIL
    refused(site, tmp_path, "its stream has")
    path.write_bytes(whole)
    assert offsite.check(site.settings, ID).status is Status.OK
    assert not offsite.listing(site.settings)[0].fault


def alter(document: Any, *way: Any) -> Any:
    """Given a JSON document, a way into it and a value, return it changed."""
    changed = json.loads(json.dumps(document))
    *steps, last, value = way
    place = changed
    for step in steps:
        place = place[step]
    place[last] = value
    return changed


ALTERED: dict[str, tuple[Any, ...]] = {
    "another digest of the stream": ("sha256", "0" * 64),
    "another digest of a file": ("record", "files", -1, "sha256", "0" * 64),
    "another size of a file": ("record", "files", -1, "size", 3),
    "another name": ("record", "files", -1, "path", "nescordbot.db2"),
    "another time": ("record", "taken_at", (NOON + DAY).isoformat()),
    "other evidence": ("record", "evidence", "rows", {"knowledge_notes": 1}),
    "no files": ("record", "files", []),
}
MALFORMED: dict[str, tuple[Any, ...]] = {
    "a name that climbs": ("record", "files", -1, "path", "../../etc/passwd"),
    "an absolute name": ("record", "files", -1, "path", "/etc/passwd"),
    "a name with a NUL": ("record", "files", -1, "path", "a\0b"),
    "another id": ("record", "id", "nescordbot_backup_20260101_000000"),
    "an odd digest": ("sha256", "0"),
    "a size that is no number": ("stream_bytes", True),
    "a negative size": ("record", "files", -1, "size", -1),
    "a huge size": ("record", "files", -1, "size", 1 << 80),
    "settings in the evidence": ("record", "evidence", "expected", "backup_dir", "/"),
    "a failure without a reason": (
        *("record", "evidence", "checked"),
        {"at": NOON.isoformat(), "outcome": "failed"},
    ),
    "an owner that is none": ("record", "evidence", "originals", "chroma", "uid", 1 << 40),
    "a time out of reach": ("record", "files", -1, "mtime_ns", 1 << 70),
    "an expectation that is none": ("record", "evidence", "expected", "dimension", "768"),
    "stores that are none": ("record", "evidence", "stores", 5),
    "no evidence": ("record", "evidence", None),
    "files that are none": ("record", "files", 5),
    "a date that is none": ("pushed_at", "yesterday"),
    "a list": ("record", []),
    "half a character": ("record", "files", -1, "path", "\ud83d"),
}


@pytest.mark.parametrize("kind", [*ALTERED, *MALFORMED])
def test_an_altered_json_is_noticed(kind: str, site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    changed = alter(site.document(), *(ALTERED.get(kind) or MALFORMED[kind]))
    site.rewrite(changed)
    if kind in MALFORMED:
        assert offsite.listing(site.settings)[0].fault
    found = offsite.check(empty(site, tmp_path), ID, identity=site.key)
    assert found.status is Status.FAIL
    refused(site, tmp_path, "record|altered|pushed|not as this|is not")


def test_a_json_of_any_bytes_is_noticed(site: Site) -> None:
    offsite.push(site.settings, ID)
    for content in (b"", b"\xff", b"[" * 100_000, b"null", b'{"sha256": 1}', b"NaN"):
        (site.place / f"{ID}.json").write_bytes(content)
        assert offsite.listing(site.settings)[0].fault
        with pytest.raises(OpsError):
            offsite.pull(site.settings, ID, to=site.place / "to")


def forge(site: Site, members: list[tuple[tarfile.TarInfo, bytes]], raw: bytes = b"") -> None:
    """Replace the copy by a stream of these members, sealed with the public recipient."""
    document = site.document()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    plain = zstandard.ZstdCompressor().compress(raw or packed.getvalue())
    recipient = x25519.Recipient.from_str(site.settings.age_recipient)
    content = pyrage.encrypt(plain, [recipient])
    (site.place / f"{ID}.tar.zst.age").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    site.rewrite({**document, "sha256": digest, "stream_bytes": len(content)})


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_copy_that_was_replaced_as_a_whole_is_noticed_by_its_store(site: Site) -> None:
    """Anybody may know the recipient; what was pushed from here is known here."""
    offsite.push(site.settings, ID)
    forge(site, recorded(site))
    for _ in range(2):
        assert offsite.check(site.settings, ID).status is Status.FAIL
    document = {**site.document(), "fault": "", "checked_at": None}
    site.rewrite(document)
    offsite.push(site.settings, ID)
    assert site.document()["sha256"] != document["sha256"]
    assert offsite.check(site.settings, ID).status is Status.OK


HOSTILE = {
    "climbs": (member(f"{ID}/../../x"), b"x"),
    "is absolute": (member("/tmp/x"), b"x"),
    "is a link": (member(f"{ID}/nescordbot.db", tarfile.SYMTYPE, "/etc/passwd"), b""),
    "is a hard link": (member(f"{ID}/nescordbot.db", tarfile.LNKTYPE, "/etc/passwd"), b""),
    "is a device": (member(f"{ID}/nescordbot.db", tarfile.CHRTYPE), b""),
    "is a fifo": (member(f"{ID}/nescordbot.db", tarfile.FIFOTYPE), b""),
    "is a directory": (member(f"{ID}/nescordbot.db", tarfile.DIRTYPE), b""),
    "has another size": (member(f"{ID}/nescordbot.db"), b"x"),
    "is not recorded": (member(f"{ID}/extra"), b"x"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_forged_tar_is_refused(kind: str, site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    info, content = HOSTILE[kind]
    forge(site, [(info, content)])
    refused(site, tmp_path, "record|no `tar")
    found = offsite.check(empty(site, tmp_path), ID, identity=site.key)
    assert found.status is Status.FAIL


def recorded(site: Site) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of the copy, as they are."""
    identity = keys.identities(site.key)
    packed = pyrage.decrypt((site.place / f"{ID}.tar.zst.age").read_bytes(), identity)
    content = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [
            (m, (tar.extractfile(m) or io.BytesIO()).read() if m.isfile() else b"") for m in tar
        ]


def test_a_forged_tar_cannot_take_the_memory(site: Site, tmp_path: Path) -> None:
    """A header that tarfile would read as a whole, a sparse map without end, zeros without end."""
    offsite.push(site.settings, ID)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in recorded(site):
            tar.addfile(info, io.BytesIO(content))
    name = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    forge(site, [(name, bytes(50 << 20))])
    assert "too large" in str(refused(site, tmp_path, "no `tar"))
    info = member(f"{ID}/nescordbot.db")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    info.size = 50 << 20
    raw = info.tobuf(tarfile.PAX_FORMAT) + b"9999999999999\n" + b"1\n" * (25 << 20)
    forge(site, [], raw)
    assert "sparse" in str(refused(site, tmp_path, "no `tar"))
    forge(site, [], whole.getvalue() + bytes(50 << 20))
    assert "follows its end" in str(refused(site, tmp_path, "no `tar"))
    endless = member(ID)
    endless.size = 1 << 80  # tarfile would read over it, also where nothing comes any more
    forge(site, [], endless.tobuf(tarfile.GNU_FORMAT))
    assert "does not name" in str(refused(site, tmp_path, "record"))
    size = b"9 size=0\n"  # of every header that follows, once tarfile has gone by its own
    info = member("x", tarfile.XGLTYPE)
    info.size = len(size)
    endless.name = f"{ID}.record.json"
    header = info.tobuf() + size.ljust(512, b"\0")
    forge(site, [], header + endless.tobuf(tarfile.GNU_FORMAT))
    said = str(refused(site, tmp_path, "no `tar"))
    assert re.search("in the middle|unexpected end of data", said)  # newer Pythons see it first
    forge(site, [], member("x", tarfile.XHDTYPE).tobuf() * 2000)
    assert "recursion" in str(refused(site, tmp_path, "no `tar"))


@pytest.mark.parametrize("kind", ["twice", "missing", "no record", "no tar", "no zstd"])
def test_a_tar_that_is_not_its_record_is_refused(kind: str, site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    members = recorded(site)
    files = [at for at, (info, _) in enumerate(members) if info.isfile()]
    if kind == "twice":
        members.insert(files[0], members[files[0]])
    elif kind == "missing":
        del members[files[0]]
    elif kind == "no record":
        del members[-1]
    forge(site, members, b"no tar" * 1000 if kind == "no tar" else b"")
    if kind == "no zstd":
        recipient = x25519.Recipient.from_str(site.settings.age_recipient)
        content = pyrage.encrypt(b"no zstd" * 1000, [recipient])
        (site.place / f"{ID}.tar.zst.age").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        site.rewrite({**site.document(), "sha256": digest, "stream_bytes": len(content)})
    refused(site, tmp_path, "names once|lacks|no record|no `tar")


@pytest.mark.parametrize(
    "identity", ["../x", "", "a/b", "x\0", "no such", f"{ID}.json", "\x1b[31m"]
)
def test_an_id_that_is_none_is_said(identity: str, site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    for act in (offsite.push, offsite.check, offsite.pull):
        with pytest.raises(OpsError) as caught:
            act(site.settings, identity)
        assert caught.value.hint


def test_what_is_there_already_is_kept(site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    before = contents(site.settings.backup_dir)
    with pytest.raises(BackupError, match="in the store already") as caught:
        offsite.pull(site.settings, ID, identity=site.key)
    assert f"restore {ID}" in caught.value.hint
    assert contents(site.settings.backup_dir) == before
    (tmp_path / "to").mkdir()
    with pytest.raises(OpsError, match="is there already"):
        offsite.pull(site.settings, ID, identity=site.key, to=tmp_path / "to")


@contextlib.contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Path]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", path]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_said_and_nothing_is_added(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsite.push(site.settings, ID)
    new = empty(site, tmp_path)
    with small_disk(tmp_path / "small", 1024) as small:
        with pytest.raises(OpsError, match="bytes free") as caught:
            offsite.pull(new, ID, identity=site.key, to=small / "to")
        assert "name another directory" in caught.value.hint
        evidence = alter(site.document(), "record", "evidence", "allocated_bytes", 1)
        site.rewrite(evidence)
        monkeypatch.setattr(copies, "_ROOM_BYTES", 0)  # as if another program took it meanwhile
        with pytest.raises(OpsError, match="No space left") as caught:
            offsite.pull(new, ID, identity=site.key, to=small / "to")
        assert caught.value.hint
        assert list(small.iterdir()) == []
    with small_disk(tmp_path / "smaller", 100) as small:
        full = site.of(offsite_url=str(small))
        with pytest.raises(OffsiteError, match="No space left") as full_there:
            offsite.push(full, ID)
        assert "offsite prune" in full_there.value.hint
        assert list(small.iterdir()) == []


def test_a_full_volume_at_pull_is_said_by_the_store(site: Site, tmp_path: Path) -> None:
    offsite.push(site.settings, ID)
    with small_disk(tmp_path / "small", 200) as small:
        new = dataclasses.replace(empty(site, tmp_path), backup_dir=small / "backups")
        with pytest.raises(StoreError, match="full") as caught:
            offsite.pull(new, ID, identity=site.key)
        assert "make room" in caught.value.hint
        assert backup.listing(new).generations == ()


# Retention


def several(site: Site, count: int) -> list[str]:
    """Make so many copies, a day apart, of the one backup; return their ids, newest first."""
    offsite.push(site.settings, ID)
    ids = [f"nescordbot_backup_2026011{day}_120000" for day in reversed(range(count))]
    for day, identity in enumerate(reversed(ids)):
        document = alter(site.document(), "record", "id", identity)
        document = alter(document, "record", "taken_at", (NOON + day * DAY).isoformat())
        (site.place / f"{identity}.json").write_text(json.dumps(document))
        shutil.copy(site.place / f"{ID}.tar.zst.age", site.place / f"{identity}.tar.zst.age")
    for suffix in ("json", "tar.zst.age"):
        (site.place / f"{ID}.{suffix}").unlink()
    return ids


def listed(settings: Settings) -> list[str]:
    return [copy.id for copy in offsite.listing(settings)]


def test_prune_keeps_the_newest_good_copies(site: Site) -> None:
    ids = several(site, 5)
    before = contents(site.place)
    done = offsite.prune(site.settings, 3, dry_run=True)
    assert [copy.id for copy in done.copies] == ids[3:]
    assert contents(site.place) == before
    offsite.prune(site.settings, 3)
    assert listed(site.settings) == ids[:3]
    assert len(site.objects) == 6
    with pytest.raises(OffsiteError, match="at least one"):
        offsite.prune(site.settings, 0)


@pytest.mark.parametrize("harm", ["json", "stream", "short", "checked"])
def test_what_is_not_good_is_not_counted(harm: str, site: Site) -> None:
    ids = several(site, 3)
    for identity in ids[:2]:
        stream_path = site.place / f"{identity}.tar.zst.age"
        if harm == "json":
            (site.place / f"{identity}.json").write_text("{}")
        elif harm == "stream":
            stream_path.unlink()
        elif harm == "short":
            os.truncate(stream_path, 10)
        else:
            content = bytearray(stream_path.read_bytes())
            content[-1] ^= 1
            stream_path.write_bytes(content)
            assert offsite.check(site.settings, identity).status is Status.FAIL
    offsite.prune(site.settings, 1)
    assert ids[2] in listed(site.settings)
    assert offsite.check(site.settings, ids[2]).status is Status.OK


def test_prune_never_removes_the_newest_proven_copy(site: Site) -> None:
    ids = several(site, 4)
    path = site.place / f"{ids[2]}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "proven_at": NOON.isoformat()}))
    offsite.prune(site.settings, 1)
    assert listed(site.settings) == [ids[0], ids[2]]


def test_a_prune_that_is_cut_short_leaves_no_copy_without_its_stream(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = several(site, 2)
    real = remote.remove

    def cut(place: remote.Remote, name: str) -> None:
        if name.endswith(".age"):
            raise OffsiteError("cut")
        real(place, name)

    monkeypatch.setattr(remote, "remove", cut)
    with pytest.raises(OffsiteError, match="cut"):
        offsite.prune(site.settings, 1)
    monkeypatch.undo()
    assert [(copy.id, copy.fault) for copy in offsite.listing(site.settings)] == [(ids[0], "")]


# Verify, cost, backup create --push


def judged(settings: Settings, now: datetime) -> dict[str, str]:
    found = freshness.health(settings, now)
    return {check.name: check.status.value for check in found if check.name.startswith("offsite")}


def test_verify_tells_the_age_and_the_last_check_of_copies(site: Site) -> None:
    nowhere = site.of(offsite_url="")
    assert judged(nowhere, NOON) == {}
    assert judged(site.settings, NOON) == {"offsite.age": "warn", "offsite.checked": "warn"}
    offsite.push(site.settings, ID)
    assert judged(site.settings, NOON + DAY) == {"offsite.age": "ok", "offsite.checked": "warn"}
    offsite.check(site.settings, ID, now=NOON)
    fine = {"offsite.age": "ok", "offsite.checked": "ok"}
    assert judged(site.settings, NOON + DAY) == judged(nowhere, NOON + DAY) == fine
    elsewhere = site.of(offsite_url="/another/place")
    unknown_there = {"offsite.age": "warn", "offsite.checked": "warn"}
    assert judged(elsewhere, NOON + DAY) == unknown_there, "a copy at another place is not counted"
    late = judged(site.settings, NOON + 31 * DAY)
    assert late == {"offsite.age": "warn", "offsite.checked": "warn"}


def test_a_copy_found_damaged_is_none_until_it_is_pushed_again(site: Site) -> None:
    offsite.push(site.settings, ID)
    path = site.place / f"{ID}.tar.zst.age"
    path.write_bytes(bytes(path.stat().st_size))
    offsite.check(site.settings, ID, now=NOON)
    found = {check.name: check for check in freshness.health(site.settings, NOON)}
    assert found["offsite.age"].status is found["offsite.checked"].status is Status.WARN
    assert f"offsite push {ID}" in found["offsite.age"].hint
    assert f"offsite push {ID}" in found["offsite.checked"].hint
    offsite.push(site.settings, ID)
    assert judged(site.settings, NOON)["offsite.age"] == "ok"


def test_a_copy_that_is_gone_is_forgotten(site: Site) -> None:
    offsite.push(site.settings, ID)
    shutil.rmtree(site.place)
    site.place.mkdir()
    assert judged(site.settings, NOON)["offsite.age"] == "ok"  # verify asks no network
    with pytest.raises(OffsiteError, match="there is no copy"):
        offsite.check(site.settings, ID)
    assert judged(site.settings, NOON)["offsite.age"] == "warn"
    offsite.push(site.settings, ID)
    assert judged(site.settings, NOON)["offsite.age"] == "ok"
    (newer,) = [made.backup for made in [backup.create(site.settings, push=True)] if made.backup]
    offsite.prune(site.settings, 1)
    assert listed(site.settings) == [newer.id]
    assert not backup.find(site.settings, ID).evidence["offsite"]


def test_a_store_on_the_volume_wants_a_copy_elsewhere(site: Site, tmp_path: Path) -> None:
    on_railway = site.of(volume_mount=site.settings.database.parent)
    found = {check.name: check for check in freshness.health(on_railway, NOON)}
    assert found["backups.place"].status is Status.WARN
    assert f"offsite push {ID}" in found["backups.place"].hint
    with small_disk(tmp_path / "elsewhere", 10_000) as elsewhere:
        url = dataclasses.replace(on_railway, offsite_url=str(elsewhere))
        assert {c.name for c in offsite.push(url, ID).checks} == {"offsite.push"}
        found = {check.name: check for check in freshness.health(url, NOON)}
        assert found["backups.place"].status is Status.OK
    same = {c.name: c.status for c in offsite.push(on_railway, ID).checks}
    assert same["offsite.place"] is Status.WARN


def test_the_price_of_copies_has_a_source_and_a_date(site: Site) -> None:
    def price() -> Any:
        (found,) = [c for c in cost.run(site.settings).checks if c.name == "cost.offsite"]
        return found

    size = backup.find(site.settings, ID).size_bytes
    assert price().value == pytest.approx(size / 1e9 * 0.015)
    done = offsite.push(site.settings, ID)
    assert price().value == pytest.approx(done.copies[0].stream_bytes / 1e9 * 0.015)
    for words in ("$0.015 per GB-month", "2026-08", "egress at $0.05 per GB", "documentation"):
        assert words in price().summary


def test_create_push_does_both(site: Site, tmp_path: Path) -> None:
    made = backup.create(site.settings, push=True)
    assert made.status is Status.OK
    assert made.backup
    assert listed(site.settings) == [made.backup.id]
    with pytest.raises(OffsiteError, match="no age recipient"):
        backup.create(site.of(age_recipient=""), push=True)
    (tmp_path / "file").touch()
    unlucky = site.of(offsite_url=str(tmp_path / "file" / "place"))
    made = backup.create(unlucky, push=True)
    assert made.status is Status.UNKNOWN
    assert made.backup
    (failed,) = [check for check in made.checks if check.status is Status.UNKNOWN]
    assert f"offsite push {made.backup.id}" in failed.hint
    assert len(backup.listing(unlucky).generations) == 3


# After the loss of the volume


def test_the_readmes_way_back_after_the_loss_of_the_volume(
    demo: MakeDemo, tmp_path: Path, s3: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """The commands of the README's code block, one after the other, on an empty machine."""
    bucket(monkeypatch, s3)
    monkeypatch.setenv("NESCORD_OPS_OFFSITE_URL", "s3://bucket/disaster")
    before = demo(directory=tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["offsite", "keygen", "nescord-ops.key"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    name, _, recipient = line.partition("=")
    monkeypatch.setenv(name, recipient)
    assert cli.run(["--app-dir", "old", "backup", "create", "--push"]) == 0
    kept = laid_out(
        load(app_dir=before.app_dir),
        tmp_path / "kept",
        identity=(backup.listing(load(app_dir=before.app_dir)).generations[0].id),
    )
    shutil.rmtree(before.app_dir)
    (tmp_path / "app" / "data").mkdir(parents=True)
    app = tmp_path / "app"
    monkeypatch.setenv("NESCORD_OPS_APP_DIR", str(app))
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{app}/data/nescordbot.db")
    monkeypatch.setenv("CHROMADB_PERSIST_DIRECTORY", f"{app}/data/chromadb")
    section = README.split("### After the loss of the volume")[1].split("\n#")[0]
    commands = section.split("```sh\n")[1].split("```")[0].splitlines()
    assert [command.split()[:3] for command in commands[:3]] == [
        ["nescord-ops", "offsite", "list"],
        ["nescord-ops", "offsite", "pull"],
        ["nescord-ops", "restore", "ID"],
    ]
    (identity,) = listed(load())
    capsys.readouterr()
    for command in commands:
        words = shlex.split(command.replace("ID", identity))
        if words[0] == "rm":
            subprocess.run(words, check=True)
        else:
            assert cli.run(words[1:]) == 0, capsys.readouterr()
    assert (app / "data/nescordbot.db").read_bytes() == kept["nescordbot.db"][2]
    chroma = {
        f"chromadb/{name}": facts[2] for name, facts in contents(app / "data/chromadb").items()
    }
    assert chroma == {
        name: facts[2] for name, facts in kept.items() if name.startswith("chromadb/")
    }
    assert not (tmp_path / "nescord-ops.key").exists()


# Secrets, memory, the command line


def test_no_secret_reaches_a_process_list_or_an_output(
    site: Site, s3: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket(monkeypatch, s3)
    monkeypatch.setenv("NESCORD_OPS_OFFSITE_URL", "s3://bucket/secrets")
    monkeypatch.setenv("NESCORD_OPS_AGE_RECIPIENT", site.settings.age_recipient)
    secret = site.key.read_text().split()[-1]
    seen = set()
    for words in (
        ["offsite", "push", ID],
        ["offsite", "check", ID, "--identity", str(site.key)],
        ["offsite", "pull", ID, "--identity", str(site.key), "--to", str(tmp_path / "to")],
        ["offsite", "list"],
        ["offsite", "pull", ID, "--identity", str(site.key), "--to", str(tmp_path / "to")],
    ):
        app = ["--app-dir", str(site.settings.app_dir), "--json", "--debug"]
        command = [sys.executable, "-m", "nescord_ops", *app, *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
            while child.poll() is None:
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    with contextlib.suppress(OSError):
                        seen.add(path.read_bytes())
                time.sleep(0.02)
            assert child.stdout
            seen.add(child.stdout.read())
    documents = [path.read_bytes() for path in site.settings.backup_dir.iterdir()]
    place = remote.connect("s3://bucket/secrets")
    documents += [remote.read(place, name, 1 << 24) for name in remote.names(place)]
    for text in (*seen, *documents):
        assert secret.encode() not in text
        assert AWS_SECRET.encode() not in text
    assert any(b"--identity" in text for text in seen)


def test_a_password_on_the_command_line_is_refused(site: Site, capsys: Captured) -> None:
    app = ["--app-dir", str(site.settings.app_dir)]
    assert cli.run([*app, "offsite", "list", "--url", "sftp://me:zebra@host/place"]) == 2
    shown = capsys.readouterr().err
    assert "NESCORD_OPS_OFFSITE_URL" in shown
    assert "zebra" not in shown


@pytest.mark.slow
def test_memory_does_not_grow_with_the_backup(site: Site, tmp_path: Path) -> None:
    """A gigabyte and a half, mostly a hole, pushed and pulled in one process each."""
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "nescordbot.db").open("wb") as file:
        file.truncate(1500 << 20)
        file.seek(700 << 20)
        file.write(os.urandom(40 << 20))
    evidence = dict(backup.find(site.settings, ID).evidence)
    evidence["allocated_bytes"] = volume.usage(tree).allocated_bytes
    large = "nescordbot_backup_20260103_120000"
    with store.open_store(site.settings.backup_dir / "store.sqlite3") as opened:
        store.add(opened, large, tree, evidence, taken_at=NOON)
    code = """
        import re, sys
        from nescord_ops import cli
        assert cli.run(sys.argv[1:]) == 0
        print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
    """
    environment = {
        **os.environ,
        "NESCORD_OPS_OFFSITE_URL": str(site.place),
        "NESCORD_OPS_AGE_RECIPIENT": site.settings.age_recipient,
    }
    pull = ["pull", large, "--identity", str(site.key), "--to", str(tmp_path / "to")]
    for words in (["push", large], pull):
        command = [sys.executable, "-c", textwrap.dedent(code)]
        command += ["--app-dir", str(site.settings.app_dir), "offsite", *words]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert int(done.stdout.splitlines()[-1]) < 150_000
    assert site.objects[f"{large}.tar.zst.age"] < 45 << 20
    assert volume.usage(tmp_path / "to").allocated_bytes < 45 << 20
    found = []
    for path in (tree, tmp_path / "to"):
        with (path / "nescordbot.db").open("rb") as file:
            file.seek(700 << 20)
            found.append(hashlib.sha256(file.read(40 << 20)).digest())
    assert found[0] == found[1]


def test_every_command_writes_json(
    site: Site, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESCORD_OPS_OFFSITE_URL", str(site.place))
    monkeypatch.setenv("NESCORD_OPS_AGE_RECIPIENT", site.settings.age_recipient)
    app = ["--json", "--app-dir", str(site.settings.app_dir), "offsite"]
    for words in (["push", ID], ["list"], ["check", ID], ["prune", "--keep", "1"]):
        assert cli.run([*app, *words]) == 0
        document = json.loads(capsys.readouterr().out)
        (copy, *_) = document["copies"] if words == ["list"] else document["data"]["copies"] or [{}]
        if copy:
            assert copy["id"] == ID
    assert cli.run(["--app-dir", str(site.settings.app_dir), "offsite", "list"]) == 0
    assert "1 copy of" in capsys.readouterr().out
    assert cli.run([*app, "pull", ID]) == 2
    assert "in the store already" in json.loads(capsys.readouterr().out)["error"]
