"""What is written down about a backup, and whether it is as this program writes it.

A store, or the JSON of an off-site copy, may have been altered and sealed anew by anybody: nothing
in its evidence is used before its shape is known. `proof.witness` writes most of it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from nescord_ops.checks import Check, Status, fail, ok, warn

ID = r"nescordbot_backup_[0-9]{8}_[0-9]{6}(?:_[0-9]+)?"  # it becomes a name and a command's word
BOTH = ("database", "chroma")
KINDS = ("generation", "adopted", "pulled")
OUTCOMES = ("ok", "failed", "inconclusive")


def is_sound(evidence: Any) -> bool:
    """Given JSON values, return whether they have the shapes that everybody relies on."""
    try:
        return _is_witness(evidence) and _is_history(evidence)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return False


def quality(evidence: dict[str, Any]) -> Check:
    """Given evidence, return what the copy is worth: good, one store only, or damaged itself."""
    if evidence["damaged"]:
        first = evidence["findings"][evidence["damaged"][0]][1]
        text = f"the data itself is damaged ({', '.join(evidence['damaged'])}): {first}"
        hint = "kept, but not as a good one: restore the newest good backup, or run verify"
        return fail("backup.sound", text, hint)
    if len(evidence["stores"]) < len(BOTH):
        text = f"holds {evidence['stores'][0]} only, and is never counted as a good one"
        return warn("backup.sound", text, "take one of both stores: nescord-ops backup create")
    others = ", ".join(evidence["findings"])
    more = f"; verify says more of {others}" if others else ""
    return ok("backup.sound", f"both stores are sound{more}")


def is_number(value: Any, limit: int = 1 << 62) -> bool:
    """Whether a JSON value is a whole number from 0 to `limit`."""
    return type(value) is int and 0 <= value <= limit


def is_digest(value: Any) -> bool:
    """Whether a JSON value is a SHA-256 in hex."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_witness(evidence: Any) -> bool:
    """What was seen when it was taken."""
    expected = evidence["expected"]
    owners = [
        each[key] for each in evidence["originals"].values() for key in ("uid", "gid", "mode")
    ]
    texts = [*evidence["damaged"], expected.get("collection", ""), expected.get("distance", "")]
    for status, text in evidence["findings"].values():
        texts += [Status(status), text]
    return (
        evidence["stores"] in ([*BOTH], *([name] for name in BOTH))
        and isinstance(evidence["damaged"], list)
        and set(evidence["damaged"]) <= evidence["findings"].keys()
        and isinstance(evidence["rows"], dict)
        and set(expected) <= {"collection", "distance", "dimension"}
        and all(isinstance(text, str) for text in texts)
        and all(
            type(number) is int and -1 <= number < 1 << 32
            for number in [*owners, expected.get("dimension", 0)]
        )
        and all(is_number(each["count"]) for each in evidence["collections"].values())
        and is_number(evidence["allocated_bytes"])
    )


def _is_history(evidence: Any) -> bool:
    """What became of it: checks, drills, and its copy off site."""
    tried = [evidence[key] for key in ("checked", "drilled") if evidence.get(key)]
    moments = [evidence.get("proven_at"), *(each["at"] for each in tried)]
    if copied := evidence.get("offsite"):
        moments += [copied[key] for key in ("pushed_at", "checked_at", "proven_at")]
    for moment in (each for each in moments if each is not None):
        when = datetime.fromisoformat(moment)
        if when.astimezone(UTC) != when:  # never so, but for one without its zone
            return False
    return (
        evidence.get("kind", KINDS[0]) in KINDS
        and (evidence.get("keep") is None or is_number(evidence["keep"]))
        and all(each["outcome"] in OUTCOMES for each in tried)
        and all(isinstance(each["reason"], str) for each in tried)
        and (
            not copied
            or (
                is_number(copied["stream_bytes"])
                and isinstance(copied["url"], str)
                and isinstance(copied["fault"], str)
                and (not copied["sha256"] or is_digest(copied["sha256"]))
            )
        )
    )
