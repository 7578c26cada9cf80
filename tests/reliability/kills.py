"""Kill training at random moments, resume it each time, and compare the end with a run that was never interrupted.

Claim   A killed run is resumed to the same weights, bit for bit; its log has each epoch once; no damaged or stray file
        is left; a kill costs at most the steps since the last checkpoint, and those while one was being written.
Cost    Each kill is a process that traces the network anew: about 10 seconds on two CPU cores.

    KERAS_BACKEND=jax python -m tests.reliability.kills --kills 200
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab.environment import configure

configure(backend=os.environ.get("KERAS_BACKEND"), device="cpu")
import keras  # noqa: E402

import resnetlab.training.trainer  # noqa: E402, F401 - so that no child needs to import it

ROOT = Path(__file__).parents[2]

EVERY = 3  # steps between checkpoints
RECIPE: dict[str, Any] = {
    "recipe": "quick",
    "model": "resnet-tiny",
    "image_size": 32,
    "batch_size": 64,
    "epochs": 12,
    "validation": 0.2,
    "test": 0.1,
    "ema": 0.9,
    "flip": False,
    "early_stopping": 0,
    "seed": 1,
}


def child(folder: str, log: str) -> None:
    """Train a run, or resume it where there is one, and append each event to a log."""
    import resnetlab as rl
    from resnetlab.progress import LogProgress

    output = open(log, "a", buffering=1)  # noqa: SIM115

    class Told(LogProgress):
        def count(self, task: str, done: int, total: int) -> None:
            print("packing", done, file=output)

        def start(self, epochs: int, steps_per_epoch: int, batch_size: int, step: int) -> None:
            super().start(epochs, steps_per_epoch, batch_size, step)
            print("start", step, file=output)

        def step(self, step: int, logs: Any) -> None:
            print("step", step, file=output)

    print("begin", 0, file=output)
    resumable = any(Path(folder, "checkpoints").glob("step-*.npz"))
    if not resumable:
        shutil.rmtree(folder, ignore_errors=True)
    how: dict[str, Any] = {"resume": folder} if resumable else {"data": "digits", "run": folder, **RECIPE}
    rl.train(**how, checkpoint_every=str(EVERY), progress=Told())
    print("end", 0, file=output)


@dataclass
class Outcome:
    """What became of a run that was killed many times."""

    kills: Counter[str] = field(default_factory=Counter)  # by what the process was doing
    lost: list[int] = field(default_factory=list)  # steps, by kill
    problems: list[str] = field(default_factory=list)


def fork(folder: Path, log: Path, cache: Path) -> int:
    """Start `child` in a process that need not import everything again; returns its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.environ["RESNETLAB_CACHE"] = str(cache)
        child(str(folder), str(log))
        status = 0
    except BaseException:
        log.with_suffix(".error").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def ended(process: int, *, wait: bool = False) -> int | None:
    """The exit status of a process, negative for a signal; None while it runs."""
    number, status = os.waitpid(process, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if number else None


def events(log: Path) -> list[tuple[str, int]]:
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [(name, int(number)) for name, number in (line.split() for line in lines)]


def last_checkpoint(folder: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((int(path.stem[-9:]) for path in (folder / "checkpoints").glob("step-*.npz")), default=0)


def kill_until_finished(folder: Path, cache: Path, kills: int, moments: random.Random, found: Outcome) -> None:
    """Train the run in `folder`, and kill it up to `kills` times at random moments; then let it end."""
    log = folder.with_suffix(".log")
    for _ in range(kills):
        log.unlink(missing_ok=True)
        process, status = fork(folder, log, cache), None
        wanted = moments.choices(("begin", "packing", "start", "step"), (1, 1, 1, 7))[0]
        order = ("begin", "packing", "start", "step", "end")
        while not any(order.index(name) >= order.index(wanted) for name, _ in events(log)):
            time.sleep(0.005)
            status = ended(process)
            if status is not None:
                break
        if status is None:
            time.sleep(moments.uniform(0, 1.5 if wanted == "step" else 0.3))
            os.kill(process, signal.SIGKILL)
            status = ended(process, wait=True)
        if status == 0:
            return
        if status != -signal.SIGKILL:
            found.problems.append(f"exit {status}: {log.with_suffix('.error').read_text()[-800:]}")
            return
        seen = events(log)
        found.kills[seen[-1][0] if seen else "begin"] += 1
        if steps := [number for name, number in seen if name == "step"]:
            found.lost.append(max(steps) - last_checkpoint(folder))
    log.unlink(missing_ok=True)
    if status := ended(fork(folder, log, cache), wait=True):
        found.problems.append(f"exit {status}: {log.with_suffix('.error').read_text()[-800:]}")


def differences(whole: Path, parts: Path) -> list[str]:
    """How the files of two finished runs differ in what is not a matter of the clock."""
    import h5py

    problems = []
    files = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (whole, parts)]
    if files[0] != files[1]:
        problems.append(f"files: {sorted(files[0] ^ files[1])}")
    for name in ("best.weights.h5", "last.weights.h5"):
        arrays: list[dict[str, np.ndarray]] = []
        for run in (whole, parts):
            with h5py.File(run / name) as file:
                each: dict[str, np.ndarray] = {}
                file.visititems(lambda n, v, each=each: each.update({n: v[()]}) if hasattr(v, "shape") else None)
                arrays.append(each)
        if arrays[0].keys() != arrays[1].keys() or any((arrays[0][n] != arrays[1][n]).any() for n in arrays[0]):
            problems.append(f"{name} differs")
    logs = []
    for run in (whole, parts):
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        timed = ("seconds", "images_per_second")
        logs.append([{k: v for k, v in record.items() if not k.endswith(timed)} for record in records])
    if logs[0] != logs[1]:
        problems.append("metrics.jsonl differs")
    if [record["epoch"] for record in logs[1]] != list(range(1, RECIPE["epochs"] + 1)):
        problems.append(f"metrics.jsonl has epochs {[record['epoch'] for record in logs[1]]}")
    return problems


def run(kills: int, *, seed: int = 0, per_run: int = 12) -> dict[str, Any]:
    """Kill runs `kills` times in all, and return what was found; Keras is imported, and has not computed yet."""
    moments, found, runs, began = random.Random(seed), Outcome(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        calm = Outcome()
        kill_until_finished(folder / "whole", folder / "cache-whole", 0, moments, calm)
        if calm.problems:
            raise RuntimeError(calm.problems[0])
        while (done := found.kills.total()) < kills and not found.problems:
            parts, cache = folder / f"run-{runs}", folder / f"cache-{runs}"
            kill_until_finished(parts, cache, min(per_run, kills - done), moments, found)
            found.problems += differences(folder / "whole", parts) if not found.problems else []
            stray = [str(path.relative_to(cache)) for path in cache.rglob(".resnetlab-*")]
            found.problems += [f"left in the cache: {stray}"] if stray else []
            runs += 1
            print(f"{found.kills.total()} of {kills} kills, {runs} runs, {time.monotonic() - began:.0f} s", flush=True)
            shutil.rmtree(parts)
            shutil.rmtree(cache)
    return {
        "backend": keras.backend.backend(),
        "kills": found.kills.total(),
        "killed_while": dict(found.kills),
        "runs": runs,
        "steps_between_checkpoints": EVERY,
        "steps_lost_at_most": max(found.lost, default=None),  # None where no kill fell into training
        "steps_lost_on_average": round(float(np.mean(found.lost)), 2) if found.lost else None,
        "seconds": round(time.monotonic() - began),
        "problems": found.problems,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"], help="of each run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    RECIPE["epochs"] = options.epochs
    row = run(options.kills, seed=options.seed)
    print(json.dumps(row, indent=2))
    from resnetlab import results

    what = "Training killed (SIGKILL) at random moments and resumed, against a run that was never interrupted"
    content = results.result(what, configuration={"recipe": RECIPE, "data": "digits"}, rows=[row])
    results.write(options.out / f"reliability-kills-{row['backend']}.json", content)
    sys.exit(bool(row["problems"]))


if __name__ == "__main__":
    main()
