"""Run sweeps of the matrix and print it."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import matrix
from matrix.cells import Matrix, cells, sweep, table
from nescord_ops.settings import OF_A_VOLUME

SWEEPS = ("pairs", "machine", "triples")


def main() -> int:
    """Run the sweeps that are asked for; return 1 if any cell is complained of."""
    parser = argparse.ArgumentParser(description=(matrix.__doc__ or "").split("\n")[0])
    parser.add_argument("--sweep", action="append", choices=SWEEPS)
    parser.add_argument("--only", action="append", default=[], help="a word of a cell's name")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--triples", type=int, default=150)
    parser.add_argument("--sample", type=int, help="no more cells than these, drawn")
    options = parser.parse_args()
    os.nice(15)
    for name in [name for name in os.environ if name.startswith(OF_A_VOLUME)]:
        del os.environ[name]
    bad = 0
    for name in options.sweep or SWEEPS:
        begun = time.monotonic()
        every = cells(name, seed=options.seed, triples=options.triples)
        wanted = [cell for cell in every if all(word in str(cell) for word in options.only)]
        random.Random(options.seed).shuffle(wanted)
        with tempfile.TemporaryDirectory(prefix="nescord-matrix-") as root:
            outcomes = sweep(Matrix(Path(root), seed=options.seed), wanted[: options.sample])
        wrong = sum(bool(outcome.complaints) for outcome in outcomes)
        print(table(outcomes))
        seconds = time.monotonic() - begun
        print(f"{name}: {len(outcomes)} cells, {wrong} wrong, {seconds:.0f} s, seed {options.seed}")
        bad += wrong
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
