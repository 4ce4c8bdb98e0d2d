"""Keys of age (age-encryption.org): identities in files, which stay secret, and their recipients.

No message of this module, nor an exception behind one, shows what a file or a variable held.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nescord_ops.errors import OffsiteError
from nescord_ops.storefile import sync

KEYGEN_HINT = "nescord-ops offsite keygen makes an identity and prints its recipient"
_FILE_BYTES = 1 << 16


def keygen(path: Path, now: datetime | None = None) -> str:
    """Write a new identity into a file of mode 600, as `age-keygen` does; return its recipient.

    Raise OffsiteError, with nothing changed, if the file is there already or cannot be written.
    """
    from pyrage import x25519

    identity = x25519.Identity.generate()
    recipient = str(identity.to_public())
    moment = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    text = f"# created: {moment}\n# public key: {recipient}\n{identity}\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        hint = "name another file: whoever loses an identity loses what is sealed to it"
        raise OffsiteError(f"{path} is there already, and is kept as it is", hint) from None
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        with open(handle, "w", encoding="ascii") as file:
            os.fchmod(handle, 0o600)  # whatever the umask
            file.write(text)
            file.flush()
            os.fsync(handle)
        sync(path.absolute().parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise _unusable(path, error) from None
    return recipient


def recipients(text: str) -> Sequence[Any]:
    """Given age recipients, apart by spaces or commas, return them for pyrage.

    Raise OffsiteError if there is none, or one is no X25519 recipient.
    """
    from pyrage import x25519

    parts = [part for part in re.split(r"[\s,]+", text) if part]
    if not parts:
        hint = f"set NESCORD_OPS_AGE_RECIPIENT ({KEYGEN_HINT}), or push with --plain"
        raise OffsiteError("there is no age recipient to encrypt to", hint)
    try:
        return [x25519.Recipient.from_str(part) for part in parts]
    except Exception:  # pyrage's own, which knows what it was given
        raise OffsiteError("NESCORD_OPS_AGE_RECIPIENT is not valid", KEYGEN_HINT) from None


def identities(path: Path) -> Sequence[Any]:
    """Given an identity file, return its keys for pyrage. Raise OffsiteError if there are none."""
    from pyrage import x25519

    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES)
    except OSError as error:
        raise _unusable(path, error) from None
    if content.startswith((b"age-encryption.org", b"-----BEGIN AGE ENCRYPTED")):
        text = f"{path} is itself encrypted"
        raise OffsiteError(text, "decrypt it first: age -d -o IDENTITY FILE")
    keys = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            keys.append(x25519.Identity.from_str(line.decode("ascii").strip()))
        except Exception:  # pyrage's own, or no text: neither may be shown
            text = f"line {number} of {path} is no X25519 identity of age"
            raise OffsiteError(text, f"name the file that was kept; {KEYGEN_HINT}") from None
    if not keys:
        raise OffsiteError(f"{path} holds no identity", f"name another file; {KEYGEN_HINT}")
    return keys


def _unusable(path: Path, error: OSError) -> OffsiteError:
    return OffsiteError(f"{path}: {error.strerror}", "name a file that you may read and write")
