"""Optimizers and schedules against transcriptions of the papers' algorithms in NumPy, and against PyTorch's."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from resnetlab.errors import UsageError
from resnetlab.recipes import RECIPES, Recipe
from resnetlab.training.optimizers import SGD, AdamW, Lamb, Muon, Schedule, decays, make_optimizer, orthogonalize
from tests.workers import Workers

STEPS = 5
OURS = {"sgd": SGD, "adamw": AdamW, "lamb": Lamb, "muon": Muon, "keras-sgd": keras.optimizers.SGD}


def start() -> list[np.ndarray]:
    """A kernel, a dense layer's kernel, and a bias."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(np.float32) for shape in ((3, 3, 2, 4), (5, 3), (4,))]


def gradients(step: int) -> list[np.ndarray]:
    generator = np.random.default_rng(100 + step)
    return [generator.standard_normal(w.shape).astype(np.float32) for w in start()]


def optimise(
    kind: str, settings: dict[str, Any], *, steps: int = STEPS, factors: tuple[float, ...] = ()
) -> list[np.ndarray]:
    """The weights after five steps of given gradients; `factors` are those of the rate that each learns at."""
    variables = [keras.Variable(w, name=f"w{i}") for i, w in enumerate(start())]
    if factors:
        settings = settings | {"factors": {id(v): fraction for v, fraction in zip(variables, factors, strict=True)}}
    optimizer = OURS[kind](**settings)
    optimizer.build(variables)
    for step in range(steps):
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients(step)], variables)
    return [ops.convert_to_numpy(v) for v in variables]


def numpy_sgd(rate: float, momentum: float, l2: float, nesterov: bool) -> list[np.ndarray]:
    """He 2015 and torch.optim.SGD: L2 is part of the gradient, so the momentum carries it."""
    weights, velocities = start(), [np.zeros_like(w) for w in start()]
    for step in range(STEPS):
        for w, v, g in zip(weights, velocities, gradients(step), strict=True):
            g = g + (l2 * w if w.ndim > 1 else 0)
            v[:] = momentum * v + g
            w -= rate * (g + momentum * v if nesterov else v)
    return weights


def assert_all_close(received: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for r, e, first in zip(received, expected, start(), strict=True):
        np.testing.assert_allclose(r, e, rtol=1e-5, atol=1e-5)
        assert np.abs(r - first).max() > 1e-3  # it moved


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_has_its_l2_inside_the_gradient(
    on: Workers, backend: str, momentum: float, nesterov: bool, l2: float
) -> None:
    settings = {"learning_rate": 0.1, "momentum": momentum, "nesterov": nesterov, "l2": l2}
    assert_all_close(on(backend)(optimise, kind="sgd", settings=settings), numpy_sgd(0.1, momentum, l2, nesterov))


def torch_sgd(momentum: float, nesterov: bool, l2: float) -> list[np.ndarray]:
    import torch

    weights = [torch.nn.Parameter(torch.from_numpy(w)) for w in start()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": l2},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=nesterov)
    for step in range(STEPS):
        for w, g in zip(weights, gradients(step), strict=True):
            w.grad = torch.from_numpy(g)
        optimizer.step()
    return [w.detach().numpy() for w in weights]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_pytorch(on: Workers, nesterov: bool) -> None:
    expected = on("torch")(torch_sgd, momentum=0.9, nesterov=nesterov, l2=0.1)
    settings = {"learning_rate": 0.1, "momentum": 0.9, "nesterov": nesterov, "l2": 0.1}
    assert_all_close(optimise("sgd", settings), expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_fused_update_is_that_of_keras(on: Workers, backend: str, momentum: float, nesterov: bool) -> None:
    settings = {"learning_rate": 0.1, "momentum": momentum, "nesterov": nesterov}
    ours = on(backend)(optimise, kind="sgd", settings=settings)
    assert_all_close(ours, on(backend)(optimise, kind="keras-sgd", settings=settings))


def numpy_lamb(
    rate: float, decay: float, beta_1: float, beta_2: float, epsilon: float, clip: float = np.inf
) -> list[np.ndarray]:
    """You 2019, algorithm 2, with phi the identity; biases are neither decayed nor scaled."""
    weights = [w.astype(np.float64) for w in start()]
    m, v = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step in range(1, STEPS + 1):
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients(step - 1)))
        for i, (w, whole) in enumerate(zip(weights, gradients(step - 1), strict=True)):
            g = whole * min(1.0, clip / norm)
            m[i] = beta_1 * m[i] + (1 - beta_1) * g
            v[i] = beta_2 * v[i] + (1 - beta_2) * g.astype(np.float64) ** 2
            update = (m[i] / (1 - beta_1**step)) / (np.sqrt(v[i] / (1 - beta_2**step)) + epsilon)
            if w.ndim > 1:
                update = update + decay * w
                update *= np.linalg.norm(w) / np.linalg.norm(update)
            w -= rate * update
    return weights


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_lamb_is_algorithm_2(on: Workers, backend: str, decay: float) -> None:
    settings = {"learning_rate": 0.05, "decay": decay, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-6}
    received = on(backend)(optimise, kind="lamb", settings=settings)
    assert_all_close(received, numpy_lamb(0.05, decay, 0.9, 0.999, 1e-6))


def test_lamb_clips_the_norm_of_all_gradients_together(on: Workers, backend: str) -> None:
    settings = {"learning_rate": 0.05, "decay": 0.5, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-6}
    received = on(backend)(optimise, kind="lamb", settings=settings | {"global_clipnorm": 0.5})
    assert_all_close(received, numpy_lamb(0.05, 0.5, 0.9, 0.999, 1e-6, clip=0.5))


def numpy_adamw(rate: float, decay: float, beta_2: float = 0.999, epsilon: float = 1e-7) -> list[np.ndarray]:
    """Loshchilov 2017, algorithm 2, with the rate as the schedule multiplier (as in PyTorch and Keras)."""
    weights = [w.astype(np.float64) for w in start()]
    m, v = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step in range(1, STEPS + 1):
        for i, (w, g) in enumerate(zip(weights, gradients(step - 1), strict=True)):
            if w.ndim > 1:
                w -= rate * decay * w
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = beta_2 * v[i] + (1 - beta_2) * g.astype(np.float64) ** 2
            w -= rate * (m[i] / (1 - 0.9**step)) / (np.sqrt(v[i] / (1 - beta_2**step)) + epsilon)
    return weights


def test_adamw_decays_kernels_alone(on: Workers, backend: str) -> None:
    settings = {"learning_rate": 0.05, "decay": 0.3, "beta_1": 0.9}
    assert_all_close(on(backend)(optimise, kind="adamw", settings=settings), numpy_adamw(0.05, 0.3))


def numpy_muon(rate: float, decay: float, momentum: float, nesterov: bool) -> list[np.ndarray]:
    """Jordan 2024, with three Newton-Schulz steps as published, for the kernel (3, 3, 2, 4); AdamW for the others."""
    kernel, buffer = start()[0].astype(np.float64), np.zeros((18, 4))
    for step in range(STEPS):
        g = gradients(step)[0].reshape(18, 4).astype(np.float64)
        buffer = momentum * buffer + g
        x = (g + momentum * buffer if nesterov else buffer).T
        x = x / (np.linalg.norm(x) + 1e-7)
        for _ in range(3):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        kernel = kernel * (1 - rate * decay) - rate * x.T.reshape(kernel.shape)
    return [kernel, *numpy_adamw(0.1 * rate, decay, beta_2=0.99, epsilon=1e-10)[1:]]


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_the_published_algorithm_for_kernels_and_adamw_for_the_rest(
    on: Workers, backend: str, nesterov: bool
) -> None:
    settings = {"learning_rate": 0.5, "decay": 0.3, "momentum": 0.6, "nesterov": nesterov, "adam_ratio": 0.1}
    assert_all_close(on(backend)(optimise, kind="muon", settings=settings), numpy_muon(0.5, 0.3, 0.6, nesterov))


def test_three_steps_of_orthogonalization_have_the_documented_bounds() -> None:
    for value in (0.02, 0.05, 0.1, 0.3, 0.6, 0.9):  # of a matrix of norm 1: the rest is in one other direction
        rest = np.sqrt(1 - value**2)
        found = ops.convert_to_numpy(orthogonalize(ops.convert_to_tensor(np.diag([value, rest]), "float32")))
        assert 0.6 < found[0, 0] < 1.3
        assert 0.6 < found[1, 1] < 1.3


@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (40, 40)])
def test_orthogonalization_keeps_the_directions_and_levels_the_singular_values(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    left, _ = np.linalg.qr(generator.standard_normal((shape[0], 40)))
    right, _ = np.linalg.qr(generator.standard_normal((shape[1], 40)))
    values = np.geomspace(0.05, 1.0, 40)
    found = ops.convert_to_numpy(orthogonalize(ops.convert_to_tensor(left * values @ right.T, "float32"), steps=5))
    inside = left.T @ found @ right
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-4
    assert 0.5 < np.diag(inside).min() < np.diag(inside).max() < 1.3
    np.testing.assert_allclose(left @ inside @ right.T, found, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("muon", {"decay": 0.3, "momentum": 0.6, "nesterov": True, "adam_ratio": 0.5}),
        ("sgd", {"l2": 0.1, "momentum": 0.9, "nesterov": True}),
        ("sgd", {"l2": 0.1}),
        ("adamw", {"decay": 0.3}),
        ("lamb", {"decay": 0.5}),
    ],
)
def test_a_variable_moves_by_its_share_of_the_rate_with_its_weight_decay(
    on: Workers, backend: str, kind: str, settings: dict[str, Any]
) -> None:
    arguments = {"kind": kind, "settings": settings | {"learning_rate": 0.05}, "steps": 1}
    factors = (0.25, 0.5, 1.0)
    whole, shared = on(backend)(optimise, **arguments), on(backend)(optimise, **arguments, factors=factors)
    for first, all_of_it, part, fraction in zip(start(), whole, shared, factors, strict=True):
        np.testing.assert_allclose(part - first, fraction * (all_of_it - first), atol=1e-6)
        assert np.abs(all_of_it - first).max() > 1e-3
    np.testing.assert_array_equal(shared[2], whole[2])


def test_the_whole_rate_adds_nothing_to_a_step() -> None:
    variables = [keras.Variable(w) for w in start()]
    optimizer = SGD(learning_rate=0.1, factors={id(v): 1.0 for v in variables})
    optimizer.build(variables)
    rate = object()
    assert all(optimizer.rate_of(variable, rate) is rate for variable in variables)


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 3, 2, 4), True), ((5, 3), True), ((1, 1, 1, 1), True), ((4,), False), ((), False)]
)
def test_kernels_decay_and_biases_and_batch_norms_do_not(shape: tuple[int, ...], expected: bool) -> None:
    assert decays(keras.Variable(np.zeros(shape, np.float32))) is expected


# -------------------------------------------------------------------------------------------------- schedules
def rates(steps: list[int], **settings: Any) -> list[float]:
    schedule = Schedule(**settings)
    return [float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(step)))) for step in steps]


WARM = {"peak": 2.0, "warmup": 10.0, "total": 110.0}
POINTS = {  # kind: {step: fraction of the peak}
    "constant": {9: 1.0, 10: 1.0, 60: 1.0, 110: 1.0},
    "cosine": {9: 1.0, 10: 1.0, 35: 0.5 + 0.5**1.5, 60: 0.5, 85: 0.5 - 0.5**1.5, 110: 0.0, 500: 0.0},
    "linear": {9: 1.0, 10: 1.0, 35: 0.75, 60: 0.5, 85: 0.25, 110: 0.0, 500: 0.0},
    "steps": {9: 1.0, 39: 1.0, 40: 0.1, 79: 0.1, 80: 0.01, 500: 0.01},
}


@pytest.mark.parametrize("kind", POINTS)
def test_schedules_pass_through_known_points(on: Workers, backend: str, kind: str) -> None:
    settings = WARM | {"kind": kind, "milestones": (40.0, 80.0) if kind == "steps" else ()}
    received = on(backend)(rates, steps=[*POINTS[kind], 0, 4], **settings)
    expected = [2 * fraction for fraction in POINTS[kind].values()] + [
        0.2,
        1.0,
    ]  # warm-up begins at a tenth, not at zero
    np.testing.assert_allclose(received, expected, atol=1e-6)


def test_without_warmup_the_first_step_is_at_the_peak() -> None:
    assert rates([0], kind="cosine", peak=0.1, warmup=0.0, total=100.0) == pytest.approx([0.1])


def test_a_schedule_survives_its_configuration() -> None:
    schedule = Schedule("steps", 0.1, warmup=5.0, total=90.0, milestones=[30.0, 60.0])
    again = Schedule.from_config(schedule.get_config())
    steps = [0, 4, 29, 30, 60]
    assert [float(again(s)) for s in steps] == [float(schedule(s)) for s in steps]


def test_an_optimizer_that_begins_later_goes_on_with_the_schedule() -> None:
    recipe = Recipe(epochs=10, warmup=2)
    whole, later = (make_optimizer(recipe, 5, start=start)._learning_rate for start in (0, 7))
    assert [float(later(step)) for step in range(43)] == [float(whole(7 + step)) for step in range(43)]
    assert float(Schedule.from_config(later.get_config())(3)) == float(whole(10))
    assert [each.at(11) for each in (whole, later)] == [float(whole(10))] * 2
    divided = Schedule.of(recipe.changed(accumulate=4), 5)
    assert [divided.at(number) for number in range(1, 51)] == [whole.at(number) for number in range(1, 51)]
    steps = Schedule.of(RECIPES["cifar"], 100)
    assert [steps.at(number) for number in (8200, 8201)] == pytest.approx([0.1, 0.01])


def test_a_recipes_epochs_become_steps() -> None:
    schedule = make_optimizer(RECIPES["imagenet"], 100)._learning_rate
    assert (schedule.warmup, schedule.total, schedule.milestones) == (500.0, 9000.0, (3000.0, 6000.0, 8000.0))
    np.testing.assert_allclose([float(schedule(s)) for s in (499, 2999, 3000, 8999)], [0.1, 0.1, 0.01, 1e-4], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"optimizer": "sgd", "nesterov": True}, SGD, {"l2": 5e-4, "momentum": 0.8, "nesterov": True}),
        ({"optimizer": "adamw"}, AdamW, {"decay": 5e-4, "beta_1": 0.8}),
        ({"optimizer": "lamb"}, Lamb, {"decay": 5e-4, "beta_1": 0.8, "epsilon": 1e-6, "global_clipnorm": None}),
        ({"optimizer": "lamb", "gradient_clip": 1.0}, Lamb, {"global_clipnorm": 1.0}),
        ({"optimizer": "adamw", "gradient_clip": 2.0}, AdamW, {"global_clipnorm": 2.0}),
        (
            {"optimizer": "muon", "learning_rate": 0.25, "adam_learning_rate": 0.01},
            Muon,
            {"decay": 5e-4, "momentum": 0.8, "nesterov": False, "adam_ratio": 0.04},
        ),
    ],
)
def test_an_optimizer_has_the_settings_of_its_recipe(
    changes: dict[str, Any], kind: type, expected: dict[str, Any]
) -> None:
    optimizer = make_optimizer(Recipe(momentum=0.8, weight_decay=5e-4).changed(**changes), 10)
    assert type(optimizer) is kind
    assert {key: getattr(optimizer, key) for key in expected} == expected
    with pytest.raises(UsageError, match=r"Unknown recipe key 'momentun'\. Did you mean 'momentum'"):
        Recipe().changed(momentun=0.8)
