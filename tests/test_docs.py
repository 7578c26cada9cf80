"""README and the pages of docs/: their code runs, their links lead somewhere, and their figures are measured ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from resnetlab.recipes import recipe
from tests.data import make_images

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(page.read_text("utf-8")) if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands need: photos/, new/, and a run for the pages that begin with one."""
    folder = tmp_path_factory.mktemp("pages")
    make_images.write_classes(folder / "photos", {"daisy": 48, "rose": 48})
    (folder / "new").mkdir()
    for number, path in enumerate(sorted((folder / "photos" / "rose").iterdir())[:3]):
        shutil.copy(path, folder / "new" / f"{number}{path.suffix}")
    program = (
        "import resnetlab as rl\n"
        "rl.train('photos', model='resnet-tiny', image_size=32, batch_size=16, epochs=1, run='before')\n"
    )
    run([sys.executable, "-c", program], folder)
    return folder


def run(command: list[str], folder: Path) -> str:
    variables = {
        "RESNETLAB_CACHE": str(folder / "cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, folder: Path) -> None:
    """Shell blocks line by line, Python blocks as one program; blocks marked `text` are not for running."""
    shell, python = blocks(page, "sh"), blocks(page, "python")
    if not shell and not python:
        pytest.skip("no code on this page")
    shutil.rmtree(folder / "runs", ignore_errors=True)
    if not any("train photos" in code and "--run runs/photos" in code for code in shell):
        shutil.copytree(folder / "before", folder / "runs" / "photos")
    for code in shell:
        run(["sh", "-e", "-c", code], folder)
    if python:
        run([sys.executable, "-c", "\n".join(python)], folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipe_files_of_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    for number, code in enumerate(blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(code, "utf-8")
        chosen = recipe(str(file))
        for key, value in tomllib.loads(code).items():
            assert key == "base" or getattr(chosen, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "cluster").iterdir()), ids=lambda file: file.name)
def test_options_in_the_cluster_examples_exist(file: Path) -> None:
    help_text = run([sys.executable, "-m", "resnetlab.cli", "train", "--help"], ROOT)
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    used = set(re.findall(r"(?<=\s|\()--[a-z][a-z-]+", "\n".join(lines)))
    assert used >= {"--backend", "--coordinator", "--resume"}
    assert used <= set(re.findall(r"--[a-z-]+", help_text))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_commands_on_the_pages_exist() -> None:
    from resnetlab.cli import COMMANDS

    known = {name for name, *_ in COMMANDS}
    for page in PAGES:
        for command in re.findall(r"(?:^|`)resnetlab ([a-z]+)", page.read_text("utf-8"), re.MULTILINE):
            assert command in known, (page.name, command)


def test_readme_is_short_and_its_figures_are_measured() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    rows = json.loads((ROOT / "results" / "study-degradation-quick.json").read_text("utf-8"))["rows"]
    errors = {row["network"]: row["training_error"] for row in rows}  # of the last epoch
    assert f"is {100 * errors['plain20']:.1f} % with 20\nlayers and {100 * errors['plain56']:.0f} % with 56" in text
    assert f"is {100 * errors['resnet20']:.2f} % and {100 * errors['resnet56']:.2f} %." in text


def test_the_citation_and_the_changelog_know_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
