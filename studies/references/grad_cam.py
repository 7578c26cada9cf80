"""Class activation maps of the package grad-cam, for studies/grad_cam.py, which runs this in a process of its own.

    python studies/references/grad_cam.py FOLDER

FOLDER has request.npz (images uint8, classes) and weights.txt, the path of a checkpoint of
github.com/akamaster/pytorch_resnet_cifar10, whose network is written here in plain PyTorch. The maps are written to
maps.npz, as METHOD/STAGE, each (n, size, size), from 0 to 1.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

if not importlib.util.find_spec("torchvision"):
    # grad-cam imports it for transforms and detection boxes, which are not used here.
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.transforms"].__dict__.update(Compose=None, Normalize=None, ToTensor=None)
    sys.modules["torchvision.transforms.functional"].__dict__.update(resize=None)

from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

METHODS = {"grad-cam": GradCAM, "grad-cam++": GradCAMPlusPlus, "hires-cam": HiResCAM, "layer-cam": LayerCAM}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, (channels - before) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(branch + nn.functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding)))


class Network(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        before = 16
        for stage, channels in enumerate((16, 32, 64), start=1):
            blocks = [Block(before, channels, 1 if stage == 1 else 2)]
            blocks += [Block(channels, channels, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            before = channels
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean(dim=(2, 3)))


def main() -> None:
    folder = Path(sys.argv[1])
    request = np.load(folder / "request.npz")
    checkpoint = torch.load((folder / "weights.txt").read_text("utf-8"), map_location="cpu", weights_only=True)
    state = {name.removeprefix("module."): array for name, array in checkpoint["state_dict"].items()}
    network = Network(depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("layer1.")))
    network.load_state_dict(state)
    network.eval()
    pixels = (request["images"] / np.float32(255) - np.float32(MEAN)) / np.float32(DEVIATION)
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    targets = [ClassifierOutputTarget(int(chosen)) for chosen in request["classes"]]
    maps = {}
    for method, make in METHODS.items():
        for stage in (2, 3):
            with make(model=network, target_layers=[getattr(network, f"layer{stage}")]) as cam:
                maps[f"{method}/stage{stage}"] = cam(input_tensor=x, targets=targets)
    np.savez(folder / "maps.npz", **maps)


if __name__ == "__main__":
    main()
