"""Children answer in JSON lines, report how they fail, and end with their parent."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnetlab.child_process import Child, ChildFailed

CHILD = """
import os, signal, subprocess, sys, time
from resnetlab.child_process import serve

def answer(request):
    print("what a framework prints")
    os.system("echo what a library prints")
    if request == "fail":
        raise ValueError("the reason\\nand more")
    if request == "die":
        sys.stderr.write("Traceback\\nSomeError: broke off\\n")
        sys.stderr.flush()
        os._exit(3)
    if request == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if request == "hang":
        time.sleep(60)
    if request == "grandchild":
        yield {"pids": [os.getpid(), subprocess.Popen(["sleep", "60"]).pid]}
        time.sleep(60)
    for number in range(request if isinstance(request, int) else 0):
        yield {"number": number, "text": "é"}

serve(answer)
"""


@pytest.fixture
def child(tmp_path: Path) -> Path:
    file = tmp_path / "child.py"
    file.write_text(CHILD, encoding="utf-8")
    return file


def test_requests_have_any_number_of_answers(child: Path) -> None:
    with Child(str(child)) as process:
        assert list(process.ask(0, limit=30)) == []
        assert list(process.ask(2, limit=30)) == [{"number": 0, "text": "é"}, {"number": 1, "text": "é"}]
        assert "what a framework prints" in process.log()
        assert "what a library prints" in process.log()


def test_one_answer_is_what_a_request_for_one_gets(child: Path) -> None:
    with Child(str(child)) as process:
        for _ in range(2):  # nothing of the first is left over for the second
            assert process.ask_one(1, limit=30) == {"number": 0, "text": "é"}
        with pytest.raises(ChildFailed, match="2 answers, expected 1"):
            process.ask_one(2, limit=30)


def test_an_error_is_reported_and_the_child_goes_on(child: Path) -> None:
    with Child(str(child)) as process:
        with pytest.raises(ChildFailed, match=r"^the reason$"):
            list(process.ask("fail", limit=30))
        assert len(list(process.ask(1, limit=30))) == 1


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ("die", "broke off"),
        ("killed", "killed by SIGKILL, as the system does when it runs out of memory"),
        ("hang", "no answer within 1 s"),
    ],
)
def test_how_a_child_ended_is_told(child: Path, request_: str, reason: str) -> None:
    with Child(str(child)) as process:
        list(process.ask(0, limit=30))
        with pytest.raises(ChildFailed, match=f"^{reason}$"):
            list(process.ask(request_, limit=1 if request_ == "hang" else 30))


def test_a_program_that_cannot_start_is_a_failure(tmp_path: Path) -> None:
    with Child(str(tmp_path / "missing.py")) as process, pytest.raises(ChildFailed, match=r"No such file"):
        list(process.ask(0, limit=30))


def gone(pids: list[int]) -> bool:
    stats = [Path(f"/proc/{pid}/stat") for pid in pids]
    return all(not stat.exists() or stat.read_text().split(") ")[1][0] == "Z" for stat in stats)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("ten seconds have passed")


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


@needs_proc
def test_closing_ends_what_the_child_has_started(child: Path) -> None:
    with Child(str(child)) as process:
        pids = next(process.ask("grandchild", limit=30))["pids"]
        assert not gone(pids)
    wait_for(lambda: gone(pids))


@needs_proc
def test_a_child_ends_with_a_killed_parent(child: Path, tmp_path: Path) -> None:
    """In the middle of a request, with what it has started."""
    said = tmp_path / "pids"
    program = (
        "import pathlib, time\n"
        "from resnetlab.child_process import Child\n"
        f"pids = next(Child({str(child)!r}).ask('grandchild', limit=30))['pids']\n"
        f"pathlib.Path({str(said)!r}).write_text(' '.join(map(str, pids)))\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    wait_for(lambda: said.exists() and len(said.read_text().split()) == 2)
    pids = list(map(int, said.read_text().split()))
    assert not gone(pids)
    parent.kill()
    parent.wait()
    wait_for(lambda: gone(pids))
