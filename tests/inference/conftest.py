"""A small trained run, shared by the tests of prediction and export."""

from pathlib import Path

import pytest

from resnetlab.data.pack import Pack, pack
from resnetlab.data.sources import resolve
from resnetlab.progress import LogProgress
from resnetlab.recipes import BASE
from resnetlab.run_folder import RunFolder, RunInfo
from tests.data import make_images

RECIPE = BASE.changed(
    model="resnet-tiny",
    image_size=24,
    batch_size=8,
    epochs=2,
    crop="resized",
    crop_scale=0.5,
    precision="bfloat16",
    seed=1,
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Path, Pack]:
    """A run of 30 images of three classes, their folder, and their pack."""
    from resnetlab.training.trainer import train

    root = tmp_path_factory.mktemp("trained")
    folder = make_images.write_classes(root / "images", {"crane": 10, "heron": 10, "stork": 10})
    packed = pack(resolve(str(folder)), size=RECIPE.pack_size, cache_dir=root / "cache", validation=0.1, test=0.1)
    info = RunInfo(model=RECIPE.model, class_names=packed.class_names, source="photos")
    run = RunFolder.create(root / "run", recipe=RECIPE, info=info)
    train(packed, RECIPE, run, progress=LogProgress())
    return run, folder, packed
