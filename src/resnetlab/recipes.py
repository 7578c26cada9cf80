"""Recipes: every hyperparameter of a training run. A named recipe states only what differs from its base."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from resnetlab.errors import UsageError, unknown_name
from resnetlab.untrusted import parse_json, parse_toml

# How an image becomes the network's input: the fields that are kept with the weights on import and transfer.
INPUT_KEYS = ("image_size", "crop_pct", "interpolation", "preprocessing")


# Names of the keys in other libraries, for which error messages state the name used here.
SYNONYMS = {
    "lr": "learning_rate",
    "lr0": "learning_rate",
    "max_lr": "learning_rate",
    "rate": "learning_rate",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "l2": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "size": "image_size",
    "img_size": "image_size",
    "imgsz": "image_size",
    "resolution": "image_size",
    "input_size": "image_size",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "epoch": "epochs",
    "arch": "model",
    "architecture": "model",
    "network": "model",
    "backbone": "model",
    "opt": "optimizer",
    "optim": "optimizer",
    "optimiser": "optimizer",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "sched": "schedule",
    "warmup_epochs": "warmup",
    "dtype": "precision",
    "amp": "precision",
    "mixed_precision": "precision",
    "patience": "early_stopping",
    "smoothing": "label_smoothing",
    "val": "validation",
    "validation_split": "validation",
    "val_split": "validation",
    "test_split": "test",
    "random_state": "seed",
    "drop_path": "stochastic_depth",
    "drop_path_rate": "stochastic_depth",
    "clip_grad": "gradient_clip",
    "clipnorm": "gradient_clip",
    "ema_decay": "ema",
    "horizontal_flip": "flip",
    "hflip": "flip",
    "randaugment": "rand_augment",
    "reprob": "erase",
    "random_erasing": "erase",
    "freeze": "frozen_stages",
    "mean": "preprocessing",
    "std": "preprocessing",
}


class Recipe(BaseModel):
    """How to train. Durations are in epochs; images are square, sides in pixels; fractions are of usable images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field("base", description="name of the recipe")
    description: str = Field("", description="what it is for")
    seed: int = Field(0, ge=0, lt=2**31, description="of initial weights, split, order and augmentation")

    # Network
    model: str = Field("resnet50", description="an architecture of `resnetlab models`")
    preprocessing: Literal["imagenet", "cifar10", "kuangliu", "caffe", "unit"] | None = Field(
        None, description="normalisation of the input; null: the architecture's own"
    )
    stochastic_depth: float = Field(0.0, ge=0.0, lt=1.0, description="drop rate of the last residual block; 0 is off")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="of the computation, with weights in float32; auto: bfloat16 on devices with instructions for it, "
        "otherwise float32; float16 uses loss scaling",
    )

    # Data
    image_size: int = Field(224, ge=8, le=4096, description="side of the training images, in pixels")
    eval_size: int | None = Field(
        None, ge=8, le=4096, description="side for evaluation and prediction; null: image_size"
    )
    crop_pct: float = Field(
        0.875, gt=0.5, le=1.0, description="evaluation's centre crop as a fraction of the stored side, for crop=resized"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="filter for resizing the image files")
    batch_size: int = Field(32, ge=1, description="images of one training step")
    accumulate: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        1,
        description="micro-batches of a step (gradient accumulation), to save memory; auto: as few as fit the GPU; "
        "batch norms see one at a time",
    )
    validation: float = Field(
        0.1, ge=0.0, lt=1.0, description="fraction of the images held out to choose the best epoch"
    )
    test: float = Field(0.1, ge=0.0, lt=1.0, description="fraction of the images held out for the final evaluation")
    class_weights: bool = Field(False, description="weight the loss of each class by its inverse frequency")

    # Augmentation: parameters are sampled on the host and applied on the device
    crop: Literal["none", "pad", "resized"] = Field(
        "none", description="none: the centre; pad: shifted by up to crop_padding; resized: random resized crops"
    )
    progressive: tuple[tuple[int, float], ...] = Field(
        (), description="pairs [side, fraction]: up to this fraction of the epochs, images are reduced to this side"
    )
    whole_images: bool = Field(
        False, description="for crop=resized: store and crop the whole image, not only its centre square"
    )
    crop_padding: int = Field(4, ge=0, description="for crop=pad: pixels on each side")
    crop_border: Literal["grey", "reflect"] = Field(
        "grey",
        description="for crop=pad: what is outside the image: the mean colour, or the image mirrored at its edge",
    )
    crop_scale: float = Field(
        0.08, gt=0.0, le=1.0, description="for crop=resized: smallest fraction of the image's area"
    )
    flip: Literal[True, False, "alternating"] = Field(
        True, description="mirror half of the images; alternating: each image in every other pass over the data"
    )
    rand_augment: float = Field(
        0.0, ge=0.0, le=10.0, description="magnitude of RandAugment, as timm's rand-mM-mstd0.5-inc1; 0 is off"
    )
    color_jitter: float = Field(
        0.0, ge=0.0, lt=1.0, description="change brightness, contrast and saturation by up to this fraction"
    )
    erase: float = Field(0.0, ge=0.0, le=1.0, description="probability of random erasing")
    mixup: float = Field(0.0, ge=0.0, description="alpha of mixup's beta distribution; 0 is off")
    cutmix: float = Field(0.0, ge=0.0, description="alpha of CutMix's beta distribution; 0 is off")

    # Objective
    loss: Literal["cross-entropy", "binary-cross-entropy"] = Field("cross-entropy", description="training loss")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="probability spread over all classes")
    target_threshold: float | None = Field(
        None, ge=0.0, lt=1.0, description="for binary-cross-entropy: targets above it become 1, others 0"
    )

    # Optimisation
    epochs: int = Field(90, ge=1, description="passes over the training images")
    optimizer: Literal["sgd", "adamw", "lamb", "muon"] = Field(
        "sgd", description="update rule; muon updates convolution kernels, and adamw the other weights"
    )
    learning_rate: float = Field(0.1, gt=0.0, description="peak learning rate")
    adam_learning_rate: float = Field(3e-3, gt=0.0, description="for muon: peak learning rate of the other weights")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum of sgd and muon; beta 1 of adamw and lamb")
    nesterov: bool = Field(False, description="Nesterov momentum, for sgd and muon")
    weight_decay: float = Field(1e-4, ge=0.0, description="of kernels; biases and batch norms have none")
    gradient_clip: float = Field(0.0, ge=0.0, description="largest global gradient norm, for adamw and lamb; 0 is off")
    schedule: Literal["constant", "cosine", "linear", "steps"] = Field(
        "cosine", description="learning-rate schedule after the warm-up"
    )
    warmup: float = Field(0.0, ge=0.0, description="epochs of linear warm-up; at most half of all epochs")
    milestones: tuple[float, ...] = Field((), description="for schedule=steps: epochs at which the rate drops by 10x")
    ema: float = Field(0.0, ge=0.0, lt=1.0, description="momentum of the averaged weights; 0 is off")
    early_stopping: int = Field(
        0, ge=0, description="stop after this many epochs without a lower validation loss; 0 is off"
    )

    # Transfer: training from given weights
    frozen_epochs: int = Field(0, ge=0, description="epochs in which only unfrozen layers are trained")
    frozen_stages: int | None = Field(
        None, ge=0, description="freeze the stem and this many stages; null: all, so that only the head is trained"
    )
    frozen_batch_norm: bool = Field(False, description="keep batch norms in inference mode and their statistics fixed")
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="each stage's learning rate as a fraction of the next one's"
    )

    @field_validator("flip", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        """The texts that other switches accept too."""
        known = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return known.get(value.lower(), value) if isinstance(value, str) else value

    @field_validator("progressive", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        pairs = isinstance(value, (list, tuple)) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(x, (int, float)) for x in pair)
            for pair in value
        )
        if not pairs:
            raise ValueError("pairs of a side and a fraction, like [[20, 0.3], [26, 0.6]]")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation={self.validation} and test={self.test} leave nothing to train on")
        if self.early_stopping and not self.validation:
            raise ValueError("early_stopping watches the validation loss: set validation above 0")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError('milestones and schedule="steps" belong together')
        if self.frozen_epochs > self.epochs:
            raise ValueError(f"frozen_epochs={self.frozen_epochs} exceeds epochs={self.epochs}")
        if self.frozen_stages is not None and not self.frozen_epochs:
            raise ValueError("frozen_stages are frozen for frozen_epochs: set those above 0")
        parts = self.parts
        if self.batch_size % parts:
            raise ValueError(f"batch_size={self.batch_size} cannot be divided into accumulate={parts} equal parts")
        if self.accumulate != 1 and self.precision == "float16":
            raise ValueError('accumulate is not for precision="float16", which skips parts whose gradients overflow')
        if (self.mixup or self.cutmix) and self.batch_size == parts:
            raise ValueError("mixing images needs a batch_size of at least 2, and parts of it as large")
        ends = [0.0, *(fraction for _, fraction in self.progressive), 1.0]
        sides = [7, *(side for side, _ in self.progressive), self.image_size]
        if any(sorted(set(values)) != values for values in (ends, sides)):
            raise ValueError(
                f"progressive={json.dumps(self.progressive)}: expected increasing sides of at least 8 and below "
                f"image_size={self.image_size}, and increasing fractions between 0 and 1; or progressive=[]"
            )
        if self.crop_border == "reflect" and self.crop_padding >= self.image_size:
            raise ValueError(
                f'crop_padding={self.crop_padding} with crop_border="reflect": expected less than the '
                f"image_size={self.image_size}, as an image is reflected once"
            )
        if self.eval_size is not None and self.crop != "resized":
            raise ValueError(
                f'eval_size={self.eval_size} is cropped from images that are stored larger: set crop="resized"'
            )
        if self.eval_size is not None and self.eval_size < self.image_size:
            raise ValueError(f"eval_size={self.eval_size} is below image_size={self.image_size}")
        if self.whole_images and self.crop != "resized":
            raise ValueError('whole_images are stored for random crops of any aspect ratio: set crop="resized"')
        if self.target_threshold is not None and self.loss != "binary-cross-entropy":
            raise ValueError('target_threshold applies only to loss="binary-cross-entropy"')
        if self.target_threshold is not None and self.label_smoothing:
            raise ValueError("target_threshold would undo label_smoothing: set one of them to 0 or null")
        if self.gradient_clip and self.optimizer == "sgd":
            raise ValueError('gradient_clip is not for optimizer="sgd", whose weight decay is part of the gradient')
        if self.gradient_clip and self.optimizer == "muon":
            raise ValueError('gradient_clip is not for optimizer="muon", whose steps do not depend on the norm')
        return self

    @property
    def parts(self) -> int:
        """The parts that a batch is computed in; 1 where "auto" is not resolved yet."""
        return 1 if self.accumulate == "auto" else self.accumulate

    @property
    def pack_size(self) -> int:
        """Side of the stored images; larger than the input (256 for 224) where random crops are taken from them."""
        return self.image_size if self.crop != "resized" else round(self.test_size / self.crop_pct)

    @property
    def test_size(self) -> int:
        """Side of the images of evaluation and prediction: the centre crop of the stored ones."""
        return self.eval_size or self.image_size

    def training_side(self, epoch: int) -> int:
        """Side of the images in an epoch (from 1). In the last epoch it is `image_size`."""
        ends = ((side, min(int(fraction * self.epochs + 0.5), self.epochs - 1)) for side, fraction in self.progressive)
        return next((side for side, last in ends if epoch <= last), self.image_size)

    @classmethod
    def stored(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe of a file that `model_dump` wrote, of this version or an earlier one with fewer fields.

        Raises:
            UsageError: an unknown field, or a bad value.
        """
        require_known_keys(fields)
        try:
            return cls(**fields)
        except ValidationError as error:
            raise UsageError(_explain(error)) from None

    def changed(self, /, **changes: Any) -> Recipe:
        """This recipe with fields replaced.

        Raises:
            UsageError: an unknown field, a bad value, or one without effect in the new recipe.
        """
        recipe = self.stored(self.model_dump() | changes)
        whole = changes.keys() >= Recipe.model_fields.keys() - {"name", "description"}  # another recipe, repeated
        for key, (governing, values) in APPLIES_WITH.items():
            chosen = key in changes and not whole and getattr(recipe, key) != getattr(self, key)
            if chosen and (received := getattr(recipe, governing)) not in values:
                needed = " or ".join(f"{governing}={value}" for value in values)
                raise UsageError(
                    f"{key}={json.dumps(getattr(recipe, key))} has no effect with {governing}={received}: set {needed} "
                    f"too, or leave {key} out."
                )
        return recipe


def require_known_keys(keys: Iterable[str]) -> None:
    """Raise UsageError, with the nearest names, for a key that a recipe has not."""
    for key in keys:
        if key in Recipe.model_fields:
            continue
        hint = "All keys: `resnetlab recipes base`."
        if (usual := SYNONYMS.get(key.lower().replace("-", "_"))) is None:
            raise unknown_name("recipe key", key, Recipe.model_fields, hint=hint)
        raise UsageError(f"Unknown recipe key {key!r}: here it is called {usual!r}. {hint}")


# Keys that have an effect only with certain values of another one.
APPLIES_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "crop_padding": ("crop", ("pad",)),
    "crop_border": ("crop", ("pad",)),
    "crop_pct": ("crop", ("resized",)),
    "crop_scale": ("crop", ("resized",)),
    "adam_learning_rate": ("optimizer", ("muon",)),
    "nesterov": ("optimizer", ("sgd", "muon")),
}


class RecipeFields(TypedDict, total=False):
    """The fields of `Recipe` as keyword arguments; `Recipe` documents each of them."""

    name: str
    description: str
    seed: int
    model: str
    preprocessing: Literal["imagenet", "cifar10", "kuangliu", "caffe", "unit"] | None
    stochastic_depth: float
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    image_size: int
    eval_size: int | None
    crop_pct: float
    interpolation: Literal["bilinear", "bicubic"]
    batch_size: int
    accumulate: int | Literal["auto"]
    validation: float
    test: float
    class_weights: bool
    crop: Literal["none", "pad", "resized"]
    progressive: tuple[tuple[int, float], ...]
    whole_images: bool
    crop_padding: int
    crop_border: Literal["grey", "reflect"]
    crop_scale: float
    flip: Literal[True, False, "alternating"]
    rand_augment: float
    color_jitter: float
    erase: float
    mixup: float
    cutmix: float
    loss: Literal["cross-entropy", "binary-cross-entropy"]
    label_smoothing: float
    target_threshold: float | None
    epochs: int
    optimizer: Literal["sgd", "adamw", "lamb", "muon"]
    learning_rate: float
    adam_learning_rate: float
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


class FieldInfo(NamedTuple):
    """A key of a recipe, in words."""

    name: str
    value: str
    default: str
    expected: str  # the values that it may have
    description: str


def describe_fields(recipe: Recipe) -> list[FieldInfo]:
    """Every hyperparameter of a recipe but its name and description; values as JSON, as --set takes them."""
    found = []
    for name, schema in Recipe.model_json_schema()["properties"].items():
        if name in ("name", "description"):
            continue
        value, default = (json.dumps(getattr(each, name)) for each in (recipe, BASE))
        expected = " or ".join(map(_describe_values, schema.get("anyOf", [schema])))
        found.append(FieldInfo(name, value, default, expected, schema["description"]))
    return found


def _describe_values(schema: dict[str, Any]) -> str:
    """What a part of a JSON schema allows."""
    if "enum" in schema:
        return f"one of {', '.join(value if isinstance(value, str) else json.dumps(value) for value in schema['enum'])}"
    if "const" in schema:
        return str(schema["const"])
    others = {"boolean": "true or false", "null": "null", "array": "a list of numbers", "string": "a name"}
    if schema["type"] == "array" and schema.get("items", {}).get("type") == "array":
        return "a list of pairs of numbers"
    if schema["type"] in others:
        return others[schema["type"]]
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{words} {schema[key]:,}" for key, words in bounds.items() if key in schema]
    return " ".join(["a whole number" if schema["type"] == "integer" else "a number", " and ".join(limits)])


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """The values of "key=value" texts; values are JSON, or plain text."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"Received --set {setting!r}, expected key=value, such as --set epochs=5.")
        try:
            changes[key.strip()] = parse_json(text)
        except ValueError:
            changes[key.strip()] = text.strip()
    return changes


def _explain(error: ValidationError) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        # Where a field has alternatives, pydantic adds a tag such as "constrained-int", and an error for each.
        key = ".".join(str(part) for part in item["loc"] if isinstance(part, int) or part.isidentifier())
        found.setdefault((key, repr(item["input"])), []).append(item["msg"].removeprefix("Value error, "))
    lines = []
    for (key, value), messages in found.items():
        expected = " or ".join([messages[0], *(text.removeprefix("Input should be ") for text in messages[1:])])
        lines.append(f"{key}: received {value}, expected: {expected}" if key else expected)
    return "Recipe: " + "; ".join(lines) + "."


MAX_CHARACTERS = 16_384  # of a recipe file
BASE = Recipe()

ANIMALS = BASE.changed(
    name="animals",
    description="ResNet-50 on Animals-10 at 64x64, batch 32, early stopping",
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
)

CIFAR = BASE.changed(  # what all recipes for CIFAR-10 share
    model="resnet20",
    image_size=32,
    batch_size=128,
    validation=0.0,
    test=0.0,  # the data set has its own
    crop="pad",
)

FAST: dict[str, Any] = {  # what all recipes of fast-resnet share
    "model": "fast-resnet8",
    "precision": "auto",
    "flip": "alternating",
    "optimizer": "muon",
    "adam_learning_rate": 0.01,
    "momentum": 0.6,
    "nesterov": True,
    "schedule": "linear",
}

FEW_IMAGES: dict[str, Any] = {  # tuned with 1,000 images, see studies/small_data.py
    "rand_augment": 6,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "learning_rate": 0.06,
    "weight_decay": 0.1,
}

CIFAR_FAST = CIFAR.changed(
    **FAST,
    batch_size=512,
    crop_padding=2,
    crop_border="reflect",
    label_smoothing=0.2,
    learning_rate=0.12,
    weight_decay=0.05,  # keeps the norms of the kernels, and so the relative size of a step, from falling
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        BASE.changed(
            name="quick",
            description="scikit-learn's digits in a few minutes on a CPU: to see that everything works",
            model="resnet-tiny",
            image_size=16,
            batch_size=64,
            test=0.2,
            flip=False,  # a mirrored digit is a different symbol
            crop="pad",
            crop_padding=1,
            epochs=30,
            learning_rate=0.2,
            nesterov=True,
            weight_decay=5e-4,
            schedule="linear",
            warmup=3,
        ),
        ANIMALS,
        BASE.changed(  # cifar-small-data with larger images
            name="photos",
            description="a folder of a few hundred to a few thousand photographs: 64x64 pixels, RandAugment, CutMix",
            **FAST,
            **FEW_IMAGES,
            image_size=64,
            class_weights=True,
            crop="resized",
            crop_scale=0.35,
            epochs=60,
        ),
        CIFAR.changed(
            name="cifar",
            description="He et al. 2015, section 4.2: 64,000 updates of batch 128, rate / 10 at 32,000 and 48,000",
            epochs=164,
            schedule="steps",
            milestones=(82, 123),
        ),
        CIFAR.changed(
            name="cifar-quick",
            description="a one-cycle of a few epochs (Smith, Topin 2017, arXiv:1708.07120)",
            validation=0.05,
            crop_padding=2,
            epochs=8,
            learning_rate=0.4,
            nesterov=True,
            weight_decay=5e-4,
            schedule="linear",
            warmup=2,
            label_smoothing=0.1,
        ),
        CIFAR_FAST.changed(
            name="cifar-90",
            description="aims at 90 % on CIFAR-10 in the least time; not measured yet",
            epochs=6,
            progressive=((20, 0.5), (26, 0.75)),
        ),
        CIFAR_FAST.changed(
            name="cifar-94",
            description="aims at 94 % on CIFAR-10 in minutes on two CPU cores (after Jordan 2024); not measured yet",
            crop_padding=4,
            erase=0.5,
            epochs=19,
            progressive=((20, 0.3), (26, 0.6)),
        ),
        CIFAR_FAST.changed(
            name="cifar-96",
            description="aims at 96 % on CIFAR-10 in a night on two CPU cores (after Jordan 2024); not measured yet",
            model="fast-resnet11",
            crop_padding=4,
            epochs=40,
            progressive=((20, 0.3), (26, 0.6)),
        ),
        CIFAR_FAST.changed(
            name="cifar-small-data",
            description="about a hundred images per class, from scratch: RandAugment and CutMix, small batches",
            **FEW_IMAGES,
            batch_size=64,
            crop_padding=4,
            epochs=50,
        ),
        CIFAR.changed(
            name="cifar-paper-quick",
            description="He et al. 2015, table 6, in 60 epochs: ResNet-20 91.97 %, one seed (paper: 91.25 %)",
            precision="auto",
            flip="alternating",
            epochs=60,
            learning_rate=0.3,
            nesterov=True,
            weight_decay=5e-4,
            schedule="linear",
            warmup=5,
        ),
        BASE.changed(
            name="finetune",
            description="from given weights: first only a new head, then all stages, earlier ones at lower rates",
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


def _parse(text: str, *, toml: bool) -> Any:
    """The content of a recipe file. Raises ValueError if it is not valid."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
    return parse_toml(text) if toml else parse_json(text)


def stated_keys(name_or_file: str) -> set[str]:
    """The keys that a recipe file states, and the files that it is based on."""
    path = Path(name_or_file)
    if path.suffix not in (".toml", ".json"):
        return set()
    fields = _parse(path.read_text("utf-8"), toml=path.suffix == ".toml")
    base = str(fields.pop("base", BASE.name))
    return set(fields) | stated_keys(str(path.parent / base) if base.endswith((".toml", ".json")) else base)


def recipe(name_or_file: str, *, _above: tuple[Path, ...] = ()) -> Recipe:
    """A named recipe, or one from a .toml or .json file that may name its `base`: a recipe, or a file beside it.

    Raises:
        UsageError: an unknown name, a file that cannot be read, an unknown key, a value out of range.
    """
    path = Path(name_or_file)
    if path.suffix not in (".toml", ".json"):
        if name_or_file not in RECIPES:
            raise unknown_name("recipe", name_or_file, RECIPES, hint="A file must end in .toml or .json.")
        return RECIPES[name_or_file]
    try:
        text = path.read_text(encoding="utf-8")
        fields = _parse(text, toml=path.suffix == ".toml")
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
    return parent.changed(**({"name": path.stem, "description": ""} | fields))
