"""The network family. `architectures` is a table and imports no Keras; `build` makes a `keras.Model` of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resnetlab.models.architectures import ARCHITECTURES, Architecture, architecture

if TYPE_CHECKING:
    from resnetlab.models.resnet import build

__all__ = ["ARCHITECTURES", "Architecture", "architecture", "build"]


def __getattr__(name: str) -> Any:
    if name == "build":
        from resnetlab.models.resnet import build

        return build
    raise AttributeError(f"module 'resnetlab.models' has no attribute {name!r}")
