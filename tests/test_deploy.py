"""Deploy: every wrong line of the guide is found, what works passes, and no secret is shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeDemo
from hypothesis import given, settings
from hypothesis import strategies as st

from nescord_ops import backup, cli, configuration, deploy, manifests, restore, verify
from nescord_ops import checkout as checkouts
from nescord_ops.checks import Status
from nescord_ops.errors import SettingsError, VolumeError
from nescord_ops.rules import RULES
from nescord_ops.settings import load

BEFORE, AFTER = datetime(2026, 11, 24, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
SECRET = "sk-PLANTED0123456789abcdefTOKEN"
HOSTILE = "<script>alert(1)</script>\x1b[31mred\x1b[0m"

# The deployment guide's files, written anew from what is known of them.
GUIDE = {
    "railway.json": """{
  "$schema": "https://railway.com/railway.schema.json",
  "build": { "builder": "NIXPACKS" },
  "deploy": {
    "startCommand": "python3 start.py",
    "healthcheckTimeout": 300,
    "restartPolicyType": "ON_FAILURE",
    "restartPolicyMaxRetries": 3
  },
  "volumes": [
    { "name": "notes", "mount": "/app/data" },
    { "name": "vectors", "mount": "/app/chromadb_data" }
  ]
}
""",
    "Dockerfile": """FROM python:3.11-slim
WORKDIR /app
COPY . .
RUN mkdir -p /app/data /app/chromadb_data && \\
    # who may do what
    chmod 750 /app/data /app/chromadb_data && \\
    chown nobody:nobody /app/data
VOLUME ["/app/data", "/app/chromadb_data"]
USER nobody
CMD ["python3", "start.py"]
""",
    "nixpacks.toml": "[start]\ncmd = 'python3 start.py'\n",
    ".env": """DISCORD_TOKEN=your_token_here
GEMINI_API_KEY="AIza-no-key"
DATABASE_URL=sqlite:///app/data/nescordbot.db?timeout=20&journal_mode=WAL
CHROMADB_PERSIST_DIRECTORY=/app/chromadb_data
CHROMADB_DISTANCE_METRIC=euclid
EMBEDDING_DIMENSION=384
""",
    ".env.example": """DISCORD_TOKEN=your_token_here
GEMINI_API_KEY=your_gemini_key_here
DATABASE_URL=sqlite:///app/data/nescordbot.db
CHROMADB_SETTINGS={}
""",
    "docs/volumes.md": """# Volumes
Railway's automatic backups are free; a volume is $0.25/GB a month.
```sh
railway connect
railway volume backup notes
railway volume list-backups
railway run ls /app/data
rm /app/data/nescordbot.db-wal
```
DATABASE_URL=sqlite:///app/data/nescordbot.db
""",
    "src/nescordbot/__init__.py": "",
}
WRONG = [
    ("config.volumes", "railway.json:10", "nothing is mounted"),
    ("config.two_volumes", "railway.json:10", "one volume"),
    ("config.builder", "railway.json:3", "deprecated"),
    ("config.dockerfile_wins", "railway.json:3", "always wins"),
    ("config.healthcheck_timeout", "railway.json:6", "does nothing"),
    ("config.restarts", "railway.json:8", "after 3 crashes"),
    ("config.no_mount", "railway.json", "no volume is attached"),
    ("config.sunset", "railway.json", "7 days more, until 2026-12-01"),
    ("image.hidden", "Dockerfile:6", "mounted over it"),
    ("image.nobody", "Dockerfile:7", "no group nobody"),
    ("image.volume", "Dockerfile:8", "fails the build"),
    ("image.user", "Dockerfile:9", "cannot write"),
    ("image.nixpacks", "nixpacks.toml:1", "not read"),
    ("variables.form", ".env:1", "DISCORD_TOKEN is a placeholder"),
    ("variables.database_off_volume", ".env:3", "it is /app/app/data/nescordbot.db?"),
    ("variables.database_off_volume", ".env.example:3", "lost at the next deploy"),
    ("variables.url_query", ".env:3", "part of the file's name"),
    ("variables.backup_helper", ".env.example:3", "it looks for /app/data/nescordbot.db"),
    ("variables.chroma_off_volume", ".env:4", "it is /app/chromadb_data"),
    ("variables.distance", ".env:5", "refuses"),
    ("variables.dimension", ".env:6", "768"),
    ("variables.inert", ".env.example:4", "reads no such variable"),
    ("variables.mandatory", "OPENAI_API_KEY", "does not start"),
    ("variables.example", ".env.example", "OPENAI_API_KEY"),
    ("variables.draining", "DRAINING_SECONDS", "kills the bot at once"),
    ("text.free_backups", "docs/volumes.md:2", "off until switched on"),
    ("text.price", "docs/volumes.md:2", "$0.15"),
    ("text.connect", "docs/volumes.md:4", "no shell"),
    ("text.backup_command", "docs/volumes.md:5, docs/volumes.md:6", "no such command"),
    ("text.run", "docs/volumes.md:7", "never sees the volume"),
    ("text.remove_wal", "docs/volumes.md:8", "newest notes"),
    ("text.guide", "docs/volumes.md:10", "does not work"),
    ("security.env_file", ".env is mode 644", "everyone"),
]
# A line that each rule must find, for the rules that the guide gives no occasion to.
ALSO = [
    ("config.healthcheck", "railway.json", '{"deploy": {"healthcheckPath": "/"}}', 1),
    ("config.cron", "railway.toml", '[deploy]\ncronSchedule = "* * * * *"', 2),
    ("config.replicas", "railway.json", '{"deploy":\n{"numReplicas": 2}}', 2),
    ("config.replicas", "railway.json",
     '{"deploy": {"multiRegionConfig":\n {"eu":\n {"numReplicas": 2}}}}', 3),
    ("config.mount", "railway.toml", '[deploy]\n\nrequiredMountPath = "/data"', 3),
    ("config.restarts", "railway.json",
     '{"environments": {"production":\n{"deploy": {"restartPolicyType": "NEVER"}}}}', 2),
    ("image.start", "railway.json", '{"deploy": {\n"startCommand": "sleep infinity"}}', 2),
    ("image.start", "Procfile", "# x\nworker: sleep infinity", 2),
    ("image.start", "Dockerfile", 'FROM a\nCMD ["sleep", "infinity"]', 2),
    ("image.hidden", "Dockerfile",
     "FROM a\nARG D=/app/data\nRUN <<EOF\nset -e\nchmod 755 $D\nEOF", 5),
    ("image.hidden", "Dockerfile", "FROM a\nCOPY seed ./data/", 2),
    ("variables.url", "Dockerfile", "FROM a\nENV DATABASE_URL=postgres://u:p@h/d", 2),
    ("variables.by_hand", "Dockerfile", "FROM a\nENV RAILWAY_VOLUME_NAME x", 2),
    ("secrets.committed", "Dockerfile", f"FROM a\nENV OPENAI_API_KEY={SECRET}", 2),
    ("secrets.committed", ".env.example", f"\nOPENAI_API_KEY={SECRET}", 2),
    ("secrets.committed", ".railway/railway.ts", f'env: {{\n OPENAI_API_KEY: "{SECRET}" }}', 2),
    ("iac.two_volumes", ".railway/railway.ts", '{\nvolumeMounts: { "/app/data": a, "/b": b } }', 2),
    ("iac.no_volume", ".railway/railway.ts", "export default 1\n// volumeMounts: { '/a': b }", 1),
    ("iac.mount", ".railway/railway.ts", "\nvolumeMounts: { '/data': b },", 2),
    ("variables.database_off_volume", ".railway/railway.ts",
     'env: {\nDATABASE_URL: "sqlite:///app/data/x.db" }', 2),
]  # fmt: skip


def checkout(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    if ".env" in files:
        (root / ".env").chmod(0o644)
    return root


def lint(root: Path, now: datetime = BEFORE) -> deploy.Deployment:
    return deploy.run(load(app_dir=root, required=False), repo=root, now=now)


def said(found: deploy.Deployment, name: str) -> str:
    """What the check of that name says; fails where there is none."""
    (check,) = (check for check in found.checks if check.name == name)
    return check.summary


def bad(found: deploy.Deployment) -> dict[str, str]:
    return {c.name: c.summary for c in found.checks if c.status in (Status.FAIL, Status.WARN)}


def outputs(found: deploy.Deployment) -> str:
    """All that a person or program can see of it."""
    bundle = found._repr_mimebundle_()
    tables = [found.findings_table().html, found.about("config", "variables").html]
    return "\n".join([json.dumps(bundle), json.dumps(found.to_dict()), repr(found.checks), *tables])


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    return checkout(tmp_path / "guide", GUIDE)


@pytest.fixture
def works(tmp_path: Path) -> Path:
    """The bot's checkout with the files that `--write` generates put into their places."""
    written = tmp_path / "written"
    configuration.write(written)
    root = tmp_path / "works"
    shutil.copytree(written, root)
    (root / "src" / "nescordbot").mkdir(parents=True)
    fragment = (root / "Dockerfile.fragment").read_text()
    dockerfile = (
        f'FROM python:3.11-slim\nWORKDIR /app\nCOPY . .\n{fragment}CMD ["python3", "x.py"]\n'
    )
    (root / "Dockerfile").write_text(dockerfile)
    (root / "variables.env").rename(root / ".env.example")
    return root


@pytest.mark.parametrize(("rule", "where", "reality"), WRONG)
def test_every_wrong_row_of_the_guide_is_found_where_it_stands(
    guide: Path, rule: str, where: str, reality: str
) -> None:
    found = lint(guide)
    assert where in said(found, rule)
    assert reality in said(found, rule)
    assert next(check.hint for check in found.checks if check.name == rule)


@pytest.mark.parametrize(("rule", "file", "text", "line"), ALSO)
def test_every_other_trap_is_found_where_it_stands(
    tmp_path: Path, rule: str, file: str, text: str, line: int
) -> None:
    root = checkout(tmp_path, {"Dockerfile": "FROM a\n", file: text})
    found = lint(root)
    assert (rule, file, line) in {(p.rule, p.file, p.line) for p in found.findings}
    assert f"{file}:{line}" in said(found, rule)


def test_no_rule_is_without_a_line_that_it_finds() -> None:
    assert {rule.name for rule in RULES} <= {row[0] for row in WRONG + ALSO}


def test_the_guide_is_not_safe_and_its_findings_are_data(guide: Path) -> None:
    found = lint(guide)
    assert found.status is Status.FAIL
    places = found.to_dict()["data"]["findings"]
    assert {"rule": "image.volume", "file": "Dockerfile", "line": 8, "detail": ""} in places
    assert "Dockerfile:8" in found.findings_table().html


def test_the_configuration_that_is_written_passes(works: Path) -> None:
    found = lint(works)
    assert bad(found) == {}
    assert {c.name for c in found.checks if c.status is Status.UNKNOWN and not c.expected} == set()
    for group in ("config", "image", "variables", "iac", "text"):
        assert "nothing found" in said(found, f"{group}.rules")
    assert list(bad(lint(works, AFTER))) == ["config.sunset"], "then only the old file is too much"


def test_the_sunset_is_said_by_date(tmp_path: Path) -> None:
    root = checkout(tmp_path, {"railway.json": '{"deploy": {"requiredMountPath": "/app/data"}}'})
    before = next(c for c in lint(root).checks if c.name == "config.sunset")
    after = next(c for c in lint(root, AFTER).checks if c.name == "config.sunset")
    assert (before.status, before.value, before.unit) == (Status.WARN, 7, "days")
    assert (after.status, after.value) == (Status.FAIL, 0)
    assert "nothing in it has any effect" in after.summary


def test_write_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new"
    assert cli.run(["--json", "deploy", "--write", str(target)]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert {Path(f).relative_to(target).as_posix() for f in files} == set(configuration.FILES)
    (target / "railway.json").write_text("mine")
    assert cli.run(["deploy", "--write", str(target)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (target / "railway.json").read_text() == "mine"
    with pytest.raises(VolumeError):
        configuration.write(target / "railway.json")


def test_the_written_steps_name_real_commands_only(works: Path) -> None:
    """Each of ours as its help has it; those of Railway's as the documentation of the CLI has."""
    railway = r"ssh|link|redeploy|volume (add|browse)|variable set|config (plan|apply|migrate)"
    steps = (works / "STEPS.md").read_text()
    text = steps + (works / ".railway" / "railway.ts").read_text()
    for command in manifests.re.findall(r"railway ((?:[a-z]+ ?)+)", text):
        assert manifests.re.match(railway, command), command
    ours = set(manifests.re.findall(r"nescord-ops (?:--\S+ \S+ )*((?:backup )?[a-z]+)", steps))
    assert {"backup create", "backup export", "restore", "verify"} <= ours
    for command in ours:
        assert cli.run([*command.split(), "--help"]) == 0


def test_the_migration_loses_nothing(demo: MakeDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps as they are written: off the volume, backup, proof, move, restore, proof."""
    made = demo("three-slash-url")
    away = made.app_dir / "chromadb_data"
    made.chroma_dir.rename(away)
    old = load(app_dir=made.app_dir, chroma_dir=away)
    monkeypatch.setenv("NESCORD_OPS_BACKUP_DIR", str(made.data_dir / "backups"))
    taken = backup.create(load(app_dir=made.app_dir, chroma_dir=away), drill=True)
    assert taken.status is Status.OK
    lost = [old.database, away]
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{made.data_dir}/nescordbot.db")
    new = load(app_dir=made.app_dir, chroma_dir=made.chroma_dir)
    shutil.rmtree(lost[1])
    lost[0].unlink()
    restore.run(new, taken.backup.id)
    found = verify.run(new)
    assert found.status in (Status.OK, Status.WARN)
    assert {t.name: t.rows for t in found.tables}["knowledge_notes"] == made.notes


def test_the_healthy_demo_is_healthy_and_a_wrong_url_is_found(demo: MakeDemo) -> None:
    healthy = deploy.run(load(app_dir=demo().app_dir))
    assert (healthy.status, bad(healthy)) == (Status.OK, {})
    shutil.rmtree(healthy.settings.app_dir)
    assert "variables.database_off_volume" in bad(
        deploy.run(load(app_dir=demo("three-slash-url").app_dir))
    )


def test_searchable_notes_need_the_key_of_their_embeddings(tmp_path: Path) -> None:
    root = checkout(tmp_path, {".env": "PKM_ENABLED=true\n"})
    assert ".env:1: no GEMINI_API_KEY" in said(lint(root), "variables.gemini")
    checkout(tmp_path, {".env": "PKM_ENABLED=true\nGEMINI_API_KEY=API-no-key\n"})
    assert "variables.gemini" not in bad(lint(root))


def test_in_the_container_the_variables_of_the_environment_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAILWAY_VOLUME_MOUNT_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("DATABASE_URL", "sqlite:////elsewhere/x.db")
    found = deploy.run(load(app_dir=tmp_path))
    assert "the environment" in said(found, "variables.database_off_volume")
    assert "not set" in said(found, "variables.mandatory")
    monkeypatch.delenv("RAILWAY_VOLUME_MOUNT_PATH")
    monkeypatch.setenv("RAILWAY_SERVICE_ID", "x")
    assert "no volume is attached" in said(deploy.run(load(app_dir=tmp_path)), "location.volume")


@pytest.mark.parametrize(
    ("file", "text", "where"),
    [
        ("railway.json", '{\n  "deploy": {,}\n}', "railway.json:2 (not JSON"),
        ("railway.toml", "[deploy]\nstartCommand = \n", "railway.toml:2 (not TOML"),
        ("nixpacks.toml", "x = [", "nixpacks.toml:1 (not TOML"),
        ("Dockerfile", "FROM a\nRUN <<EOF\nx\n", "Dockerfile:2 (this heredoc has no end"),
        ("Dockerfile", "FROM a\n\nINSTALL b\n", "Dockerfile:3 (no instruction"),
        ("Dockerfile", "# nothing\n", "Dockerfile:1 (no FROM"),
        ("railway.json", "[\n" * 100_000, "railway.json:1 (nested too deeply"),
        ("railway.toml", f"x = {'9' * 5000}", "railway.toml:1 (nested too deeply, or a number"),
    ],
)
def test_a_broken_file_is_a_finding_with_its_line(
    tmp_path: Path, file: str, text: str, where: str
) -> None:
    found = lint(checkout(tmp_path, {file: text}))
    assert where in said(found, "files.broken")
    assert found.status is Status.FAIL


@given(st.data())
@settings(max_examples=60)
def test_no_damage_of_any_file_is_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    file = data.draw(st.sampled_from([*GUIDE, ".railway/railway.ts", "railway.toml", "Procfile"]))
    whole = GUIDE.get(file) or '[deploy]\nvolumeMounts: { "/a": b }\nA_B: "c"\nx: sleep infinity\n'
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    text = whole[:start] + data.draw(st.text(st.characters(codec="utf-8"))) + whole[end:]
    root = checkout(tmp_path_factory.mktemp("damaged"), {**GUIDE, file: text})
    try:
        found = lint(root)
    except SettingsError:  # a .env that makes no sense, as everywhere else
        assert file == ".env"
    else:
        assert found.status is Status.FAIL


def test_json_with_comments_and_skipped_lines_are_said_and_the_rest_is_read(tmp_path: Path) -> None:
    text = '{\n  // the "volumes"\n  "volumes": [] /* none */, "x": [1, 2],\n "volumes": [1]\n}'
    root = checkout(tmp_path, {"railway.json": text, ".env": "\n\nnot a line\nA=1\n"})
    found = lint(root)
    assert "railway.json:2 (JSON has no comments)" in said(found, "files.comment")
    assert ".env:3" in said(found, "files.skipped")
    assert "railway.json:4" in said(found, "config.volumes")


def test_unknown_keys_and_wrong_types_are_named_by_their_path(tmp_path: Path) -> None:
    text = """{
  "deploys": {},
  "deploy": { "drainingSeconds": "10",
    "restart": 1 },
  "environments": { "pr": { "deploy": { "volume": 1 } } }
}"""
    found = lint(checkout(tmp_path, {"railway.json": text}))
    keys = said(found, "config.unknown_keys")
    for where in (
        "railway.json:2 (deploys)",
        "railway.json:4 (deploy.restart)",
        "railway.json:5 (environments.pr.deploy.volume)",
    ):
        assert where in keys
    assert "railway.json:3 (deploy.drainingSeconds)" in said(found, "config.types")


def test_another_repository_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["deploy", str(tmp_path)]) == 2
    assert "is not NescordBot's checkout" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "Dockerfile").write_text("FROM a\n")
    assert "judged as if it were" in said(lint(tmp_path), "deploy.repository")
    with pytest.raises(SettingsError):
        deploy.run(load(app_dir=tmp_path, required=False), repo=tmp_path / "nowhere")


def test_odd_files_are_not_looked_at_and_said_to_be_so(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text('{"volumes": []}')
    root = tmp_path / "repo"
    (root / ".railway").mkdir(parents=True)
    (root / "railway.json").symlink_to(outside)
    os.mkfifo(root / "Dockerfile")
    (root / "railway.toml").write_bytes(b"x" * 2_000_000)
    (root / ".env.example").write_bytes(b"A=1\0")
    (root / "nixpacks.toml").write_bytes(b"\xff\xfe")
    (root / "Procfile").mkdir()
    (root / ".railway" / "railway.ts").write_text("x" * 20_000)
    found = lint(root)
    unread = {r.file: r.value for r in checkouts.read(root, None, {}).of("unread")}
    assert unread == {
        "railway.json": "leads out of the checkout",
        "Dockerfile": "is not a regular file",
        "railway.toml": "is larger than 1 MB",
        ".env.example": "has NUL bytes in it",
        "nixpacks.toml": "is not UTF-8 text",
        "Procfile": "is not a regular file",
        ".railway/railway.ts": "has a line of more than 10,000 bytes",
    }
    assert "railway.json (leads out" in said(found, "files.unread")
    assert found.status is Status.UNKNOWN
    assert not found.findings


def test_documents_are_read_to_a_bound_which_is_said(tmp_path: Path) -> None:
    many = {"docs/a.md": "a\n" * 100_001, "docs/b.md": "railway volume backup x\n"}
    found = lint(checkout(tmp_path, many))
    assert "after 100,000 lines of others" in said(found, "files.text")
    assert found.findings == ()


def test_a_named_dockerfile_is_read_inside_the_checkout_only(tmp_path: Path) -> None:
    config = '{"build": {"dockerfilePath": "%s"}}'
    root = checkout(
        tmp_path / "r", {"railway.json": config % "d/File", "d/File": "FROM a\nVOLUME /x"}
    )
    assert "d/File:2" in said(lint(root), "image.volume")
    (tmp_path / "File").write_text("FROM a\nVOLUME /x")
    (root / "railway.json").write_text(config % "../File")
    assert "leads out of the checkout" in said(lint(root), "files.unread")


@pytest.mark.parametrize(
    "command",
    [
        "cat <<<hello",
        "echo $((1<<2)) $((1 << 2))",
        "true && \\\n  cat <<EOF >/x\nhello\nEOF",
        "<<A cat <<-'B' >/x\na\nA\nb\nB",
    ],
)
def test_a_heredoc_is_what_docker_takes_for_one(tmp_path: Path, command: str) -> None:
    root = checkout(tmp_path, {"Dockerfile": f"FROM a\nRUN {command}\nVOLUME /x\n"})
    line = 3 + command.count("\n")
    assert f"Dockerfile:{line}" in said(lint(root), "image.volume")


@pytest.mark.parametrize("key", ["²", "9" * 5000])
def test_a_key_that_looks_like_a_number_is_a_key(tmp_path: Path, key: str) -> None:
    text = json.dumps({key: 1, "volumes": [0]}, indent=0)
    root = checkout(tmp_path, {"railway.json": text})
    assert "railway.json:3" in said(lint(root), "config.volumes")


@pytest.mark.parametrize(
    ("file", "unit"),
    [
        ("Dockerfile", "FROM a\n" + "RUN a\\\n" * 100_000),
        ("Dockerfile", "FROM a\nRUN " + "chown \\\n" * 25_000),
        ("Dockerfile", "FROM a\n" + "ENV A=$A$A$A$A\n" * 30_000),
        ("Dockerfile", "FROM a\n" + 'ENV a="b\\"\n' * 90_000),
        (".railway/railway.ts", "/*\n" * 300_000),
        (".railway/railway.ts", "volumeMounts: {\n" * 60_000),
        (".railway/railway.ts", '"\\"\n' * 200_000),
        ("railway.json", "[" + "{},\n" * 200_000 + "0]"),
        (".env", "A='\\'\n" * 75_000),
        ("README.md", "rm -\n" * 190_000),
        ("railway.toml", 'a = """\n' + ("[" * 9_000 + "\n") * 100 + '"""'),
        ("railway.json", '{"a":' + "[" * 300 + "0,\n" * 60_000 + "0" + "]" * 300 + "}"),
        ("railway.json", '{"%s": [' % ("k" * 9_000) + "0,\n" * 60_000 + "0]}"),
        ("Dockerfile", f"FROM a\nENV A={'a' * 200}\n" + ("RUN " + "$A" * 49 + "\n") * 9_000),
    ],
)
def test_a_large_file_takes_time_in_proportion(tmp_path: Path, file: str, unit: str) -> None:
    root = checkout(tmp_path, {file: unit})
    began = time.process_time()
    lint(root)
    assert time.process_time() - began < 10


@pytest.mark.parametrize("version", [2, 4])
def test_a_tracked_env_file_is_found_without_running_git(tmp_path: Path, version: int) -> None:
    root = checkout(tmp_path, {".env": "A=1\n", "x": ""})
    for arguments in (["init", "-q"], ["add", "x"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    assert said(lint(root), "security.committed") == ".env is not tracked by git"
    subprocess.run(["git", "add", "-f", ".env"], cwd=root, check=True)
    subprocess.run(["git", "update-index", f"--index-version={version}"], cwd=root, check=True)
    (root / ".git" / "config").write_text("[core]\n\tfsmonitor = touch ran\n")
    assert ("tracked by git: everyone" in said(lint(root), "security.committed")) is (version == 2)
    assert not (root / "ran").exists()


def test_hostile_text_is_neither_html_nor_ansi(tmp_path: Path) -> None:
    text = json.dumps({HOSTILE: 1, "deploy": {"requiredMountPath": HOSTILE}})
    env = f"DATABASE_URL=sqlite:///{HOSTILE}\n"
    root = checkout(tmp_path, {"railway.json": text, ".env.example": env})
    found = lint(root)
    html = found.findings_table().html + found.about("config", "variables").html
    assert "<script>" not in html
    assert "\x1b" not in outputs(found)


PLACES = {
    "railway.json": ['{"%s": 1}', '{"deploy": {"startCommand": "%s", "%s": {}}}', '{"a": %s'],
    "railway.toml": ['[build]\nbuilder = "%s"', '"%s" = 1', "%s"],
    "Dockerfile": [
        "FROM a\nENV OPENAI_API_KEY=%s",
        "FROM a\nARG X=%s\nRUN chmod $X /app/data",
        "%s x",
    ],
    ".env": [
        "OPENAI_API_KEY='%s '",
        "%s",
        "DATABASE_URL=sqlite:///${OPENAI_API_KEY}\nOPENAI_API_KEY=%s",
    ],
    ".env.example": ["GITHUB_TOKEN=%s", "DATABASE_URL=sqlite:///%s"],
    ".railway/railway.ts": ['env: { OPENAI_API_KEY: "%s" }', 'volumeMounts: {"/%s": a, "/b": b}'],
    "nixpacks.toml": ['[variables]\nOPENAI_API_KEY = "%s"', '[start]\ncmd = "%s"'],
    "Procfile": ["worker: sleep infinity %s"],
    "docs/a.md": ["railway volume backup %s", "rm %s-wal"],
}


@given(st.data())
@settings(max_examples=60)
def test_no_secret_is_ever_shown(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Wherever it stands, as long as one variable that is a secret has it."""
    files = data.draw(st.lists(st.sampled_from(sorted(PLACES)), min_size=1, unique=True))
    chosen = {
        file: data.draw(st.sampled_from(PLACES[file])).replace("%s", SECRET) for file in files
    }
    root = checkout(tmp_path_factory.mktemp("planted"), chosen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        try:
            shown = outputs(lint(root))
        except SettingsError as error:
            shown = f"{error} {error.hint}"
    assert SECRET not in shown


def test_no_secret_reaches_the_terminal(guide: Path) -> None:
    (guide / ".env").write_text(f"DISCORD_TOKEN={SECRET}\nOPENAI_API_KEY='{SECRET}\n")
    for mode in ([], ["--json"]):
        command = [sys.executable, "-m", "nescord_ops", *mode, "deploy", str(guide)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_nothing_is_written_and_nothing_heavy_imported(guide: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in guide.rglob("*")}
    code = (
        f"import sys; from nescord_ops import cli; cli.run(['--json', 'deploy', {str(guide)!r}]);"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"chromadb", "pandas", "matplotlib", "numpy", "rfc3987_syntax"}
    assert not heavy & set(done.stdout.split("MODULES ")[1].split()) - {"rfc3987_syntax"}
    assert {p: p.stat().st_mtime_ns for p in guide.rglob("*")} == before


@pytest.mark.skipif(not shutil.which("npm"), reason="needs node and npm")
def test_the_typescript_passes_its_compiler_and_a_wrong_mount_does_not(
    works: Path, tmp_path: Path
) -> None:
    """Against Railway's own package, as its CLI does; skipped where no registry can be reached."""
    home = tmp_path / "node"
    home.mkdir()
    (home / "package.json").write_text('{"private": true, "type": "module"}')
    install = ["npm", "install", "--silent", "--no-audit", "railway@3.11.0", "typescript@5"]
    try:
        got = subprocess.run(install, cwd=home, capture_output=True, check=False, timeout=90)
    except subprocess.TimeoutExpired:
        pytest.skip("npm's registry does not answer")
    if got.returncode:
        pytest.skip("npm's registry cannot be reached")
    good = (works / ".railway" / "railway.ts").read_text()
    (home / "good.ts").write_text(good)
    (home / "wrong.ts").write_text(good.replace('"/app/data": data', '"/app/data": "data"'))
    tsc = [
        "node_modules/.bin/tsc",
        "--noEmit",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--skipLibCheck",
    ]
    said = {
        name: subprocess.run([*tsc, name], cwd=home, capture_output=True, text=True, check=False)
        for name in ("good.ts", "wrong.ts")
    }
    assert (said["good.ts"].returncode, said["good.ts"].stdout) == (0, "")
    assert said["wrong.ts"].returncode
    assert "not assignable" in said["wrong.ts"].stdout


@pytest.mark.parametrize("option", ["--skip-worktree", "--assume-unchanged"])
def test_a_tracked_env_file_is_found_whatever_git_was_told_to_overlook(
    tmp_path: Path, option: str
) -> None:
    root = checkout(tmp_path, {".env": "A=1\n"})
    for arguments in (["init", "-q"], ["add", "-f", ".env"], ["update-index", option, ".env"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    assert "tracked by git: everyone" in said(lint(root), "security.committed")


def test_an_index_that_is_not_all_there_says_nothing_of_what_is_tracked(tmp_path: Path) -> None:
    root = checkout(tmp_path, {".env": "A=1\n"})
    for arguments in (["init", "-q"], ["add", "-f", ".env"], ["update-index", "--split-index"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    assert "no index of git" in said(lint(root), "security.committed")
    (root / ".git" / "index").write_bytes(b"DIRC")
    assert "no index of git" in said(lint(root), "security.committed")


def test_the_command_that_protects_the_keys_survives_any_name(tmp_path: Path) -> None:
    root = checkout(tmp_path / "my bot", {".env": "A=1\n"})
    (root / ".env").chmod(0o644)
    hint = next(c.hint for c in lint(root).checks if c.name == "security.env_file")
    subprocess.run(["sh", "-c", hint], check=True)
    assert (root / ".env").stat().st_mode & 0o777 == 0o600
