"""`python -m nescord_ops` is `nescord-ops`."""

import sys

from nescord_ops.cli import run

sys.exit(run())
