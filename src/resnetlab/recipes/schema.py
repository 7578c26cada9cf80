"""The class `Recipe`: every hyperparameter of a training run, with the values that it may have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from resnetlab.errors import UsageError, unknown_name

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
