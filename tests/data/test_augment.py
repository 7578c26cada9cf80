"""What the device does with the parameters: against Pillow, against plain NumPy, and the same on every backend."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from resnetlab.data.augment import FILL, Augment, in_box, jitter, resample
from resnetlab.data.augmentation import Augmentation, sample_parameters
from tests.workers import Workers

SOURCE, SIZE = 37, 32
ALL = Augmentation(
    source_size=SOURCE,
    size=SIZE,
    crop="resized",
    crop_scale=0.25,
    flip=True,
    color_jitter=0.4,
    erase=0.5,
    mixup=0.2,
    cutmix=1.0,
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Eight patches of photographs: (8, 37, 37, 3) uint8."""
    strips = [photo[100 : 100 + SOURCE, 100 : 100 + 4 * SOURCE] for photo in load_sample_images().images]
    return np.concatenate([strip.reshape(SOURCE, 4, SOURCE, 3).swapaxes(0, 1) for strip in strips])


def resampled(images: np.ndarray, windows: list[tuple[float, ...]], size: int) -> np.ndarray:
    images, windows = images[: len(windows)].astype(np.float32), np.array(windows, np.float32)
    return keras.ops.convert_to_numpy(
        resample(keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(windows), size)
    )


def pillow(image: np.ndarray, box: tuple[float, ...], size: int) -> np.ndarray:
    """Pillow's bilinear resize of a window, in floating point; a negative width mirrors."""
    top, left, height, width = box
    edges = (min(left, left + width), top, max(left, left + width), top + height)
    floats = (Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
    channels = [np.asarray(x.resize((size, size), Image.Resampling.BILINEAR, edges)) for x in floats]
    return np.stack(channels, axis=-1)[:, :: -1 if width < 0 else 1]


@pytest.mark.parametrize("size", [5, 16, 32, 37, 60])  # shrinking (antialiased), as it is, and growing
@pytest.mark.parametrize("box", [(0, 0, 37, 37), (3, 5, 20, 31), (10, 37, 27, -22), (2.5, 3.25, 9.5, 30.0)])
def test_resampling_is_pillows_bilinear_resize(images: np.ndarray, box: tuple[float, ...], size: int) -> None:
    (received,) = resampled(images, [box], size)
    np.testing.assert_allclose(received, pillow(images[0], box, size), atol=2e-3)


def test_the_whole_window_changes_nothing(images: np.ndarray) -> None:
    np.testing.assert_allclose(resampled(images, [(0, 0, SOURCE, SOURCE)] * 8, SOURCE), images, atol=1e-4)
    mirrored = resampled(images, [(0, SOURCE, SOURCE, -SOURCE)] * 8, SOURCE)
    np.testing.assert_allclose(mirrored, images[:, :, ::-1], atol=1e-4)


@pytest.mark.parametrize("shift", [(-4, 2), (3, -1), (4, 4), (0, 0)])
def test_a_pad_crop_is_an_exact_shift_with_the_mean_colour_outside(images: np.ndarray, shift: tuple[int, int]) -> None:
    padded = np.empty((SOURCE + 8, SOURCE + 8, 3), np.float32)
    padded[:] = FILL
    padded[4:-4, 4:-4] = images[0]
    top, left = 4 + shift[0], 4 + shift[1]
    (received,) = resampled(images, [(*shift, SOURCE, SOURCE)], SOURCE)
    np.testing.assert_allclose(received, padded[top : top + SOURCE, left : left + SOURCE], atol=1e-4)


@pytest.mark.parametrize("shift", [(-4, 2), (3, -1), (4, 4), (0, 0)])
def test_a_reflected_border_is_that_of_numpy(images: np.ndarray, shift: tuple[int, int]) -> None:
    padded = np.pad(images[0].astype(np.float32), ((4, 4), (4, 4), (0, 0)), "reflect")
    top, left = 4 + shift[0], 4 + shift[1]
    config = Augmentation(source_size=SOURCE, size=SOURCE, crop="pad", crop_border="reflect", flip=True)
    windows = np.float32([(*shift, SOURCE, SOURCE), (shift[0], shift[1] + SOURCE, SOURCE, -SOURCE)])
    inputs = {"image": np.stack([images[0]] * 2), "window": windows}
    received, mirrored = keras.ops.convert_to_numpy(Augment(config)(inputs))
    np.testing.assert_allclose(received, padded[top : top + SOURCE, left : left + SOURCE], atol=1e-4)
    np.testing.assert_allclose(mirrored, received[:, ::-1], atol=1e-4)


def test_each_image_has_its_own_window(images: np.ndarray) -> None:
    windows = [(0, 0, 37, 37), (5, 6, 20, 20), (0, 37, 37, -37)]
    together = resampled(images, windows, SIZE)
    for image, window, received in zip(images, windows, together, strict=False):
        np.testing.assert_allclose(received, pillow(image, window, SIZE), atol=2e-3)


def numpy_jitter(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """torchvision's adjust_brightness, adjust_contrast, adjust_saturation, one after the other."""

    def grey(x: np.ndarray) -> np.ndarray:
        return 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]

    def blend(x: np.ndarray, other: np.ndarray | float, factor: float) -> np.ndarray:
        return np.clip(factor * x + (1 - factor) * other, 0, 255)

    x = blend(image.astype(np.float64), 0.0, brightness)
    x = blend(x, grey(x).mean(), contrast)
    return blend(x, grey(x)[..., None], saturation)


def test_jitter_is_brightness_then_contrast_then_saturation(images: np.ndarray) -> None:
    factors = np.array([(1.4, 0.6, 1.3), (0.6, 1.4, 0.6), (1, 1, 1), (1.4, 1.4, 1.4)], np.float32)
    received = keras.ops.convert_to_numpy(jitter(keras.ops.convert_to_tensor(images[:4].astype(np.float32)), factors))
    expected = np.stack([numpy_jitter(image, *f) for image, f in zip(images, factors.tolist(), strict=False)])
    np.testing.assert_allclose(received, expected, atol=1e-3)
    np.testing.assert_allclose(received[2], images[2], atol=1e-4)


def test_in_box_is_what_slicing_selects() -> None:
    boxes = np.array([(0, 0, 5, 7), (3, 2, 1, 4), (0, 0, 0, 0), (0, 0, 8, 8)], np.float32)
    expected = np.zeros((4, 8, 8, 1), bool)
    for inside, (top, left, height, width) in zip(expected, boxes.astype(int), strict=True):
        inside[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(in_box(boxes, 8)), expected)


def augmented(augmentation: Augmentation, inputs: dict[str, np.ndarray]) -> np.ndarray:
    y = Augment(augmentation)({name: keras.ops.convert_to_tensor(array) for name, array in inputs.items()})
    return keras.ops.convert_to_numpy(y)


def test_without_draws_the_centre_is_cut_out(images: np.ndarray) -> None:
    received = augmented(Augmentation(source_size=SOURCE, size=33, flip=False), {"image": images})
    np.testing.assert_array_equal(received, images[:, 2:35, 2:35])
    assert received.dtype == np.float32


@pytest.mark.parametrize("seed", range(3))
def test_erasing_fills_boxes_with_the_mean_colour(images: np.ndarray, seed: int) -> None:
    augmentation = Augmentation(source_size=SOURCE, size=SOURCE, erase=0.7, flip=False)
    parameters, _ = sample_parameters(augmentation, 8, np.random.default_rng(seed))
    expected = images.astype(np.float32)
    for image, (top, left, height, width) in zip(expected, parameters["erase"].astype(int), strict=True):
        image[top : top + height, left : left + width] = FILL
    np.testing.assert_array_equal(augmented(augmentation, {"image": images, **parameters}), expected)


def test_mixup_blends_an_image_with_its_partner(images: np.ndarray) -> None:
    augmentation = Augmentation(source_size=SOURCE, size=SOURCE, mixup=0.5, flip=False)
    parameters, own = sample_parameters(augmentation, 8, np.random.default_rng(0))
    fraction = own[:, None, None, None]
    expected = fraction * images + (1 - fraction) * images[parameters["permutation"]]
    np.testing.assert_allclose(augmented(augmentation, {"image": images, **parameters}), expected, atol=1e-3)


def test_cutmix_pastes_as_much_as_the_labels_say(images: np.ndarray) -> None:
    augmentation = Augmentation(source_size=SOURCE, size=SOURCE, cutmix=1.0, flip=False)
    parameters, own = sample_parameters(augmentation, 8, np.random.default_rng(0))
    flat = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None], images.shape)  # each its own colour
    received = augmented(augmentation, {"image": flat, **parameters})
    for number, (image, fraction, other) in enumerate(zip(received, own, parameters["permutation"], strict=True)):
        if other != number:
            assert (image[..., 0] == number).mean() == pytest.approx(fraction, abs=1e-6)
            assert (image[..., 0] == other).mean() == pytest.approx(1 - fraction, abs=1e-6)
    top, left, height, width = parameters["paste"][0].astype(int)
    expected = images[0].copy()
    expected[top : top + height, left : left + width] = images[
        parameters["permutation"][0], top : top + height, left : left + width
    ]
    np.testing.assert_array_equal(augmented(augmentation, {"image": images, **parameters})[0], expected)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])  # some mix, some cut
def test_backends_augment_alike(on: Workers, images: np.ndarray, seed: int) -> None:
    parameters, _ = sample_parameters(ALL, 8, np.random.default_rng(seed))
    arguments = {"augmentation": ALL, "inputs": {"image": images, **parameters}}
    expected = on("tensorflow")(augmented, **arguments)
    assert np.abs(expected - images[:, 2:34, 2:34]).mean() > 5  # something was done
    assert expected.min() >= 0
    assert expected.max() <= 255 + 1e-3
    for backend in ("jax", "torch"):
        np.testing.assert_allclose(on(backend)(augmented, **arguments), expected, atol=1e-3)


def test_bytes_stay_bytes_under_mixed_precision(images: np.ndarray) -> None:
    parameters, _ = sample_parameters(replace(ALL, mixup=0.0, cutmix=0.0), 8, np.random.default_rng(0))
    single = augmented(replace(ALL, mixup=0.0, cutmix=0.0), {"image": images, **parameters})
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = augmented(replace(ALL, mixup=0.0, cutmix=0.0), {"image": images, **parameters})
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(mixed, single)
