"""The network family. `variants` and `shapes` import no Keras; `build` makes a `keras.Model` of a variant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resnetlab.models.shapes import Summary, summarize
from resnetlab.models.variants import VARIANTS, Architecture, architecture

if TYPE_CHECKING:
    from resnetlab.models.resnet import build

__all__ = ["VARIANTS", "Architecture", "Summary", "architecture", "build", "summarize"]


def __getattr__(name: str) -> Any:
    if name == "build":
        from resnetlab.models.resnet import build

        return build
    raise AttributeError(f"module 'resnetlab.models' has no attribute {name!r}")
