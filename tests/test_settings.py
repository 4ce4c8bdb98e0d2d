"""Where everything lies: precedence, and DATABASE_URL exactly as the bot opens it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nescord_ops.errors import SettingsError
from nescord_ops.settings import load, masked, opened_by_bot

APP = Path("/app")
TUNING = "?timeout=20&journal_mode=WAL"


@pytest.mark.parametrize(
    ("url", "opened", "meant"),
    [
        (
            "sqlite:///app/data/nescordbot.db",
            "/app/app/data/nescordbot.db",
            "/app/data/nescordbot.db",
        ),
        (
            f"sqlite:///app/data/nescordbot.db{TUNING}",
            f"/app/app/data/nescordbot.db{TUNING}",
            "/app/data/nescordbot.db",
        ),
        ("sqlite:////app/data/nescordbot.db", "/app/data/nescordbot.db", None),
        ("sqlite:///data/nescordbot.db", "/app/data/nescordbot.db", None),
        (
            f"sqlite:////app/data/nescordbot.db{TUNING}",
            f"/app/data/nescordbot.db{TUNING}",
            "/app/data/nescordbot.db",
        ),
        ("sqlite:///./data/../x.db", "/app/x.db", None),
    ],
)
def test_the_url_opens_the_file_that_the_bot_opens(
    url: str, opened: str, meant: str | None
) -> None:
    assert opened_by_bot(url, APP) == (Path(opened), Path(meant) if meant else None)


@pytest.mark.parametrize(
    "url", ["", "data/x.db", "sqlite://x.db", "postgres://me:hunter2@host/db", "sqlite:///", "///"]
)
def test_a_url_that_the_bot_cannot_open_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        opened_by_bot(url, APP)
    assert "hunter2" not in str(caught.value)
    assert "sqlite:////" in caught.value.hint


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_any_path_is_taken_literally(rest: str) -> None:
    opened, _ = opened_by_bot(f"sqlite:///{rest}", APP)
    assert str(opened) == os.path.normpath(APP / rest)


def test_arguments_beat_the_environment_which_beats_the_file_which_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = load(app_dir=tmp_path, chroma_dir="c")
    assert default.database == tmp_path / "data/nescordbot.db"
    (tmp_path / ".env").write_text("DATABASE_URL=sqlite:///file.db\nEMBEDDING_DIMENSION=7\n")
    from_file = load(app_dir=tmp_path)
    assert (from_file.database, from_file.dimension) == (tmp_path / "file.db", 7)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///environment.db")
    assert load(app_dir=tmp_path).database == tmp_path / "environment.db"
    explicit = load(app_dir=tmp_path, database_url="sqlite:///argument.db")
    assert explicit.database == tmp_path / "argument.db"
    assert load(app_dir=tmp_path, database_url="").database == tmp_path / "environment.db"


def test_nothing_configured_is_an_error_that_names_the_demo(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing is configured") as caught:
        load(app_dir=tmp_path)
    assert "nescord-ops demo" in caught.value.hint
    assert "--demo" in caught.value.hint


@pytest.mark.parametrize("value", ["", "   "])
def test_an_empty_variable_counts_as_not_set(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", value)
    with pytest.raises(SettingsError, match="nothing is configured"):
        load(app_dir=tmp_path)


@pytest.mark.parametrize("value", ["many", "-1", "0", "nan", "inf"])
def test_a_number_that_is_none_is_refused_by_name(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_DIMENSION", value)
    with pytest.raises(SettingsError, match="EMBEDDING_DIMENSION"):
        load(app_dir=tmp_path, chroma_dir="c")


def test_a_missing_directory_and_a_missing_or_broken_env_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not a directory"):
        load(app_dir=tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="not a file"):
        load(app_dir=tmp_path, env_file=tmp_path / "nowhere")
    (tmp_path / ".env").write_bytes(b"#" * 1_000_001)
    with pytest.raises(SettingsError, match="larger than 1 MB"):
        load(app_dir=tmp_path)
    (tmp_path / ".env").write_bytes(b"DATABASE_URL=\xff\xfe")
    with pytest.raises(SettingsError, match="cannot be read"):
        load(app_dir=tmp_path)


def test_secrets_are_seen_and_never_kept(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DISCORD_TOKEN=hunter2\nDATABASE_URL=sqlite:///x.db\n")
    found = load(app_dir=tmp_path)
    assert found.present == {
        "DISCORD_TOKEN": True,
        "OPENAI_API_KEY": False,
        "GEMINI_API_KEY": False,
    }
    for text in (repr(found), json.dumps(found.to_dict()), found._repr_html_()):
        assert "hunter2" not in text


def test_a_place_with_a_secret_in_it_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "DISCORD_TOKEN=hunter22\nDATABASE_URL=sqlite:///${DISCORD_TOKEN}"
    )
    with pytest.raises(SettingsError, match="DATABASE_URL has a key or token") as caught:
        load(app_dir=tmp_path)
    assert "hunter22" not in f"{caught.value} {caught.value.hint}"


def test_every_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = load(app_dir=".", chroma_dir="c")
    paths = [found.app_dir, found.database, found.chroma_dir, found.backup_dir, found.log_file]
    assert all(path.is_absolute() for path in [*paths, found.reports_dir])


def test_a_nul_in_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="NUL"):
        load(app_dir=tmp_path, chroma_dir="a\0b")
    with pytest.raises(SettingsError, match="NUL"):
        load(app_dir="a\0b")


def test_the_env_file_can_be_named_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "other.env"
    file.write_text("DATABASE_URL=sqlite:////srv/bot.db\n", "utf-8")
    monkeypatch.setenv("NESCORD_OPS_ENV_FILE", str(file))
    found = load(app_dir=tmp_path)
    assert (found.env_file, found.database) == (file, Path("/srv/bot.db"))
    monkeypatch.setenv("NESCORD_OPS_ENV_FILE", str(tmp_path / "gone.env"))
    with pytest.raises(SettingsError, match="is not a file"):
        load(app_dir=tmp_path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/mnt/copies", "/mnt/copies"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("sftp://user:secret@host/path?key=secret", "sftp://***@host/path?***"),
        ("sftp://user:sec?ret@host/path", "sftp://***"),
    ],
)
def test_no_part_of_a_secret_in_a_url_is_shown(url: str, shown: str) -> None:
    assert masked(url) == shown
