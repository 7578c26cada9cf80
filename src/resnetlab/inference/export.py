"""Export a run's network to another runtime: a folder with serving instructions, verified against Keras.

    RUN/export/onnx-float32/
        model.onnx          (or saved_model/1, model.tflite, model.xml and model.bin)
        classes.txt         one class name a line, in the order of the probabilities
        config.pbtxt        for Triton, where it serves the format
        export.json         what it is, what it was made from, what was verified
        preprocess.py       the code that `predict` too uses to turn an image file into the network's input
        README.md           how to serve it

The folder is built under a temporary name, and renamed once it is verified: a failure leaves nothing behind. Keras is
imported only when there is something to export.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from resnetlab import environment
from resnetlab.atomic import atomic_folder, without_dots
from resnetlab.data import preprocess
from resnetlab.data.pack import Pack, spread
from resnetlab.errors import ResnetlabError, UsageError, unknown_name
from resnetlab.evaluation.logits import centre_crop, predict_logits
from resnetlab.evaluation.metrics import softmax
from resnetlab.inference import serving, verification
from resnetlab.inference.engines import (
    EXPORT_FILE,
    PACKAGES,
    export_facts,
    exported_engine,
    load_network,
    require_packages,
)
from resnetlab.inference.verification import LoadSettings
from resnetlab.recipes import Recipe
from resnetlab.run_folder import UNDECODABLE, RunFolder

if TYPE_CHECKING:
    import keras

PRECISIONS = {  # of each format
    "onnx": ("float32", "float16", "int8"),
    "saved_model": ("float32", "bfloat16"),  # TensorFlow has kernels for bfloat16 on the CPU, and none for int8
    "litert": ("float32", "float16", "int8"),
    "openvino": ("float32", "float16", "int8"),
}
PREPROCESS_FILE = "preprocess.py"
VERIFIED = 1000  # images at most
CALIBRATED = 256  # images at most: ranges change little after a hundred


def export(
    run: RunFolder,
    format: str,
    *,
    precision: str = "float32",
    batch_size: int | None = None,
    output: Path | None = None,
    pack: Pack | None = None,
) -> Path:
    """Export the best network of a run: uint8 RGB images (batch, size, size, 3) in, probabilities (batch, classes) out.

    Args:
        format: "onnx", "saved_model", "litert" or "openvino"; the two of TensorFlow need Keras to run on it.
        precision: of weights and computation, one of `PRECISIONS`. In LiteRT and OpenVINO, float16 applies only to the
            stored weights; OpenVINO computes in the precision that suits the processor best.
        batch_size: fixed in the export; None for any.
        output: the folder; by default RUN/export/FORMAT-PRECISION. An export that is there is replaced.
        pack: the run's data. It is verified on the test images, or else on the validation images, and int8 takes its
            ranges from the training images. Without it, crops of two photographs are used. Both
            ways start from image files, which the export's own preprocess.py reads.

    Raises:
        UsageError: an unknown format, a precision that it does not support, an output folder that is not an export.
        ResnetlabError: a package is missing, the folder cannot be written, or the export failed its verification.
    """
    require_supported(format, precision)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"Received batch_size={batch_size}, expected at least 1.")
    calibration = _calibration_images(pack, run.recipe().test_size, batch_size) if precision == "int8" else np.empty(0)
    target = without_dots(output or default_folder(run, format, precision))
    class_names = list(run.info().class_names)
    with replaced(target) as folder:
        environment.start()
        _require_tensorflow(format)
        network, facts = _write_model(run, folder, format, precision, batch_size, calibration)
        facts["verified"] = _verify(folder, network, facts, pack)
        write_text(folder, EXPORT_FILE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_text(folder, "classes.txt", "".join(" ".join(name.split()) + "\n" for name in class_names))  # a line each
        for name, text in serving.files(facts).items():
            write_text(folder, name, text)
    return target


def _write_model(
    run: RunFolder, folder: Path, format: str, precision: str, batch_size: int | None, calibration: np.ndarray
) -> tuple[keras.Model, dict[str, Any]]:
    """Write model and preprocessing; returns the reference network, and the metadata that the engine reads."""
    from resnetlab.inference.folding import folded
    from resnetlab.inference.formats import WRITERS, Artefact

    weights_sha256 = weights_hash(run)  # before they are read: weights that change meanwhile make the export stale
    network = load_network(run)
    source = load_network(run, precision="bfloat16") if precision == "bfloat16" else network
    artefact = Artefact(
        network=folded(source, run.recipe().test_size),
        class_names=list(run.info().class_names),
        precision=precision,
        batch_size=batch_size,
        calibration=calibration,
    )
    WRITERS[format](artefact, folder)
    facts = {"format": format, "precision": precision, "batch_size": batch_size, "weights_sha256": weights_sha256}
    facts |= {"calibration_images": len(calibration), "bytes": _artefact_bytes(folder)} | _facts_of_run(run, format)
    write_text(folder, EXPORT_FILE, json.dumps(facts))
    shutil.copyfile(preprocess.__file__, folder / PREPROCESS_FILE)
    return network, facts


def _facts_of_run(run: RunFolder, format: str) -> dict[str, Any]:
    recipe = run.recipe()
    return {
        "model": recipe.model,
        "image_size": recipe.test_size,
        "input": f"image: uint8, RGB, (batch, {recipe.test_size}, {recipe.test_size}, 3); normalised inside",
        "preprocessing": load_settings(recipe),  # arguments of load_image in preprocess.py
        "class_names": list(run.info().class_names),
        "versions": environment.snapshot()["versions"] | _versions(format),
    }


def load_settings(recipe: Recipe) -> LoadSettings:
    """The arguments of `load_image` by which an image file becomes the input of this recipe's network."""
    return {
        "shorter_side": recipe.pack_size,
        "centre_crop": recipe.test_size,
        "interpolation": recipe.interpolation,
    }


def default_folder(run: RunFolder, format: str, precision: str) -> Path:
    return run.path / "export" / f"{format}-{precision}"


def is_current(folder: Path, run: RunFolder) -> bool:
    """Whether there is an export in `folder` of the weights that the run has now."""
    try:
        facts = export_facts(folder)
        return bool(facts["weights_sha256"] == weights_hash(run) and facts["bytes"] == _artefact_bytes(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _artefact_bytes(folder: Path) -> int:
    """Size of the model files, without documentation and metadata."""
    files = [*folder.glob("model.*"), *folder.glob("saved_model/**/*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def weights_hash(run: RunFolder) -> str:
    with run.weights().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------ checking


def require_supported(format: str, precision: str) -> None:
    """Raise UsageError for an unsupported format or precision, ResnetlabError if a required package is missing."""
    if format not in PRECISIONS:
        raise unknown_name("format", format, PRECISIONS)
    if precision not in PRECISIONS[format]:
        raise UsageError(f"Received precision {precision!r}; {format} exports: {', '.join(PRECISIONS[format])}.")
    require_packages(format)


def _require_tensorflow(format: str) -> None:
    import keras

    if format in ("saved_model", "litert") and keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"{format} is written by TensorFlow; Keras runs on {keras.backend.backend()!r}. Use --backend tensorflow."
        )


def _calibration_images(pack: Pack | None, size: int, batch_size: int | None) -> np.ndarray:
    if pack is None:
        raise UsageError("int8 needs the run's training images for calibration; received none. Give DATA.")
    indices = spread(pack.indices("train"), max(CALIBRATED, batch_size or 1))
    if (batch_size or 1) > len(indices):
        raise UsageError(
            f"Received batch_size={batch_size}, expected at most the {len(indices)} training images, for int8."
        )
    return np.ascontiguousarray(centre_crop(pack.images[indices], size))


def _verify(folder: Path, network: keras.Model, facts: dict[str, Any], pack: Pack | None) -> dict[str, Any]:
    """Compare the export, starting from image files, with Keras on the pixels that `predict` and training use."""
    from resnetlab import backend

    settings: LoadSettings = facts["preprocessing"]
    size, class_names, labels = facts["image_size"], facts["class_names"], None
    with tempfile.TemporaryDirectory() as temporary:
        if pack is None:
            subset, files = "two photographs of scikit-learn's", verification.write_samples(Path(temporary))
            images = np.stack([preprocess.load_image(file, **settings) for file in files])
        else:
            subset = next(name for name in ("test", "validation", "train") if len(pack.indices(name)))
            indices = spread(pack.indices(subset), VERIFIED)
            files = [_image_file(pack, index, Path(temporary)) for index in indices]
            images = np.ascontiguousarray(centre_crop(pack.images[indices], size))
            if set(pack.class_names) <= set(class_names):  # other data may have other classes, or in another order
                labels = np.array([class_names.index(name) for name in pack.class_names])[pack.labels[indices]]
        read = verification.read_files(folder / PREPROCESS_FILE, files, settings, images)
    everything = np.arange(len(images))
    with backend.full_float32():
        received = verification.probabilities_of(exported_engine(folder), read, everything)
        expected = softmax(predict_logits(network, images, everything, size=size))
    return {"on": subset} | verification.compare(received, expected, precision=facts["precision"], labels=labels)


def _image_file(pack: Pack, index: int, temporary: Path) -> Path:
    """The file of a packed image; if it came from an array or a zip file, a PNG of its pixels."""
    location = pack.audit.get("location")  # none where a pack was made of arrays in memory
    file = Path(location, pack.names[index]) if location else None
    if file is None or not file.is_file():
        file = temporary / f"{index}.png"
        Image.fromarray(pack.images[index]).save(file, compress_level=1)
    return file


def _versions(format: str) -> dict[str, str]:
    distributions = (name.replace("_", "-") for name in PACKAGES[format][0] if name != "tensorflow")
    return {name: metadata.version(name) for name in distributions}


# ------------------------------------------------------------------------------------------------------- writing


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the export `target` on success, replacing an earlier export."""
    if target.exists() and not (target / EXPORT_FILE).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an export. Choose another folder with --output, or remove it.")
    try:
        with atomic_folder(target, replace=True) as folder:
            yield folder
    except OSError as error:
        raise ResnetlabError(
            f"Cannot write the export {target}: {error.strerror or error}. Choose another with --output."
        ) from error


def write_text(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8", errors=UNDECODABLE)
