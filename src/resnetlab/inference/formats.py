"""Writers: a folded network as the files of one format. Keras, and what each format needs, must be there."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resnetlab.models.layers import BatchNorm
from resnetlab.run_folder import as_written


@dataclass(frozen=True, eq=False)
class Artefact:
    """The input of a format writer.

    `network` is `folded`; `batch_size` None stands for any; `calibration` are the images (n, size, size, 3) uint8
    for int8 calibration.
    """

    network: keras.Model
    class_names: Sequence[str]
    precision: str
    batch_size: int | None
    calibration: np.ndarray

    @property
    def size(self) -> int:
        return int(self.network.inputs[0].shape[1])

    def batches(self) -> Iterator[np.ndarray]:
        """The calibration images in batches that the network takes."""
        step = self.batch_size or 1
        for start in range(0, len(self.calibration) - step + 1, step):
            yield np.ascontiguousarray(self.calibration[start : start + step])


def write_onnx(artefact: Artefact, folder: Path) -> None:
    """model.onnx; its class names are in its metadata."""
    import onnx

    from resnetlab.inference.onnx_graph import onnx_model

    model = onnx_model(
        artefact.network,
        artefact.class_names,
        batch_size=artefact.batch_size,
        float16=artefact.precision == "float16",
    )
    target = folder / "model.onnx"
    if artefact.precision == "int8":
        _quantize(model, artefact, target)
    else:
        onnx.save(model, target)


def _quantize(model: Any, artefact: Artefact, target: Path) -> None:
    """Weights to int8, one scale for each output channel; feature maps to uint8, one scale each (QDQ).

    Batch norms that could not be folded stay in float: their channels differ too much for one scale.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = artefact.batches()

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch}

    with _quiet():
        quantize_static(
            model,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Pad"],
            nodes_to_exclude=[layer.name for layer in artefact.network.layers if isinstance(layer, BatchNorm)],
            extra_options={"QuantizeBias": False},  # the runtimes do it as they load, and the file is 4 % smaller
        )


def write_openvino(artefact: Artefact, folder: Path) -> None:
    """model.xml and model.bin, by way of ONNX; the class names are in the model's runtime information."""
    import openvino

    onnx = artefact if artefact.precision == "int8" else replace(artefact, precision="float32")
    write_onnx(onnx, folder)
    model = openvino.convert_model(folder / "model.onnx")
    model.set_rt_info(json.dumps(list(artefact.class_names)), ["resnetlab", "class_names"])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=artefact.precision == "float16")
    (folder / "model.onnx").unlink()


def write_saved_model(artefact: Artefact, folder: Path) -> None:
    """saved_model/1, as TensorFlow Serving expects it: uint8 images to probabilities and the name of the top class."""
    import tensorflow as tf

    names = tf.constant([as_written(name) for name in artefact.class_names])

    def serve(image: Any) -> dict[str, Any]:
        probabilities = _probabilities(artefact.network, image)
        return {"probabilities": probabilities, "class": tf.gather(names, tf.argmax(probabilities, axis=-1))}

    _save(artefact, serve, folder / "saved_model" / "1")


def write_litert(artefact: Artefact, folder: Path) -> None:
    """model.tflite; labels.txt is packed into it as the format's metadata has it: a zip archive behind the model."""
    import tensorflow as tf

    source, target = folder / "source", folder / "model.tflite"
    _save(artefact, lambda image: {"probabilities": _probabilities(artefact.network, image)}, source)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(source))
    if artefact.precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if artefact.precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if artefact.precision == "int8":
        converter.representative_dataset = lambda: ([batch] for batch in artefact.batches())
    with _quiet():
        target.write_bytes(converter.convert())
    shutil.rmtree(source)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(
            "labels.txt", "".join(f"{as_written(' '.join(name.split()))}\n" for name in artefact.class_names)
        )


def _save(artefact: Artefact, function: Callable[[Any], dict[str, Any]], folder: Path) -> None:
    """Save a function of images as a SavedModel. Keras's ExportArchive is not used: it stores all weights twice."""
    import tensorflow as tf

    image = tf.TensorSpec((artefact.batch_size, artefact.size, artefact.size, 3), tf.uint8, name="image")
    module = tf.Module()
    module.weights = [variable.value for variable in artefact.network.weights]
    serving = tf.function(function, input_signature=[image]).get_concrete_function()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serving})


def _probabilities(network: keras.Model, image: Any) -> Any:
    logits = network(keras.ops.cast(image, "float32"), training=False)
    return keras.ops.softmax(logits, axis=-1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence converter warnings that do not apply, such as advice to simplify the graph first."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


WRITERS: dict[str, Callable[[Artefact, Path], None]] = {
    "onnx": write_onnx,
    "saved_model": write_saved_model,
    "litert": write_litert,
    "openvino": write_openvino,
}
