"""What the studies share: which kept rows belong to a measurement."""

import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))
experiment = importlib.import_module("experiment")


def test_rows_are_kept_of_the_same_configuration_whatever_its_description(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert experiment.kept_rows(path, {"epochs": 3}) == []
    kept = {"recipes": {"a": {"epochs": 3, "description": "before", "sides": [1, 2]}}}
    path.write_text(json.dumps({"configuration": kept, "rows": [{"seed": 0}]}), "utf-8")
    now = {"recipes": {"a": {"epochs": 3, "description": "after", "sides": (1, 2)}}}
    assert experiment.kept_rows(path, now) == [{"seed": 0}]
    now["recipes"]["a"]["epochs"] = 4
    assert experiment.kept_rows(path, now) == []


def test_rows_that_are_measured_again_replace_the_kept_ones(tmp_path: Path) -> None:
    path, configuration = tmp_path / "result.json", {"epochs": 3}
    rows = [{"seed": seed, "top1": 0.5} for seed in (0, 1)]
    path.write_text(json.dumps({"configuration": configuration, "rows": rows}), "utf-8")
    now = [{"seed": 2, "top1": 0.7}, {"seed": 1, "top1": 0.6}]
    merged = experiment.with_kept_rows(now, path, configuration, "seed")
    assert [(row["seed"], row["top1"]) for row in merged] == [(0, 0.5), (1, 0.6), (2, 0.7)]
    assert experiment.with_kept_rows(now, path, {"epochs": 4}, "seed") == now[::-1]
