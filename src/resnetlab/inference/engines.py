"""Inference engines: map images to probabilities, behind one interface. Each imports its library when it is opened.

So prediction with ONNX Runtime or OpenVINO never loads Keras. The engine of an export reads its folder: `export.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetlab.checksums import verify_checksum
from resnetlab.environment import usable_cores
from resnetlab.errors import ResnetlabError
from resnetlab.run_folder import RunFolder
from resnetlab.untrusted import parse_json

if TYPE_CHECKING:
    import keras

Engine = Callable[[np.ndarray], np.ndarray]  # (n, size, size, 3) uint8 to (n, classes) float32, for any n from 1

EXPORT_FILE = "export.json"
PACKAGES = {  # packages that an export format and its engine, or the server, imports, and the extra that installs them
    "onnx": (("onnx", "onnxruntime"), "onnx"),
    "openvino": (("onnx", "onnxruntime", "openvino"), "openvino"),
    "litert": (("tensorflow", "ai_edge_litert"), "cpu,litert"),
    "saved_model": (("tensorflow",), "cpu"),
    "serve": (("fastapi", "uvicorn", "python_multipart", "prometheus_client"), "serve"),
}


def require_packages(kind: str) -> None:
    """Raise ResnetlabError, with the command that installs it, where a package of `kind` is missing."""
    packages, extra = PACKAGES[kind]
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ResnetlabError(f"{kind} needs {', '.join(missing)}. Install: pip install 'resnetlab[{extra}]'.")


def load_network(run: RunFolder, *, precision: str = "float32") -> keras.Model:
    """The network of a run with its best weights. Raises ResnetlabError where they do not fit, or are damaged."""
    from resnetlab.models.from_recipe import build_network

    recipe = run.recipe().changed(precision=precision)
    network = build_network(recipe, len(run.info().class_names))
    weights = run.weights()
    verify_checksum(weights)
    try:
        with warnings.catch_warnings():  # beside its error, Keras warns of each part that does not fit
            warnings.simplefilter("ignore", UserWarning)
            network.load_weights(weights)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ResnetlabError(f"{weights} cannot be loaded into {recipe.model}: {error}.") from None
    return network


def keras_engine(network: keras.Model, size: int) -> Engine:
    """An engine that predicts with Keras, on its current backend."""
    from resnetlab.evaluation.logits import predict_logits
    from resnetlab.evaluation.metrics import softmax

    def engine(images: np.ndarray) -> np.ndarray:
        return softmax(predict_logits(network, images, np.arange(len(images)), size=size)).astype(np.float32)

    return engine


def export_facts(folder: Path) -> dict[str, Any]:
    """What is recorded with an export: input, preprocessing, classes, versions.

    Raises:
        ValueError, OSError: the file is missing or damaged.
    """
    facts: dict[str, Any] = parse_json((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    return facts


def exported_engine(folder: Path) -> Engine:
    """The engine for the export in `folder`: the runtime of its format.

    Raises:
        ResnetlabError: a package is missing, or the folder is not an export.
    """
    try:
        facts = export_facts(folder)
        open_engine, batch_size = _EXPORTED[facts["format"]], facts["batch_size"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ResnetlabError(f"{folder} is not an export: expected a folder made by `resnetlab export`.") from None
    require_packages(facts["format"])
    try:
        engine = open_engine(folder, facts["precision"])
    except Exception as error:  # each runtime has errors of its own
        raise ResnetlabError(f"{folder} is damaged: {error}. Remove it, and export again.") from None
    return _in_batches_of(engine, batch_size) if batch_size else engine


def _in_batches_of(engine: Engine, size: int) -> Engine:
    """Wrap an engine with the fixed batch size `size` to take any number of images, by padding the last batch."""

    def whole(images: np.ndarray) -> np.ndarray:
        missing = -len(images) % size
        filled = np.concatenate([images, np.repeat(images[:1], missing, axis=0)])
        rows = [engine(filled[start : start + size]) for start in range(0, len(filled), size)]
        return np.concatenate(rows)[: len(images)]

    return whole


def _onnx_runtime(folder: Path, precision: str) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()  # the default counts the machine's cores, not the usable ones
    # Spinning threads would take cores from the threads that decode images; sleeping ones wake within microseconds.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # it is no faster here, and raises a ResNet-50's memory by half, to 1,290 MB
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def _openvino(folder: Path, precision: str) -> Engine:
    import openvino

    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": usable_cores()}
    if precision == "float32":  # by default it computes in bfloat16 if the CPU supports it
        options["INFERENCE_PRECISION_HINT"] = "f32"
    model = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
    return lambda images: np.array(model(np.ascontiguousarray(images))["probabilities"])


def _litert(folder: Path, precision: str) -> Engine:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / "model.tflite"), num_threads=usable_cores())
    (image,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()

    def engine(images: np.ndarray) -> np.ndarray:
        if tuple(interpreter.get_input_details()[0]["shape"]) != images.shape:
            interpreter.resize_tensor_input(image["index"], images.shape, strict=True)
        interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(probabilities["index"])

    return engine


def _saved_model(folder: Path, precision: str) -> Engine:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / "saved_model" / "1"))
    signature = loaded.signatures["serving_default"]

    def engine(images: np.ndarray) -> np.ndarray:
        return signature(image=tf.constant(images))["probabilities"].numpy()

    engine.loaded = loaded  # type: ignore[attr-defined]  # keeps the variables alive, which the signature does not
    return engine


_EXPORTED: dict[str, Callable[[Path, str], Engine]] = {
    "onnx": _onnx_runtime,
    "openvino": _openvino,
    "litert": _litert,
    "saved_model": _saved_model,
}
