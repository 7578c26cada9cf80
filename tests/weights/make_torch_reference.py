"""Write torch_reference.npz: what torchvision and timm make of random weights, for machines that have neither.

    python tests/models/make_torch_reference.py      where torchvision, timm and scikit-learn are installed

For each network: the names and shapes of its state dict, in order, from which `randomised` draws the same weights
anywhere, and the logits of two photographs (the middle 160x160 of scikit-learn's samples, which are kept too).
"""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.models.randomised import randomised

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2")
TIMM = ("resnet50d", "seresnet50")
SIDE = 160
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    photographs = np.stack([_middle(photo) for photo in load_sample_images().images])
    scaled = ((photographs / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
    networks = {f"torchvision {name}": getattr(torchvision.models, name)(weights=None) for name in TORCHVISION}
    networks |= {f"timm {name}": timm.create_model(name) for name in TIMM}
    kept = {"photographs": photographs}
    names: dict[str, list[tuple[str, list[int]]]] = {}
    for network, model in networks.items():
        state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        names[network] = [(name, list(array.shape)) for name, array in state.items()]
        drawn = {name: torch.from_numpy(array) for name, array in randomised(state).items()}
        model.load_state_dict(drawn, strict=False)  # but for the counters of the batch norms
        with torch.no_grad():
            kept[network] = model.eval()(torch.from_numpy(scaled)).numpy()
        print(network, kept[network].std())
    by = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    kept |= {"names": np.array(json.dumps(names)), "by": np.array(json.dumps(by))}
    np.savez_compressed(Path(__file__).with_name("torch_reference.npz"), **kept)


def _middle(photo: np.ndarray) -> np.ndarray:
    top, left = ((side - SIDE) // 2 for side in photo.shape[:2])
    return photo[top : top + SIDE, left : left + SIDE]


if __name__ == "__main__":
    main()
