"""Does the deployment keep the data? Lints the bot's checkout and its environment.

The rules about single lines are a table in `rules`; here is what takes more than a line: what is
missing, what is dated, who may read what. Nothing is written, and no value of a secret is shown.
Sources: docs.railway.com (August 2026), NescordBot's configuration (September 2025).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from nescord_ops import checkout, database, places, show, volume
from nescord_ops.checkout import Checkout
from nescord_ops.checks import Check, Findings, Status, fail, ok, unknown, warn
from nescord_ops.errors import SettingsError, UnreadError, VolumeError
from nescord_ops.manifests import EXAMPLE, IAC, Row
from nescord_ops.rules import RULES, Place, Rule, Site, judge
from nescord_ops.settings import SECRETS, Settings

APP, MOUNT = Path("/app"), Path("/app/data")
SUNSET = date(2026, 12, 1)
CONFIGS = ("railway.json", "railway.toml")
MANDATORY = ("DISCORD_TOKEN", "OPENAI_API_KEY")
DRAINING = "RAILWAY_DEPLOYMENT_DRAINING_SECONDS"
WRITE = "nescord-ops deploy --write DIR writes one that works"
SCHEMA = Path(__file__).with_name("templates") / "railway.schema.json"
NAMED, SHOWN = ("DATABASE_URL", "EMBEDDING_DIMENSION", *SECRETS), 5
PREFIXES, TRUE = ("CHROMADB_", "PKM_", "RAILWAY_"), ("1", "true", "yes")
# Groups of rules, and the kinds of rows that each of them judges.
GROUPS = {
    "config": ("config", "railway.json or railway.toml"),
    "image": ("docker", "Dockerfile"),
    "variables": ("variable", ".env, and no variable of the bot's in the environment"),
    "iac": ("mounts", IAC),
    "text": ("text", "document or script"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Deployment(Findings):
    """What deploy found. `files` are the lines read of each file, `findings` every place."""

    name = "deploy"

    settings: Settings
    checks: tuple[Check, ...]
    repo: Path
    mount: Path
    files: Mapping[str, int]
    findings: tuple[Place, ...]

    def findings_table(self) -> show.Html:
        """Return one row a finding: its file and line, the rule, what it does, and the fix."""
        rules = {rule.name: rule for rule in RULES}
        rows = [
            (place.where, _sentence(rules[place.rule], place.detail), rules[place.rule].fix)
            for place in self.findings
        ]
        return show.Html(show.table(("Where", "What it does", "What to do"), rows))


def run(
    settings: Settings, *, repo: str | Path | None = None, now: datetime | None = None
) -> Deployment:
    """Given settings and a checkout (default: the bot's directory), return every check.

    Raise SettingsError if `repo` is not a directory that can be read. Reads at most 1 MB a file.
    """
    root = Path(repo).expanduser().absolute() if repo else settings.app_dir
    if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
        raise SettingsError(f"{root} is no directory that can be read", "nescord-ops deploy REPO")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in NAMED or name.startswith(PREFIXES)
    }
    seen = checkout.read(root, settings.env_file, environment)
    here = settings.volume_mount is not None
    declared = next((Path(p) for row in seen.of("mounts") for p in row.value), MOUNT)
    site = Site(seen, settings.app_dir if here else APP, settings.volume_mount or declared, here)
    judged = list(judge(site))
    checks = [
        _repository(site, asked=bool(repo)),
        *_broken(seen),
        *(_finding(rule, found) for rule, found in judged),
        *_groups(seen, {rule.name.split(".")[0] for rule, _ in judged}),
        *_config(site, (now or datetime.now(UTC)).date()),
        *_variables(site),
        *_volume(site, settings),
        *_security(site, settings),
        _journal(settings),
    ]
    hide = _hider(seen)
    return Deployment(
        settings=settings,
        checks=tuple(
            dataclasses.replace(c, summary=hide(c.summary), hint=hide(c.hint)) for c in checks
        ),
        repo=root,
        mount=Path(hide(str(site.mount))),
        files={hide(row.file): row.value for row in seen.of("file")},
        findings=tuple(
            dataclasses.replace(place, file=hide(place.file), detail=hide(place.detail))
            for _, found in judged
            for place in found
        ),
    )


def _hider(seen: Checkout) -> Callable[[str], str]:
    """Return what takes every secret out of a text: a second wall, as no message is made of one."""
    rows = [r for r in seen.of("variable") if r.name.endswith(("TOKEN", "KEY")) and r.value]
    secrets = sorted({row.value.strip("\"' ") for row in rows}, key=len, reverse=True)
    shown = re.compile("|".join(re.escape(s) for s in secrets if len(s) > 5) or "(?!)")
    return lambda text: shown.sub("***", text)


def _sentence(rule: Rule, detail: str) -> str:
    return f"{rule.reality} ({detail})" if detail else rule.reality


def _finding(rule: Rule, found: list[Place]) -> Check:
    """One check a rule: every place, what it does in reality, and the fix."""
    details = "; ".join(dict.fromkeys(place.detail for place in found[:SHOWN] if place.detail))
    text = f"{_listed(place.where for place in found)}: {_sentence(rule, details)}"
    return Check(rule.name, rule.status, text, rule.fix, len(found), "places", 0)


def _listed(places: Iterable[str]) -> str:
    """The first places by name, the others by number."""
    names = list(dict.fromkeys(places))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _repository(site: Site, *, asked: bool) -> Check:
    """Whether this is the bot's checkout at all."""
    root = site.checkout.root
    name = "deploy.repository"
    if (root / "src" / "nescordbot").is_dir():
        return ok(name, f"{root} is NescordBot's checkout")
    if site.checkout.has(*CONFIGS, IAC, "Dockerfile"):
        text = f"{root} is not NescordBot's checkout (no src/nescordbot): judged as if it were"
        return warn(name, text, "nescord-ops deploy REPO")
    text = f"{root} is not NescordBot's checkout: there are no deployment files to look at"
    return unknown(name, text, "nescord-ops deploy REPO", expected=not asked)


def _broken(seen: Checkout) -> Iterator[Check]:
    """What could not be read, and lines that count for nothing."""
    fix = "correct the line: what cannot be read counts for nothing"
    for kind, status in (("", Status.FAIL), ("comment", Status.WARN), ("skipped", Status.WARN)):
        rows = [row for row in seen.of("broken") if row.name == kind]
        if rows:
            where = _listed(f"{row.where} ({row.value})" for row in rows)
            yield Check(f"files.{kind or 'broken'}", status, where, fix, len(rows), "lines", 0)
    for kind, name in (("", "files.unread"), ("text", "files.text")):
        rows = [row for row in seen.of("unread") if row.name == kind]
        if rows:
            text = f"not looked at: {_listed(f'{row.file} ({row.value})' for row in rows)}"
            yield unknown(name, text, "make it a plain text file", expected=bool(kind))


def _groups(seen: Checkout, faulty: set[str]) -> Iterator[Check]:
    """One check for each group of rules that found nothing, or had nothing to look at."""
    for group, (kind, source) in GROUPS.items():
        rows = [row for row in seen.rows if row.kind == kind]
        if not rows:
            yield unknown(f"{group}.rules", f"no {source} here", expected=True)
        elif group not in faulty:
            count = sum(rule.name.startswith(f"{group}.") for rule in RULES)
            files = _listed(row.file for row in rows)
            yield ok(f"{group}.rules", f"{files}: nothing found, rules: {count}")


def _config(site: Site, today: date) -> Iterator[Check]:
    """Whether the config is read at all, fits Railway's schema, and insists on the volume."""
    seen = site.checkout
    for document in seen.of("document"):
        yield _sunset(document, (SUNSET - today).days, replaced=seen.has(IAC))
        yield from _schema(document, seen)
        required = seen.of("config", "deploy.requiredMountPath")
        if not any(row.file == document.file for row in required):
            text = f"{document.file}: without deploy.requiredMountPath the bot starts even where no"
            text += " volume is attached, and writes to what is lost"
            yield warn("config.no_mount", text, f'set "requiredMountPath": "{site.mount}"')


def _sunset(document: Row, days: int, *, replaced: bool) -> Check:
    """Railway reads these files until 2026-12-01; `.railway/railway.ts` takes their place."""
    name, file = "config.sunset", document.file
    details: dict[str, Any] = {"value": days, "unit": "days", "limit": 0}
    hint = f"railway config migrate --lang ts, or {WRITE}"
    if days > 0:
        text = f"{file} is read for {show.count(days, 'day')} more, until {SUNSET}"
        if replaced:
            text += f"; {IAC} takes its place once the service is migrated"
            return ok(name, text, **details)
        return warn(name, f"{text}, and nothing takes its place", hint, **details)
    text = f"{file} is not read any more since {SUNSET}: nothing in it has any effect"
    if replaced:
        return warn(name, text, f"remove it; {IAC} has taken its place", **details)
    return fail(name, text, hint, **details)


def _schema(document: Row, seen: Checkout) -> Iterator[Check]:
    """Unknown keys and wrong types, each by its path; what is written there is not shown."""
    # jupyterlab's extras let `import jsonschema` compile a grammar for seconds, for one format
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text("utf-8"))
    lines = {row.context: row.line for row in seen.of("config") if row.file == document.file}
    strange, wrong = [], []
    for error in Draft202012Validator(schema).iter_errors(document.value):
        path = [str(part) for part in error.absolute_path]
        if error.validator == "additionalProperties":
            extra = error.instance.keys() - error.schema["properties"].keys()
            strange += [".".join((*path, key)) for key in sorted(extra)]
        else:
            wrong.append(".".join(path))

    def where(path: str) -> str:
        return f"{document.file}:{lines.get(path, 1)} ({path[:60] or 'the whole file'})"

    hint = "docs.railway.com/config-as-code/reference lists the keys"
    if strange:
        text = f"{_listed(map(where, strange))}: no key of Railway's, and without any effect"
        yield warn("config.unknown_keys", text, hint, value=len(strange), unit="keys", limit=0)
    if wrong:
        text = f"{_listed(map(where, wrong))}: not of the type that Railway demands: it refuses to "
        yield fail("config.types", f"{text}deploy", hint, value=len(wrong), unit="keys", limit=0)
    if not strange and not wrong:
        yield ok("config.schema", f"{document.file} fits the schema")


def _variables(site: Site) -> Iterator[Check]:
    """Variables that are missing; where all of them are elsewhere, nothing is said of them."""
    seen = site.checkout
    private = [r for r in seen.of("variable", *NAMED, "PKM_ENABLED") if not r.context]
    elsewhere = "the variables are in Railway's dashboard, which cannot be seen from here"
    if private or seen.has(IAC) or site.here:
        missing = [name for name in MANDATORY if not seen.variable(name)]
        if missing:
            text = f"{' and '.join(missing)} not set: the bot does not start"
            yield fail("variables.mandatory", text, "set it in Railway; preserve() keeps it there")
        else:
            where = _listed(row.where for name in MANDATORY for row in seen.variable(name))
            yield ok("variables.mandatory", f"{' and '.join(MANDATORY)} are set ({where})")
    else:
        yield unknown("variables.mandatory", elsewhere, expected=True)
    wants = [r for r in seen.variable("PKM_ENABLED") if str(r.value).lower() in TRUE]
    if wants and not seen.variable("GEMINI_API_KEY"):
        text = f"{_listed(r.where for r in wants)}: no GEMINI_API_KEY, and no note is searchable"
        yield warn("variables.gemini", text, "set GEMINI_API_KEY, or PKM_ENABLED=false")
    listed = {row.name for row in seen.of("variable") if row.file == EXAMPLE}
    absent = [name for name in MANDATORY if name not in listed]
    if listed and absent:
        text = f"{EXAMPLE} leaves out {' and '.join(absent)}: the bot does not start without"
        yield warn("variables.example", text, f"add {'= and '.join(absent)}= to it")
    yield from _draining(site, elsewhere)


def _draining(site: Site, elsewhere: str) -> Iterator[Check]:
    """Whether the bot gets time to close its databases: Railway's default is none at all."""
    seen = site.checkout
    found = [*seen.variable(DRAINING), *seen.of("config", "deploy.drainingSeconds")]
    name = "variables.draining"
    if any(row.value is None or str(row.value).strip("0 ") for row in found):
        where = _listed(row.where for row in found)
        yield ok(name, f"the bot has time to close its databases ({where})")
    elif site.here or seen.has(IAC, *CONFIGS):
        text = f"{DRAINING} is not set: a deploy kills the bot at once, and a large -wal file stays"
        text += " behind, which is normal and never to be deleted"
        yield warn(name, text, f"set {DRAINING}=30")
    else:
        yield unknown(name, elsewhere, expected=True)


def _volume(site: Site, settings: Settings) -> Iterator[Check]:
    """Whether a volume is attached, and the stores in use lie on it."""
    deployed = [name for name in ("RAILWAY_SERVICE_ID", "RAILWAY_PROJECT_ID") if name in os.environ]
    if deployed and not site.here:
        text = f"this is Railway ({deployed[0]} is set), and no volume is attached to the service: "
        text += "all data is lost at the next deploy"
        yield fail("location.volume", text, f"attach one at {MOUNT} and redeploy; back up first")
    else:
        yield from places.locations(settings)


def _security(site: Site, settings: Settings) -> Iterator[Check]:
    """Who may read the secrets and write the data, and as whom the bot runs."""
    root = site.checkout.root
    yield _env_file(volume.place(settings.env_file or root / ".env"))
    is_tracked = checkout.tracked(root, ".env")
    name = "security.committed"
    if is_tracked:
        hint = "git rm --cached .env; add it to .gitignore; revoke every key that was in it"
        yield fail(name, ".env is tracked by git: everyone with the repository has the keys", hint)
    elif is_tracked is None:
        yield unknown(name, "no index of git that can be read here", expected=True)
    else:
        yield ok(name, ".env is not tracked by git")
    for name, path in (("data", settings.database.parent), ("chroma", settings.chroma_dir)):
        place = volume.place(path)
        if place.kind == "directory":
            yield places.mode(f"security.{name}", place)
        else:
            seen = "may not be looked at" if place.kind == "denied" else "is not here"
            yield unknown(f"security.{name}", f"{path} {seen}", expected=True)
    yield _user(site)


def _env_file(place: volume.Place) -> Check:
    """Mode and owner of `.env`: it is for the bot's user alone."""
    name, path = "security.env_file", place.path
    if place.kind != "file":
        return unknown(name, f"{path} is {place.kind}", expected=True)
    text = f"{path} is mode {place.mode_text}, owner {place.owner}"
    details: dict[str, Any] = {"value": place.mode_text, "limit": "600"}
    if place.mode & 0o077:
        who = "everyone" if place.mode & 0o007 else "its group"
        return warn(
            name,
            f"{text}: {who} may get at the keys",
            f"chmod 600 {shlex.quote(str(path))}",
            **details,
        )
    if place.uid not in (0, os.geteuid()):
        hint = f"chown {os.geteuid()} {shlex.quote(str(path))}"
        return warn(name, f"{text}: not yours", hint, **details)
    return ok(name, text, **details)


def _user(site: Site) -> Check:
    """As whom this runs: Railway mounts the volume as root."""
    user = os.geteuid()
    name = "security.user"
    if not site.here:
        return unknown(name, "not on Railway: the bot's user is not known", expected=True)
    if user == 0:
        return ok(name, "runs as root, to whom the volume belongs")
    if os.access(site.mount, os.W_OK):
        return ok(name, f"user {user} may write to {site.mount}")
    hint = "set the variable RAILWAY_RUN_UID=0 and redeploy"
    return fail(name, f"user {user} may not write to {site.mount}", hint)


def _journal(settings: Settings) -> Check:
    """SQLite's tuning: the bot itself sets the journal mode, and no variable does."""
    name = "tuning.journal"
    try:
        wal = database.read_header(settings.database).wal_mode
    except UnreadError as error:
        return unknown(name, f"{error}", error.hint)
    except VolumeError:
        return unknown(name, f"no database to look at in {settings.database.parent}", expected=True)
    if wal:
        return ok(name, "journal mode WAL, which the bot sets itself")
    hint = "start the bot, which sets it: is another program writing to this file?"
    return warn(name, "the journal mode is not WAL: readers block the bot", hint)
