"""Keep a training run in `results/`: its recipe, its line for each epoch, its evaluation, its conditions.

python benchmarks/record_run.py runs/cifar10-resnet20-... results/cifar10-resnet20-quick.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from resnetlab import results
from resnetlab.run_folder import RunFolder

SUMMARY = ("subset", "n", "loss", "top1", "top1_interval", "top5", "calibration_error", "confusion")


def record(run: RunFolder) -> dict[str, Any]:
    """The run as a result; the conditions are those it was trained under, from its own folder."""
    info, recipe, epochs = run.info(), run.recipe(), run.metrics()
    evaluation, environment = run.read_json("evaluation.json"), run.read_json("environment.json")
    seconds = sum(epoch["seconds"] for epoch in epochs)
    found = results.result(
        f"Training {info.model} on {info.source} from scratch: top-1 on the {evaluation['subset']} images",
        configuration=recipe.model_dump(mode="json"),
        rows=epochs,
    )
    return found | {
        "commit": info.commit or found["commit"],
        "environment": environment,
        "device": {
            "cpu": environment["cpu"],
            "cores": environment["cores"],
            "gpu": info.device_name if info.device == "gpu" else None,
        },
        "training_seconds": round(seconds, 1),
        "evaluation": {key: evaluation[key] for key in SUMMARY},
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    results.write(Path(sys.argv[2]), record(RunFolder.open(Path(sys.argv[1]))))
