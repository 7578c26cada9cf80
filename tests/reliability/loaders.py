"""The doors by which files of others come in: each takes a path, and returns or raises as the package does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MARKED = 1234.5  # what a file outside of the folder holds


def weights(path: str) -> str:
    from resnetlab.weights.readers import read

    arrays = read(path).arrays
    leaked = [name for name, array in arrays.items() if array.size and float(array.ravel()[0]) == MARKED]
    return f"{len(arrays)} arrays" + (f", read from outside: {leaked}" if leaked else "")


def run_weights(path: str) -> str:
    """A file as the weights of a run, read as `predict` reads them."""
    import shutil
    import tempfile

    from resnetlab.inference.engines import load_network
    from resnetlab.recipes import Recipe
    from resnetlab.run_folder import RunFolder, RunInfo

    with tempfile.TemporaryDirectory() as temporary:
        info = RunInfo(model="resnet-tiny", class_names=("a", "b"), source="", status="finished")
        run = RunFolder.create(Path(temporary, "run"), recipe=Recipe(model="resnet-tiny"), info=info)
        shutil.copy(path, run.best_weights)
        return str(load_network(run).count_params())


def checkpoint(path: str) -> str:
    from resnetlab.training.checkpoint import read

    return str(read(Path(path))[0])


def image(path: str) -> str:
    from resnetlab.data.preprocess import decode

    found = decode(Path(path), size=64)
    return f"{found.width}x{found.height} {found.conversions}"


def data(path: str) -> str:
    from resnetlab.data.audit import audit
    from resnetlab.data.sources import resolve

    found = audit(resolve(path, download=False), workers=2)
    return f"{len(found.usable)} usable; " + "; ".join(f"{r.name!r}: {r.problem}" for r in found.set_aside)


def predict(path: str) -> str:
    """What `predict` does with its arguments, short of the network."""
    from resnetlab.data.preprocess import ImageProblem, load_image
    from resnetlab.inference.images import collect_images

    lines = []
    for image in collect_images(path)[0]:
        try:
            lines.append(str(load_image(image.content, shorter_side=64, centre_crop=64).shape))
        except ImageProblem as problem:
            lines.append(str(problem))
    return "; ".join(lines)


def recipe(path: str) -> str:
    from resnetlab.recipes import recipe as read

    return read(path).name


def run(path: str) -> str:
    """All that is read of a run folder before its network."""
    from resnetlab.listing import list_runs
    from resnetlab.run_folder import RunFolder

    list_runs(Path(path).parent)
    folder = RunFolder.open(Path(path))
    found: list[Any] = [folder.info(), folder.recipe(), folder.split(), folder.ancestors(), folder.metrics()]
    return str(len(found)) + str(folder.used_images()) + str(folder.has_unknown_origin())


def export(path: str) -> str:
    import numpy as np

    from resnetlab.inference.engines import exported_engine

    return str(exported_engine(Path(path))(np.zeros((1, 32, 32, 3), np.uint8)).shape)


def unsafe(path: str) -> str:
    """What no loader may do; shows that the harness notices it."""
    import pickle

    return str(pickle.loads(Path(path).read_bytes()))


def below(folder: Path) -> set[str]:
    """Every path below a folder."""
    return {os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}
