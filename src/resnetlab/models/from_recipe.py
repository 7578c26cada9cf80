"""The network that a recipe describes."""

from __future__ import annotations

from dataclasses import replace

import keras

from resnetlab.devices import resolve_precision
from resnetlab.models.layers import BatchNorm
from resnetlab.models.resnet import build
from resnetlab.models.variants import Architecture, architecture
from resnetlab.recipes import Recipe


def resolve_architecture(recipe: Recipe) -> Architecture:
    """The architecture that a recipe names, with the recipe's preprocessing where it has one of its own."""
    arch = architecture(recipe.model)
    return arch if recipe.preprocessing is None else replace(arch, preprocessing=recipe.preprocessing)


def build_network(recipe: Recipe, num_classes: int) -> keras.Model:
    """Build the network of a recipe, with float32 weights and computation in the recipe's precision."""
    before, precision = keras.config.dtype_policy(), resolve_precision(recipe.precision)
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        arch = resolve_architecture(recipe)
        network = build(
            arch,
            num_classes=num_classes,
            stochastic_depth=recipe.stochastic_depth if arch.shortcut != "none" else 0.0,  # older runs may state it
            seed=recipe.seed,
        )
    finally:
        keras.config.set_dtype_policy(before)
    for layer in network.layers:
        if isinstance(layer, BatchNorm):
            layer.frozen_statistics = recipe.frozen_batch_norm
    return network
