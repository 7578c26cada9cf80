"""Transfer: what is frozen stays to the bit and costs nothing, and a run that is interrupted in any phase goes on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.models import build
from resnetlab.models.from_recipe import build_network
from resnetlab.models.variants import architecture
from resnetlab.recipes import Recipe
from resnetlab.run_folder import RunFolder
from resnetlab.training.build import make_stream, make_trainer
from resnetlab.training.trainer import train
from resnetlab.training.transfer import learning_rate_factors, load_backbone, parts
from tests.training.test_trainer import BASE, EVERYTHING, Quiet, Slow, digits, new_run, records, state
from tests.workers import HERE, Workers

FINETUNE = BASE.changed(frozen_epochs=1, layer_decay=0.5)
Arrays = dict[str, np.ndarray]


def arrays(network: keras.Model) -> Arrays:
    return {v.path: keras.ops.convert_to_numpy(v).copy() for layer in network.layers for v in layer.weights}


def source(model: str = "resnet-tiny", num_classes: int = 4) -> keras.Model:
    """A network none of whose weights is as a new one's."""
    network, rng = build(model, num_classes=num_classes, seed=11), np.random.default_rng(0)
    for variable in network.weights:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return network


def begun(recipe: Recipe) -> keras.Model:
    """A recipe's network for ten classes, with the weights of `source`."""
    network = build_network(recipe, 10)
    load_backbone(network, source())
    return network


class EachEpoch(Quiet):
    """Keeps the weights after each epoch; with `die_after`, the process ends there, after that epoch's checkpoint."""

    def __init__(self, run: RunFolder, network: keras.Model, *, die_after: int = 0, stop_at: int = 0) -> None:
        super().__init__(stop_at)
        self.run, self.network, self.die_after = run, network, die_after
        self.weights: list[Arrays] = []

    def epoch(self, record: dict[str, Any], *, best: bool) -> None:
        self.network.load_weights(self.run.last_weights)
        self.weights.append(arrays(self.network))
        if record["epoch"] == self.die_after:
            raise KeyboardInterrupt


# (a) What is frozen, and what is not


def each_epoch(folder: str, changes: dict[str, Any]) -> list[Arrays]:
    """The weights at the start, and after each of two epochs."""
    recipe = FINETUNE.changed(**changes)
    run = new_run(Path(folder, "run"), recipe)
    network = begun(recipe)
    before = arrays(network)
    progress = EachEpoch(run, build_network(recipe, 10))
    train(digits(), recipe, run, progress=progress, network=network)
    assert progress.messages == ["All stages are trained from epoch 2 on"]
    return [before, *progress.weights]


def learned(before: Arrays, after: Arrays) -> tuple[set[str], set[str]]:
    """The parts of a network in which a weight, and those in which a running statistic, is another than before."""
    assert before.keys() == after.keys()
    differ = [path for path in before if not np.array_equal(before[path], after[path])]
    found = {"moving" in path: set() for path in before}
    for path in differ:
        found["moving" in path].add(path.partition("_")[0])
    return found[False], found[True]


ALL = {"stem", "stage1", "stage2", "stage3", "head"}
NORMS = ALL - {"head"}


TWO_STAGES = {"stage2", "stage3", "head"}


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({}, ({"head"}, set()), (ALL, NORMS)),
        ({"frozen_stages": 1}, (TWO_STAGES, TWO_STAGES - {"head"}), (ALL, NORMS)),
        ({"frozen_batch_norm": True}, ({"head"}, set()), (ALL, set())),
    ],
    ids=["head alone", "two stages and head", "batch norm frozen"],
)
def test_what_is_frozen_stays_to_the_bit_and_then_learns(
    on: Workers, tmp_path: Path, changes: dict[str, Any], first: Any, second: Any
) -> None:
    assert_learned(on(HERE), tmp_path, changes, first, second)


def test_what_is_frozen_stays_so_on_the_other_backends(on: Workers, other_backend: str, tmp_path: Path) -> None:
    both = {"frozen_stages": 1, "frozen_batch_norm": True}
    assert_learned(on(other_backend), tmp_path, both, (TWO_STAGES, set()), (ALL, set()))


def assert_learned(run: Any, folder: Path, changes: dict[str, Any], first: Any, second: Any) -> None:
    start, once, twice = run(each_epoch, folder=str(folder), changes=changes)
    assert learned(start, once) == first
    assert learned(once, twice) == second
    for path in twice:  # not only one weight of each part
        still = changes.get("frozen_batch_norm") and "moving" in path
        assert still or not np.array_equal(once[path], twice[path]), path


def test_what_is_frozen_has_no_gradients_and_no_slots() -> None:
    recipe = FINETUNE
    stream = make_stream(recipe, digits())
    for step, count in ((0, 2), (5, 2), (6, 29), (11, 29)):
        trainer = make_trainer(build_network(recipe, 10), recipe, stream, step=step)
        assert len(trainer.trainable_variables) == count
        slots = [v.path for v in trainer.optimizer.variables if v.path.endswith("momentum")]
        assert len(slots) == count
        assert len([path for path in slots if "head_logits" in path]) == 2


def test_more_stages_than_there_are_is_told() -> None:
    recipe = FINETUNE.changed(frozen_stages=4)
    with pytest.raises(UsageError, match=r"frozen_stages=4: resnet_tiny has 3 stages, expected at most as many"):
        make_trainer(build_network(recipe, 10), recipe, make_stream(recipe, digits()))


# (b) Frozen batch norm


def training_and_inference(frozen: bool) -> tuple[np.ndarray, np.ndarray]:
    network = begun(BASE.changed(frozen_batch_norm=frozen))
    images = digits().images[:8]
    return tuple(keras.ops.convert_to_numpy(network(images, training=training)) for training in (True, False))


def test_frozen_batch_norm_computes_the_same_in_training_and_at_inference(on: Workers, backend: str) -> None:
    np.testing.assert_array_equal(*on(backend)(training_and_inference, frozen=True))
    training, inference = on(backend)(training_and_inference, frozen=False)
    assert np.abs(training - inference).max() > 1e-2


def test_a_saved_model_keeps_its_batch_norm_frozen(tmp_path: Path) -> None:
    network = build_network(BASE.changed(frozen_batch_norm=True), 10)
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    norms = [layer for layer in again.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    assert all(layer.frozen_statistics for layer in norms)


# (c) Layer-wise rates


@pytest.mark.parametrize("model", ["resnet-tiny", "preresnet18", "resnet18d", "se-resnet50"])
def test_each_part_learns_at_a_share_of_the_rate_of_the_next(model: str) -> None:
    network, recipe = build(model, num_classes=3), Recipe(layer_decay=0.5)
    stages = len(architecture(model).depths)
    shares = learning_rate_factors(network, recipe)
    assert len(shares) == len(network.trainable_variables)
    assert list(parts(network)) == ["stem", *(f"stage{i + 1}" for i in range(stages)), "head"]
    expected = {"head": 1.0, "stem": 0.5 ** (stages + 1)} | {
        f"stage{stages - i}": 0.5 ** (i + 1) for i in range(stages)
    }
    for variable in network.trainable_variables:
        assert shares[id(variable)] == expected[variable.path.partition("_")[0]], variable.path


def first_velocities(layer_decay: float) -> Arrays:
    recipe = BASE.changed(layer_decay=layer_decay, weight_decay=0.1)
    network, stream = build_network(recipe, 10), make_stream(recipe, digits())
    trainer = make_trainer(network, recipe, stream)
    trainer.train_on_batch(*stream.batch(0)[:2])
    velocities = zip(trainer.trainable_variables, trainer.optimizer.momentums, strict=True)
    return {variable.path: keras.ops.convert_to_numpy(velocity) for variable, velocity in velocities}


def test_a_steps_updates_are_to_the_bit_their_shares_of_it(on: Workers, backend: str) -> None:
    whole, shared = (on(backend)(first_velocities, layer_decay=decay) for decay in (1.0, 0.5))
    order = ["head", "stage3", "stage2", "stage1", "stem"]
    for path, velocity in whole.items():
        np.testing.assert_array_equal(shared[path], velocity * 0.5 ** order.index(path.partition("_")[0]), path)
    assert sum(np.abs(velocity).max() > 0 for velocity in whole.values()) > 20


# (d) The weights to begin with


@pytest.mark.parametrize("with_head", [False, True])
def test_the_backbone_is_the_sources_and_the_head_is_new(with_head: bool) -> None:
    given, network = source(num_classes=10), build_network(BASE, 10)
    new, theirs = arrays(network), arrays(given)
    load_backbone(network, given, with_head=with_head)
    for path, array in arrays(network).items():
        head = path.startswith("head_logits")
        np.testing.assert_array_equal(array, new[path] if head and not with_head else theirs[path], path)
        assert np.array_equal(new[path], theirs[path]) is False


@pytest.mark.parametrize(
    ("given", "with_head", "told"),
    [
        (lambda: source("resnet20"), False, "received architecture resnet20, expected resnet_tiny"),
        (
            lambda: build(replace(architecture("resnet-tiny"), preprocessing="unit")),
            False,
            "received preprocessing unit, expected imagenet",
        ),
        (
            lambda: build(replace(architecture("resnet-tiny"), widths=(16, 32, 48))),
            False,
            r"received stage3_block1_conv1/kernel \(3, 3, 32, 48\), expected \(3, 3, 32, 64\)",
        ),
        (
            lambda: build(replace(architecture("resnet-tiny"), depths=(1, 1, 2))),
            False,
            r"received stage3_block2_conv1/kernel \(3, 3, 64, 64\), expected None",
        ),
        (source, True, r"received head_logits/kernel \(64, 4\), expected \(64, 10\)"),
    ],
    ids=["architecture", "preprocessing", "shape", "depth", "head"],
)
def test_weights_of_another_network_are_told_and_none_is_set(given: Any, with_head: bool, told: str) -> None:
    network = build_network(BASE, 10)
    before = arrays(network)
    with pytest.raises(ResnetlabError, match=told):
        load_backbone(network, given(), with_head=with_head)
    for path, array in arrays(network).items():
        np.testing.assert_array_equal(array, before[path])


def test_a_network_without_shortcuts_has_the_same_weights_and_is_another_all_the_same() -> None:
    plain, residual = build("plain20"), build("resnet20")
    assert [v.path for v in plain.weights] == [v.path for v in residual.weights]
    with pytest.raises(ResnetlabError, match="received architecture plain20, expected resnet20"):
        load_backbone(residual, plain)


@pytest.mark.parametrize("changes", [{"frozen_epochs": 1}, {"frozen_batch_norm": True}])
def test_freezing_without_weights_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = BASE.changed(**changes)
    with pytest.raises(UsageError, match=f"{next(iter(changes))}=.* needs pretrained weights"):
        train(digits(), recipe, new_run(tmp_path / "run", recipe), progress=Quiet())


# (e) Interrupted and resumed in every phase


def in_one_and_in_four(folder: str) -> dict[str, Any]:
    """Two epochs at a stretch; and stopped while frozen, killed at the boundary, stopped after it, and gone on with."""
    recipe = EVERYTHING.changed(frozen_epochs=1, layer_decay=0.5, optimizer="adamw", learning_rate=0.01)
    recipe = recipe.changed(batch_size=8)  # 12 steps an epoch: JAX runs through those that wait while it compiles
    whole, pieces = (new_run(Path(folder, name), recipe) for name in ("whole", "parts"))
    pack, network = digits(), build_network(recipe, 10)
    pack = replace(pack, images=pack.images.view(Slow))
    statuses = [train(pack, recipe, whole, progress=Quiet(), network=begun(recipe))]
    steps = []
    for settings in ({"stop_at": 3}, {"die_after": 1}, {"stop_at": 14}, {}):
        progress = EachEpoch(pieces, network, **settings)
        try:
            resume = bool(steps)
            start = None if resume else begun(recipe)
            status = train(pack, recipe, pieces, progress=progress, resume=resume, network=start)
        except KeyboardInterrupt:
            status = "killed"
        statuses.append(status)
        steps.append(pieces.info().step)
    return {
        "statuses": statuses,
        "steps": steps,
        "states": (state(whole), state(pieces)),
        "records": (records(whole), records(pieces)),
    }


@pytest.mark.parametrize("backend", ["jax", "torch"])  # see test_trainer.py on TensorFlow
def test_a_run_interrupted_in_every_phase_equals_one_that_never_stopped(
    on: Workers, backend: str, tmp_path: Path
) -> None:
    found = on(backend)(in_one_and_in_four, folder=str(tmp_path))
    assert found["statuses"] == ["finished", "interrupted", "killed", "interrupted", "finished"]
    frozen, boundary, thawed, end = found["steps"]
    assert 3 <= frozen < boundary == 12 < 14 <= thawed < end == 24
    whole, pieces = found["states"]
    assert whole.keys() == pieces.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(pieces[name], array, err_msg=name)
    assert found["records"][1] == found["records"][0]


def test_a_phase_counts_its_own_steps_and_the_schedule_goes_on(tmp_path: Path) -> None:
    """Adam divides its moments by what they lack at first: by the run's count, first steps were six times as long."""
    recipe = FINETUNE.changed(warmup=0.5, epochs=3)
    rates = []
    for name, changes in (("frozen", {}), ("not", {"frozen_epochs": 0})):
        run = new_run(tmp_path / name, recipe.changed(**changes))
        train(digits(), run.recipe(), run, progress=Quiet(), network=begun(run.recipe()))
        rates.append([record["learning_rate"] for record in run.metrics()])
        iterations = next(array for key, array in state(run).items() if key.endswith("iteration"))
        assert iterations == (12 if name == "frozen" else 18)
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)


def test_a_run_that_stays_frozen_to_its_end_can_be_gone_on_with(tmp_path: Path) -> None:
    recipe = FINETUNE.changed(epochs=1)
    run, quiet = new_run(tmp_path / "run", recipe), Quiet()
    assert train(digits(), recipe, run, progress=quiet, network=begun(recipe)) == "finished"
    assert quiet.messages == []
    assert train(digits(), recipe, run, progress=Quiet(), resume=True) == "finished"
