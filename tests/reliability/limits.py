"""Call a function on hostile files, each call in a process of its own with limits, and state what became of it.

    with Jail("resnetlab.weights.readers:read", preload=("torch",)) as jail:
        outcome = jail.call("file.pth", seconds=20, megabytes=1000)

The function is imported once; each call is a fork, so that a crash, a hang or a lack of memory is its own.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        kind: "refused" (a ResnetlabError or an ImageProblem), "accepted", "exception", "killed" (by a
            signal) or "hung".
        message: of the error, or the value that was returned.
        seconds: until its end.
        megabytes: of memory that the call took at its peak, beyond what its process had before.
    """

    kind: str
    message: str
    seconds: float
    megabytes: float


class Jail:
    """Calls the function `target` ("module:name") with one argument, each time in a new process.

    Args:
        preload: modules to import first.
        environment: environment variables of the processes.
    """

    def __init__(self, target: str, *, preload: Sequence[str] = (), environment: dict[str, str] | None = None) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.limits", target, *preload],
            cwd=ROOT,
            env=os.environ | (environment or {}) | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Jail:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate()

    def call(self, argument: Any, *, seconds: float, megabytes: int) -> Outcome:
        """Call the function within `seconds` and `megabytes` of address space beyond what the process has."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([argument, seconds, megabytes]) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server ended: exit code {self._server.wait()}")
        return Outcome(**json.loads(answer))


def process_status(field: str, process: int | str = "self") -> float:
    """A field of /proc/PROCESS/status in MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def _confined(function: Callable[[Any], Any], argument: Any, seconds: float, megabytes: int) -> Outcome:
    """One call in a fork."""
    reader, writer = os.pipe()
    began = time.monotonic()
    space = int((process_status("VmSize") + megabytes) * 2**20)
    if (child := os.fork()) == 0:
        os.close(reader)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (space, space))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(max(1, round(seconds)))
            with os.fdopen(writer, "w", buffering=1) as out:
                out.write(json.dumps(process_status("VmRSS")) + "\n")
                kind, message = _called(function, argument)
                out.write(json.dumps([kind, message[:4000]]))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        before = json.loads(answer.readline() or "0")
        text = answer.read()
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        kind, message = "hung", f"no end within {seconds} s"
    elif code or not text:
        kind, message = "killed", f"exit code {code}"
    else:
        kind, message = json.loads(text)
    taken = max(0.0, usage.ru_maxrss / 1024 - before)
    return Outcome(kind, message, round(time.monotonic() - began, 2), round(taken, 1))


def _called(function: Callable[[Any], Any], argument: Any) -> tuple[str, str]:
    from resnetlab.data.preprocess import ImageProblem
    from resnetlab.errors import ResnetlabError

    try:
        return "accepted", str(function(argument))
    except (ResnetlabError, ImageProblem) as error:
        return "refused", str(error)
    except BaseException:
        return "exception", traceback.format_exc()[-3000:]


def main(target: str, *preload: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a function prints must not get among the answers
    for name in preload:
        importlib.import_module(name)
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    for line in sys.stdin:
        argument, seconds, megabytes = json.loads(line)
        answers.write(json.dumps(_confined(function, argument, seconds, megabytes).__dict__) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
