"""The modules of the three backends have the same functions, with the same parameters."""

import ast
from pathlib import Path

import pytest

import resnetlab

FOLDER = Path(resnetlab.__file__).parent / "backend"
# Training on several devices is not for PyTorch, in several processes only for JAX: `devices.py` refuses it before.
MISSING = {"tensorflow": {"join"}, "jax": set(), "torch": {"join", "divide_cpu", "distribute"}}


def functions(backend: str) -> dict[str, list[str]]:
    """Names of the parameters of each public function."""
    found = {}
    for node in ast.parse((FOLDER / f"{backend}.py").read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found[node.name] = [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
        if isinstance(node, ast.Assign):  # another name of the same function
            found |= {
                name.id: [] for name in node.targets if isinstance(name, ast.Name) and name.id.endswith("_update")
            }
    return found


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_the_backends_have_the_same_functions(backend: str) -> None:
    ours, jax = functions(backend), functions("jax")
    assert ours.keys() | MISSING[backend] == jax.keys()
    for name, parameters in ours.items():
        if parameters and jax[name]:  # none: it takes anything, and does nothing
            assert parameters == jax[name], name
