"""Weights for others: a folder in the layout of the Hugging Face hub, in our names or those of another library.

    RUN/export/safetensors-timm/
        model.safetensors            the weights, float32
        config.json                  architecture, classes, and how images are prepared, as the library reads it
        preprocessor_config.json     for transformers
        README.md                    the model card
        export.json                  what it was made from, and what was verified

The folder is read back, and compared with the run bit for bit, before it gets its name; where the library is installed,
it loads the folder too, and computes the same logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetlab import environment
from resnetlab.atomic import without_dots
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.inference.engines import EXPORT_FILE, load_network
from resnetlab.inference.export import load_settings, replaced, weights_hash, write_text
from resnetlab.inference.model_card import model_card
from resnetlab.models.from_recipe import resolve_architecture
from resnetlab.models.variants import PREPROCESSING, Architecture
from resnetlab.recipes import Recipe
from resnetlab.run_folder import RunFolder
from resnetlab.weights.arrays import collect_arrays
from resnetlab.weights.libraries import name_in, to_arrays, transformers_config
from resnetlab.weights.readers import OWN_NAMES, SQUEEZED_FROM

if TYPE_CHECKING:
    import keras

WEIGHTS_FILE = "model.safetensors"
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers


def share(run: RunFolder, *, names: str, output: Path | None, license: str | None) -> Path:
    """Write the weights of a run in the names of a library, with their model card, and verify them.

    Args:
        names: "resnetlab", "torchvision", "timm" or "transformers".
        output: the folder; by default RUN/export/safetensors-NAMES. An export that is there is replaced.
        license: of the weights, for the model card; by default that of imported weights, if they state one.

    Raises:
        UsageError: an unknown library, or one without this network; an output folder that is not an export.
        ResnetlabError: safetensors is missing, the folder cannot be written, or the verification failed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise ResnetlabError("safetensors is missing. Install: pip install 'resnetlab[safetensors]'.") from None
    recipe, class_names = run.recipe(), run.info().class_names
    arch = resolve_architecture(recipe)
    theirs = name_in(names, arch)
    target = without_dots(output or run.path / "export" / f"safetensors-{names}")
    license = license or _stated_license(run)
    with replaced(target) as folder:
        environment.start()
        before, network = weights_hash(run), load_network(run)
        arrays = to_arrays(collect_arrays(network), arch, names, len(class_names))
        save_file(arrays, folder / WEIGHTS_FILE, metadata={"format": "pt" if names != "resnetlab" else "np"})
        for file, content in configuration(names, theirs, arch, recipe, class_names, license).items():
            write_text(folder, file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        facts = {
            "format": "safetensors",
            "names": names,
            "model": recipe.model,
            "precision": "float32",
            "weights_sha256": before,
            "bytes": (folder / WEIGHTS_FILE).stat().st_size,
            "class_names": list(class_names),
            "preprocessing": load_settings(recipe),
            "versions": environment.snapshot()["versions"],
        }
        write_text(folder, "README.md", model_card(run, names=names, theirs=theirs, license=license))
        facts["verified"] = _verify(folder, network, recipe, class_names, names)
        write_text(folder, EXPORT_FILE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return target


def configuration(
    names: str, theirs: str, arch: Architecture, recipe: Recipe, class_names: tuple[str, ...], license: str | None
) -> dict[str, dict[str, Any]]:
    """The configuration files of a library, by name."""
    size, crop_pct = recipe.test_size, recipe.test_size / recipe.pack_size
    mean, std = (tuple(np.divide(each, 255).tolist()) for each in PREPROCESSING[arch.preprocessing])
    if names == "resnetlab":
        settings: dict[str, Any] = {"image_size": size, "crop_pct": crop_pct, "interpolation": recipe.interpolation}
        settings |= {"preprocessing": arch.preprocessing}
        content: dict[str, Any] = {"library": "resnetlab", "model": arch.name, "settings": settings}
        return {"config.json": content | {"class_names": list(class_names), "license": license}}
    if names == "transformers":
        if size >= SQUEEZED_FROM:
            raise UsageError(
                f"transformers' image processor resizes whole images to a square from {SQUEEZED_FROM} pixels on; this "
                f"network takes the centre square, of {size}. Use other names: resnetlab, torchvision, timm."
            )
        processor = {
            "image_processor_type": "ConvNextImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "crop_pct": crop_pct,
            "resample": RESAMPLING[recipe.interpolation],
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": mean,
            "image_std": std,
        }
        config = transformers_config(arch, class_names) | {OWN_NAMES: list(class_names)}
        return {"config.json": config, "preprocessor_config.json": processor}
    pretrained = {
        "input_size": [3, size, size],
        "interpolation": recipe.interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "mean": mean,
        "std": std,
        "num_classes": len(class_names),
        "first_conv": "conv1.0" if arch.stem == "deep" else "conv1",
        "classifier": "fc",
        "license": license,
    }
    content = {"architecture": theirs, "num_classes": len(class_names), "label_names": list(class_names)}
    content[OWN_NAMES] = list(class_names)
    return {"config.json": content | {"pretrained_cfg": pretrained}}


def _stated_license(run: RunFolder) -> str | None:
    if not (run.path / "import.json").exists():
        return None
    found = run.read_json("import.json").get("licence")
    return str(found) if found else None


def _verify(
    folder: Path, network: keras.Model, recipe: Recipe, class_names: tuple[str, ...], names: str
) -> dict[str, Any]:
    """Import the folder as anybody would, compare it bit for bit, and let the library itself compute.

    Raises:
        ResnetlabError: something is not as it was.
    """
    import tempfile

    from resnetlab.weights import convert, parity, readers

    with tempfile.TemporaryDirectory() as temporary:
        again = convert.import_checkpoint(
            readers.read(str(folder)), Path(temporary, "run"), model=recipe.model, check=False
        )
        read = collect_arrays(load_network(again))
        changed = [name for name, array in collect_arrays(network).items() if not np.array_equal(read[name], array)]
        if changed:
            raise ResnetlabError(f"Read back, these weights are not the same: {', '.join(changed[:5])}.")
        received, expected = load_settings(again.recipe()), load_settings(recipe)
        if received != expected or again.info().class_names != class_names:
            raise ResnetlabError(
                f"Read back, images are preprocessed differently, or classes have other names: received {received}, "
                f"expected {expected}. {names} cannot express this network's input; use the names of resnetlab."
            )
    against = parity.loaded_logits(folder, names, size=recipe.test_size)
    found: dict[str, Any] = {"read_back": "bit for bit"}
    if isinstance(against, str):
        return found | {"library": None, "why": against}
    logits, by = against
    ours = np.asarray(network.predict_on_batch(parity.images(recipe.test_size)), np.float32)
    difference = float(np.abs(ours - logits).max() / (np.abs(logits).max() or 1.0))
    if not difference <= convert.TOLERANCE:
        raise ResnetlabError(f"{by} computes other logits from the weights: they differ by {difference:.1e}.")
    return found | {"library": by, "largest_difference": difference}
