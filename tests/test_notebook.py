"""The notebook is committed as it ran, and runs: here the short pass, with the same cells and assertions."""

import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "resnet_from_scratch.ipynb"


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return [c for c in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]


def test_it_is_committed_with_its_outputs_of_one_run(cells: list[dict]) -> None:
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6


def test_every_figure_has_a_text_for_those_who_do_not_see_it(cells: list[dict]) -> None:
    figures = [output for cell in cells for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert all(len(figure["metadata"]["image/png"]["alt"]) > 40 for figure in figures)


def test_every_assertion_has_a_message(cells: list[dict]) -> None:
    found = [
        node for cell in cells for node in ast.walk(ast.parse("".join(cell["source"]))) if isinstance(node, ast.Assert)
    ]
    assert len(found) > 15
    assert [ast.unparse(node) for node in found if node.msg is None] == []


def test_it_names_no_path_of_the_machine_it_ran_on(cells: list[dict]) -> None:
    text = json.dumps([cell["outputs"] for cell in cells])
    assert str(Path.home()) not in text
    assert str(NOTEBOOK.parents[1]) not in text


def test_what_it_imports_is_there(cells: list[dict]) -> None:
    """Names of the library, in a moment; that the cells run is the long test below."""
    trees = [ast.parse("".join(cell["source"])) for cell in cells]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = [(node.module, name.name) for node in imports if node.module.startswith("resnetlab") for name in node.names]
    assert len(own) > 10
    for module, name in own:
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), (module, name)


def test_it_shows_its_blocks_in_at_most_40_lines(cells: list[dict]) -> None:
    (blocks,) = [cell for cell in cells if any(line.startswith("def bottleneck") for line in cell["source"])]
    assert len(blocks["source"]) <= 40


@pytest.mark.long
@pytest.mark.benchmark
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook"]
    ran = subprocess.run(
        [*command, "--output-dir", str(tmp_path), str(NOTEBOOK)],
        env=os.environ | {"RESNETLAB_NOTEBOOK": "short", "RESNETLAB_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
    written = json.loads((tmp_path / NOTEBOOK.name).read_text("utf-8"))
    assert all(cell["execution_count"] for cell in written["cells"] if cell["cell_type"] == "code")
