"""The named recipes, each as its differences from another one."""

from __future__ import annotations

from typing import Any

from resnetlab.recipes.schema import Recipe

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
            description="CIFAR-10 in a few minutes on two CPU cores (after Jordan 2024): 90.68 % (3 seeds)",
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
            description="He et al. 2015, table 6, in 60 epochs: ResNet-20 91.90 % (3 seeds; paper: 91.25 %)",
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
