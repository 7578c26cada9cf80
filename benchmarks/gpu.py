"""Training on a GPU: in one command, without network, in eight minutes.

    python benchmarks/gpu.py                       all parts; results in $OUT, or in results/
    python benchmarks/gpu.py --part throughput     one part; may be repeated
    python benchmarks/gpu.py --smoke               all parts on the CPU with tiny networks, in a minute

Whether the GPU computes the right thing is `pytest -m gpu`, which comes first: see docs/gpu.md.

Claim: ResNet-50 trains in bfloat16 at 224x224 at 1.2 times the speed of torchvision's with torch.compile and
channels_last, and faster. Parts, in order of worth:

    throughput    ResNet-50, 224x224, bfloat16, batch 128: ours on each backend, torchvision (or else timm), eager and
                  compiled, fed by a batch that lies on the device (for TensorFlow on the host); then ours by a packed
                  stream of 256x256 images, augmented on the device
    original      the original job, ResNet-50 at 64x64: CPU against GPU at batch 32 and at large batches

Expected of an H200 (measured there: 790 TFLOP/s bfloat16, 4.3 TB/s). An image takes 24.5 GFLOP: 31 us. Its 11 M
convolution outputs are touched about 14 times in a step (forward: written, reduced, read, written, read; backward:
two passes of batch norm over two tensors, and both gradients of the next convolution): 320 MB, 75 us. So memory traffic
bounds the step: 13,000 images/s if every elementwise chain is fused and each kernel at full bandwidth; MLPerf 4.0
reaches 7,970. We expect 4,000-5,500 from XLA, 3,500-4,500 from torch.compile, 2,500-3,200 from eager PyTorch, and the
packed stream (25 MB a batch, gathered by one thread) within 10 % of the resident batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import harness  # puts src/ on the path
from contenders import MAKERS, OURS, is_product, matrix_products, native_peers, work
from harness import ChildFailed, Contender, Job, Row, RunningContender

from resnetlab import environment, results

# Seconds that each part may take, in order of worth; what a part leaves goes to those after it. Eight minutes in all.
BUDGET = {"throughput": 330.0, "original": 150.0}
BIG = Job("resnet50", 224, 128, classes=1000, device="gpu", precision="bfloat16")


class Benchmark:
    """The time that is left, and the rows, which are written after each part."""

    def __init__(self, out: Path, minutes: float, smoke: bool) -> None:
        self.out, self.smoke = out, smoke
        self.scale = 60 * minutes / sum(BUDGET.values())
        self.ends = time.monotonic() + 60 * minutes
        self.part_ends = self.ends
        self.backends = [name for name in environment.BACKENDS if environment.installed(name)]
        self.rows: list[Row] = []

    def run(self, part: str) -> None:
        following = list(BUDGET)[list(BUDGET).index(part) + 1 :]
        self.part_ends = self.ends - self.scale * sum(BUDGET[name] for name in following)
        began = time.monotonic()
        try:
            getattr(self, part)()
        except Exception as error:  # one part's failure is not the others'
            self.fail(part, "all", f"{type(error).__name__}: {error}")
        harness.say(f"{part}: {time.monotonic() - began:.0f} s")
        result = results.result(
            "Training on the GPU" if not self.smoke else "The GPU benchmark, rehearsed on the CPU",
            configuration={"smoke": self.smoke, "optimizer": "SGD, momentum 0.9, Nesterov"},
            rows=self.rows,
            gpu=None if self.smoke else _gpu_name(),
        )
        results.write(self.out, result)

    def left(self, at_most: float = 600.0) -> float:
        """Seconds that this part has left, and no more than `at_most`."""
        return max(0.0, min(at_most, self.part_ends - time.monotonic()))

    def fail(self, part: str, who: str, reason: str) -> None:
        self.rows.append({"part": part, "contender": who, "failed": reason})

    def contenders(self) -> list[Contender]:
        """Ours on each backend, and the others that are installed."""
        ours = [contender for contender in OURS if contender.options["backend"] in self.backends]
        if self.smoke:
            return [*ours, *(native_peers("by hand")[:1] if "torch" in self.backends else [])]
        there = [network for network in ("torchvision", "timm") if importlib.util.find_spec(network)][:1]
        if not there:
            self.fail("throughput", "torchvision", "not installed")
        if "torch" in self.backends:
            ours.append(Contender("ours, torch, torch.compile", "ours", {"backend": "torch", "compiled": True}))
        return [*ours, *native_peers(*there)]

    def start(self, part: str, wanted: Sequence[tuple[Contender, Job]]) -> list[RunningContender]:
        """Those that could be built; on a GPU one after the other, as they choose kernels by their time."""

        def begin(pair: tuple[Contender, Job]) -> RunningContender | None:
            contender, job = pair
            if self.smoke:  # small tensors gain nothing from a second thread, and suffer where cores are shared
                contender = replace(contender, environment={"OMP_NUM_THREADS": "1"})
            if self.left() < 20 * self.scale:
                self.fail(part, contender.name, "no time left")
                return None
            try:
                return RunningContender(contender, job, limit=self.left(150))
            except ChildFailed as failure:
                self.fail(part, contender.name, str(failure))
                return None

        if not self.smoke and any(job.device == "gpu" for _, job in wanted):
            return [each for each in map(begin, wanted) if each]
        with ThreadPoolExecutor(8) as pool:
            return [each for each in pool.map(begin, wanted) if each]

    def measure(self, part: str, alive: Sequence[RunningContender], rounds: int) -> None:
        """Rates in turns, with what each was fed, and as a fraction of the matrix-product rate."""
        began = len(self.rows)
        harness.compare(
            alive,
            where={"part": part},
            rows=self.rows,
            rounds=1 if self.smoke else rounds,
            amount=lambda each: work(each, 1e12),
            unit=lambda each: "TFLOP/s" if is_product(each) else "images/s",
            seconds=0.1 if self.smoke else 1.0,
            limit=lambda: self.left(60),
        )
        jobs = {each.contender.name: each.job for each in alive}
        products = [row["median"] for row in self.rows if row.get("unit") == "TFLOP/s"]
        for row in self.rows[began:]:
            if row.get("unit") == "images/s":
                job = jobs[row["contender"]]
                row |= {"batch": job.batch, "size": job.size, "device": job.device, "precision": job.precision}
                by_host = "tensorflow" in row["contender"]  # Keras hands it each batch through a generator on the host
                row["input"] = "packed" if job.packed else "on the host" if by_host else "on the device"
                if products and job.precision == "bfloat16":
                    row["share_of_matrix_product"] = round(row["median"] * job.train_flop / 1e12 / products[0], 4)

    def throughput(self) -> None:
        job = Job("resnet20", 16, 4) if self.smoke else BIG
        product = matrix_products("torch" if "torch" in self.backends else self.backends[0])
        packed = [Contender(f"ours, {backend}, packed", "ours", {"backend": backend}) for backend in self.backends]
        groups = [  # not all of them fit into the memory of one GPU
            [(each, job) for each in [*product, *self.contenders()]],
            [(each, replace(job, packed=True)) for each in packed],
        ]
        for wanted in groups:
            alive = self.start("throughput", wanted)
            self.measure("throughput", alive, 5)
            _close(alive)

    def original(self) -> None:
        """The original job, on the CPU and on the GPU."""
        tries = [("cpu", 32, "float32"), ("cpu", 128, "float32")]
        tries += [("gpu", batch, precision) for batch in (32, 1024) for precision in ("float32", "bfloat16")]
        wanted = []
        for device, batch, precision in tries[:1] if self.smoke else tries:
            job = Job("resnet50", 64, batch, device=device, precision=precision)
            job = Job("resnet-tiny", 16, 4) if self.smoke else job
            for backend in self.backends:
                name = f"ours, {backend}, {device}, batch {batch}, {precision}"
                wanted.append((Contender(name, "ours", {"backend": backend}), job))
        for device in ("cpu", "gpu"):
            alive = self.start("original", [pair for pair in wanted if pair[1].device == device])
            self.measure("original", alive, 3)
            _close(alive)


def _close(alive: Sequence[RunningContender]) -> None:
    for each in alive:
        each.close()


def _gpu_name() -> str | None:
    from resnetlab import doctor

    gpus = doctor.examine(frameworks=()).facts.nvidia.gpus
    return gpus[0].name if gpus else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(BUDGET), help="default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing is started")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--out", type=Path, help="folder; default: $OUT, or results/")
    options = parser.parse_args()
    folder = options.out or Path(os.environ.get("OUT") or harness.ROOT / "results")
    benchmark = Benchmark(folder / ("gpu-smoke.json" if options.smoke else "gpu.json"), options.minutes, options.smoke)
    for part in options.part or BUDGET:
        benchmark.run(part)
    harness.show(benchmark.rows, "part")
    print(f"Written to {benchmark.out}")
    return 0 if any("median" in row for row in benchmark.rows) else 1


if __name__ == "__main__":
    harness.main(MAKERS, main)
