"""RandAugment: each operation against Pillow's on real images, the same on every backend, sampled as in timm."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from resnetlab.data.augmentation import OPERATIONS, Augmentation, sample_parameters
from resnetlab.data.rand_augment import FILL, rand_augment
from tests.workers import Workers

SIDE = 48
COLOUR = tuple(int(value) for value in FILL)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Photographs reduced to a few shades, a dark one, one of a single colour, one of two: (6, 48, 48, 3) uint8."""
    photos = [photo[50 : 50 + 8 * SIDE, 100 : 100 + 8 * SIDE] for photo in load_sample_images().images]
    small = [np.asarray(Image.fromarray(photo).resize((SIDE, SIDE))) for photo in photos]
    flat = np.full((SIDE, SIDE, 3), (10, 20, 200), np.uint8)
    halves = flat.copy()
    halves[: SIDE // 3] = (11, 0, 255)
    return np.stack([*small, small[0] // 3 + 20, small[1] // 64 * 64, flat, halves])


def applied(images: np.ndarray, operation: np.ndarray, amount: np.ndarray, affine: np.ndarray) -> np.ndarray:
    arrays = (images.astype(np.float32), operation.astype(np.int32), amount, affine)
    return keras.ops.convert_to_numpy(rand_augment(*(keras.ops.convert_to_tensor(array) for array in arrays)))


def moved(matrix: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=COLOUR
    )


def rotation(degrees: float) -> tuple[float, ...]:
    """Pillow's matrix of `Image.rotate`, about the centre."""
    cos, sin, centre = np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), SIDE / 2
    return (cos, -sin, centre - centre * cos + centre * sin, sin, cos, centre - centre * sin - centre * cos)


def brightened(add: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


CASES: dict[str, tuple[str, float, tuple[float, ...], Callable[[Image.Image], Image.Image]]] = {
    "identity": ("identity", 0, IDENTITY, lambda image: image),
    "autocontrast": ("autocontrast", 0, IDENTITY, ImageOps.autocontrast),
    "equalize": ("equalize", 0, IDENTITY, ImageOps.equalize),
    "invert": ("invert", 0, IDENTITY, ImageOps.invert),
    **{
        f"posterize-{bits}": ("posterize", bits, IDENTITY, lambda image, bits=bits: ImageOps.posterize(image, bits))
        for bits in (1, 2, 4)
    },
    "posterize-0": ("posterize", 0, IDENTITY, lambda image: image.point([0] * 768)),
    **{
        f"solarize-{t}": ("solarize", t, IDENTITY, lambda image, t=t: ImageOps.solarize(image, t))
        for t in (0, 103, 256)
    },
    **{f"solarize-add-{add}": ("solarize-add", add, IDENTITY, brightened(add)) for add in (0, 66, 110)},
    **{
        f"{name}-{factor}": (
            name.lower(),
            factor,
            IDENTITY,
            lambda image, name=name, factor=factor: getattr(ImageEnhance, name)(image).enhance(factor),
        )
        for name in ("Color", "Contrast", "Brightness", "Sharpness")
        for factor in (0.1, 0.46, 1.0, 1.54, 1.9)
    },
    **{
        f"rotate-{angle}": (
            "rotate",
            angle,
            rotation(angle),
            lambda image, angle=angle: image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=COLOUR),
        )
        for angle in (18.0, -30.0)
    },
    **{
        f"{name}-{matrix[1] + matrix[2] + matrix[3] + matrix[5]:.2f}": (name, 0.0, matrix, moved(matrix))
        for name, matrix in (
            ("shear-x", (1.0, 0.18, 0.0, 0.0, 1.0, 0.0)),
            ("shear-y", (1.0, 0.0, 0.0, -0.3, 1.0, 0.0)),
            ("translate-x", (1.0, 0.0, 12.96, 0.0, 1.0, 0.0)),
            ("translate-y", (1.0, 0.0, 0.0, 0.0, 1.0, -21.6)),
        )
    },
}


@pytest.mark.parametrize("case", CASES)
def test_an_operation_is_pillows(images: np.ndarray, case: str) -> None:
    name, amount, matrix, reference = CASES[case]
    count = len(images)
    received = applied(
        images,
        np.tile([OPERATIONS.index(name), 0], (count, 1)),
        np.tile(np.array([amount, 0], np.float32), (count, 1)),
        np.tile(np.array([matrix, IDENTITY], np.float32), (count, 1, 1)),
    )
    expected = np.stack([np.asarray(reference(Image.fromarray(image))) for image in images]).astype(np.float32)
    assert np.abs(received - expected).max() <= 1
    assert (received != expected).mean() < 0.02
    if case.split("-")[-1] not in ("1.0", "identity", "0", "256"):
        assert np.abs(received - images).mean() > 0.5


AUGMENTATION = Augmentation(source_size=SIDE, size=SIDE, rand_augment=6.0, flip=False)


def on_batch(images: np.ndarray, magnitude: float) -> np.ndarray:
    """Enough parameters of many operations after one another."""
    count = 96
    parameters, _ = sample_parameters(
        Augmentation(source_size=SIDE, size=SIDE, rand_augment=magnitude, flip=False), count, np.random.default_rng(3)
    )
    many = images[np.arange(count) % len(images)]
    return applied(many, parameters["operation"], parameters["amount"], parameters["affine"])


@pytest.mark.parametrize("magnitude", [6.0, 10.0])
def test_backends_apply_operations_alike(on: Workers, images: np.ndarray, magnitude: float) -> None:
    expected = on("tensorflow")(on_batch, images=images, magnitude=magnitude)
    assert np.abs(expected - images[np.arange(len(expected)) % len(images)]).mean() > 5
    for backend in ("jax", "torch"):
        received = on(backend)(on_batch, images=images, magnitude=magnitude)
        # A level may fall on the other side of an integer, and a table may then spread it.
        assert (np.abs(received - expected) > 1e-3).mean() < 1e-3


def test_an_image_is_read_where_pillow_would_read_it(images: np.ndarray) -> None:
    """What is drawn, from the generator to the pixels, in two layers one after the other."""
    parameters, _ = sample_parameters(AUGMENTATION, 200, np.random.default_rng(1))
    geometric = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
    chosen = np.isin(parameters["operation"], [OPERATIONS.index(name) for name in geometric]).any(axis=1)
    rows = np.flatnonzero(chosen)[:20]
    received = applied(
        np.repeat(images[:1], len(rows), 0), *(parameters[name][rows] for name in ("operation", "amount", "affine"))
    )
    for image, row in zip(received, rows, strict=True):
        picture = Image.fromarray(images[0])
        for number, amount in zip(parameters["operation"][row], parameters["amount"][row], strict=True):
            picture = timm(picture, OPERATIONS[number], float(amount))
        assert np.abs(image - np.asarray(picture)).mean() < 1.0


def timm(image: Image.Image, name: str, amount: float) -> Image.Image:
    """timm's operation of this name with its argument."""
    pixels = amount * SIDE
    matrices = {
        "shear-x": (1, amount, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, amount, 1, 0),
        "translate-x": (1, 0, pixels, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, pixels),
    }
    if name in matrices:
        return moved(matrices[name])(image)
    others: dict[str, Callable[[], Image.Image]] = {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(amount, Image.Resampling.BILINEAR, fillcolor=COLOUR),
        "posterize": lambda: ImageOps.posterize(image, int(amount)),
        "solarize": lambda: ImageOps.solarize(image, int(amount)),
        "solarize-add": lambda: brightened(int(amount))(image),
    }
    return others[name]() if name in others else getattr(ImageEnhance, name.capitalize())(image).enhance(amount)


def test_operations_are_drawn_as_timm_draws_them() -> None:
    """Each of two layers picks one of 15 operations, applies it half of the time, at a magnitude of N(6, 0.5)."""
    parameters, _ = sample_parameters(AUGMENTATION, 50_000, np.random.default_rng(0))
    operation, amount = parameters["operation"], parameters["amount"]
    counts = np.bincount(operation.ravel(), minlength=16) / operation.size
    assert counts[0] == pytest.approx(0.5, abs=0.005)
    np.testing.assert_allclose(counts[1:], 0.5 / 15, rtol=0.06)
    assert np.corrcoef(operation.T)[0, 1] == pytest.approx(0.0, abs=0.02)

    def of(name: str) -> np.ndarray:
        return amount[operation == OPERATIONS.index(name)]

    for name, scale in {"rotate": 30, "shear-x": 0.3, "shear-y": 0.3, "translate-x": 0.45, "translate-y": 0.45}.items():
        assert np.abs(of(name)).mean() == pytest.approx(0.6 * scale, rel=0.01)
        assert np.abs(of(name)).std() == pytest.approx(0.05 * scale, rel=0.06)
        assert (of(name) > 0).mean() == pytest.approx(0.5, abs=0.04)
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert np.abs(of(name) - 1).mean() == pytest.approx(0.54, rel=0.01)
    assert set(np.unique(of("posterize"))) <= {1, 2, 3}
    assert of("posterize").mean() == pytest.approx(1.98, abs=0.05)  # 4 - int(4 level), level of N(0.6, 0.05)
    assert of("solarize").mean() == pytest.approx(256 - 153.1, abs=1.5)
    assert of("solarize-add").mean() == pytest.approx(65.5, abs=0.7)
