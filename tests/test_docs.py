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
TINY = "--model resnet-tiny --image-size 32 --batch-size 16"
SMALL = {  # what the pages train, as a network that trains in seconds
    r"resnetlab train photos(?!.*--model)": f"resnetlab train photos {TINY}",
    r'"photos", model="resnet18"': '"photos", model="resnet-tiny", image_size=32, batch_size=16',
}
COMMANDS_OF_A_PAGE = """\
import shlex, sys
from resnetlab.cli import main

for line in sys.stdin.read().splitlines():
    sys.argv = shlex.split(line, comments=True)
    assert sys.argv[:1] == ["resnetlab"], line
    try:
        main()
    except SystemExit as end:
        assert not end.code, (line, end.code)
"""


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(page.read_text("utf-8")) if name == language]


WITH_CODE = [page for page in PAGES if blocks(page, "sh") or blocks(page, "python")]


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


def run(command: list[str], folder: Path, typed: str = "") -> str:
    variables = {"RESNETLAB_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, input=typed, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, folder: Path) -> None:
    """Shell lines one after the other in one process, Python blocks as one program; `text` blocks are not run."""
    shell, python = blocks(page, "sh"), blocks(page, "python")
    shutil.rmtree(folder / "runs", ignore_errors=True)
    if not any("train photos" in code and "--run runs/photos" in code for code in shell):
        shutil.copytree(folder / "before", folder / "runs" / "photos")
    if shell:
        run([sys.executable, "-c", COMMANDS_OF_A_PAGE], folder, small("".join(shell)))
    if python:
        run([sys.executable, "-c", small("".join(python))], folder)


def small(code: str) -> str:
    for pattern, replacement in SMALL.items():
        code = re.sub(pattern, replacement, code)
    return code


def test_recipe_files_on_the_pages_are_valid(tmp_path: Path) -> None:
    codes = [code for page in PAGES for code in blocks(page, "toml")]
    assert codes
    for number, code in enumerate(codes):
        file = tmp_path / f"{number}.toml"
        file.write_text(code, "utf-8")
        chosen, stated = recipe(str(file)), tomllib.loads(code)
        stated.pop("base", None)
        assert stated
        for key, value in stated.items():
            assert getattr(chosen, key) == (tuple(value) if isinstance(value, list) else value)


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
