"""The tests' own tool: a function runs where it is said to run, and what goes wrong there comes back."""

import sys
import warnings

import keras
import numpy as np
import pytest

from tests.workers import HERE, WorkerError, Workers


def where(x: np.ndarray) -> tuple[str, set[str], np.ndarray]:
    print("noise on the standard output")
    return keras.backend.backend(), {"tensorflow", "jax", "torch"} & sys.modules.keys(), x + 1


def fail(reason: str) -> None:
    raise ValueError(reason)


def warn() -> None:
    warnings.warn("careless", stacklevel=1)


def test_a_function_runs_on_its_backend(on: Workers, backend: str) -> None:
    name, frameworks, y = on(backend)(where, x=np.arange(3))
    assert name == backend
    assert backend in frameworks
    assert "torch" not in sys.modules  # here, beside TensorFlow
    np.testing.assert_array_equal(y, [1, 2, 3])


def test_an_error_in_a_child_comes_back_with_its_traceback(on: Workers) -> None:
    with pytest.raises(WorkerError, match=r"in fail\n.*\nValueError: it broke"):
        on("jax")(fail, reason="it broke")
    assert on("jax")(where, x=np.zeros(1))[0] == "jax"  # and the child lives on


def test_warnings_are_errors_everywhere(on: Workers, backend: str) -> None:
    with pytest.raises(UserWarning if backend == HERE else WorkerError, match="careless"):
        on(backend)(warn)
