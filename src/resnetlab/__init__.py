"""ResNets from scratch in Keras 3: readable in an hour, exact to the papers.

    import resnetlab
    model = resnetlab.build("resnet50", num_classes=10)     # an ordinary keras.Model

Importing the package imports neither Keras nor a backend. When Keras is imported, before or after, its
`keras.saving.load_model` knows the layers of this package.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from resnetlab import keras_hook

if TYPE_CHECKING:
    from resnetlab.models import build

__version__ = version("resnetlab")
__all__ = ["__version__", "build"]


def __getattr__(name: str) -> Any:
    if name == "build":
        from resnetlab.models import build

        return build
    raise AttributeError(f"module 'resnetlab' has no attribute {name!r}")


keras_hook.install()
