"""Folders that are there whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnetlab.atomic import atomic_file, atomic_folder, locked, remove_leftovers, without_dots
from resnetlab.errors import WriteError
from tests.workers import ENVIRONMENT, ROOT


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


def write(folder: Path, text: str, *, replace: bool = False) -> None:
    with atomic_folder(folder, replace=replace) as building:
        (building / "file").write_text(text, "utf-8")


def test_a_folder_is_made_where_there_is_none_or_an_empty_one(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "out", "new")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "new")
    assert contents(tmp_path / "deep" / "out") == contents(tmp_path / "empty") == {"file": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "empty"}


def test_what_stands_there_is_replaced_only_if_asked(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(OSError, match="not empty"):
        write(tmp_path / "out", "new")
    assert contents(tmp_path / "out") == {"file": "old"}
    write(tmp_path / "out", "new", replace=True)
    assert contents(tmp_path / "out") == {"file": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(TypeError):
        write(tmp_path / "out", None, replace=True)  # type: ignore[arg-type]
    assert contents(tmp_path / "out") == {"file": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one(tmp_path: Path, there: bool) -> None:
    if there:
        write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == {"file": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"link", "real"}


def test_the_folder_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert without_dots(Path("out")) == Path("out")
    assert without_dots(Path("..")) == tmp_path
    here = without_dots(Path())
    write(here, "new")
    assert contents(here) == contents(tmp_path / "here") == {"file": "new"}


def in_child(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in another process, with `folder` as a Path."""
    begin = f"""
import os
from pathlib import Path
from resnetlab.atomic import atomic_file, atomic_folder, locked
folder = Path({str(folder)!r})
"""
    return subprocess.run(
        [sys.executable, "-c", begin + code], cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, check=False
    )


def test_the_unfinished_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    killed = """
with atomic_folder(folder / "out") as building:
    (building / "file").write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert in_child(killed, tmp_path).returncode == -9
    assert len(list(tmp_path.glob(".resnetlab-new-*"))) == 2  # and its lock
    with atomic_folder(tmp_path / "living") as building:
        os.utime(building, (0, 0))  # however long it has been at work
        assert in_child('with atomic_folder(folder / "out"): pass', tmp_path).returncode == 0
        assert building.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"living", "out"}


def test_a_lock_is_held_by_one_process_and_not_by_a_dead_one(tmp_path: Path) -> None:
    dies = 'with locked(folder / "lock"): os.kill(os.getpid(), 9)'
    assert in_child(dies, tmp_path).returncode == -9
    with locked(tmp_path / "lock"):
        refused = in_child('with locked(folder / "lock"): pass', tmp_path)
        assert refused.returncode == 1
        assert "TimeoutError" in refused.stderr


def test_the_files_that_a_killed_process_was_writing_are_removed(tmp_path: Path) -> None:
    killed = """
with atomic_file(folder / "out.txt") as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert in_child(killed, tmp_path).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_file(tmp_path / "mine.txt") as temporary:
        temporary.write_text("whole")
        living = tmp_path / f".tmp-{os.getppid()}-0000.txt"
        living.write_text("of a process that runs")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", living.name}


def test_a_file_of_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 125 + ".json")
    with atomic_file(target) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("{}")
    assert target.read_text() == "{}"
    with pytest.raises(WriteError, match="Cannot write"), atomic_file(tmp_path / "none" / "file") as temporary:
        temporary.write_text("")
