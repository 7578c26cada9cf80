"""What the benchmarks share: contenders, each alive in a process of its own, timed in turns.

A maker builds what is to be timed and returns `run(n)`, which does n units of its work (steps, batches, passes). The
harness takes its time, unless it returns a `Spent` of its own. A script lists its makers and ends with

    main(MAKERS, benchmark)

which is `benchmark` in the parent, and the maker that was asked for in a child.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from resnetlab import environment, results  # noqa: E402
from resnetlab.child_process import Child, ChildFailed, serve  # noqa: E402
from resnetlab.comparison.timing import Elapsed, elapsed_since, interleave, now  # noqa: E402

Row = dict[str, Any]
Run = Callable[[int], Any]
Mark = Callable[[str], None]
CHILD = "--child"  # the first argument of a process that is a contender
LIMIT = 600.0  # seconds for one answer
# Each contender begins as installed.
NOT_INHERITED = ("TF_ENABLE_ONEDNN_OPTS", "KERAS_BACKEND", "OMP_NUM_THREADS")
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


@dataclass(frozen=True)
class Job:
    """What all contenders of a table do."""

    model: str = "resnet50"
    size: int = 64
    batch: int = 32
    classes: int = 10
    device: str = "cpu"  # or "gpu"
    precision: str = "float32"  # or "bfloat16"
    packed: bool = False  # ours only: fed by a Stream over a pack, with the imagenet recipe's augmentation

    @property
    def train_flop(self) -> float:
        """Floating-point operations of a training step for each image."""
        from resnetlab.models import architecture, summarize

        return summarize(architecture(self.model), self.size, self.classes).training_operations


@dataclass(frozen=True)
class Contender:
    """Who does it: a maker with its options, in a process with this environment."""

    name: str
    maker: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class RunningContender:
    """A contender in its process, built, and with its first unit of work done. Raises ChildFailed with the reason.

    Attributes:
        marks: seconds from the start of the process to what the maker marked, and to the end of the first unit.
    """

    def __init__(self, contender: Contender, job: Job, *, limit: float = LIMIT) -> None:
        self.contender, self.job = contender, job
        began = time.time()
        variables = ENVIRONMENT | contender.environment
        self.child = Child(sys.argv[0], CHILD, environment=variables, remove=NOT_INHERITED)
        try:
            marks = self._ask({"contender": asdict(contender), "job": asdict(job)}, limit)
        except ChildFailed:
            self.close()
            raise
        self.marks: dict[str, float] = {name: at - began for name, at in marks.items()}

    def run(self, units: int, *, limit: float = LIMIT) -> Elapsed:
        answer = self._ask({"units": units}, limit)
        self.value = answer.get("value")  # what the maker's `run` returned
        return Elapsed(answer["seconds"], answer["processor"])

    def units_in(self, seconds: float, *, most: int = 1000, limit: float = LIMIT) -> int:
        """How many units take so many seconds, after some that warm it up."""
        needed = min(self.run(1, limit=limit).seconds, self.run(1, limit=limit).seconds)
        trial = min(20, int(seconds / 2 / max(needed, 1e-4)))
        if trial > 1:  # the time of one, a difference on a GPU, may be far off
            needed = self.run(trial, limit=limit).seconds / trial
        return max(1, min(most, round(seconds / max(needed, 1e-4))))

    def close(self) -> None:
        self.child.close()

    def _ask(self, request: Row, limit: float) -> Row:
        return self.child.ask_one(request, limit=limit)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(contenders: Sequence[Contender], job: Job, *, where: Row, rows: list[Row]) -> list[RunningContender]:
    """The contenders that could be started; a row with the reason for each of the others."""
    alive = []
    for contender in contenders:
        say(f"{describe(where)}: starting {contender.name}")
        try:
            alive.append(RunningContender(contender, job))
        except ChildFailed as failure:
            rows.append(where | {"contender": contender.name, "failed": str(failure)})
    return alive


def compare(
    contenders: Sequence[RunningContender],
    *,
    where: Row,
    rows: list[Row],
    rounds: int,
    amount: float | Callable[[RunningContender], float],
    seconds: float | None = None,
    units: int = 1,
    unit: str | Callable[[RunningContender], str] = "images/s",
    pairs: Callable[[Sequence[str]], Sequence[tuple[str, str]]] | None = None,
    limit: Callable[[], float] = lambda: LIMIT,
) -> dict[str, list[float]]:
    """Time all in turns, and add a row for each of them and for each ratio; whoever fails drops out.

    Args:
        where: what begins each row: the job.
        amount: of one unit of work: images.
        seconds: of one contender in one round, about; else so many `units`.
        pairs: of names, from all names: of which a row says the ratio; by default of "ours..." to each other.
    Returns:
        Rates round by round.
    """
    failed: dict[str, str] = {}
    counts: dict[str, int] = {}

    def turn(each: RunningContender) -> Elapsed | None:
        name = each.contender.name
        if limit() < 1:  # the time is over: the rounds before count
            return None
        try:
            if name not in failed:
                counts[name] = counts.get(name) or (each.units_in(seconds, limit=limit()) if seconds else units)
                return each.run(counts[name], limit=limit())
        except ChildFailed as failure:
            failed[name] = str(failure)
        return None

    spent = interleave({each.contender.name: partial(turn, each) for each in contenders}, rounds)
    rows += [where | {"contender": name, "failed": why} for name, why in failed.items()]
    rates: dict[str, list[float]] = {}
    whole = [r for r in range(rounds) if all(turns[r] for name, turns in spent.items() if name not in failed)]
    for each in contenders:
        name = each.contender.name
        if name in failed:
            continue
        if not whole:
            rows.append(where | {"contender": name, "failed": "no time left"})
            continue
        work = counts[name] * (amount(each) if callable(amount) else amount)
        turns = [spent[name][r] for r in whole]
        rates[name] = [work / one.seconds for one in turns]
        row: Row = where | {"contender": name, "units": counts[name]}
        row["processor_ms_per_image"] = round(statistics.median(1e3 * one.processor / work for one in turns), 4)
        rows.append(row | results.Timing.of(rates[name], unit(each) if callable(unit) else unit).to_json())
    for mine, other in (pairs or ours_to_others)(list(rates)):
        timing = results.Timing.of([a / b for a, b in zip(rates[mine], rates[other], strict=True)], "x")
        rows.append(where | {"ours": mine, "over": other} | timing.to_json())
    say(f"{describe(where)}: done")
    return rates


def ours_to_others(names: Sequence[str]) -> list[tuple[str, str]]:
    ours = [name for name in names if name.startswith("ours")]
    return [(mine, name) for mine in ours for name in names if not name.startswith(("ours", "matrix"))]


def show(rows: Sequence[Row], *labels: str) -> None:
    """A short table: ratios, rates, then what failed. `labels` are the keys of what a row is about."""
    for about in dict.fromkeys(describe({key: row[key] for key in labels if key in row}) for row in rows):
        print(f"\n{about}")
        mine = [row for row in rows if describe({key: row[key] for key in labels if key in row}) == about]
        for row in sorted(mine, key=lambda row: ("failed" in row, "over" not in row)):
            if "failed" in row:
                print(f"    failed  {row.get('contender') or row.get('export')}: {row['failed']}")
            elif "over" in row:
                low, high = row["minimum"], row["maximum"]
                print(f"  {row['median']:9.2f} x  {row['ours']} over {row['over']}  ({low:.2f} - {high:.2f})")
            elif "median" in row:
                more = ", ".join(f"{key} {row[key]}" for key in row if key.startswith(("share", "processor", "parts")))
                rate = f"{row['median']:11,.2f} {row['unit']} ± {row['deviation']:.3g}"
                print(f"  {rate}  {row.get('contender', '')}  {more}")
            else:
                print("  " + ", ".join(f"{key} {value}" for key, value in row.items() if key not in labels))


def describe(where: Row) -> str:
    return ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in where.items())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine_name() -> str:
    """A short name of this machine, for a file's name."""
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*", "", environment.cpu_name().lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + f"-{environment.usable_cores()}-cores"


def main(makers: Sequence[Callable[..., Run]], benchmark: Callable[[], Any]) -> None:
    """The benchmark, or in a child the contender that the parent asks for."""
    if sys.argv[1:2] != [CHILD]:
        sys.exit(benchmark())
    known = {maker.__name__: maker for maker in makers}
    run: Run | None = None
    marks: dict[str, float] = {}

    def answer(request: Row) -> Iterator[Row]:
        nonlocal run
        if run is None:
            who, job = Contender(**request["contender"]), Job(**request["job"])
            run = known[who.maker](job, lambda name: marks.update({name: time.time()}), **who.options)
            run.first() if hasattr(run, "first") else run(1)
            yield marks | {"first": time.time()}
            return
        began = now()
        value = run(request["units"])
        spent = elapsed_since(began)
        if isinstance(value, Elapsed):
            spent, value = value, None
        yield {"seconds": spent.seconds, "processor": spent.processor, "value": value}

    serve(answer)
