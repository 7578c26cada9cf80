"""Each layer against NumPy, or against Keras's own layer, on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

from resnetlab.doctor import machine
from resnetlab.models.layers import (
    BatchNorm,
    Conv2D,
    HostNormal,
    IdentityShortcut,
    Normalize,
    StochasticDepth,
)
from resnetlab.models.variants import PREPROCESSING
from tests.models.reference import assert_close
from tests.workers import Workers

Arrays = dict[str, np.ndarray]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---------------------------------------------------------------------------------------------- convolution
def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, strides: int, groups: int) -> np.ndarray:
    size, filters = kernel.shape[0], kernel.shape[-1]
    layer = Conv2D(filters, size, strides=strides, groups=groups, use_bias=True)
    layer.build(x.shape)
    layer.set_weights([kernel, bias])
    y = ops.convert_to_numpy(layer(ops.convert_to_tensor(x)))
    assert y.shape == layer.compute_output_shape(x.shape)
    return y


def numpy_convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, strides: int, groups: int) -> np.ndarray:
    """By definition: the sum over each window of the zero-padded input."""
    size, inputs = kernel.shape[0], kernel.shape[2]
    half, outputs = size // 2, kernel.shape[-1] // groups
    padded = np.pad(x, [(0, 0), (half, half), (half, half), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))  # (b, h, w, c, k, k)
    windows = windows[:, ::strides, ::strides]
    parts = [
        np.einsum(
            "bhwcij,ijco->bhwo",
            windows[..., g * inputs : (g + 1) * inputs, :, :],
            kernel[..., g * outputs : (g + 1) * outputs],
        )
        for g in range(groups)
    ]
    return np.concatenate(parts, axis=-1) + bias


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_conv2d_pads_half_a_kernel_on_every_side(
    on: Workers, backend: str, size: int, strides: int, groups: int
) -> None:
    for height, width in ((9, 12), (8, 11)):
        arguments = {
            "x": normal(2, height, width, 8),
            "kernel": normal(size, size, 8 // groups, 12, seed=1),
            "bias": normal(12, seed=2),
            "strides": strides,
            "groups": groups,
        }
        assert_close(on(backend)(convolve, **arguments), numpy_convolve(**arguments), 1e-5)


def gradients_of_a_convolution(
    x: np.ndarray, kernel: np.ndarray, strides: int, dtype: str, training: bool
) -> list[np.ndarray]:
    """The result, and the gradients of the sum of its squares."""
    import tensorflow as tf

    from resnetlab import backend

    image, weights = tf.cast(x, dtype), tf.cast(kernel, dtype)

    @tf.function
    def compute() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([image, weights])
            y = backend.convolution(image, weights, stride=strides, groups=1, training=training)
            loss = tf.reduce_sum(tf.square(tf.cast(y, tf.float32)))
        return [y, *tape.gradient(loss, [image, weights])]

    return [tf.cast(tensor, tf.float32).numpy() for tensor in compute()]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(
    ("side", "size", "strides"),
    [(9, 1, 1), (8, 1, 2), (7, 3, 1), (2, 3, 1), (14, 3, 2), (13, 3, 2), (4, 7, 2), (16, 3, 1)],
)
def test_the_kernels_for_training_compute_the_same(
    on: Workers, side: int, size: int, strides: int, dtype: str, tolerance: float
) -> None:
    if dtype == "bfloat16" and not machine.cpu().has_bfloat16:
        pytest.skip("without hardware for bfloat16, TensorFlow adds up in it: gradients are 5 % off, its own too")
    arguments = {"x": normal(3, side, side, 16), "kernel": normal(size, size, 16, 24, seed=1), "strides": strides}
    run = on("tensorflow")
    trained, plain = (
        run(gradients_of_a_convolution, **arguments, dtype=dtype, training=training) for training in (True, False)
    )
    exact = run(gradients_of_a_convolution, **arguments, dtype="float32", training=False)
    for received, before, expected in zip(trained, plain, exact, strict=True):
        assert received.shape == expected.shape
        assert_close(received, expected, tolerance)
        assert_close(received, before, tolerance)


def convolution_in_bfloat16(x: np.ndarray, kernel: np.ndarray) -> tuple[str, str, np.ndarray]:
    layer = Conv2D(kernel.shape[-1], kernel.shape[0], dtype="mixed_bfloat16")
    layer.build(x.shape)
    layer.set_weights([kernel])
    y = layer(ops.convert_to_tensor(x))
    return layer.kernel.dtype, keras.backend.standardize_dtype(y.dtype), ops.convert_to_numpy(ops.cast(y, "float32"))


def test_conv2d_computes_in_bfloat16_with_a_float32_kernel(on: Workers, backend: str) -> None:
    x, kernel = normal(2, 9, 9, 8), normal(3, 3, 8, 12, seed=1)
    stored, computed, y = on(backend)(convolution_in_bfloat16, x=x, kernel=kernel)
    assert (stored, computed) == ("float32", "bfloat16")
    assert_close(y, numpy_convolve(x, kernel, np.zeros(12), 1, 1), 2e-2)


def test_conv2d_says_which_groups_do_not_divide() -> None:
    with pytest.raises(ValueError, match="received 6 input channels, 8 filters and 4 groups"):
        Conv2D(8, 3, groups=4).build((None, 8, 8, 6))


# --------------------------------------------------------------------------------------- batch normalisation
class Parameter(keras.layers.Layer):
    """Adds a weight to its input: its gradient is the gradient with respect to what the next layer reads."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.value = self.add_weight(shape=input_shape, name="value", initializer="zeros")

    def call(self, x: object) -> object:
        return x + self.value


def train_batch_norm(kind: str, x: np.ndarray, weights: list[np.ndarray], target: np.ndarray, steps: int) -> Arrays:
    """Train a lone batch norm under the loss sum((output - target)^2) / 100, by SGD at rate 1: weights move by their
    gradients. The loss must not be linear: nothing would then make TensorFlow read a weight of Keras's layer before it
    updates it, as no gradient would wait for the output (Grappler drops the control edge that asks for it)."""
    keras.backend.clear_session()
    own = {"ours": BatchNorm, "keras": keras.layers.BatchNormalization}[kind](momentum=0.9, epsilon=1e-5)
    model = keras.Sequential([keras.Input(batch_shape=x.shape), Parameter(), own])
    own.set_weights(weights)
    model.compile(
        optimizer=keras.optimizers.SGD(1.0),
        loss=lambda target, y: ops.sum(ops.square(y - target), axis=(1, 2, 3)) / 100,
    )
    results: Arrays = {}
    for step in range(steps):
        before = [ops.convert_to_numpy(v).copy() for v in model.trainable_weights]
        results[f"training output {step}"] = ops.convert_to_numpy(model(x, training=True))
        model.train_on_batch(x, target * (step + 1))
        after = [ops.convert_to_numpy(v) for v in model.trainable_weights]
        for name, old, new in zip(("x", "gamma", "beta"), before, after, strict=True):
            results[f"gradient of {name} {step}"] = old - new
        results[f"running mean {step}"] = ops.convert_to_numpy(own.moving_mean)
        results[f"running variance {step}"] = ops.convert_to_numpy(own.moving_variance)
    results["inference output"] = ops.convert_to_numpy(model(x, training=False))
    return results


def batch_norm_weights(channels: int) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    gamma, beta, mean, variance = (generator.uniform(0.5, 1.5, channels).astype(np.float32) for _ in range(4))
    return [gamma, beta, mean, variance]


@pytest.mark.parametrize("shape", [(4, 5, 7, 6), (2, 1, 1, 3)])  # with two samples, biased is half of unbiased
def test_batch_norm_trains_as_keras_own(on: Workers, backend: str, shape: tuple[int, ...]) -> None:
    arguments = {
        "x": 2 * normal(*shape) + 1,
        "weights": batch_norm_weights(shape[-1]),
        "target": normal(*shape, seed=1),
        "steps": 3,
    }
    ours = on(backend)(train_batch_norm, kind="ours", **arguments)
    theirs = on(backend)(train_batch_norm, kind="keras", **arguments)
    assert len(ours) == 3 * 6 + 1
    for name in ours:
        scale = max(1e-2, np.abs(theirs[name]).max())
        assert np.abs(ours[name] - theirs[name]).max() <= 1e-4 * scale, name


def test_one_value_per_channel_is_normalised_alike_on_every_backend(on: Workers, backend: str) -> None:
    x = normal(1, 1, 1, 3)
    arguments = {"x": x, "weights": batch_norm_weights(3), "target": normal(1, 1, 1, 3, seed=1), "steps": 2}
    here, there = (on(name)(train_batch_norm, kind="ours", **arguments) for name in ("tensorflow", backend))
    for name, expected in here.items():
        np.testing.assert_allclose(there[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(here["training output 0"].ravel(), batch_norm_weights(3)[1], rtol=1e-6)  # beta


def test_batch_norm_keeps_a_tenth_of_each_batch(on: Workers, backend: str) -> None:
    x = 2 * normal(4, 5, 7, 6) + 1
    results = on(backend)(
        train_batch_norm, kind="ours", x=x, weights=batch_norm_weights(6), target=np.zeros_like(x), steps=1
    )
    _, _, mean, variance = batch_norm_weights(6)
    for _ in range(2):  # train_batch_norm goes over the batch twice in a step
        mean = 0.9 * mean + 0.1 * x.mean((0, 1, 2))
        variance = 0.9 * variance + 0.1 * x.var((0, 1, 2))  # the biased one, as Keras's
    assert_close(results["running mean 0"], mean, 1e-5)
    assert_close(results["running variance 0"], variance, 1e-5)


def apply_batch_norm(x: np.ndarray, weights: list[np.ndarray], training: bool, **settings: object) -> Arrays:
    layer = BatchNorm(**settings)
    layer.build(x.shape)
    layer.set_weights(weights)
    y = layer(ops.convert_to_tensor(x), training=training)
    return {
        "type": np.array(keras.backend.standardize_dtype(y.dtype)),
        "y": ops.convert_to_numpy(ops.cast(y, "float32")),
        "mean": ops.convert_to_numpy(layer.moving_mean),
        "variance": ops.convert_to_numpy(layer.moving_variance),
    }


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_bfloat16_stays_close(on: Workers, backend: str, training: bool) -> None:
    arguments = {"x": 2 * normal(4, 5, 7, 6) + 1, "weights": batch_norm_weights(6), "training": training}
    half = on(backend)(apply_batch_norm, dtype="mixed_bfloat16", **arguments)
    full = on(backend)(apply_batch_norm, **arguments)
    assert (half["type"], full["type"]) == ("bfloat16", "float32")
    assert half["mean"].dtype == half["variance"].dtype == np.float32
    for name, tolerance in (("y", 2e-2), ("mean", 1e-2), ("variance", 1e-2)):
        assert_close(half[name], full[name], tolerance)


@pytest.mark.parametrize("settings", [{"trainable": False}, {"frozen_statistics": True}], ids=["all", "statistics"])
def test_a_frozen_batch_norm_uses_its_running_statistics(on: Workers, backend: str, settings: dict[str, bool]) -> None:
    arguments = {"x": 2 * normal(4, 5, 7, 6) + 1, "weights": batch_norm_weights(6)}
    frozen = on(backend)(apply_batch_norm, training=True, **settings, **arguments)
    inference = on(backend)(apply_batch_norm, training=False, **arguments)
    np.testing.assert_array_equal(frozen["y"], inference["y"])
    np.testing.assert_array_equal(frozen["mean"], arguments["weights"][2])
    gamma, beta, mean, variance = arguments["weights"]
    assert_close(frozen["y"], (arguments["x"] - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 1e-5)


# ------------------------------------------------------------------------------------------- the small layers
def apply_layer(
    kind: str, x: np.ndarray, training: bool = False, calls: int = 1, **settings: object
) -> list[np.ndarray]:
    layers = {"normalize": Normalize, "identity": IdentityShortcut, "drop": StochasticDepth}
    layer = layers[kind](**settings)
    keywords = {"training": training} if kind == "drop" else {}
    results = [ops.convert_to_numpy(layer(ops.convert_to_tensor(x), **keywords)) for _ in range(calls)]
    assert results[0].shape == tuple(layer.compute_output_shape(x.shape))
    return results


@pytest.mark.parametrize("preprocessing", PREPROCESSING)
def test_normalize_is_the_published_preprocessing(on: Workers, backend: str, preprocessing: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.float32)
    expected = {
        "imagenet": (x / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225),  # torchvision's figures
        "cifar10": (x / 255 - (0.4914, 0.4822, 0.4465)) / (0.2470, 0.2435, 0.2616),
        "kuangliu": (x / 255 - (0.4914, 0.4822, 0.4465)) / (0.2023, 0.1994, 0.2010),
        "caffe": x[..., ::-1] - (103.939, 116.779, 123.68),
        "unit": x / 127.5 - 1,
    }
    (y,) = on(backend)(apply_layer, kind="normalize", x=x, preprocessing=preprocessing)
    assert_close(y, expected[preprocessing], 2e-4 if preprocessing in ("cifar10", "kuangliu") else 1e-6)


@pytest.mark.parametrize("size", [7, 8])
def test_identity_shortcut_reads_every_second_pixel_and_adds_zeros(on: Workers, backend: str, size: int) -> None:
    x = normal(2, size, size + 1, 4)
    (y,) = on(backend)(apply_layer, kind="identity", x=x, filters=10, strides=2)
    np.testing.assert_array_equal(y[..., :4], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 4:], 0)
    (same,) = on(backend)(apply_layer, kind="identity", x=x, filters=4, strides=1)
    np.testing.assert_array_equal(same, x)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_expectation(on: Workers, backend: str) -> None:
    x = np.ones((4000, 1, 2, 3), np.float32)
    first, second = on(backend)(apply_layer, kind="drop", x=x, training=True, calls=2, rate=0.2)
    kept = first[:, 0, 0, 0] > 0
    np.testing.assert_allclose(first, np.broadcast_to(kept[:, None, None, None] / 0.8, x.shape), rtol=1e-6)
    assert first.mean() == pytest.approx(1.0, abs=0.03)  # four deviations of the mean of 4000 draws
    assert (first != second).any()
    (inference,) = on(backend)(apply_layer, kind="drop", x=x, training=False, rate=0.2)
    np.testing.assert_array_equal(inference, x)


def test_stochastic_depth_rejects_a_rate_of_one() -> None:
    with pytest.raises(ValueError, match=r"received rate=1.0, expected 0 <= rate < 1"):
        StochasticDepth(1.0)


def test_host_normal_has_the_deviation_of_he_2015() -> None:
    kernel = ops.convert_to_numpy(HostNormal(0, "layer")((3, 3, 64, 128)))
    assert kernel.std() == pytest.approx(np.sqrt(2 / (3 * 3 * 128)), rel=0.01)
    assert ops.convert_to_numpy(HostNormal(0, "dense", std=0.01)((300, 300))).std() == pytest.approx(0.01, rel=0.01)
    assert (kernel != ops.convert_to_numpy(HostNormal(0, "other")((3, 3, 64, 128)))).all()
