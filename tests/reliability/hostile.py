"""Give files that lie, explode or bring a program to every loader of the package, and state what became of each.

Claim   Each is refused with a message, or read as far as it is sound; nothing in it is executed, nothing is read or
        written outside of its folder, and time and memory stay below a bound.
How     Every case of `hostile_weights`, `hostile_images` and `hostile_texts`, each in a process of its own with limits.
Cost    About ten minutes on two CPU cores.

    python -m tests.reliability.hostile
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from tests.reliability import hostile_images, hostile_texts, hostile_weights
from tests.reliability.hostile_weights import CANARY, Maker
from tests.reliability.limits import ROOT, Jail
from tests.reliability.loaders import below


class Group(NamedTuple):
    """Cases for one loader.

    Attributes:
        loader: a function of `loaders`.
        preload: what it imports, once for all cases.
        expected: kinds of outcome.
        harmless: cases that are accepted all the same, as what is hostile in them is never read.
        seconds: limit for a case.
        megabytes: limit for a case, beyond the imports.
    """

    loader: str
    cases: Mapping[str, Maker]
    preload: tuple[str, ...]
    expected: frozenset[str] = frozenset({"refused"})
    harmless: frozenset[str] = frozenset()
    seconds: float = 20
    megabytes: int = 1500


EITHER = frozenset({"refused", "accepted"})
ACCEPTED = frozenset({"accepted"})
KERAS = ("resnetlab.inference.engines", "resnetlab.models.from_recipe", "keras")


def groups() -> dict[str, Group]:
    """All cases, by what they are."""
    images = hostile_images.as_makers(hostile_images.files())
    odd = hostile_images.as_makers(hostile_images.accepted())
    large = hostile_images.as_makers(hostile_images.large())
    preloads = {
        "recipe": ("resnetlab.recipes",),
        "run": ("resnetlab.listing", "resnetlab.run_folder"),
        "weights": ("resnetlab.weights.readers",),
        "export": ("resnetlab.inference.engines", "onnxruntime"),
    }
    read = ("resnetlab.data.preprocess",)
    weights = hostile_weights.weights()
    hdf5 = {name: maker for name, maker in weights.items() if "HDF5" in name or "zeros" in name}
    traps = {"a folder of traps": hostile_images.folder_of_traps}
    audit = ("resnetlab.data.audit",)
    return {
        "weights": Group("weights", weights, ("resnetlab.weights.readers", "h5py"), harmless=hostile_weights.HARMLESS),
        "weights of a run": Group("run_weights", hdf5, KERAS),
        "checkpoints": Group("checkpoint", hostile_weights.checkpoints(), ("resnetlab.training.checkpoint",)),
        "images": Group("image", images, read),
        "odd images": Group("image", odd, read, ACCEPTED),
        "images of 100 million pixels": Group("image", large, read, ACCEPTED, seconds=60, megabytes=5000),
        "folders": Group("data", traps, audit, ACCEPTED, seconds=60),
        "folders for predict": Group("predict", traps, ("resnetlab.inference.images",), ACCEPTED, seconds=60),
        "archives": Group("data", hostile_images.archives(), audit, EITHER, seconds=60),
        **{
            f"texts: {loader}": Group(loader, cases, preloads[loader], EITHER)
            for loader, cases in hostile_texts.makers()
        },
    }


def examine(group: Group, *, only: Set[str] | None = None) -> list[dict[str, Any]]:
    """What became of each case of a group: one row per case, with the problem if there is one."""
    rows = []
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    target = f"tests.reliability.loaders:{group.loader}"
    with Jail(target, preload=group.preload, environment=environment) as jail:
        for name, make in group.cases.items():
            if only is not None and name not in only:
                continue
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary, "folder")
                folder.mkdir()
                path = make(folder)
                before = below(Path(temporary))
                outcome = jail.call(str(path), seconds=group.seconds, megabytes=group.megabytes)
                new = {str(Path(path).relative_to(temporary)) for path in below(Path(temporary)) - before}
                problem = None
                expected = ACCEPTED if name in group.harmless else group.expected
                if new:
                    problem = f"{'executed' if CANARY in new else 'written'}: {sorted(new)}"
                elif outcome.kind not in expected:
                    problem = f"{outcome.kind}, expected {' or '.join(sorted(expected))}: {outcome.message}"
                elif outcome.kind == "refused" and not outcome.message.strip():
                    problem = "refused without a message"
                elif "read from outside" in outcome.message:
                    problem = outcome.message
                rows.append({"case": name, **vars(outcome), "problem": problem})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=sorted(groups()), nargs="+", help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    rows = []
    for name, group in groups().items():
        if options.group and name not in options.group:
            continue
        began = time.monotonic()
        found = examine(group)
        for row in found:
            if row["problem"]:
                print(f"{name}: {row['case']}: {row['problem']}", flush=True)
        rows.append(
            {
                "group": name,
                "cases": len(found),
                **Counter(row["kind"] for row in found),
                "slowest_seconds": max(row["seconds"] for row in found),
                "peak_mb": max(row["megabytes"] for row in found),
                "problems": [f"{row['case']}: {row['problem']}" for row in found if row["problem"]],
            }
        )
        print(
            json.dumps(rows[-1] | {"problems": len(rows[-1]["problems"])}),
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
    from resnetlab import results

    what = "Hostile files given to every loader: how many are refused, time and peak of memory beyond the imports"
    if not options.group:
        results.write(options.out / "reliability-hostile.json", results.result(what, configuration={}, rows=rows))
    sys.exit(any(row["problems"] for row in rows))


if __name__ == "__main__":
    main()
