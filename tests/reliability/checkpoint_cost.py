"""What a checkpoint within an epoch costs, beside steps without one, and as a share of the default interval.

Claim   At one checkpoint every five minutes, checkpoints take at most 1 % of the time.
How     Turns of steps with and without a checkpoint that is written in the background, interleaved; a turn ends when
        the checkpoint is written, so that its whole work is counted, whether it delays the steps or follows them.
Cost    About five minutes on two CPU cores.

    python -m tests.reliability.checkpoint_cost
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from resnetlab.environment import configure

configure(device="cpu")

import numpy as np  # noqa: E402

from resnetlab import results  # noqa: E402
from resnetlab.comparison.timing import interleave  # noqa: E402
from resnetlab.data.stream import Stream  # noqa: E402
from resnetlab.models.from_recipe import build_network  # noqa: E402
from resnetlab.recipes import RECIPES  # noqa: E402
from resnetlab.run_folder import RunFolder, RunInfo  # noqa: E402
from resnetlab.training.build import make_augmentation, make_trainer  # noqa: E402
from resnetlab.training.checkpoint import Checkpoints  # noqa: E402
from resnetlab.training.interval import EVERY_FIVE_MINUTES  # noqa: E402
from tests.reliability.limits import ROOT  # noqa: E402

SHARE_MOST = 0.01
NETWORKS = (("resnet20", "cifar", 32, 128, 20), ("resnet50", "imagenet", 64, 32, 8))


def measure(model: str, recipe_name: str, side: int, batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    recipe = RECIPES[recipe_name].changed(model=model, image_size=side, batch_size=batch_size, precision="float32")
    stored = (512, recipe.pack_size, recipe.pack_size, 3)
    images = np.random.default_rng(0).integers(0, 256, stored, np.uint8)
    stream = Stream(
        images=images,
        labels=np.arange(512) % 10,
        indices=np.arange(512),
        num_classes=10,
        batch_size=batch_size,
        seed=0,
        augmentation=make_augmentation(recipe),
    )
    trainer = make_trainer(build_network(recipe, 10), recipe, stream)
    batches = [stream.batch(step)[:2] for step in range(4)]
    with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
        info = RunInfo(model=model, class_names=tuple("abcdefghij"), source="")
        checkpoints = Checkpoints(RunFolder.create(Path(temporary, "run"), recipe=recipe, info=info))
        number = 0

        def turn(save: bool) -> float:
            nonlocal number
            began = time.monotonic()
            if save:
                number += 1
                checkpoints.save(trainer, {"step": number}, background=True)
            for step in range(steps):
                trainer.train_on_batch(*batches[step % 4])
            checkpoints.wait()
            return time.monotonic() - began

        turn(True)
        found = interleave({"with": lambda: turn(True), "without": lambda: turn(False)}, rounds)
        size = max(file.stat().st_size for file in checkpoints.files())
    extra = [a - b for a, b in zip(found["with"], found["without"], strict=True)]
    return {
        "model": f"{model}, {side}x{side}, batch size {batch_size}",
        "megabytes": round(size / 1e6, 1),
        "step_ms": round(1000 * statistics.median(found["without"]) / steps, 1),
        "extra_seconds": round(statistics.median(extra), 4),
        "extra_seconds_by_round": [round(value, 4) for value in extra],
        "share_at_default": round(statistics.median(extra) / EVERY_FIVE_MINUTES.seconds, 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    rows = [measure(*network, options.rounds) for network in NETWORKS]
    print(json.dumps(rows, indent=2))
    what = "A checkpoint within an epoch: seconds beside steps without one"
    configuration = {"rounds": options.rounds, "default_interval_seconds": EVERY_FIVE_MINUTES.seconds}
    results.write(
        options.out / "reliability-checkpoints.json", results.result(what, configuration=configuration, rows=rows)
    )
    sys.exit(any(row["share_at_default"] > SHARE_MOST for row in rows))


if __name__ == "__main__":
    main()
