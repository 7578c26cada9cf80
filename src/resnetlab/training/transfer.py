"""Transfer learning: training that starts from the weights of another network, with a new head (fine-tuning).

A network has parts: the stem, the stages and the head. A recipe states how many of them are frozen at first, and the
ratio of the learning rates of successive parts.
"""

from __future__ import annotations

import keras

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models.from_recipe import build_network
from resnetlab.recipes import Recipe

HEAD = "head_logits"  # the layer that depends on the classes


def parts(network: keras.Model) -> dict[str, list[keras.layers.Layer]]:
    """The layers that have weights by the part that their name begins with, in order: stem, stage1, ..., head."""
    found: dict[str, list[keras.layers.Layer]] = {}
    for layer in network.layers:
        if layer.weights:
            found.setdefault(layer.name.partition("_")[0], []).append(layer)
    return found


def require_weights(recipe: Recipe) -> None:
    """Raise UsageError if a recipe freezes layers, which makes no sense with random weights."""
    for key in ("frozen_epochs", "frozen_batch_norm"):
        if value := getattr(recipe, key):
            raise UsageError(
                f"{key}={value} needs pretrained weights, and none are given. Give them "
                f"with --weights, or choose another recipe than {recipe.name!r}."
            )


def load_backbone(network: keras.Model, source: keras.Model, *, with_head: bool = False) -> None:
    """Set the weights of `network` to those of `source`; its head only if `with_head`.

    `source` is one of our networks too, of the same architecture and preprocessing, and of any number of classes.

    Raises:
        ResnetlabError: the architecture differs. No weight is changed then.
    """
    ours, theirs = (_weights(n, with_head) for n in (network, source))
    expected, received = (
        {"architecture": n.name, "preprocessing": n.get_layer("normalize").preprocessing}
        | {path: tuple(v.shape) for path, v in weights.items()}
        for n, weights in ((network, ours), (source, theirs))
    )
    for key in expected | received:
        if received.get(key) != expected.get(key):
            raise ResnetlabError(
                f"These weights do not fit: received {key} {received.get(key)}, expected {expected.get(key)}. Train "
                "the model that they come from, with its preprocessing."
            )
    for path, variable in ours.items():
        variable.assign(keras.ops.convert_to_numpy(theirs[path]))


def _weights(network: keras.Model, with_head: bool) -> dict[str, keras.Variable]:
    return {v.path: v for layer in network.layers if with_head or layer.name != HEAD for v in layer.weights}


def phase_start(recipe: Recipe, step: int, steps_per_epoch: int) -> int:
    """The first step of the phase that a step is in: 0, or the step from which all layers are trained."""
    unfreeze_step = recipe.frozen_epochs * steps_per_epoch
    return unfreeze_step if step >= unfreeze_step else 0


def freeze(network: keras.Model, recipe: Recipe, step: int, steps_per_epoch: int) -> int:
    """Set which layers are trainable at a step; returns the first step of the phase that the step is in.

    A frozen layer has no gradients and no optimizer slots, and its batch norm runs in inference mode. Must be called
    before the training step is traced.

    Raises:
        UsageError: more stages to freeze than the network has.
    """
    groups = list(parts(network).values())
    stages = len(groups) - 2  # without stem and head
    frozen = stages if recipe.frozen_stages is None else recipe.frozen_stages
    if frozen > stages:
        raise UsageError(f"frozen_stages={frozen}: {network.name} has {stages} stages, expected at most as many.")
    unfreeze_step = recipe.frozen_epochs * steps_per_epoch
    for place, layers in enumerate(groups):
        for layer in layers:
            layer.trainable = step >= unfreeze_step or place > frozen
    network.predict_function = None  # on JAX with several devices it is compiled for the former lists of variables
    return phase_start(recipe, step, steps_per_epoch)


def learning_rate_factors(network: keras.Model, recipe: Recipe) -> dict[int, float]:
    """Each variable's fraction of the learning rate, by the variable's `id`.

    Discriminative fine-tuning (Howard, Ruder 2018, arXiv:1801.06146, section 3.1), with one factor from part to part:
    early layers are more general, and have less to learn.
    """
    groups = list(parts(network).values())
    return {
        id(variable): recipe.layer_decay ** (len(groups) - 1 - place)
        for place, layers in enumerate(groups)
        for layer in layers
        for variable in layer.trainable_weights
    }


def build_from(source: keras.Model, recipe: Recipe, num_classes: int, *, with_head: bool) -> keras.Model:
    """A recipe's network with the weights of `source`, with or without its head. Raises as the steps do."""
    network = build_network(recipe, num_classes)
    load_backbone(network, source, with_head=with_head)
    freeze(network, recipe, 0, 1)  # so that freezing more stages than exist is an error now
    return network
