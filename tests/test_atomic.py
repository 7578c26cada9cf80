"""Folders that are there whole or not at all."""

from pathlib import Path

import pytest

from resnetlab.atomic import atomic_folder, without_dots


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
