"""A push to a directory beside `tar | zstd -3 -T2 | age` of the same files, as a table in Markdown.

    apt-get install age zstd
    python -m compileall -q nescord_ops     (as an installed package is)
    python tests/bench/offsite.py [--rounds 7] [--scale 1] [--dir DIR]

Ours reads the backup of the 612 MB workload from the store, verifies every page, takes the SHA-256
of every file and of the stream, and syncs it to disk; the shell reads files from the page cache and
its output is not synced. Both run in turn, each in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import workload
from backup import Sample, run

from nescord_ops import backup as backups
from nescord_ops import keys, settings

_OURS = "import sys; from nescord_ops import cli; sys.exit(cli.run(sys.argv[1:]))"
_SHELL = 'set -euo pipefail; tar -c -C "$1" . | zstd -q -3 -T2 | age -r "$2" > "$3"'


def main() -> None:
    """Build the workload, back it up, and push it both ways."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--dir", type=Path, help="where to work; 2.5 GB a scale of 1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        root = Path(made)
        work = workload.build(root / "volume", scale=options.scale)
        url = f"sqlite:///{work.database}"
        here = settings.load(app_dir=work.root, database_url=url, chroma_dir=work.chroma)
        taken = backups.create(here).backup
        assert taken
        backups.materialise(here, taken.id, root / "tree")
        recipient = keys.keygen(root / "key")
        print(f"{taken.size_bytes / 1e6:.0f} MB", file=sys.stderr)
        environment = {
            **os.environ,
            "NESCORD_OPS_AGE_RECIPIENT": recipient,
            "NESCORD_OPS_OFFSITE_URL": str(root / "place"),
        }
        ours = [sys.executable, "-c", _OURS, "--app-dir", str(work.root)]
        ours += ["--database-url", url, "--chroma-dir", str(work.chroma), "offsite", "push"]
        sealed = root / "place" / f"{taken.id}.tar.zst.age"
        shell = ["bash", "-c", _SHELL, "bash", str(root / "tree"), recipient, str(root / "shell")]
        samples: dict[str, list[Sample]] = {"ours": [], "shell": []}
        for _ in range(options.rounds):
            subprocess.run(["rm", "-rf", root / "place", root / "shell"], check=True)
            samples["shell"].append(run(shell, environment, root))
            samples["ours"].append(run([*ours, taken.id], environment, root))
        sizes = {"ours": sealed.stat().st_size, "shell": (root / "shell").stat().st_size}
        print(table(samples, sizes))


def table(samples: dict[str, list[Sample]], sizes: dict[str, int]) -> str:
    """Return medians, their ratio and the range of each, as Markdown."""
    lines = ["| | wall s | range | CPU s | peak MB | MB pushed |", "|---|---|---|---|---|---|"]
    medians = {}
    for name, taken in samples.items():
        walls = [sample.wall_seconds for sample in taken]
        medians[name] = statistics.median(walls)
        cpu = statistics.median(sample.cpu_seconds for sample in taken)
        peak = max(sample.peak_bytes for sample in taken) / 1e6
        spread = f"{min(walls):.2f} to {max(walls):.2f}"
        row = f"{medians[name]:.2f} | {spread} | {cpu:.2f} | {peak:.0f} | {sizes[name] / 1e6:.0f}"
        lines.append(f"| {name} | {row} |")
    lines.append(f"| ours / shell | {medians['ours'] / medians['shell']:.2f} | | | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
