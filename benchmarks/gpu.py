"""Everything that needs a GPU, in one command: in nine minutes, without network, on the backends that are installed.

    python benchmarks/gpu.py                    all parts; results in $OUT, or in results/
    python benchmarks/gpu.py --part sweep       one part; may be repeated
    python benchmarks/gpu.py --smoke            all parts on the CPU with tiny networks, in a minute

Claims: every model family computes on the GPU what it computes on the CPU; ResNet-50 trains in bfloat16 at 224x224 at
1.2 times the speed of torchvision's with torch.compile and channels_last, and faster.

Parts, in order of worth:
    machine       environment, and what the doctor finds
    correctness   GPU against CPU: logits of each family (float32 without TF32, and bfloat16), losses of 20 steps
    throughput    ResNet-50, 224x224, bfloat16, batch 256: ours on each backend, torchvision and timm, eager and
                  compiled, fed by a batch that lies on the device; ours also by a packed stream of 256x256 images,
                  augmented on the device
    compare       `resnetlab compare` itself
    original      the original job, ResNet-50 at 64x64: CPU against GPU at batch 32 and at large batches
    sweep         throughput at batch 512, 128, 64, 1024: as time remains, or until memory ends

Prediction, for an H200 (measured there: 790 TFLOP/s bfloat16, 4.3 TB/s). An image takes 24.5 GFLOP: 31 us. Its 11 M
convolution outputs are touched about 14 times in a step (forward: written, reduced, read, written, read; backward:
two passes of batch norm over two tensors, and both gradients of the next convolution): 320 MB, 75 us. So memory traffic
bounds the step: 13,000 images/s if every elementwise chain is fused and each kernel at full bandwidth; MLPerf 4.0
reaches 7,970. We expect 4,000-5,500 from XLA, 3,500-4,500 from torch.compile, 2,500-3,200 from eager PyTorch, a knee at
batch 128-256, and the packed stream (50 MB a batch, gathered by one thread) within 10 % of the resident batch.

Each contender is a process of its own; a failure is a row with its reason, and the rest goes on. PyTorch's compilers
start at the same time (there are cores enough); what is timed runs alone, in turns, as in throughput.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import processes
from peers import MATRIX_SIDE, SOURCE, Child, Contender, Failed, Job  # puts src/ on the path
from throughput import ratios

from resnetlab import environment, results
from resnetlab.errors import first_informative_line

Row = dict[str, Any]

# Seconds that each part may take, in order of worth; what a part leaves goes to those after it. Nine minutes in all.
BUDGET = {"machine": 60.0, "correctness": 130.0, "throughput": 150.0, "compare": 110.0, "original": 60.0, "sweep": 30.0}
PARTS = tuple(BUDGET)
FAMILIES = (
    "resnet50",
    "resnet18",
    "keras-resnet50",
    "keras-resnet50v2",
    "preresnet50",
    "resnet50d",
    "resnext50-32x4d",
    "se-resnet50",
    "wide-resnet50-2",
    "resnet20",
    "wrn-16-8",
    "plain20",
    "preresnet164",
)
SMOKE_FAMILIES = ("resnet-tiny", "resnet20")
BFLOAT16_FAMILIES = ("resnet50", "resnet20", "preresnet164", *SMOKE_FAMILIES)  # an XLA compilation each
BOUNDS = {"float32 logits": 1e-3, "bfloat16 logits": 0.1, "losses of 20 steps": 1e-2}


class Session:
    """What all parts share: what is there, the time that is left, and the rows."""

    def __init__(self, out: Path, minutes: float, smoke: bool) -> None:
        self.out, self.smoke = out, smoke
        self.deadline = time.monotonic() + 60 * minutes
        self.scale = 60 * minutes / sum(BUDGET.values())
        self.part_ends = self.deadline
        self.backends = [name for name in environment.BACKENDS if environment.installed(name)]
        self.device = "cpu" if smoke else "gpu"
        self.rows: list[Row] = []
        self.facts: Row = {}

    def begin(self, part: str) -> None:
        """The part ends when the parts up to it have used their budgets; what they left is this part's too."""
        through = list(BUDGET)[: PARTS.index(part) + 1]
        after = self.scale * sum(seconds for name, seconds in BUDGET.items() if name not in through)
        self.part_ends = self.deadline - after

    def left(self, at_most: float = 600.0) -> float:
        """Seconds that this part has left, and no more than `at_most`."""
        return min(at_most, self.part_ends - time.monotonic())

    def add(self, part: str, **row: Any) -> None:
        """Keep a row, in the file too: what was measured stays if this process is killed."""
        self.rows.append({"part": part} | row)
        self.write()

    def fail(self, part: str, what: str, reason: str) -> None:
        self.add(part, contender=what, failed=reason)
        print(f"{part}: {what}: {reason}", file=sys.stderr, flush=True)

    def write(self) -> None:
        what = "Everything on the GPU" if not self.smoke else "Everything that needs a GPU, tried on the CPU"
        configuration = {"smoke": self.smoke, "facts": self.facts}
        gpu = self.facts.get("gpu")
        results.write(self.out, results.result(what, configuration=configuration, rows=self.rows, gpu=gpu))


# ------------------------------------------------------------------------------------------------- machine


def machine(session: Session) -> None:
    """What is here, as JSON. In a process of its own: the doctor may import all frameworks."""
    look = "examine(frameworks=())" if session.smoke else "examine()"
    code = f"import json; from resnetlab.doctor import examine; print(json.dumps({look}.to_json(), default=str))"
    found = json.loads(_output([sys.executable, "-c", code], limit=session.left(120)).splitlines()[-1])
    gpus = found["facts"]["nvidia"]["gpus"]
    session.facts = {"gpu": gpus[0]["name"] if gpus else None, "doctor": found}
    session.add("machine", contender="doctor", says=found["verdict"])


def _output(command: Sequence[str], *, limit: float, **extra: str) -> str:
    """What a command prints. Raises Failed."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])} | extra
    try:
        done = processes.run(command, limit=limit, env=environ)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done within {limit:.0f} s") from None
    if done.returncode:
        tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [""]
        raise Failed(f"exit code {done.returncode}: {tail[0][:300]}")
    return done.stdout


# --------------------------------------------------------------------------------------------- correctness


def correctness(session: Session) -> None:
    """Each backend on the GPU against one of them on the CPU: there they agree, which the tests hold."""
    reference = ("torch" if "torch" in session.backends else session.backends[0], "cpu")
    places = [(backend, session.device) for backend in session.backends]
    with ThreadPoolExecutor() as pool:
        asked = dict.fromkeys([reference, *places])
        found = dict(zip(asked, pool.map(lambda place: _compute(session, *place), asked), strict=True))
    for backend, device in places:
        _judge(session, backend, found[backend, device], found[reference])


def _compute(session: Session, backend: str, device: str) -> dict[str, Any]:
    """What a child computed, up to where it got: {check and family: numbers}."""
    command = [sys.executable, __file__, "--compute", backend, device, *(["--smoke"] if session.smoke else [])]
    environ = (
        os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | ({"OMP_NUM_THREADS": "1"} if session.smoke else {})
    )
    limit = session.left(BUDGET["correctness"])
    try:
        done = processes.run(command, limit=limit, env=environ)
        output = done.stdout
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
            session.fail("correctness", f"{backend}, {device}", f"exit code {done.returncode}: {last[:300]}")
    except subprocess.TimeoutExpired as late:
        output = str(late.output or "")
        session.fail("correctness", f"{backend}, {device}", f"not done within {limit:.0f} s")
    lines = (json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}"))
    return {line["of"]: line for line in lines}


def _judge(session: Session, backend: str, tried: dict[str, Any], reference: dict[str, Any]) -> None:
    import numpy as np

    for what, answer in tried.items():
        check, _, family = what.partition(": ")
        expected = reference.get(what.replace("bfloat16", "float32"), {"failed": "no answer from the reference"})
        if failed := answer.get("failed") or expected.get("failed"):
            session.fail("correctness", f"{backend}, {what}", failed)
            continue
        got, wanted = (np.array(numbers["numbers"]) for numbers in (answer, expected))
        error = float(np.max(np.abs(got - wanted)) / np.max(np.abs(wanted)))
        row: Row = {"contender": backend, "check": check, "family": family, "error": error, "bound": BOUNDS[check]}
        row["passed"] = bool(error <= BOUNDS[check])  # NaN does not pass
        if wanted.ndim == 2:
            row["same_class"] = float(np.mean(got.argmax(1) == wanted.argmax(1)))
            row["passed"] = row["passed"] and (row["same_class"] == 1.0 or "bfloat16" in check)
        session.add("correctness", **row)
    if not tried:
        session.fail("correctness", backend, "no answer")


def compute(backend: str, device: str, smoke: bool) -> None:
    """The child: print a JSON line for each thing computed. Weights and inputs are functions of a seed."""
    processes.end_with_parent()
    environment.start(backend=backend, device=device)
    import keras

    from resnetlab import backend as kernels

    if device == "gpu" and not kernels.gpus():
        sys.exit(f"{backend} sees no GPU")
    kernels.allow_tf32(False)

    def say(what: str, numbers: Callable[[], Any]) -> None:
        try:
            line = {"of": what, "numbers": keras.ops.convert_to_numpy(numbers()).astype(float).tolist()}
        except Exception as error:
            line = {"of": what, "failed": f"{type(error).__name__}: {first_informative_line(error)}"}
        print(json.dumps(line), flush=True)

    for family in SMOKE_FAMILIES if smoke else FAMILIES:
        precisions = (
            ("float32", "bfloat16") if family in BFLOAT16_FAMILIES and (smoke or device == "gpu") else ("float32",)
        )
        for precision in precisions:
            say(f"{precision} logits: {family}", partial(_logits, family, precision, 32 if smoke else 64))
        if family in (SMOKE_FAMILIES[0], FAMILIES[1]):
            say(f"losses of 20 steps: {family}", partial(_losses, family, 16 if smoke else 64))


def _logits(family: str, precision: str, size: int) -> Any:
    """Of eight random images; batch norms and biases are drawn too, so that no branch is multiplied by zero."""
    import numpy as np

    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import BASE

    rng = np.random.default_rng(1)
    network = build_network(BASE.changed(model=family, image_size=size, precision=precision), 10)
    for variable in network.variables:
        if len(variable.shape) == 1:
            centre = 1.0 if variable.name in ("gamma", "moving_variance") else 0.0
            variable.assign((centre + rng.uniform(-0.3, 0.3, variable.shape)).astype(np.float32))
    return network.predict_on_batch(rng.integers(0, 256, (8, size, size, 3), np.uint8))


def _losses(family: str, size: int) -> Any:
    """Of 20 training steps with every augmentation there is."""
    import numpy as np

    from resnetlab.data.stream import Stream
    from resnetlab.models.from_recipe import build_network
    from resnetlab.recipes import RECIPES
    from resnetlab.training.trainer import make_augmentation, make_trainer

    recipe = RECIPES["animals"].changed(
        model=family,
        image_size=size,
        batch_size=32,
        learning_rate=0.003,
        warmup=0,
        color_jitter=0.4,
        mixup=0.2,
        cutmix=1.0,
    )
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, 256)
    images = rng.integers(0, 256, (256, recipe.pack_size, recipe.pack_size, 3)) // 2 + 12 * labels[:, None, None, None]
    stream = Stream(
        images=images.astype(np.uint8),
        labels=labels,
        indices=np.arange(256),
        batch_size=32,
        num_classes=10,
        augmentation=make_augmentation(recipe),
    )
    trainer = make_trainer(build_network(recipe, 10), recipe, stream)
    losses = []
    for step in range(20):
        inputs, targets, _ = stream.batch(step)
        trainer.reset_metrics()
        losses.append(trainer.train_on_batch(inputs, targets, return_dict=True)["loss"])
    return np.array(losses, np.float64)


# ---------------------------------------------------------------------------------------------- throughput


def contenders(session: Session) -> list[Contender]:
    """Ours on each backend, and the peers that are installed; the compiled ones first, for they take longest."""
    ours = [Contender(f"ours, {backend}", "ours", {"backend": backend}) for backend in session.backends]
    if session.smoke:
        return [*ours, Contender("by hand, eager", "native", {"network": "by hand"})]
    compiled = {"backend": "torch", "compiled": True}
    ours += [Contender("ours, torch, torch.compile", "ours", compiled)] if "torch" in session.backends else []
    there = [network for network in ("torchvision", "timm") if importlib.util.find_spec(network)]
    peers = [
        Contender(f"{network}, {how}", "native", {"network": network, "compiled": how == "torch.compile"})
        for how in ("torch.compile", "eager")
        for network in there
    ]
    for network in sorted({"torchvision", "timm"} - set(there)):
        session.fail("throughput", network, "not installed")
    return [*ours, *peers]


def start(session: Session, part: str, wanted: Sequence[tuple[Contender, Job]], *, limit: float) -> list[Child]:
    """Children that have taken their first step. They start together, but before them, one by one, those of XLA, which
    chooses kernels by their time while it compiles."""

    def begin(pair: tuple[Contender, Job]) -> Child | None:
        contender, job = pair
        if session.left() < 20:
            session.fail(part, contender.name, "no time left")
            return None
        try:
            if session.smoke:  # small tensors gain nothing from a second thread, and suffer where cores are shared
                contender = replace(contender, environment={"OMP_NUM_THREADS": "1"})
            return Child(contender, job, limit=session.left(limit))
        except Failed as failure:
            session.fail(part, contender.name, str(failure))
            return None

    def alone(pair: tuple[Contender, Job]) -> bool:
        return not session.smoke and pair[0].options.get("backend") in ("jax", "tensorflow")

    children = [begin(pair) for pair in wanted if alone(pair)]
    with ThreadPoolExecutor(8) as pool:
        children += pool.map(begin, [pair for pair in wanted if not alone(pair)])
    return [child for child in children if child]


def take_turns(
    session: Session, part: str, children: list[Child], *, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Images/s of each child round by round, and rows of them and of their ratios. Whoever fails drops out."""
    alive: list[tuple[Child, int]] = []
    for child in children:
        try:
            child.train(3, limit=session.left(60))
            needed = child.train(3, limit=session.left(60)) / 3
            alive.append((child, max(3, min(500, round(seconds / max(needed, 1e-4))))))
        except Failed as failure:
            session.fail(part, child.contender.name, str(failure))
    rates: dict[str, list[float]] = {child.contender.name: [] for child, _ in alive}
    for _ in range(rounds):
        if session.left() < 5:
            break
        for child, steps in list(alive):
            try:
                rate = steps * _amount(child) / child.train(steps, net=True, limit=session.left(60))
                rates[child.contender.name].append(rate)
            except Failed as failure:
                session.fail(part, child.contender.name, str(failure))
                alive.remove((child, steps))
                del rates[child.contender.name]
    rates = {name: values for name, values in rates.items() if values}
    whole = min(map(len, rates.values()), default=0)
    machine = max((results.Timing.of(v).median for name, v in rates.items() if name.startswith("matrix")), default=0.0)
    for child, steps in alive:
        name, job = child.contender.name, child.job
        if name not in rates:
            continue
        row: Row = {"contender": name, "steps": steps, "batch": job.batch, "size": job.size, "device": job.device}
        row |= {"precision": job.precision, "input": "packed" if job.packed else "on the device"}
        if name.startswith("matrix"):
            session.add(part, **row, **results.Timing.of(rates[name], "TFLOP/s").to_json())
            continue
        timing = results.Timing.of(rates[name])
        if machine:
            row["share_of_matrix_product"] = round(timing.median * job.train_flop / 1e12 / machine, 4)
        session.add(part, **row, **timing.to_json())
    session.rows += [{"part": part} | row for row in ratios(part, {name: v[:whole] for name, v in rates.items()})]
    return rates


def _amount(child: Child) -> float:
    """Of what a step does: images, or TFLOP."""
    if child.contender.maker == "matrix product":
        return 2 * MATRIX_SIDE[child.job.precision] ** 3 / 1e12
    return child.job.batch


def throughput(session: Session) -> None:
    job = Job("resnet50", 224, 256, classes=1000, device="gpu", precision="bfloat16")
    if session.smoke:
        job = Job("resnet20", 16, 4)
    framework = "torch" if "torch" in session.backends else session.backends[0]
    product = Contender(f"matrix product, {framework}", "matrix product", {"framework": framework})
    children = start(session, "throughput", [(c, job) for c in [*contenders(session), product]], limit=150)
    rounds, seconds = (2, 0.1) if session.smoke else (5, 1.0)
    rates = take_turns(session, "throughput", children, rounds=rounds, seconds=seconds)
    fastest = sorted((name for name in rates if name.startswith("ours")), key=lambda name: -max(rates[name]))
    for child in children:
        if child.contender.name not in fastest[:1]:
            child.close()
    remaining = [child for child in children if child.contender.name in fastest[:1]]

    packed = replace(job, packed=True)
    wanted = [
        (replace(child.contender, name=f"{child.contender.name}, packed"), packed) for child in remaining
    ]  # beside the same one fed from the device
    fed = start(session, "throughput", wanted, limit=150)
    take_turns(session, "throughput, packed", [*remaining, *fed], rounds=rounds, seconds=seconds)
    for child in [*remaining, *fed]:
        child.close()


def sweep(session: Session) -> None:
    """Other batch sizes: the fastest of ours and of the peers, in turns where their memory allows it."""
    rows = [row for row in session.rows if row["part"] == "throughput" and "median" in row and "batch" in row]
    order = [row["contender"] for row in sorted(rows, key=lambda row: -row["median"])] or ["ours, jax"]
    known = {contender.name: contender for contender in contenders(session)}
    chosen = [name for name in order if name.startswith("ours")][:1]
    chosen += [name for name in order if name.endswith("torch.compile") and not name.startswith("ours")][:2]
    chosen = [name for name in chosen if name in known] or list(known)
    for batch in (8,) if session.smoke else (512, 128, 64, 1024):
        if session.left() < 90 and not session.smoke:
            session.fail("sweep", f"batch {batch}", "no time left")
            continue
        job = Job("resnet50", 224, batch, classes=1000, device="gpu", precision="bfloat16")
        job = Job("resnet20", 16, batch) if session.smoke else job
        wanted = [(known[name], job) for name in (chosen[:1] if session.smoke else chosen)]
        groups = [wanted] if batch <= 512 else [[pair] for pair in wanted]
        for group in groups:
            children = start(session, f"sweep, batch {batch}", group, limit=120)
            rounds, seconds = (1, 0.1) if session.smoke else (3, 1.0)
            take_turns(session, f"sweep, batch {batch}", children, rounds=rounds, seconds=seconds)
            for child in children:
                child.close()


# -------------------------------------------------------------------------------------------- the commands


def compare(session: Session) -> None:
    """`resnetlab compare` as a user runs it; its table is in its own folder."""
    command = [sys.executable, "-m", "resnetlab.cli", "compare"]
    if session.smoke:
        _output([*command, "--help"], limit=session.left(60))
        session.add("compare", contender="compare", says="the command is there")
        return
    folder = session.out.parent / "compare"
    options = ["digits", "--model", "resnet20", "--batch-sizes", "64,1024", "--repeats", "1", "--budget", "0.5"]
    try:
        _output([*command, *options, "--output", str(folder)], limit=session.left())
    finally:  # `compare` writes after each configuration
        if (folder / "compare.json").is_file():
            found = json.loads((folder / "compare.json").read_text("utf-8"))
            session.add("compare", contender="compare", says=found["verdict"], rows=found["rows"])


def original(session: Session) -> None:
    """The original job, on the CPU and on the GPU."""
    devices = {"cpu": (32, 128), "gpu": (32, 1024)} if not session.smoke else {"cpu": (4,)}
    backends = session.backends if not session.smoke else session.backends[:1]
    for device, batches in devices.items():
        wanted = [
            (
                Contender(f"ours, {b}, {device}, batch {batch}, {p}", "ours", {"backend": b}),
                _original(device, batch, p, session),
            )
            for batch in batches
            for p in (("float32", "bfloat16") if device == "gpu" else ("float32",))
            for b in backends
        ]
        children = start(session, "original", wanted, limit=90)
        rounds, seconds = (1, 0.1) if session.smoke else (3, 1.0)
        take_turns(session, "original", children, rounds=rounds, seconds=seconds)
        for child in children:
            child.close()


def _original(device: str, batch: int, precision: str, session: Session) -> Job:
    if session.smoke:
        return Job("resnet-tiny", 16, batch)
    return Job("resnet50", 64, batch, device=device, precision=precision)


# ------------------------------------------------------------------------------------------------- telling


def lines(session: Session) -> Iterator[str]:
    """The short table."""
    checks = [row for row in session.rows if row["part"] == "correctness" and "check" in row]
    for check, bound in BOUNDS.items():
        mine = [row for row in checks if row["check"] == check]
        worst = max(mine, key=lambda row: row["error"] / row["passed"] if row["passed"] else float("inf"), default=None)
        if worst:
            passed = f"{sum(row['passed'] for row in mine)} of {len(mine)} pass"
            who = f"{worst['contender']}, {worst['family']}"
            yield f"{check}: {passed}, worst {worst['error']:.1e} ({who}), bound {bound:g}"
    for row in session.rows:
        if "over" in row and row["ours"].startswith("ours"):
            yield f"{row['median']:8.2f} x  {row['ours']} over {row['over']}  [{row['part']}]"
    for row in session.rows:
        if "median" in row and "batch" in row:
            share = (
                f"{row['share_of_matrix_product']:.0%} of the matrix-product rate"
                if "share_of_matrix_product" in row
                else ""
            )
            what = f"batch {row['batch']}, {row['precision']}, {row['input']}"
            yield f"{row['median']:10,.1f} {row['unit']} ± {row['deviation']:.1f}  {row['contender']}  {what}  {share}"
    for row in session.rows:
        if "failed" in row:
            yield f"  failed  [{row['part']}] {row['contender']}: {row['failed']}"
        elif "check" in row and not row["passed"]:
            what = f"{row['check']} of {row['family']}"
            yield f"  FAILED  {row['contender']}: {what}: {row['error']:.2e}, bound {row['bound']:g}"


def passed(session: Session) -> bool:
    """Whether every correctness check was made and passed."""
    checks = [row for row in session.rows if row["part"] == "correctness"]
    return bool(checks) and all(row.get("passed", False) for row in checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="after which no part begins, and none goes on for long"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--out", type=Path, help="folder; default: $OUT, or results/")
    parser.add_argument("--compute", nargs=2, help=argparse.SUPPRESS)  # a child of `correctness`
    options = parser.parse_args()
    if options.compute:
        backend, device = options.compute
        compute(backend, device, options.smoke)
        return 0

    folder = options.out or Path(os.environ.get("OUT") or SOURCE.parent / "results")
    session = Session(folder / ("gpu-smoke.json" if options.smoke else "gpu.json"), options.minutes, options.smoke)
    parts = (machine, correctness, throughput, compare, original, sweep)
    for part in parts:
        if options.part and part.__name__ not in options.part:
            continue
        if session.deadline - time.monotonic() < 30 * session.scale:
            session.fail(part.__name__, "all", "no time left")
            continue
        began = time.monotonic()
        session.begin(part.__name__)
        try:
            part(session)
        except Exception as error:  # one part's failure is not the others'
            session.fail(part.__name__, "all", f"{type(error).__name__}: {error}")
        print(f"{part.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        session.write()
    print("\n".join(lines(session)))
    print(f"Written to {session.out}")
    return 0 if passed(session) or (options.part and "correctness" not in options.part) else 1


if __name__ == "__main__":
    sys.exit(main())
