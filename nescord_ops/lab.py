"""JupyterLab on a working copy of the notebooks, with the settings of this volume or of a sample.

The copy is the operator's: what was edited or run there is never overwritten. JupyterLab runs as a
child with a configuration of its own, so no other one can take its token away, open it to the
network or give the notebooks another Python. Everything it writes for itself, and what its kernels
write as scratch, lies in one directory that is removed at the end. Read in jupyter_core 5.9,
jupyter_server 2.21, jupyterlab 4.6.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nescord_ops import demo as demos
from nescord_ops import report, settings
from nescord_ops.errors import LabError
from nescord_ops.results import Result

DIRECTORY = Path("nescord-ops-lab")
DEMO_DIRECTORY = Path("nescord-ops-lab-demo")
MARK = "nescord_ops"  # the notebook's metadata that says what it was copied from
PORT = 8888
START_SECONDS = 60
STOP_SECONDS = 20
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SOCKET_NAME = "/run/kernel-01234567-0123-0123-0123-012345678901-ipc-5"
_SOCKET_PATH = 107  # the longest path of a Unix socket, unix(7)


@dataclasses.dataclass(frozen=True, slots=True)
class Placed(Result):
    """A notebook of the working copy; `beside` names the operator's own that it lies beside."""

    path: Path
    new: bool
    beside: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Lab(Result):
    """A JupyterLab that runs; `url` holds the token that opens it."""

    url: str = dataclasses.field(repr=False)
    directory: Path
    notebooks: tuple[Placed, ...]
    process: subprocess.Popen[bytes] = dataclasses.field(repr=False)

    def wait(self) -> None:
        """Return when JupyterLab was shut down in the browser; raise LabError if it broke off."""
        code = self.process.wait()
        if code:
            hint = "often the memory ran out: free some, and start it again"
            raise LabError(f"JupyterLab ended with code {code}", hint)


def copy(directory: Path) -> tuple[Placed, ...]:
    """Make or refresh the working copy in `directory`, and return what is there for each notebook.

    A notebook that was edited or run since it was copied stays as it is, and a newer one of ours
    is put beside it, as `verify-2.ipynb`. Raise LabError if the directory is that of the installed
    notebooks or cannot be written.
    """
    shipped = report.find()
    directory = directory.expanduser().absolute()
    home = next(iter(shipped.values())).parent.resolve()
    if directory.resolve() == home:
        raise LabError(
            f"{directory} holds the notebooks as they were installed",
            f"name another directory for your copy: nescord-ops lab {DIRECTORY}",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return tuple(_place(path, directory) for path in shipped.values())
    except (OSError, ValueError) as error:
        raise LabError(
            f"{directory} cannot be written: {error}", "name another directory"
        ) from error


def _place(shipped: Path, directory: Path) -> Placed:
    """Given a notebook of ours, see that `directory` has it, and overwrite nothing of anybody's."""
    document = json.loads(shipped.read_text("utf-8"))
    ours = _digest(document)
    document["metadata"][MARK] = {"copied_from": ours}
    content = (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
    name, number, beside = shipped.name, 1, None
    while True:
        path = directory / name
        origin, untouched = _origin(path)
        if origin == ours:
            return Placed(path, False, beside)
        if untouched or not os.path.lexists(path):
            _replace(path, content)
            return Placed(path, True, beside)
        number, beside = number + 1, beside or path
        name = f"{shipped.stem}-{number}.ipynb"


def _origin(path: Path) -> tuple[str, bool]:
    """The digest of what a notebook was copied from, and whether it is still exactly that."""
    try:
        document = json.loads(path.read_text("utf-8"))
        origin = document["metadata"].get(MARK, {}).get("copied_from", "")
        ran = any(cell.get("outputs") for cell in document["cells"])
        now = _digest(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", False
    return str(origin or now), now == origin and not ran


def _digest(document: Mapping[str, Any]) -> str:
    """The SHA-256 of a notebook's cells without their outputs."""
    cells = [
        (
            cell["cell_type"],
            "".join(cell["source"]),
            cell.get("id"),
            sorted(cell["metadata"].get("tags", ())),
        )
        for cell in document["cells"]
    ]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Make a file, or replace one that nobody has changed, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def running(
    directory: Path | None = None,
    *,
    options: Mapping[str, str] | None = None,
    demo: bool = False,
    port: int | None = None,
    browser: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Lab]:
    """Run JupyterLab on the working copy in `directory` until the block is left.

    `options` are the keywords of `settings.load`, which reach the kernels as environment variables.
    With `demo` they see a sample volume instead, made now and removed at the end. Without `port` it
    is 8888 or the next free one. It listens on 127.0.0.1 and asks for its token. Raise LabError if
    JupyterLab is not installed or does not start, SettingsError if there is no volume to look at.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise LabError("JupyterLab is not installed", "pip install 'nescord-ops[lab]'")
    say = progress or (lambda _: None)
    with contextlib.ExitStack() as stack:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or a shell's `&`
                stack.callback(signal.signal, number, signal.signal(number, _interrupt))
        environment = {} if demo else _variables(options or {})
        notebooks = copy(directory or (DEMO_DIRECTORY if demo else DIRECTORY))
        home = notebooks[0].path.parent
        scratch = Path(tempfile.mkdtemp(prefix="nescord-ops-lab-"))
        stack.callback(_remove, scratch)
        if demo:
            say("making a sample volume")
            environment = _sample(stack)
        say("starting JupyterLab")
        _configure(scratch, home, port, browser, first=notebooks[0].path.name)
        hidden = settings.OF_A_VOLUME if demo else settings.OUR_SECRETS
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        server = Path(__file__).with_name("lab_server.py")
        process = subprocess.Popen(
            [sys.executable, "-P", str(server)],
            cwd=home,
            env={**inherited, **environment, **_jupyter(scratch)},
            stdin=subprocess.PIPE,  # when it closes, however this process ends, the server ends
            stdout=sys.stderr,
            start_new_session=True,  # an interrupt from the terminal is this process's to handle
        )
        stack.callback(_stop, process)
        yield Lab(_url(process, scratch, notebooks[0].path), home, notebooks, process)


def _interrupt(_number: int, _frame: object) -> None:
    """Raise KeyboardInterrupt, once: what ends the lab is not interrupted itself."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _variables(options: Mapping[str, str]) -> dict[str, str]:
    """The options as variables that the kernels read, which work in a directory of their own.

    Only what was given or hangs on this process's directory: a notebook that is told of another
    `app_dir` must not find the stores of the first one there.
    """
    found = settings.load(**options)  # type: ignore[arg-type]
    given = {variable: options.get(name, "") for name, variable in settings.VARIABLES.items()}
    if given["NESCORD_OPS_ENV_FILE"] and found.env_file:
        given["NESCORD_OPS_ENV_FILE"] = str(found.env_file)
    given["NESCORD_OPS_APP_DIR"] = str(found.app_dir)
    given["NESCORD_OPS_REPORTS_DIR"] = str(found.reports_dir)
    return {name: value for name, value in given.items() if value}


def _sample(stack: contextlib.ExitStack) -> dict[str, str]:
    """Make a sample volume that `stack` removes; return the variables that lead to it."""
    made = stack.enter_context(demos.temporary())
    reports = made.app_dir.parent / "reports"
    return {"NESCORD_OPS_APP_DIR": str(made.app_dir), "NESCORD_OPS_REPORTS_DIR": str(reports)}


def _jupyter(scratch: Path) -> dict[str, str]:
    """The environment in which Jupyter finds what `_configure` wrote, and that before all else."""
    paths = [str(scratch / "share"), os.environ.get("JUPYTER_PATH", "")]
    operators = os.environ.get("JUPYTER_CONFIG_DIR") or str(Path("~/.jupyter").expanduser())
    return {
        "ANONYMIZED_TELEMETRY": "False",
        "JUPYTER_CONFIG_DIR": str(scratch / "config"),
        "JUPYTER_CONFIG_PATH": str(scratch / "config"),
        "JUPYTER_NO_CONFIG": "",
        "JUPYTER_PATH": os.pathsep.join(filter(None, paths)),
        "JUPYTER_RUNTIME_DIR": str(scratch / "run"),
        # the theme and the keys that the operator chose stay
        "JUPYTERLAB_SETTINGS_DIR": os.environ.get("JUPYTERLAB_SETTINGS_DIR")
        or str(Path(operators, "lab", "user-settings")),
        "JUPYTERLAB_WORKSPACES_DIR": str(scratch / "workspaces"),
        "TMPDIR": str(scratch / "tmp"),
    }


def _configure(scratch: Path, home: Path, port: int | None, browser: bool, *, first: str) -> None:
    """Write the server's configuration and the kernel's; both are for the owner's eyes only."""
    fits = len(os.fsencode(scratch)) + len(_SOCKET_NAME) <= _SOCKET_PATH
    server: dict[str, Any] = {
        "ServerApp": {
            "allow_remote_access": False,
            "allow_root": os.geteuid() == 0,  # in the bot's container everybody is
            "ip": "127.0.0.1",
            "jpserver_extensions": {"jupyterlab": True, "jupyter_lsp": False},
            "log_level": "ERROR",  # warnings are about the machinery
            "open_browser": browser,
            "port": PORT if port is None else port,
            "port_retries": 50 if port is None else 0,
            "root_dir": str(home),
        },
        "IdentityProvider": {"token": secrets.token_hex(24)},
        "LabApp": {
            "custom_css": True,
            "check_for_updates_class": "jupyterlab.handlers.announcements.NeverCheckForUpdate",
            "default_url": f"/lab/tree/{first}",
            "extension_manager": "readonly",
            "log_level": "ERROR",
            "news_url": None,
        },
        "KernelManager": {"transport": "ipc" if fits else "tcp"},
    }
    kernel = {
        "argv": [
            *(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
            "--IPKernelApp.extra_extensions=nescord_ops.errors",
        ],
        "display_name": "python3",
        "language": "python",
    }
    # the first asks the network, the second a server that is not there
    off = {"@jupyterlab/apputils-extension:announcements": True, "@jupyterlab/lsp-extension": True}
    files = {
        "config/jupyter_server_config.json": server,
        "config/labconfig/page_config.json": {"disabledExtensions": off},
        "share/kernels/python3/kernel.json": kernel,
    }
    for name, content in files.items():
        file = scratch / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1), "utf-8")
    (scratch / "config" / "custom").mkdir()
    style = Path(__file__).with_name("templates") / "lab.css"
    shutil.copyfile(style, scratch / "config" / "custom" / "custom.css")
    (scratch / "tmp").mkdir()


def _url(process: subprocess.Popen[bytes], scratch: Path, first: Path) -> str:
    """Wait until the server listens, and return where it shows `first`, with its token."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for file in (scratch / "run").glob("jpserver-*.json"):
            with contextlib.suppress(ValueError, KeyError, OSError):
                found = json.loads(file.read_text("utf-8"))
                # the file is there a moment before anybody listens
                socket.create_connection(("127.0.0.1", found["port"]), timeout=1).close()
                return f"{found['url']}lab/tree/{first.name}?token={found['token']}"
        time.sleep(0.05)
    code = process.poll()
    why = (
        f"ended with code {code}" if code is not None else f"was not there after {START_SECONDS} s"
    )
    raise LabError(
        f"JupyterLab {why}",
        "read what it said above; where the port is taken, --port 0 takes a free one",
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its kernels, by force if it hangs."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # its kernels notice within a second
        process.wait()
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _remove(scratch: Path) -> None:
    """Remove the scratch directory, to which a kernel ended by force may still write a moment."""
    deadline = time.monotonic() + 5
    while scratch.exists() and time.monotonic() < deadline:
        shutil.rmtree(scratch, ignore_errors=True)
        time.sleep(0.05)
