"""What the implementation that weights come from computes with them: the check of an import.

    python -m resnetlab.weights.parity SOURCE ROW FAMILY SIZE PREPROCESSING OUTPUT.npz

runs in a process of its own, as PyTorch and TensorFlow should not share one, and leaves the logits of two images. With
-P, so that what lies beside downloaded weights, a torch.py, is not imported.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab.errors import ResnetlabError, first_informative_line
from resnetlab.models.variants import PREPROCESSING, Architecture, architecture
from resnetlab.weights.readers import read

_NEEDS: dict[str, list[tuple[str, ...]]] = {  # of each group, one
    "keras.applications": [("keras",)],
    "torchvision": [("torch",), ("torchvision", "timm")],
    "transformers": [("torch",), ("transformers",)],
}


def images(size: int) -> np.ndarray:
    """Two images that are smooth in some places and sharp in others: (2, size, size, 3) uint8."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 6, size, dtype=np.float32)
    waves = [
        np.sin(grid[:, None] * rng.uniform(0.3, 3) + grid[None] * rng.uniform(0.3, 3) + rng.uniform(0, 6))
        for _ in range(6)
    ]
    smooth = np.stack(waves, -1).reshape(size, size, 2, 3).transpose(2, 0, 1, 3)
    sharp = np.where(smooth > 0.4, 0.8, 0.2) * rng.uniform(0.5, 1.0, (2, size, size, 3))
    return np.clip(127 * smooth * (1 - sharp) + 200 * sharp, 0, 255).astype(np.uint8)


def logits(
    source: str, row: str, family: str, *, size: int, preprocessing: str, key: str | None = None
) -> tuple[np.ndarray, str] | str:
    """The source implementation's logits (2, classes) for `images(size)`, and its name and version.

    Returns the reason where it is not installed, or cannot run the network.
    """
    if family not in _NEEDS:
        return "its own implementation is no package"
    missing = [group for group in _NEEDS[family] if not any(map(importlib.util.find_spec, group))]
    if missing:
        return f"{family} cannot run here: {', '.join(map(' or '.join, missing))} is not installed"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "logits.npz"
        command = [sys.executable, "-P", "-m", __name__, source, row, family, str(size), preprocessing, str(output)]
        command += [key] if key else []
        child = subprocess.run(command, capture_output=True, text=True)
        if not output.exists():
            text = child.stderr.strip().splitlines()
            return f"{family} could not run it: {text[-1] if text else f'exit code {child.returncode}'}"
        with np.load(output, allow_pickle=False) as file:
            return file["logits"], str(file["by"])


def _keras(arrays: dict[str, np.ndarray], arch: Architecture, pixels: np.ndarray) -> tuple[np.ndarray, str]:
    from resnetlab import environment

    environment.start(device="cpu")
    import keras

    name = arch.name.removeprefix("keras-").replace("resnet", "ResNet").replace("v2", "V2")
    module = keras.applications.resnet_v2 if name.endswith("V2") else keras.applications.resnet
    classes = len(arrays["predictions/bias"])
    model = getattr(keras.applications, name)(
        weights=None, classes=classes, classifier_activation=None, input_shape=pixels.shape[1:]
    )
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])
    scaled = module.preprocess_input(pixels.astype(np.float32))
    return np.asarray(model.predict(scaled, verbose=0)), f"keras.applications {keras.__version__}"


def _torch(
    arrays: dict[str, np.ndarray], arch: Architecture, family: str, pixels: np.ndarray, preprocessing: str
) -> tuple[np.ndarray, str]:
    import torch

    if family == "transformers":
        model, by, head = _from_transformers(arch, len(arrays["classifier.1.bias"]))
    else:
        model, by, head = _from_torchvision_or_timm(arch, len(arrays["fc.bias"]))
    states = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    # Not strict about the counters of batch norms, which published weights may lack; recognise() was about the rest.
    model.load_state_dict(states, strict=False)
    mean, scale = PREPROCESSING[preprocessing]
    scaled = ((pixels - np.array(mean)) / scale).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return head(model.eval()(torch.from_numpy(np.ascontiguousarray(scaled)))).numpy(), by


def _from_transformers(arch: Architecture, classes: int) -> tuple[Any, str, Any]:
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=arch.stem_width,
        hidden_sizes=[width * arch.expansion for width in arch.widths],
        depths=list(arch.depths),
        layer_type=arch.block,
        downsample_in_bottleneck=arch.block == "bottleneck" and arch.stride_on == "1x1",
        num_labels=classes,
    )
    model = transformers.ResNetForImageClassification(config)
    return model, f"transformers {transformers.__version__}", lambda output: output.logits


def _from_torchvision_or_timm(arch: Architecture, classes: int) -> tuple[Any, str, Any]:
    """torchvision's network where it is there and has it, else timm's."""
    if importlib.util.find_spec("torchvision"):
        import torchvision

        names = {"wide-": "wide_", "-2": "_2", "resnext50-": "resnext50_", "resnext101-": "resnext101_"}
        name = arch.name.removesuffix("-v1") if arch.block == "basic" else arch.name  # its bottlenecks are v1.5
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if make := getattr(torchvision.models, name, None):
            return make(num_classes=classes), f"torchvision {torchvision.__version__}", lambda output: output
    import timm

    name = {"se-resnet50": "seresnet50"}.get(arch.name, arch.name.replace("-", "_"))
    return timm.create_model(name, num_classes=classes), f"timm {timm.__version__}", lambda output: output


def main() -> None:
    source, row, family, size, preprocessing, output, *key = sys.argv[1:]
    checkpoint, arch, pixels = read(source, key=key[0] if key else None), architecture(row), images(int(size))
    arrays = checkpoint.arrays
    if family == "keras.applications":
        found, by = _keras(arrays, arch, pixels)
    else:
        found, by = _torch(arrays, arch, family, pixels, preprocessing)
    np.savez(output, logits=found, by=np.array(by))


if __name__ == "__main__":
    try:
        main()
    except (ImportError, RuntimeError, ResnetlabError) as error:
        sys.exit(first_informative_line(error))
