"""Fill the disk at random moments of a training run, make room, resume, and compare with a run that had room.

Claim   A full disk stops training with a message that says what to do; earlier checkpoints are intact, and the run is
        resumed to the same weights, bit for bit.
Cost    Each time is a process that traces the network anew: about 10 seconds on two CPU cores. It mounts a small tmpfs,
        which takes root.

    python -m tests.reliability.disk_full --times 20
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resnetlab import results
from resnetlab.checksums import verify_checksum
from resnetlab.errors import ResnetlabError
from resnetlab.run_folder import RunFolder
from resnetlab.training import checkpoint
from tests.reliability.kills import RECIPE, ROOT, Outcome, differences, ended, events, fork, kill_until_finished

MEGABYTES = 16


@contextmanager
def small_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def damaged(folder: Path) -> list[str]:
    """The checkpoints and weights of a run that are not whole."""
    run, problems = RunFolder(folder), []
    for file in checkpoint.Checkpoints(run).files():
        try:
            checkpoint.read(file)
        except ResnetlabError as error:
            problems.append(str(error))
    for weights in (run.best_weights, run.last_weights):
        try:
            if weights.exists():
                verify_checksum(weights)
        except ResnetlabError as error:
            problems.append(str(error))
    return problems


def run(times: int, *, seed: int = 0) -> dict[str, Any]:
    moments, problems, stopped, runs = random.Random(seed), [], 0, 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        whole, cache = Path(temporary, "whole"), Path(temporary, "cache")
        calm = Outcome()
        kill_until_finished(whole, cache, 0, moments, calm)
        problems += calm.problems
        while stopped < times and not problems:
            with small_disk() as disk:
                folder, log, status = disk / "run", Path(temporary, "run.log"), 1
                runs += 1
                while status != 0 and not problems:
                    log.unlink(missing_ok=True)
                    process = fork(folder, log, cache)
                    if stopped == times:
                        status = ended(process, wait=True) or 0
                        break
                    while not any(name in ("step", "end") for name, _ in events(log)):
                        time.sleep(0.005)
                    time.sleep(moments.uniform(0, 1.0))
                    filler = fill(disk)
                    status = ended(process, wait=True) or 0
                    filler.unlink()
                    if status:
                        stopped += 1
                        told = log.with_suffix(".error").read_text()
                        if "No space left on device" not in told or "--resume" not in told:
                            problems.append(f"no clear message: {told[-800:]}")
                        problems += damaged(folder)
                problems += differences(whole, folder) if not problems else []
            print(f"{stopped} of {times} times, {runs} runs, {time.monotonic() - began:.0f} s", flush=True)
    return {"times": stopped, "runs": runs, "seconds": round(time.monotonic() - began), "problems": problems}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    row = run(options.times, seed=options.seed)
    print(json.dumps(row, indent=2))
    what = "Training on a disk that is filled at random moments, against a run that had room"
    configuration = {"recipe": RECIPE, "data": "digits", "disk_megabytes": MEGABYTES}
    results.write(
        options.out / "reliability-disk-full.json", results.result(what, configuration=configuration, rows=[row])
    )
    sys.exit(bool(row["problems"]))


if __name__ == "__main__":
    main()
