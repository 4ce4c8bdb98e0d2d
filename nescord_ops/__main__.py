"""`python -m nescord_ops` is `nescord-ops`."""

from nescord_ops.cli import main

main()
