"""How to serve an export: its README, and Triton's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_README = """\
# {model}, {format}, {precision}

Input `image`: uint8, RGB, ({batch}, {size}, {size}, 3). Pixels are passed unscaled: normalisation is part of the model.
Output `probabilities`: float32, ({batch}, {classes}), in the order of `classes.txt`.

`preprocess.py` turns an image file into the input. It is the code that read the training images, and needs only Pillow
and NumPy (HEIC: pillow-heif). It turns photographs upright, handles transparency, 16 bits, CMYK and more, resizes the
shorter side to {shorter_side} pixels ({interpolation}, with antialiasing) and crops the central {size} x {size}. Other
preprocessing gives different inputs, and worse predictions.

```python
from pathlib import Path

import numpy as np
from preprocess import load_image

classes = Path("classes.txt").read_text(encoding="utf-8").splitlines()
image = load_image("photo.jpg", shorter_side={shorter_side}, centre_crop={size}, interpolation="{interpolation}")
images = np.stack([image]{repeat})
```

{serving}
## Verified

{verified}
"""

_SERVING = {
    "onnx": """\
## ONNX Runtime

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(probabilities,) = session.run(["probabilities"], {{"image": images}})
print(classes[probabilities[0].argmax()])
```

## Triton

```sh
mkdir -p repository/{name}/1
cp config.pbtxt classes.txt repository/{name}/
cp model.onnx repository/{name}/1/
tritonserver --model-repository "$PWD/repository"
```
""",
    "openvino": """\
## OpenVINO

```python
import openvino

model = openvino.Core().compile_model("model.xml", "CPU"{hint})
probabilities = model(images)["probabilities"]
print(classes[probabilities[0].argmax()])
```

## Triton

```sh
mkdir -p repository/{name}/1
cp config.pbtxt classes.txt repository/{name}/
cp model.xml model.bin repository/{name}/1/
tritonserver --model-repository "$PWD/repository"
```
""",
    "saved_model": """\
A second output, `class`, is the name of the likeliest class of each image.

## TensorFlow Serving

```sh
docker run -p 8501:8501 -v "$PWD/saved_model:/models/{name}" -e MODEL_NAME={name} tensorflow/serving
```

```python
import json
import urllib.request

request = json.dumps({{"inputs": {{"image": images.tolist()}}}}).encode()
answer = urllib.request.urlopen("http://localhost:8501/v1/models/{name}:predict", request)
print(json.load(answer)["outputs"]["class"])
```

## TensorFlow

```python
import tensorflow as tf

model = tf.saved_model.load("saved_model/1")
print(model.signatures["serving_default"](image=tf.constant(images))["class"])
```
""",
    "litert": """\
The class names are in the model too, as `labels.txt` (a zip archive behind it, as LiteRT's metadata has it).

## LiteRT

```python
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("model.tflite")
(image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
interpreter.resize_tensor_input(image["index"], images.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(image["index"], images)
interpreter.invoke()
probabilities = interpreter.get_tensor(output["index"])
print(classes[probabilities[0].argmax()])
```
""",
}

_BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino"}
MAX_BATCH = 64  # images that Triton batches at most

_TRITON = """\
backend: "{backend}"
max_batch_size: {max_batch}
input [{{ name: "image", data_type: TYPE_UINT8, dims: [ {batch}{size}, {size}, 3 ] }}]
output [{{ name: "probabilities", data_type: TYPE_FP32, dims: [ {batch}{classes} ], label_filename: "classes.txt" }}]
"""


def files(facts: Mapping[str, Any]) -> dict[str, str]:
    """Texts by file name, for an export with these facts (`export.json`)."""
    batch, size, classes = facts["batch_size"], facts["image_size"], len(facts["class_names"])
    settings = facts["preprocessing"]
    serving = _SERVING[facts["format"]].format(
        name=facts["model"],
        hint=', {"INFERENCE_PRECISION_HINT": "f32"}' if facts["precision"] == "float32" else "",
    )
    texts = {
        "README.md": _README.format(
            model=facts["model"],
            format=facts["format"],
            precision=facts["precision"],
            batch=batch or "any number",
            repeat=f" * {batch}" if batch else "",
            size=size,
            classes=classes,
            shorter_side=settings["shorter_side"],
            interpolation=settings["interpolation"],
            serving=serving,
            verified=_verified(facts["verified"]),
        )
    }
    if backend := _BACKENDS.get(facts["format"]):
        texts["config.pbtxt"] = _TRITON.format(
            backend=backend,
            max_batch=0 if batch else MAX_BATCH,  # 0: Triton does not batch requests
            batch=f"{batch}, " if batch else "",
            size=size,
            classes=classes,
        ) + ("" if batch else "dynamic_batching { }\n")
    return texts


def _verified(found: Mapping[str, Any]) -> str:
    text = (
        f"Against Keras, on {found['images']} images ({found['on']}): the same class for {found['same_class']:.2%}, "
        f"and probabilities that differ by at most {found['largest_difference']:.2g}."
    )
    if "accuracy" in found:
        text += f" Accuracy {found['accuracy']:.2%}, Keras {found['accuracy_keras']:.2%}."
    return text
