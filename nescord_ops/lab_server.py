"""The program that `nescord_ops.lab` starts: JupyterLab, which ends when its starter does.

It imports nothing of this package, and is run by its path.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading


def _end_with_starter() -> None:
    """Wait until the starter's end of the pipe closes, then stop as SIGTERM does."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run JupyterLab as its configuration in the environment says."""
    os.umask(0o077)  # tokens and sockets are the owner's
    # It compiles a grammar for three seconds on import, for a check of `iri` formats.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from jupyterlab.labapp import LabApp

    # Its starter ends it with SIGTERM; that is no news to whoever pressed Ctrl-C.
    for name in ("LabApp", "ServerApp"):
        logging.getLogger(name).addFilter(lambda r: not str(r.msg).startswith("received signal"))
    threading.Thread(target=_end_with_starter, daemon=True).start()
    LabApp.launch_instance([])


if __name__ == "__main__":
    main()
