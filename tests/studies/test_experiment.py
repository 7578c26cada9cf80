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
