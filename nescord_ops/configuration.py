"""Write the configuration that keeps both stores on one volume, and the steps to get there."""

from __future__ import annotations

from pathlib import Path

from nescord_ops import volume
from nescord_ops.errors import VolumeError

TEMPLATES = Path(__file__).with_name("templates") / "deploy"
# What is written, and from which template: packagers may leave out what begins with a dot.
FILES = {
    ".railway/railway.ts": "railway.ts",
    "railway.json": "railway.json",
    "Dockerfile.fragment": "Dockerfile.fragment",
    "variables.env": "variables.env",
    "STEPS.md": "STEPS.md",
}


def write(directory: Path) -> tuple[Path, ...]:
    """Given a new or empty directory, write the configuration there and return its files.

    Raise VolumeError if anything is in the directory or it cannot be made: nothing is overwritten.
    """
    root = volume.claim(directory.expanduser().absolute())
    try:
        for name, template in FILES.items():
            target = root / name
            target.parent.mkdir(exist_ok=True)
            with target.open("xb") as file:
                file.write(TEMPLATES.joinpath(template).read_bytes())
    except OSError as error:
        hint = "see that there is room, remove it, and name a new directory"
        raise VolumeError(f"{root} cannot be written: {error.strerror}", hint) from error
    return tuple(root / name for name in FILES)
