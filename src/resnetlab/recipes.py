"""Recipes: every hyperparameter of a training run. A named recipe states only what differs from its base."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resnetlab.errors import UsageError, unknown

# How an image becomes the network's input: what of a recipe goes with weights, wherever they go.
INPUT_KEYS = ("image_size", "crop_pct", "interpolation", "preprocessing")


class Recipe(BaseModel):
    """How to train. Times are in epochs, images are square with sides in pixels, fractions are of the usable images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = "base"
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**31)

    # Network
    model: str = "resnet50"
    preprocessing: Literal["imagenet", "cifar10", "kuangliu", "caffe", "unit"] | None = (
        None  # None: the architecture's own
    )
    stochastic_depth: float = Field(0.0, ge=0.0, lt=1.0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # float16: with loss scaling

    # Data
    image_size: int = Field(224, ge=8, le=4096)
    eval_size: int | None = Field(None, ge=8, le=4096)  # of evaluation and prediction; None: image_size
    crop_pct: float = Field(0.875, gt=0.5, le=1.0)  # evaluation's fraction of the stored side, for "resized"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # from the files to the stored images
    batch_size: int = Field(32, ge=1)
    validation: float = Field(0.1, ge=0.0, lt=1.0)
    test: float = Field(0.1, ge=0.0, lt=1.0)
    class_weights: bool = False  # weigh classes by inverse frequency

    # Augmentation: drawn on the host, applied on the device
    crop: Literal["none", "pad", "resized"] = "none"
    whole_images: bool = False  # for "resized": from all of an image, stored too, and not from its centre square alone
    crop_padding: int = Field(4, ge=0)  # for "pad": pixels on each side
    crop_scale: float = Field(0.08, gt=0.0, le=1.0)  # for "resized": smallest fraction of the image's area
    flip: bool = True
    rand_augment: float = Field(0.0, ge=0.0, le=10.0)  # magnitude, as in timm's rand-mM-mstd0.5-inc1; 0 is off
    color_jitter: float = Field(0.0, ge=0.0, lt=1.0)  # brightness, contrast, saturation: factors in 1 -+ this
    erase: float = Field(0.0, ge=0.0, le=1.0)  # probability
    mixup: float = Field(0.0, ge=0.0)  # alpha of the beta distribution; 0 is off
    cutmix: float = Field(0.0, ge=0.0)

    # Objective
    loss: Literal["cross-entropy", "binary-cross-entropy"] = "cross-entropy"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    target_threshold: float | None = Field(None, ge=0.0, lt=1.0)  # binary cross-entropy's targets: 1 above this, else 0

    # Optimisation
    epochs: int = Field(90, ge=1)
    optimizer: Literal["sgd", "adamw", "lamb"] = "sgd"
    learning_rate: float = Field(0.1, gt=0.0)  # the peak
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    nesterov: bool = False
    weight_decay: float = Field(1e-4, ge=0.0)  # never on biases and batch norms
    gradient_clip: float = Field(0.0, ge=0.0)  # largest norm of all gradients together; 0 is off
    schedule: Literal["constant", "cosine", "linear", "steps"] = "cosine"
    warmup: float = Field(0.0, ge=0.0)  # epochs of linear warm-up; at most half of all epochs
    milestones: tuple[float, ...] = ()  # for "steps": epochs after which the rate falls to a tenth
    ema: float = Field(0.0, ge=0.0, lt=1.0)  # momentum of the averaged weights; 0 is off
    early_stopping: int = Field(0, ge=0)  # epochs without a better validation loss; 0 is off

    # Transfer: training that begins with given weights
    frozen_epochs: int = Field(0, ge=0)  # in the first so many, only what is not frozen learns
    frozen_stages: int | None = Field(None, ge=0)  # with the stem before them; None: all, and only the head learns
    frozen_batch_norm: bool = False  # normalises with its running statistics in training too, and they stay
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0
    )  # a stage's rate is this fraction of the next one's; the head's is whole

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation={self.validation} and test={self.test} leave nothing to train on")
        if self.early_stopping and not self.validation:
            raise ValueError("early_stopping watches the validation loss: set validation above 0")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError('milestones and schedule="steps" belong together')
        if self.frozen_epochs > self.epochs:
            raise ValueError(f"frozen_epochs={self.frozen_epochs} are more than epochs={self.epochs}")
        if self.frozen_stages is not None and not self.frozen_epochs:
            raise ValueError("frozen_stages are frozen for frozen_epochs: set those above 0")
        if (self.mixup or self.cutmix) and self.batch_size == 1:
            raise ValueError("mixing images needs a batch_size of at least 2")
        if self.eval_size is not None and self.crop != "resized":
            raise ValueError(
                f'eval_size={self.eval_size} is cropped from images that are stored larger: set crop="resized"'
            )
        if self.eval_size is not None and self.eval_size < self.image_size:
            raise ValueError(f"eval_size={self.eval_size} is below image_size={self.image_size}")
        if self.whole_images and self.crop != "resized":
            raise ValueError('whole_images are stored for random windows of any aspect ratio: set crop="resized"')
        if self.target_threshold is not None and self.loss != "binary-cross-entropy":
            raise ValueError('target_threshold is of the targets of loss="binary-cross-entropy"')
        if self.target_threshold is not None and self.label_smoothing:
            raise ValueError("target_threshold would undo label_smoothing: set one of them to 0 or null")
        if self.gradient_clip and self.optimizer == "sgd":
            raise ValueError('gradient_clip is not for optimizer="sgd", whose weight decay is part of the gradient')
        return self

    @property
    def pack_size(self) -> int:
        """Side of the stored images: with a margin (256 for 224) where a random window is cropped from them."""
        return self.image_size if self.crop != "resized" else round(self.test_size / self.crop_pct)

    @property
    def test_size(self) -> int:
        """Side of the images of evaluation and prediction: the centre crop of the stored ones."""
        return self.eval_size or self.image_size

    def changed(self, /, **changes: Any) -> Recipe:
        """This recipe with fields replaced; an unknown field or a bad value raises a UsageError."""
        for key in changes:
            if key not in Recipe.model_fields:
                raise unknown("recipe key", key, Recipe.model_fields)
        try:
            return Recipe(**(self.model_dump() | changes))
        except ValidationError as error:
            raise UsageError(_explain(error)) from None

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """This recipe with "key=value" texts applied, as `parse_settings` reads them."""
        return self.changed(**parse_settings(settings))


class RecipeFields(TypedDict, total=False):
    """The fields of `Recipe` as keyword arguments; what they mean is beside each field there."""

    name: str
    description: str
    seed: int
    model: str
    preprocessing: Literal["imagenet", "cifar10", "kuangliu", "caffe", "unit"] | None
    stochastic_depth: float
    precision: Literal["float32", "bfloat16", "float16"]
    image_size: int
    eval_size: int | None
    crop_pct: float
    interpolation: Literal["bilinear", "bicubic"]
    batch_size: int
    validation: float
    test: float
    class_weights: bool
    crop: Literal["none", "pad", "resized"]
    whole_images: bool
    crop_padding: int
    crop_scale: float
    flip: bool
    rand_augment: float
    color_jitter: float
    erase: float
    mixup: float
    cutmix: float
    loss: Literal["cross-entropy", "binary-cross-entropy"]
    label_smoothing: float
    target_threshold: float | None
    epochs: int
    optimizer: Literal["sgd", "adamw", "lamb"]
    learning_rate: float
    momentum: float
    nesterov: bool
    weight_decay: float
    gradient_clip: float
    schedule: Literal["constant", "cosine", "linear", "steps"]
    warmup: float
    milestones: tuple[float, ...]
    ema: float
    early_stopping: int
    frozen_epochs: int
    frozen_stages: int | None
    frozen_batch_norm: bool
    layer_decay: float


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """The values of "key=value" texts; values are JSON, or plain text."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"Received --set {setting!r}, expected key=value, such as --set epochs=5.")
        try:
            changes[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            changes[key.strip()] = text.strip()
    return changes


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        expected = item["msg"].removeprefix("Value error, ")
        lines.append(f"{key}: received {item['input']!r}, expected: {expected}" if key else expected)
    return "Recipe: " + "; ".join(lines) + "."


BASE = Recipe()

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        BASE.changed(
            name="quick",
            description="scikit-learn's digits in about a minute on a CPU: to see that everything works",
            model="resnet-tiny",
            image_size=16,
            batch_size=64,
            test=0.2,
            flip=False,  # a mirrored digit is another sign
            crop="pad",
            crop_padding=1,
            epochs=30,
            learning_rate=0.2,
            nesterov=True,
            weight_decay=5e-4,
            schedule="linear",
            warmup=3,
        ),
        BASE.changed(
            name="animals",
            description="the original job: ResNet-50 on Animals-10 at 64x64, batch 32, early stopping",
            image_size=64,
            batch_size=32,
            validation=0.2,
            crop="resized",
            crop_scale=0.35,
            class_weights=True,
            label_smoothing=0.1,
            epochs=40,
            learning_rate=0.05,
            nesterov=True,
            weight_decay=5e-4,
            warmup=2,
            early_stopping=8,
        ),
        BASE.changed(
            name="cifar",
            description="He et al. 2015, section 4.2: 64,000 updates of batch 128, rate / 10 at 32,000 and 48,000",
            model="resnet20",
            image_size=32,
            batch_size=128,
            validation=0.0,
            test=0.0,  # the data set has its own
            crop="pad",
            epochs=164,
            schedule="steps",
            milestones=(82, 123),
        ),
        BASE.changed(
            name="cifar-quick",
            description="a one-cycle of a few epochs (Smith, Topin 2017, arXiv:1708.07120)",
            model="resnet20",
            image_size=32,
            batch_size=128,
            validation=0.05,
            test=0.0,
            crop="pad",
            crop_padding=2,
            epochs=8,
            learning_rate=0.4,
            nesterov=True,
            weight_decay=5e-4,
            schedule="linear",
            warmup=2,
            label_smoothing=0.1,
        ),
        BASE.changed(
            name="finetune",
            description="from given weights: a new head learns first, then all stages, each slower than the next",
            crop="resized",
            crop_scale=0.5,
            label_smoothing=0.1,
            epochs=20,
            learning_rate=0.02,
            nesterov=True,
            weight_decay=5e-4,
            warmup=1,
            frozen_epochs=2,
            frozen_batch_norm=True,
            layer_decay=0.8,
        ),
        BASE.changed(
            name="imagenet",
            description="He et al. 2015, section 3.4, with the crops and the warm-up of Goyal et al. 2017",
            batch_size=256,
            validation=0.0,
            test=0.0,
            crop="resized",
            whole_images=True,
            color_jitter=0.4,
            schedule="steps",
            milestones=(30, 60, 80),
            warmup=5,
            epochs=90,
        ),
        BASE.changed(
            name="strikes-back-a3",
            # Table 2, and what timm's options of the time add: LAMB's epsilon 1e-6 and its clipping at a norm of 1
            # (`max_grad_norm`, timm/optim/lamb.py), the threshold (`--bce-target-thresh 0.2`), `rand-m6-mstd0.5-inc1`,
            # bicubic test images of shorter side 236. Procedure A3 has no label smoothing, dropout, stochastic depth,
            # repeated augmentation, erasing, colour jitter or averaged weights.
            description="Wightman et al. 2021, arXiv:2110.00476, procedure A3: trained at 160, evaluated at 224",
            image_size=160,
            eval_size=224,
            crop_pct=0.95,
            interpolation="bicubic",
            batch_size=2048,
            validation=0.0,
            test=0.0,
            crop="resized",
            whole_images=True,
            rand_augment=6.0,
            mixup=0.1,
            cutmix=1.0,
            loss="binary-cross-entropy",
            target_threshold=0.2,
            optimizer="lamb",
            learning_rate=8e-3,
            gradient_clip=1.0,
            weight_decay=0.02,
            warmup=5,
            epochs=100,
        ),
    )
}


def recipe(name_or_file: str, *, _above: tuple[Path, ...] = ()) -> Recipe:
    """A named recipe, or one from a .toml or .json file that may name its `base`: a recipe, or a file beside it.

    Raises:
        UsageError: an unknown name, a file that cannot be read, an unknown key, a value out of range.
    """
    path = Path(name_or_file)
    if path.suffix not in (".toml", ".json"):
        if name_or_file not in RECIPES:
            raise unknown("recipe", name_or_file, RECIPES, hint="A file must end in .toml or .json.")
        return RECIPES[name_or_file]
    try:
        text = path.read_text(encoding="utf-8")
        fields = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UsageError(f"Recipe file {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"Recipe file {path}: not valid {path.suffix[1:].upper()}: {error}.") from None
    if not isinstance(fields, dict):
        raise UsageError(f"Recipe file {path}: received a {type(fields).__name__}, expected a table of keys.")
    base = fields.pop("base", BASE.name)
    if not isinstance(base, str):
        raise UsageError(f"Recipe file {path}: base: received {base!r}, expected the name of a recipe or a file.")
    if path.resolve() in _above:
        raise UsageError(f"Recipe file {path}: its base leads back to itself. Expected a base such as {BASE.name!r}.")
    if base.endswith((".toml", ".json")):
        base = str(path.parent / base)
    parent = BASE if base == BASE.name else recipe(base, _above=(*_above, path.resolve()))
    return parent.changed(**({"name": path.stem} | fields))
