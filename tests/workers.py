"""One process for each backend, so that a test can run a function on all three.

A backend is chosen once in a process, and PyTorch and TensorFlow must not share one. So a test sends the function, by
its name, and its arguments to a child that keeps its backend warm. TensorFlow is the test process's own backend.
"""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnetlab.environment import BACKENDS, configure, installed

ROOT = Path(__file__).parents[1]
HERE = next(filter(installed, BACKENDS), "tensorflow")  # the test process's own
ENVIRONMENT = dict(os.environ)  # before `configure` hides the GPUs


class WorkerError(Exception):
    """A function failed in a child; the text is its traceback."""


class Workers:
    """Runs functions on any backend: `on("jax")(function, **kwargs)`. Children start when they are first needed.

    Args:
        device: of the children, "cpu" or "gpu"; on a GPU all backends run in children, as this process has none.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def __call__(self, backend: str) -> Callable[..., Any]:
        """Call a function of a module's top level, with keyword arguments; all that goes in or out is pickled."""
        if not installed(backend):
            title = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}[backend]
            pytest.skip(f"{title} is not installed: make test EXTRAS={backend}")
        here = backend == HERE and self.device == "cpu"
        return self._here if here else lambda function, **kwargs: self._there(backend, function, kwargs)

    def _here(self, function: Callable[..., Any], **kwargs: Any) -> Any:
        return function(**kwargs)

    def _there(self, backend: str, function: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        child = self.children.get(backend) or self._start(backend)
        assert child.stdin is not None
        assert child.stdout is not None
        pickle.dump((function, kwargs), child.stdin)
        child.stdin.flush()
        try:
            failed, answer = pickle.load(child.stdout)
        except EOFError:
            code = self.children.pop(backend).wait()
            raise WorkerError(f"The {backend} process died with exit code {code}.") from None
        if failed:
            raise WorkerError(f"on {backend}:\n{answer}")
        return answer

    def _start(self, backend: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.workers", backend, self.device]
        self.children[backend] = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        return self.children[backend]

    def close(self) -> None:
        for child in self.children.values():
            child.kill()
            child.communicate()


def apply_warning_filters() -> None:
    """The filters that pyproject.toml gives pytest, which are regular expressions, unlike those of python -W."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    for text in options["filterwarnings"]:
        action, message, category, module = [*text.split(":"), "", "", ""][:4]
        warnings.filterwarnings(action, message, getattr(builtins, category or "Warning"), module)


def serve(backend: str, device: str) -> None:
    """The child: read a call, answer it, until the pipe closes."""
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a function prints must not get among the answers
    apply_warning_filters()
    configure(backend=backend, device=device)
    if device == "gpu":
        from resnetlab import backend as running

        assert running.device() == "gpu", f"{backend} sees no GPU"  # else all would be computed on the CPU
    while calls.peek(1):
        try:
            function, kwargs = pickle.load(calls)
            answer = (False, function(**kwargs))
        except Exception:
            answer = (True, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    assert sys.argv[1] in BACKENDS
    serve(sys.argv[1], sys.argv[2])
