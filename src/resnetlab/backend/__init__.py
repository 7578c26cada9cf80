"""The only package that knows the backends: the operations that dominate training time, by the fastest kernels.

Keras 3 normalises batches by separate elementwise operations on every backend, updates weights one operation at a
time on TensorFlow, and on PyTorch copies every feature map to another layout and back. The functions here call
each backend's specialised kernels instead; no other code in this project branches on the backend.
All feature maps are (batch, height, width, channels).

Each backend has a module with the same functions, and this package has those of the active one. `tensorflow.py`
documents them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras

NAME = keras.backend.backend()

if NAME == "tensorflow":
    from resnetlab.backend.tensorflow import *
elif NAME == "torch":
    from resnetlab.backend.torch import *
elif NAME == "jax":
    from resnetlab.backend.jax import *
else:
    raise ImportError(
        f"resnetlab runs on the Keras backends tensorflow, jax and torch; received KERAS_BACKEND={NAME!r}. "
        "Set KERAS_BACKEND before Keras is imported."
    )


def mirrored() -> bool:
    """Whether several devices share training by TensorFlow's `MirroredStrategy`.

    A step can then not be compiled by XLA, nor depend on a condition; and each device would predict the whole batch.
    """
    return NAME == "tensorflow" and replicas() > 1


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in full float32: on Ampere and newer GPUs all backends use TF32 by default.

    Needed wherever results are compared with a tolerance below 1e-3. Functions must also be traced inside the context,
    as XLA and JAX fix the precision at compile time.
    """
    before = tf32_setting()
    allow_tf32(False)
    try:
        yield
    finally:
        set_tf32(before)
