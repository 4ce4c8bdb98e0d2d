"""What a line of a deployment really does, as a table: one thing that goes wrong is one rule.

Sources: docs.railway.com (volumes, config as code, infrastructure as code, deployments, CLI;
August 2026), NescordBot's `config.py` and backup helper (September 2025), docs.docker.com. A rule
never puts a variable's value into its words, but for the path that the bot makes of it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from nescord_ops.checkout import ENVIRONMENT, Checkout
from nescord_ops.checks import Status
from nescord_ops.errors import SettingsError
from nescord_ops.manifests import Row
from nescord_ops.results import Result
from nescord_ops.settings import SECRETS, SQLITE_PREFIX, opened_by_bot

FAIL, WARN = Status.FAIL, Status.WARN
DIMENSION = "768"
METRICS = ("cosine", "l2", "ip")
URL = "DATABASE_URL=sqlite:////app/data/nescordbot.db"
# The beginnings that the bot itself demands, or it does not start.
BEGINNINGS = {
    "DISCORD_TOKEN": ("Bot ", "MTA", "ODQ", "OTQ", "MT"),
    "OPENAI_API_KEY": ("sk-",),
    "GEMINI_API_KEY": ("AIza", "API-"),
}
INERT = ("CHROMADB_SETTINGS", "PKM_HYBRID_SEARCH_ALPHA", "PKM_MAX_RESULTS")
_PLACEHOLDER = re.compile(
    r"your[_-]|_here\b|change.?me|placeholder|example|dummy|x{5}|\.\.\.|<|\*\*"
)
_HIDING = re.compile(r"\b(?:chmod|chown|chgrp)\b")
# The first chown only (RUN has no end of its length): the rest would be read anew for each.
_NOBODY = re.compile(r"^(?>.*?\bchown\b).*\bnobody:nobody\b")
_HAS_NOBODY = re.compile(r"alpine|fedora|centos|rocky|alma|ubi\d")
_GUIDE = re.compile(
    r'sqlite:///app/|sqlite:///[^\s"]*\?|^\s*VOLUME\b|chown nobody:nobody|"volumes"\s*:'
    r"|CHROMADB_SETTINGS|CHROMADB_PERSIST_DIRECTORY\s*=\s*/app/chromadb_data"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """Where the rows come true: the checkout, the bot's directory and the volume's mount there.

    `here` says that this is the container itself, so that every path is judged.
    """

    checkout: Checkout
    app: Path
    mount: Path
    here: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """One thing that goes wrong: in rows of which kind, how to see it, what it does, the fix.

    `finds` returns False, True, or what more there is to say of that row.
    """

    name: str
    status: Status
    kind: str
    finds: Callable[[Row, Site], bool | str]
    reality: str
    fix: str


def _set(row: Row, *names: str) -> bool:
    """Whether the row is a key or variable of one of these names, and has a value."""
    return row.name in names and row.value not in (None, "", False)


def _database(row: Row, site: Site) -> Path | None:
    """The file that the bot opens for a DATABASE_URL; None if this is none or cannot be opened."""
    if row.name != "DATABASE_URL":
        return None
    try:
        return opened_by_bot(row.value, site.app)[0]
    except SettingsError:
        return None


def _off_volume(path: Path | None, row: Row, site: Site) -> bool | str:
    """What to say of a store that would lie off the volume; a laptop's own path is its affair."""
    if path is None or path.is_relative_to(site.mount):
        return False
    if not (site.here or row.context or path.is_relative_to(site.app)):
        return False
    return f"it is {path}, off {site.mount}"


def _not_sqlite(row: Row, site: Site) -> bool | str:
    if row.name == "DATABASE_URL" and _database(row, site) is None:
        return "not sqlite:/// and a file"
    return False


def _helper_misses(row: Row, site: Site) -> bool | str:
    """Whether the bot's older helper, which takes every URL for an absolute path, looks elsewhere.

    It lives in /app and is judged for there only.
    """
    opened = _database(row, site)
    if opened is None or not (row.context or site.here):
        return False
    read = os.path.normpath("/" + row.value.removeprefix(SQLITE_PREFIX).lstrip("/"))
    return read != str(opened) and f"it looks for {read}"


def _chroma(row: Row, site: Site) -> bool | str:
    if row.name != "CHROMADB_PERSIST_DIRECTORY":
        return False
    return _off_volume(Path(os.path.normpath(site.app / row.value)), row, site)


def _form(row: Row, _: Site) -> bool | str:
    """Why the bot refuses a secret that is set: said without the secret."""
    if row.name not in SECRETS or row.context == "example":
        return False
    value = row.value
    if value != value.strip() or value[:1] in "\"'" or value[-1:] in "\"'":
        return f"{row.name} has quotes or blanks around it"
    if _PLACEHOLDER.search(value.lower()):
        return f"{row.name} is a placeholder"
    if not value.startswith(BEGINNINGS[row.name]):
        return f"{row.name} does not begin as such keys do"
    return False


def _committed(row: Row, _: Site) -> bool | str:
    """Whether a real secret stands in a file that is committed or built into the image."""
    named = row.name in SECRETS or re.search(r"(TOKEN|API_KEY|SECRET|PASSWORD)$", row.name)
    real = len(row.value) >= 12 and not _PLACEHOLDER.search(row.value.lower())
    return bool(row.context and named and real and not row.value.startswith("$")) and row.name


def _hidden(row: Row, site: Site) -> bool:
    """Whether an image prepares what the volume will hide: permissions or files at its mount."""
    words = [word.strip("[]\",'") for word in row.value.split()]
    if row.name == "RUN" and not _HIDING.search(row.value):
        return False
    paths = words[-1:] if row.name in ("COPY", "ADD") else words
    inside = (Path(os.path.normpath(site.app / word)).is_relative_to(site.mount) for word in paths)
    return row.name in ("RUN", "COPY", "ADD") and any(inside)


def _not_root(row: Row, site: Site) -> bool:
    if row.name != "USER" or row.value.split(":")[0] in ("root", "0"):
        return False
    return "0" not in [r.value for r in site.checkout.variable("RAILWAY_RUN_UID")]


def _nobody(row: Row, _: Site) -> bool:
    return bool(_NOBODY.search(row.value)) and not _HAS_NOBODY.search(row.context)


def _few_restarts(row: Row, _: Site) -> bool | str:
    if _set(row, "deploy.restartPolicyType"):
        return bool(row.value == "NEVER")
    retries = row.value if row.name == "deploy.restartPolicyMaxRetries" else None
    few = isinstance(retries, int) and retries < 10
    return f"after {retries} crashes" if few else False


def _says(pattern: str) -> Callable[[Row, Site], bool]:
    seen = re.compile(pattern, re.IGNORECASE)
    return lambda row, _: bool(seen.search(row.value))


RULES = (
    # railway.json and railway.toml
    Rule("config.volumes", FAIL, "config", lambda r, _: _set(r, "volumes"),
         "there is no key `volumes`: nothing is mounted, and the data is lost at the next deploy",
         "remove it; attach one volume in the dashboard or in .railway/railway.ts"),
    Rule("config.two_volumes", FAIL, "config",
         lambda r, _: r.name == "volumes" and isinstance(r.value, list) and len(r.value) > 1,
         "a service has one volume at the most: two on one service cannot exist",
         "mount one at /app/data and put both stores on it: nescord-ops deploy --write DIR"),
    Rule("config.builder", WARN, "config",
         lambda r, _: r.name == "build.builder" and r.value == "NIXPACKS",
         "NIXPACKS is deprecated since September 2025", 'use "RAILPACK", or "DOCKERFILE"'),
    Rule("config.dockerfile_wins", WARN, "config",
         lambda r, s: _set(r, "build.builder") and r.value != "DOCKERFILE"
         and s.checkout.has("Dockerfile"),
         "has no effect: a Dockerfile in the root always wins", 'say "DOCKERFILE", or remove one'),
    Rule("config.healthcheck", FAIL, "config", lambda r, _: _set(r, "deploy.healthcheckPath"),
         "a Discord bot has no HTTP port: no deploy becomes healthy, and the old one stays",
         "remove healthcheckPath"),
    Rule("config.healthcheck_timeout", WARN, "config",
         lambda r, s: _set(r, "deploy.healthcheckTimeout")
         and not s.checkout.of("config", "deploy.healthcheckPath"),
         "does nothing without healthcheckPath, which a bot without an HTTP port cannot have",
         "remove healthcheckTimeout"),
    Rule("config.restarts", WARN, "config", _few_restarts,
         "the bot stays dead, and nobody is told", 'set "restartPolicyType": "ALWAYS"'),
    Rule("config.cron", FAIL, "config", lambda r, _: _set(r, "deploy.cronSchedule"),
         "the bot runs at these times only; and another service cannot share its volume",
         "remove it; run reports beside the bot: railway ssh -- nescord-ops report"),
    Rule("config.replicas", FAIL, "config",
         lambda r, _: r.name.startswith("deploy.") and r.name.endswith("numReplicas")
         and isinstance(r.value, int) and r.value > 1,
         "a service with a volume has one replica", 'set "numReplicas": 1'),
    Rule("config.mount", FAIL, "config",
         lambda r, s: _set(r, "deploy.requiredMountPath") and r.value != str(s.mount)
         and f"the volume is {s.mount}",
         "Railway refuses the deploy unless a volume is mounted at requiredMountPath",
         'set "requiredMountPath": "/app/data" and mount the volume there'),
    # the image
    Rule("image.volume", FAIL, "docker", lambda r, _: r.name == "VOLUME",
         "VOLUME fails the build on Railway", "remove it; attach the volume to the service"),
    Rule("image.nobody", FAIL, "docker", _nobody,
         "fails the build: Debian has no group nobody (it is nogroup)", "remove the line"),
    Rule("image.hidden", WARN, "docker", _hidden,
         "has no effect: the volume is mounted over it when the container starts, as root",
         "remove the line"),
    Rule("image.user", FAIL, "docker", _not_root,
         "the volume belongs to root, and this user cannot write to it",
         "set the variable RAILWAY_RUN_UID=0, or remove USER"),
    Rule("image.nixpacks", WARN, "nixpacks", lambda *_: True,
         "NIXPACKS is deprecated since September 2025, and where a Dockerfile lies this file is "
         "not read", "remove nixpacks.toml; keep the Dockerfile"),
    Rule("image.start", FAIL, "command",
         lambda r, _: bool(re.match(r"(?:\S*sh -c )?sleep (?:infinity|\d+)", r.value)),
         "the container lives and the bot does not run: a restore was left half way",
         "put the bot's start command back and redeploy"),
    # the variables
    Rule("variables.url", FAIL, "variable", _not_sqlite,
         "the bot opens SQLite files only", f"set {URL}"),
    Rule("variables.database_off_volume", FAIL, "variable",
         lambda r, s: _off_volume(_database(r, s), r, s),
         "the database is lost at the next deploy: the bot cuts off `sqlite:///` and takes the rest"
         " as a path below /app", f"back up, then set {URL} (four slashes)"),
    Rule("variables.url_query", FAIL, "variable",
         lambda r, s: _database(r, s) is not None and "?" in r.value,
         "what follows the question mark becomes part of the file's name, and tunes nothing: the "
         "bot itself sets journal_mode=WAL", f"back up, then set {URL}"),
    Rule("variables.backup_helper", WARN, "variable", _helper_misses,
         "the bot's own backup helper does not find the database there, logs a warning and reports "
         "success without it", f"set {URL}; nescord-ops backup create --drill takes both"),
    Rule("variables.chroma_off_volume", FAIL, "variable", _chroma,
         "the vectors are lost at the next deploy",
         "back up, then set CHROMADB_PERSIST_DIRECTORY=/app/data/chromadb"),
    Rule("variables.form", FAIL, "variable", _form,
         "the bot does not start with it", "correct the variable; it is shown nowhere"),
    Rule("variables.dimension", FAIL, "variable",
         lambda r, _: r.name == "EMBEDDING_DIMENSION" and r.value.strip() != DIMENSION,
         f"the embedding model makes vectors of {DIMENSION} numbers: every write of others fails",
         f"set EMBEDDING_DIMENSION={DIMENSION}"),
    Rule("variables.distance", FAIL, "variable",
         lambda r, _: r.name == "CHROMADB_DISTANCE_METRIC" and r.value not in METRICS,
         "the bot refuses it and does not start", f"set one of {', '.join(METRICS)}"),
    Rule("variables.by_hand", WARN, "variable",
         lambda r, _: r.name.startswith("RAILWAY_VOLUME_") and r.file != ENVIRONMENT,
         "Railway sets it where a volume is attached; by hand it hides that none is",
         "remove it"),
    Rule("variables.inert", WARN, "variable", lambda r, _: r.name in INERT and r.name,
         "the bot reads no such variable", "remove it"),
    Rule("secrets.committed", FAIL, "variable", _committed,
         "who reads the repository or the image has it", "revoke it; set it in Railway, and here "
         "use preserve() or a placeholder"),
    # .railway/railway.ts
    Rule("iac.two_volumes", FAIL, "mounts", lambda r, _: len(r.value) > 1,
         "a service has one volume at the most: two on one service cannot exist",
         'keep "/app/data": both stores lie on it'),
    Rule("iac.no_volume", FAIL, "mounts", lambda r, _: not r.value,
         "no volume is mounted: the data is lost at the next deploy",
         'volumeMounts: { "/app/data": data }'),
    Rule("iac.mount", FAIL, "mounts",
         lambda r, s: bool(r.value) and "/app/data" not in r.value
         and not s.checkout.variable("DATABASE_URL"),
         "the bot writes to /app/data unless DATABASE_URL says otherwise",
         'volumeMounts: { "/app/data": data }'),
    # documents and scripts
    Rule("text.backup_command", FAIL, "text", _says(r"railway volume (backup|list-backups)\b"),
         "there is no such command: no backup is taken",
         "nescord-ops backup create --drill; Railway's own are switched on in the dashboard"),
    Rule("text.connect", WARN, "text", _says(r"railway connect\s*(#|`|$)"),
         "`railway connect` is a database client, no shell", "railway ssh"),
    Rule("text.run", WARN, "text", _says(r"(^|[`$;&])\s*railway run\b"),
         "`railway run` runs on your machine and never sees the volume", "railway ssh -- COMMAND"),
    Rule("text.remove_wal", FAIL, "text", _says(r"\brm\b.*-(\{|wal\b|shm\b|\*)"),
         "the newest notes are in the -wal file until SQLite folds them in; a large one is normal",
         "never delete it: start the bot, or nescord-ops verify"),
    Rule("text.free_backups", WARN, "text",
         _says(r"(automatic|native) backups?\b.*\bfree\b|自動バックアップ無料"),
         "Railway's backups are off until switched on, billed like the volume, and gone with it",
         "switch them on in the dashboard; nescord-ops backup create --drill"),
    Rule("text.price", WARN, "text", _says(r"\$0\.25\s*(/|per)\s*GB"),
         "the list price is $0.15 per GB-month since 2025-03-03", "nescord-ops cost"),
    Rule("text.guide", WARN, "text", lambda r, _: bool(_GUIDE.search(r.value)),
         "a line of the deployment guide that does not work on Railway", "nescord-ops deploy "
         "--write DIR writes what does"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Place(Result):
    """Where a rule found something: file, line (0: the environment) and what more there is."""

    rule: str
    file: str
    line: int
    detail: str

    @property
    def where(self) -> str:
        """File and line, as people and editors write them."""
        return f"{self.file}:{self.line}" if self.line else self.file


def judge(site: Site) -> Iterator[tuple[Rule, list[Place]]]:
    """Given a site, yield each rule that finds something, with the places where it does."""
    for rule in RULES:
        places = []
        for row in site.checkout.of(rule.kind):
            # not set, or known to Railway only
            if rule.kind == "variable" and (not row.value or "${" in row.value):
                continue
            found = rule.finds(row, site)
            if found:
                detail = found if isinstance(found, str) else ""
                places.append(Place(rule.name, row.file, row.line, detail))
        if places:
            yield rule, places
