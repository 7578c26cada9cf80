"""Work in a child process, in one protocol: a request and its answers, each a line of JSON.

A framework can be imported only once per process, for one backend and one set of devices, and may crash or hang the
process. Code that compares backends or devices, examines an installation, or runs another implementation therefore
uses child processes:

    with Child("-m", "resnetlab.comparison.measure") as child:    the parent
        for answer in child.ask(request, limit=900):
            ...

    serve(answer)                                                 the child: answer(request) yields the answers

A child is the leader of a process group. The whole group ends when the parent closes the child or dies.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from resnetlab.errors import first_informative_line

Json = dict[str, Any]


class ChildFailed(Exception):
    """The child failed before it had sent all answers to a request; the message states the reason."""


class Child:
    """A Python process that answers requests.

    Args:
        arguments: command-line arguments for Python: a script, or -m and a module, that calls `serve`.
        environment: environment variables to set for it.
        remove: environment variables that it must not inherit.
    """

    def __init__(
        self, *arguments: str, environment: Mapping[str, str] | None = None, remove: Iterable[str] = ()
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in remove}
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see `close`)
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            env=inherited | {"PYTHONIOENCODING": "utf-8"} | dict(environment or {}),
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Any, *, limit: float) -> Iterator[Json]:
        """Send a request, and yield its answers as they arrive.

        Raises ChildFailed where the child reports an error, ends, or takes more than `limit` seconds for all answers.
        """
        deadline = time.monotonic() + limit
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(OSError):  # the child has ended: reading its output below reports how
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                self._end()
                raise ChildFailed(f"no answer within {limit:.0f} s") from None
            if not line:
                raise ChildFailed(self._how_it_ended())
            kind, value = json.loads(line)
            if kind == "answer":
                yield value
            elif kind == "error":
                raise ChildFailed(value)
            else:
                return

    def ask_one(self, request: Any, *, limit: float) -> Json:
        """The answer to a request that has one."""
        answers = list(self.ask(request, limit=limit))
        if len(answers) != 1:
            raise ChildFailed(f"{len(answers)} answers, expected 1")
        return answers[0]

    def log(self) -> str:
        """The text that the child has written to standard output and standard error so far."""
        self._stderr.seek(0)
        return self._stderr.read()

    def close(self) -> None:
        """Kill the child and every process that it has started."""
        self._end()
        for file in (self._process.stdin, self._process.stdout, self._stderr):
            with suppress(OSError, AttributeError):
                file.close()  # type: ignore[union-attr]

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):  # closed while reading
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _end(self) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._process.kill()
        self._process.wait()

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if code < 0:
            with suppress(ValueError):
                name = signal.Signals(-code).name
                why = ", as the system does when it runs out of memory" if name == "SIGKILL" else ""
                return f"killed by {name}{why}"
        lines = [line.strip() for line in self.log().splitlines() if line.strip()]
        return lines[-1].split(": ", 1)[-1][:300] if lines else f"exit code {code}"


def serve(answer: Callable[[Any], Iterable[Json]]) -> None:
    """Answer the parent's requests until it closes the pipe or dies, which ends this process group.

    An exception ends its request and is reported to the parent. Other output to stdout is redirected to stderr.
    """
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        try:
            for each in answer(request):
                lines.write(json.dumps(["answer", each]) + "\n")
        except Exception as error:
            lines.write(json.dumps(["error", first_informative_line(error, limit=300)]) + "\n")
        else:
            lines.write('["end", null]\n')


def _read_requests(requests: queue.Queue[str]) -> None:
    with open(os.dup(0), encoding="utf-8") as stdin:
        for line in stdin:
            requests.put(line)
    # Also in the middle of a request: no one is left to read the answers.
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
