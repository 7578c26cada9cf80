"""The report's HTML: its numbers are the run's, nothing is fetched, and no name can break it."""

import csv
import html
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import resnetlab as rl
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.report.page import charts
from resnetlab.tasks import compare_runs
from tests.data import make_images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rl.Run:
    """A run of two classes whose names are HTML, evaluated."""
    root = tmp_path_factory.mktemp("page")
    folder = make_images.write_classes(root / "photos", {"first": 14, "second": 14})
    for old, new in (("first", "<i>one"), ("second", "two & “3”")):
        (folder / old).rename(folder / new)
    settings = {"model": "resnet-tiny", "image_size": 24, "batch_size": 8, "epochs": 2, "early_stopping": 0}
    run = rl.train(folder, run=root / "run", progress=None, test=0.3, **settings)
    run.evaluate(progress=None)
    return run


def page(path: Path) -> str:
    return path.read_text("utf-8")


def embedded(text: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_training_and_evaluation_write_the_report(run: rl.Run) -> None:
    text = page(run.path / "report.html")
    found = rl.Evaluation.from_json(json.loads((run.path / "evaluation.json").read_text("utf-8")))
    assert f"<b>{found.top1:.1%}</b>" in text
    assert f"on {found.n:,} test images" in text
    for title in ("Training", "Confusion", "Classes", "Calibration", "Data", "Network", "Time", "Machine"):
        assert f"<h2>{title}</h2>" in text
    series = {each["name"]: each["values"] for chart in embedded(text) for each in chart["series"]}
    assert series["learning rate"] == [record["learning_rate"] for record in run.history]
    assert series["validation"] == [record["val_top1"] for record in run.history]
    assert len((run.path / "report.html").read_bytes()) < 3_000_000


def test_names_are_escaped_and_nothing_is_fetched(run: rl.Run) -> None:
    text = page(run.path / "report.html")
    assert "<i>one" not in text
    assert "&lt;i&gt;one" in text
    assert "two &amp; “3”" in text
    assert "default-src 'none'" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)


def test_the_command_trains_the_same_recipe(run: rl.Run, tmp_path: Path) -> None:
    import shlex

    found = re.search(r"<pre>(.*?)</pre>", page(run.path / "report.html"), re.DOTALL)
    assert found
    words = shlex.split(html.unescape(found[1]))
    assert words[:2] == ["resnetlab", "train"]
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    again = rl.train(words[2], recipe=words[4], run=tmp_path / "again", progress=None, **_parsed(settings))
    assert again.recipe == run.recipe
    for one, other in zip(again.model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_command_of_a_recipe_of_ones_own_names_its_file(run: rl.Run, tmp_path: Path) -> None:
    import shutil

    from resnetlab.recipes import recipe
    from resnetlab.report.page import _command

    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    own = rl.load(folder)
    own.folder.write_json("recipe.json", run.recipe.changed(name="mine", flip=False).model_dump(mode="json"))
    own.folder.update(deterministic=True)
    words = _command(own.folder).split()
    assert words[3:5] == ["--recipe", str(folder / "recipe.json")]
    assert recipe(words[4]) == own.recipe
    assert words[5:] == ["--deterministic"]


def test_the_report_of_imported_weights_has_no_unknown_device(run: rl.Run, tmp_path: Path) -> None:
    import shutil

    imported = rl.load(shutil.copytree(run.path, tmp_path / "run"))
    (imported.path / "evaluation.json").unlink()
    imported.folder.update(status="imported", device=None, device_name=None, backend=None, data=None)
    text = page(imported.report(tmp_path / "imported.html"))
    assert "None (None)" not in text
    assert "its weights were imported" in text


def _parsed(settings: list[str]) -> dict:
    from resnetlab.recipes import parse_settings

    return parse_settings(settings)


def test_a_mistake_is_shown_with_its_map(run: rl.Run) -> None:
    with np.load(run.path / "predictions.npz") as file:
        wrong = int((file["logits"].argmax(axis=1) != file["labels"]).sum())
        right = len(file["labels"]) - wrong
    text = page(run.path / "report.html")
    assert text.count('aria-label="enlarge ') == 2 * min(wrong, 12) + min(right, 12)  # suspect labels are mistakes too
    assert text.count('alt="Grad-CAM of ') == 2 * min(wrong, 12) + min(right, 12)  # suspect labels are mistakes too
    assert text.count('<img class="small" src="data:image/png') >= 16  # the augmented batch
    assert f"{len(run.filters())} filters of 3x3 pixels" in text


def test_suspect_labels_are_a_file_in_the_order_of_the_label_s_probability(run: rl.Run) -> None:
    with (run.path / "label_errors.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(run.path / "predictions.npz") as file:
        logits, labels, names = file["logits"], file["labels"], file["names"].tolist()
    assert {row["name"] for row in rows} == {names[i] for i in np.flatnonzero(logits.argmax(axis=1) != labels)}
    assert [float(row["probability_of_label"]) for row in rows] == sorted(
        float(row["probability_of_label"]) for row in rows
    )
    for row in rows:
        i = names.index(row["name"])
        assert row["label"] == run.class_names[labels[i]]
        assert row["suggested"] == run.class_names[logits[i].argmax()]
        assert row["confident"] in ("yes", "no")


def test_near_duplicates_across_the_split_are_shown(run: rl.Run, tmp_path: Path) -> None:
    from resnetlab.data.loading import open_run_data
    from resnetlab.data.near_duplicates import near_duplicates
    from resnetlab.progress import LogProgress

    _, pack = open_run_data(run.folder, progress=LogProgress())
    images = np.array(pack.images)
    held_out, training = int(pack.indices("test")[0]), int(pack.indices("train")[0])
    images[held_out] = np.clip(images[training] * 0.9, 0, 255)
    other = replace(pack, images=images)
    count = len(near_duplicates(other) or [])
    run._write_report(tmp_path / "pairs.html", other)
    text = page(tmp_path / "pairs.html")
    assert "<h2>Near-duplicates across the split</h2>" in text
    assert f'alt="training image {html.escape(pack.names[training])}"' in text
    assert re.search(rf"\b{count} held-out images? ha(s|ve) a near-duplicate", text)


def test_the_classes_are_counted_by_subset(run: rl.Run) -> None:
    text = page(run.path / "report.html")
    data = text[text.index("<h2>Data</h2>") : text.index("<h2>Network</h2>")]
    cells = [int(value) for value in re.findall(r'data-value="(\d+)"', data)]
    rows = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    assert len(rows) == 2
    assert all(train + validation + test == images == 14 for train, validation, test, images in rows)
    with (run.path / "split.csv").open(encoding="utf-8", newline="") as file:
        subsets = Counter(row["subset"] for row in csv.DictReader(file))
    assert [sum(column) for column in zip(*rows, strict=True)][:3] == [
        subsets[s] for s in ("train", "validation", "test")
    ]


def test_without_its_data_the_report_says_so(run: rl.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    info = json.loads((copy / "run.json").read_text("utf-8"))
    (copy / "run.json").write_text(json.dumps(info | {"data": str(tmp_path / "gone")}), "utf-8")
    text = page(rl.load(copy).report())
    assert "none are shown" in text
    assert 'aria-label="enlarge ' not in text
    assert "<h2>Confusion</h2>" in text


def test_without_an_evaluation_it_has_the_curves(run: rl.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "evaluation.json").unlink()
    (copy / "predictions.npz").unlink()
    text = page(rl.load(copy).report(tmp_path / "elsewhere.html"))
    assert "has not been evaluated" in text
    assert "<h2>Training</h2>" in text
    assert "<h2>Confusion</h2>" not in text


def test_runs_are_compared_by_what_differs(run: rl.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "other")
    recipe = json.loads((tmp_path / "other" / "recipe.json").read_text("utf-8"))
    (tmp_path / "other" / "recipe.json").write_text(json.dumps(recipe | {"learning_rate": 0.125}), "utf-8")
    text = page(compare_runs([run, tmp_path / "other"], tmp_path / "comparison.html"))
    assert "<h1>2 runs</h1>" in text
    differing = text[text.index("Settings that differ") : text.index("<h2>Training</h2>")]
    assert "learning_rate" in differing
    assert "0.125" in differing
    assert "batch_size" not in differing
    assert {each["name"] for chart in embedded(text) for each in chart["series"]} >= {
        "run validation",
        "other validation",
    }
    with pytest.raises(ResnetlabError, match="same run twice"):
        compare_runs([run, run.path], tmp_path / "comparison.html")
    with pytest.raises(UsageError, match="expected at least 2"):
        compare_runs([run], tmp_path / "comparison.html")


def test_curves_of_different_lengths_share_an_axis() -> None:
    made = charts([("a", [{"loss": 1.0}, {"loss": 0.5}], 2), ("b", [{"loss": 2.0}], 1)])
    assert made[0]["epochs"] == [1, 2]
    assert [each["values"] for each in made[0]["series"]] == [[1.0, 0.5], [2.0, None]]
