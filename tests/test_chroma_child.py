"""The child process that imports chromadb: how it ends, and that a report's notebooks share one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nescord_ops import chroma_build
from nescord_ops.errors import CaptureError

# One thread, as `prepare` wants; requests hang, crash, raise, and kill the process that serves.
SCRIPT = """
import json, os, resource, signal, sys, time
from nescord_ops import chroma_child, client

def descendants():
    found, todo = [], [os.getpid()]
    while todo:
        children = open(f"/proc/{todo[0]}/task/{todo.pop(0)}/children").read().split()
        found += children
        todo += children
    return len(found)

def left():
    # a child closes its connection and then ends
    deadline = time.monotonic() + 10
    while descendants() > resting and time.monotonic() < deadline:
        time.sleep(0.01)
    return descendants() - resting

def answer(request):
    if request == "hang":
        time.sleep(60)
    if request == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request == "abort":
        os.abort()
    if request == "exit":
        os._exit(1)
    if request == "raise":
        raise ValueError("no such\\nthing")
    if request == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return {"chromadb": "chromadb" in sys.modules, "parent": os.getppid()}

resource.setrlimit(resource.RLIMIT_AS, (1 << 40, resource.RLIM_INFINITY))
chroma_child._answer = answer
chroma_child.prepare(os.fork)
resting = descendants()
seen = {}
for name in ("fine", "hang", "crash", "abort", "exit", "raise", "orphan"):
    began = time.monotonic()
    found = client.ask(["fine", name], 30 if name != "hang" else 2)
    seen[name] = [found.problem, found.result.get("chromadb"), left()]
    assert time.monotonic() - began < 20
first = open(f"/proc/self/task/{os.getpid()}/children").read().split()
os.kill(int(first[0]), signal.SIGKILL)
os.waitpid(int(first[0]), 0)
# the child of its own that is started now knows nothing of the requests above
seen["without"] = [client.ask([{"action": "find", "directory": "/proc"}]).problem, None, 0]
seen["left"] = ["", None, descendants()]
print(json.dumps(seen))
"""


def test_every_end_of_a_child_is_an_answer_and_leaves_no_process() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["fine"] == ["", True, 0]
    assert seen["hang"] == ["Chroma did not answer within 2 s", None, 0]
    assert seen["crash"] == ["killed by signal 11", None, 0]
    assert seen["abort"] == ["killed by signal 6 for want of addresses: MemoryError", None, 0]
    assert seen["exit"] == ["no answer, but exit code 1", None, 0]
    assert seen["raise"] == ["ValueError: no such thing", None, 0]
    assert seen["orphan"] == ["Chroma's process gave no answer", None, 0]
    assert seen["without"][0] not in ("", "Chroma's process gave no answer")
    assert seen["left"][2] == 0


def test_no_code_of_the_current_directory_is_run(tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w'); import sys; sys.exit('trapped')"
    (tmp_path / "json.py").write_text(trap)
    script = (
        "from nescord_ops import chroma_build, client; from pathlib import Path;"
        "chroma_build.run(Path('store'), 'persist');"
        "print(client.ask([{'action': 'find', 'directory': '/proc'}]).problem)"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "sprung").exists()
    assert "gave no answer" not in run.stdout


def test_why_a_sample_cannot_be_written_is_said_however_much_was_to_be_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    record = {"id": "a", "document": "d" * 1000, "metadata": {"tags": "[]"}}
    with pytest.raises(CaptureError, match=r"could not be written \(add\): .*File exists"):
        chroma_build.run(tmp_path / "file", "add", records=[record] * 1000)
