"""Child processes that do not outlive the benchmark: whole groups are ended, and they end with a killed parent."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


def start(command: Sequence[str], **settings: Any) -> subprocess.Popen[str]:
    """A child in a process group of its own. Its program should call `end_with_parent`."""
    return subprocess.Popen(command, start_new_session=True, **settings)


def end(process: subprocess.Popen[str]) -> None:
    """Kill a child and all that it has started, and wait for it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def end_with_parent(every: float = 1.0) -> None:
    """Kill this process and all that it has started when its parent is gone, even if killed.

    Not the kernel's PR_SET_PDEATHSIG, which goes by the thread that started the child: here those of a pool.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def run(command: Sequence[str], *, limit: float, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises TimeoutExpired, with what it printed, after `limit` seconds."""
    with start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            output, errors = process.communicate(timeout=max(limit, 1))
        except subprocess.TimeoutExpired:
            end(process)
            output, errors = process.communicate()
            raise subprocess.TimeoutExpired(command, limit, output, errors) from None
        except BaseException:
            end(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
