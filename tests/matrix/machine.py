"""What fails around a command, and how that is done to a process."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from matrix.commands import Command
from matrix.world import World

LIMIT_SECONDS = 90.0
MARK = "NESCORD_MATRIX_CELL"  # a variable that all processes of a cell have
_CAPABILITIES = "-dac_override,-dac_read_search,-fowner,-chown"


@dataclasses.dataclass(slots=True)
class Machine:
    """How a process is run: with what environment, behind what, and with what happening to it."""

    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    prefix: list[str] = dataclasses.field(default_factory=list)
    limits: dict[int, int] = dataclasses.field(default_factory=dict)
    meanwhile: Callable[[subprocess.Popen[bytes]], None] | None = None
    afterwards: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    codes: frozenset[int] = frozenset((0, 1, 2))
    untidy: bool = False  # it may leave things behind: it was killed, or could not remove them
    stuck: bool = False  # writes fail to the end: a journal stays, for the next one to roll back
    bot: Bot | None = None
    told: str = ""  # what was drawn


Fault = Callable[[World, random.Random, "Healthy"], Machine]


@dataclasses.dataclass(frozen=True, slots=True)
class Healthy:
    """What a command does on a healthy volume: seconds, and calls by the shim's letters."""

    seconds: float
    calls: dict[str, int]


_SHIM: list[Path] = []
_SHIM_LOCK = threading.Lock()


def shim() -> Path:
    """Compile the shim, once."""
    with _SHIM_LOCK:
        if not _SHIM:
            directory = Path(tempfile.mkdtemp(prefix="nescord-matrix-"))
            atexit.register(shutil.rmtree, directory, ignore_errors=True)
            target = directory / "shim.so"
            source = Path(__file__).with_name("shim.c")
            command = ["cc", "-shared", "-fPIC", "-O1", "-o", target, source, "-ldl"]
            subprocess.run(command, check=True)
            _SHIM.append(target)
    return _SHIM[0]


def shimmed(world: World, **options: object) -> dict[str, str]:
    given = {f"SHIM_{name.upper()}": str(value) for name, value in options.items()}
    log = world.beside(".shim")
    return {"LD_PRELOAD": str(shim()), "SHIM_PATH": str(world.root), "SHIM_LOG": str(log), **given}


def _failing(ops: str, *numbers: int) -> Fault:
    def fault(world: World, chance: random.Random, usual: Healthy) -> Machine:
        calls = sum(usual.calls[op] for op in ops)
        nth, sticky = chance.randint(1, max(calls, 1)), chance.randint(0, 1)
        number = chance.choice(numbers)
        told = f"{errno.errorcode[number]} at call {nth} of {calls}{' and after' * sticky}"
        options = {"ops": ops, "nth": nth, "sticky": sticky, "errno": number}
        stuck = bool(sticky)
        return Machine(
            shimmed(world, **options), untidy=stuck and ops in "on", stuck=stuck, told=told
        )

    return fault


def _signalled_at_call(number: int) -> Fault:
    def fault(world: World, chance: random.Random, usual: Healthy) -> Machine:
        calls = sum(usual.calls[op] for op in "wsn")
        nth = chance.randint(1, max(calls, 1))
        options = {"ops": "wsn", "nth": nth, "signal": int(number), "main": 1}
        codes = frozenset((0, 1, 2, 130 if number == signal.SIGTERM else -9))
        return Machine(
            shimmed(world, **options),
            codes=codes,
            untidy=number == signal.SIGKILL,
            told=f"at call {nth} of {calls}",
        )

    return fault


def _signalled(number: int) -> Fault:
    def fault(world: World, chance: random.Random, usual: Healthy) -> Machine:
        after = chance.uniform(0, usual.seconds * 1.1)

        def meanwhile(child: subprocess.Popen[bytes]) -> None:
            time.sleep(after)
            if child.poll() is None:
                child.send_signal(number)

        codes = {0, 1, 2, -number} | ({130} if number == signal.SIGTERM else set())
        return Machine(
            meanwhile=meanwhile,
            codes=frozenset(codes),
            untidy=number == signal.SIGKILL,
            told=f"after {after:.2f} of {usual.seconds:.2f} s",
        )

    return fault


def _child_killed(world: World, chance: random.Random, usual: Healthy) -> Machine:
    """As the OOM killer does to a kernel, or to Chroma."""
    after = chance.uniform(0, usual.seconds)

    def meanwhile(child: subprocess.Popen[bytes]) -> None:
        time.sleep(after)
        deadline = time.monotonic() + usual.seconds
        while child.poll() is None and time.monotonic() < deadline:
            for pid in descendants(world):
                if pid != child.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    return
            time.sleep(0.005)

    return Machine(meanwhile=meanwhile, told=f"after {after:.2f} s")


def _read_only(world: World, chance: random.Random, usual: Healthy) -> Machine:
    places = chance.choice((["app"], ["app"], ["app", "tmp", "out", "offsite"]))
    script = "".join(f"mount --bind {p} {p} && mount -o remount,bind,ro {p} && " for p in places)
    return Machine(
        prefix=["unshare", "-m", "sh", "-c", f'{script}exec "$@"', "sh"], told=" ".join(places)
    )


def _full(world: World, chance: random.Random, usual: Healthy) -> Machine:
    """A small file system of its own below a place, with little room or none."""
    place = world.root / chance.choice(("app", "app", "tmp", "offsite", "out"))
    used = int(subprocess.check_output(["du", "-sB4096", place]).split()[0]) + 2
    room = chance.choice((0, 1, 4, 16, 64, 256, 1024, 6000, 70_000))
    aside = place.with_name(place.name + ".aside")
    place.rename(aside)
    place.mkdir()
    size = f"size={(used + room) * 4096}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=True)
    subprocess.run(["cp", "-a", f"{aside}/.", place], check=True)
    shutil.rmtree(aside)

    def afterwards() -> None:
        subprocess.run(["cp", "-a", place, aside], check=True)
        subprocess.run(["umount", place], check=True)
        place.rmdir()
        aside.rename(place)

    return Machine(afterwards=[afterwards], told=f"{place.name}: {room * 4096:,} bytes left")


def _few_files(world: World, chance: random.Random, usual: Healthy) -> Machine:
    most = chance.choice((8, 10, 12, 16, 20, 24, 32, 48))
    limits = {resource.RLIMIT_NOFILE: most}
    return Machine(limits=limits, untidy=True, told=f"{most} descriptors")


def _no_access(world: World, chance: random.Random, usual: Healthy) -> Machine:
    """Somebody else's files, without the rights that root has over them."""
    found = world.settings
    choices = (
        (world.app, 0o700),
        (world.app, 0o755),
        (found.backup_dir, 0o700),
        (found.chroma_dir, 0o700),
        (found.chroma_dir, 0o755),
        (found.database, 0o600),
        (found.database, 0o644),
        (world.root / "tmp", 0o700),
        (world.root / "offsite", 0o755),
    )
    return denied(world, *chance.choice(choices))


def denied(world: World, place: Path, mode: int) -> Machine:
    """A place is another user's, and with 755 all that is in it too."""
    paths = [place, *place.rglob("*")] if mode == 0o755 else [place]
    for path in [path for path in paths if os.path.lexists(path)]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    before = place.stat().st_mode if place.exists() else 0
    if before:
        place.chmod(mode)

    def afterwards() -> None:
        for path in paths:
            if os.path.lexists(path):
                os.chown(path, 0, 0, follow_symlinks=False)
        if before:
            place.chmod(stat.S_IMODE(before))

    return Machine(
        prefix=["setpriv", f"--bounding-set={_CAPABILITIES}", f"--inh-caps={_CAPABILITIES}"],
        afterwards=[afterwards],
        told=f"{place.relative_to(world.root)} {mode:o}",
    )


def _slow(world: World, chance: random.Random, usual: Healthy) -> Machine:
    calls = sum(usual.calls.values())
    pause = int(min(3000, 6e6 / max(calls, 1)))
    options = {"ops": "rwson", "nth": 1, "sticky": 1, "usleep": pause}
    return Machine(shimmed(world, **options), told=f"{pause} us a call")


def _clock(world: World, chance: random.Random, usual: Healthy) -> Machine:
    day = 86_400
    jump = chance.choice((-20_000 * day, -400 * day, -3600, -1, 1, 3600, 30 * day, 9000 * day))
    every = chance.choice((1, 1, 2, 5, 20, 100))
    return Machine(shimmed(world, clock=jump, nth=every), told=f"{jump} s, every {every}")


def _memory(world: World, chance: random.Random, usual: Healthy) -> Machine:
    most = chance.choice((120, 200, 300, 400, 600, 900, 1400)) << 20
    told = f"{most >> 20} MB of addresses"
    return Machine(limits={resource.RLIMIT_AS: most}, untidy=True, told=told)


def _group(world: World, chance: random.Random, usual: Healthy) -> Machine:
    """A container that is too small: the kernel kills what takes most."""
    most = chance.choice((30, 50, 70, 90, 120, 180)) << 20
    controller = Path("/sys/fs/cgroup/memory")  # of cgroups 1
    if not controller.is_dir():
        return Machine(told="no memory controller here")
    group = controller / f"nescord-matrix-{os.getpid()}-{world.root.name}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(most))

    def afterwards() -> None:
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
                return
            time.sleep(0.05)

    script = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    return Machine(
        prefix=["sh", "-c", script, "sh"],
        afterwards=[afterwards],
        codes=frozenset((0, 1, 2, -9)),
        untidy=True,
        told=f"{most >> 20} MB",
    )


def _bot(*, starts: bool) -> Fault:
    def fault(world: World, chance: random.Random, usual: Healthy) -> Machine:
        after = chance.uniform(0, usual.seconds)
        bot = Bot(world)
        if not starts:
            bot.start()

        def meanwhile(child: subprocess.Popen[bytes]) -> None:
            time.sleep(after)
            bot.start() if starts else bot.stop(chance.choice((signal.SIGTERM, signal.SIGKILL)))

        return Machine(
            meanwhile=meanwhile,
            afterwards=[lambda: bot.stop(signal.SIGTERM)],
            bot=bot,
            told=f"after {after:.2f} of {usual.seconds:.2f} s",
        )

    return fault


MACHINES: dict[str, Fault] = {
    "fine": lambda *_: Machine(),
    "read-only": _read_only,
    "full": _full,
    "enospc-write": _failing("ws", errno.ENOSPC),
    "eio-write": _failing("ws", errno.EIO),
    "eio-read": _failing("r", errno.EIO),
    "eio-name": _failing("n", errno.EIO, errno.EACCES),
    "emfile": _few_files,
    "emfile-open": _failing("o", errno.EMFILE, errno.EACCES),
    "eacces": _no_access,
    "slow": _slow,
    "clock": _clock,
    "sigterm": _signalled(signal.SIGTERM),
    "sigterm-call": _signalled_at_call(signal.SIGTERM),
    "sigkill": _signalled(signal.SIGKILL),
    "sigkill-call": _signalled_at_call(signal.SIGKILL),
    "memory": _memory,
    "oom": _group,
    "child-killed": _child_killed,
    "bot-starts": _bot(starts=True),
    "bot-stops": _bot(starts=False),
}


# Drawn without knowing how long a command takes.
UNMEASURED = ("fine", "read-only", "full", "emfile", "eacces", "clock", "memory", "oom")
# What these do is a finding about the volume, or about the age of its backups. What the others do
# keeps a command from looking, which is never exit code 1.
TELLING = ("fine", "read-only", "full", "eacces", "clock")


class Bot:
    """A stand-in for the bot: notes in WAL mode, every row acknowledged in a file beside.

    It holds a file of Chroma's open, as the bot does, and writes nothing there.
    """

    CODE = """
import itertools, os, signal, sqlite3, sys, time
database, chroma, said = sys.argv[1:]
going, parent = True, os.getppid()
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
held = open(chroma, "rb")
db = sqlite3.connect(database, timeout=5, isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
with open(said, "a", buffering=1) as out:
    for number in itertools.count():
        if not going or os.getppid() != parent:
            break
        key = f"bot{time.time_ns()}"
        db.execute("INSERT INTO kv_store(key, value) VALUES (?, ?)", (key, "x" * 500))
        print(key, file=out)
        time.sleep(0.004)
db.close()
"""

    def __init__(self, world: World) -> None:
        found = world.settings
        self.database = found.database
        self.chroma = found.chroma_dir / "chroma.sqlite3"
        self.said = world.beside(".bot")
        self.child: subprocess.Popen[bytes] | None = None
        self.errors = b""
        self.killed = False

    def start(self) -> None:
        if self.child or not (self.database.exists() and self.chroma.exists()):
            return
        command = [sys.executable, "-c", self.CODE, self.database, self.chroma, self.said]
        self.child = subprocess.Popen(command, stderr=subprocess.PIPE)

    def stop(self, number: int) -> None:
        if self.child and self.child.poll() is None:
            self.child.send_signal(number)
        if self.child and not self.child.stderr.closed:
            self.errors += self.child.communicate()[1]

    @property
    def keys(self) -> set[str]:
        text = self.said.read_text() if self.said.exists() else ""
        return {line for line in text.split("\n")[:-1] if line}


def descendants(world: World) -> list[int]:
    """The living processes of a cell, which carry its mark in their environment."""
    mark, found = f"{MARK}={world.root}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return sorted(found)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A process that has ended: its exit code (124 if it had to be killed), and what it said."""

    code: int
    seconds: float
    out: str
    err: str


def execute(world: World, command: Command, machine: Machine, *, as_json: bool = False) -> Result:
    """Run a command to its end, or kill it after the limit."""
    options = ["--json"] if as_json else []
    line = [sys.executable, "-m", "nescord_ops", *options, "--app-dir", str(world.app)]

    def limits() -> None:
        for what, most in machine.limits.items():
            resource.setrlimit(what, (most, most))

    begun = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            [*machine.prefix, *line, *command.words(world)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**_environment(world), **machine.environment},
            cwd=world.root,
            preexec_fn=limits if machine.limits else None,
            start_new_session=True,
        )
        other = threading.Thread(target=machine.meanwhile or (lambda _: None), args=(child,))
        other.start()
        try:
            code = child.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            code = 124
        seconds = time.monotonic() - begun
        other.join()
        for stream in (out, err):
            stream.seek(0)
        said = [stream.read().decode(errors="replace") for stream in (out, err)]
    return Result(code, seconds, *said)


def _environment(world: World) -> dict[str, str]:
    passed = ("PATH", "PYTHONPATH", "LANG", "PYTHONDONTWRITEBYTECODE")
    return {
        **{name: value for name, value in os.environ.items() if name in passed},
        "HOME": str(world.root / "tmp"),
        "TMPDIR": str(world.root / "tmp"),
        "NESCORD_OPS_OFFSITE_URL": world.url,
        "NESCORD_OPS_AGE_RECIPIENT": world.recipient,
        MARK: str(world.root),
    }
