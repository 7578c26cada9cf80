"""Residual networks from scratch in Keras 3, checked against reference implementations.

    import resnetlab as rl

    run = rl.train("photos/", model="resnet18", epochs=20)      # a folder of class folders
    run.evaluate().top1
    run.predict("new.jpg")[0].label
    run.export("onnx")
    model = rl.build("resnet50", num_classes=10)                # an ordinary keras.Model

Importing the package imports neither Keras nor a backend. When Keras is imported, before or after, its
`keras.saving.load_model` knows the layers of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resnetlab import keras_hook
from resnetlab.version import VERSION

if TYPE_CHECKING:
    from resnetlab.cluster import Cluster
    from resnetlab.comparison.compare import Comparison
    from resnetlab.data.audit import Audit
    from resnetlab.errors import ResnetlabError, UsageError
    from resnetlab.evaluation.metrics import Evaluation
    from resnetlab.inference.explanation import Explanation
    from resnetlab.inference.predictor import Prediction
    from resnetlab.listing import RunSummary, Variant, list_runs, variants
    from resnetlab.models.resnet import build
    from resnetlab.progress import Progress
    from resnetlab.recipes import Recipe
    from resnetlab.run import Export, Run
    from resnetlab.server.limits import Limits
    from resnetlab.server.serve import serve
    from resnetlab.tasks import (
        TrainingPlan,
        audit,
        compare,
        compare_runs,
        from_pretrained,
        load,
        pack,
        plan_training,
        train,
    )

_HOME = {
    "Audit": "data.audit",
    "Cluster": "cluster",
    "Comparison": "comparison.compare",
    "Evaluation": "evaluation.metrics",
    "Explanation": "inference.explanation",
    "Export": "run",
    "Limits": "server.limits",
    "Prediction": "inference.predictor",
    "Progress": "progress",
    "Recipe": "recipes",
    "ResnetlabError": "errors",
    "Run": "run",
    "RunSummary": "listing",
    "TrainingPlan": "tasks",
    "UsageError": "errors",
    "Variant": "listing",
    "audit": "tasks",
    "build": "models",
    "compare": "tasks",
    "compare_runs": "tasks",
    "from_pretrained": "tasks",
    "list_runs": "listing",
    "load": "tasks",
    "pack": "tasks",
    "plan_training": "tasks",
    "serve": "server.serve",
    "train": "tasks",
    "variants": "listing",
}
__version__ = VERSION
__all__ = [
    "Audit",
    "Cluster",
    "Comparison",
    "Evaluation",
    "Explanation",
    "Export",
    "Limits",
    "Prediction",
    "Progress",
    "Recipe",
    "ResnetlabError",
    "Run",
    "RunSummary",
    "TrainingPlan",
    "UsageError",
    "Variant",
    "__version__",
    "audit",
    "build",
    "compare",
    "compare_runs",
    "from_pretrained",
    "list_runs",
    "load",
    "pack",
    "plan_training",
    "serve",
    "train",
    "variants",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"resnetlab.{_HOME[name]}"), name)
    raise AttributeError(f"module 'resnetlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


keras_hook.install()
