"""Optimizers and learning-rate schedules, as the papers define them where Keras differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from resnetlab import backend
from resnetlab.recipes import Recipe

Tensor = Any


def make_optimizer(
    recipe: Recipe, steps_per_epoch: int, *, start: int = 0, factors: Mapping[int, float] | None = None
) -> keras.optimizers.Optimizer:
    """The optimizer of a recipe.

    Its step counter starts at step `start` of the run, and counts whole batches, not their parts. `factors` maps the
    `id` of each variable to its fraction of the learning rate; None where all are 1.
    """
    shared: dict[str, Any] = {
        "learning_rate": Schedule.of(recipe, steps_per_epoch, start=start),
        "factors": factors,
        "gradient_accumulation_steps": recipe.parts if recipe.parts > 1 else None,
    }
    clip = recipe.gradient_clip or None
    if recipe.optimizer == "sgd":
        return SGD(l2=recipe.weight_decay, momentum=recipe.momentum, nesterov=recipe.nesterov, **shared)
    if recipe.optimizer == "adamw":
        return AdamW(beta_1=recipe.momentum, decay=recipe.weight_decay, global_clipnorm=clip, **shared)
    if recipe.optimizer == "muon":
        return Muon(
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            decay=recipe.weight_decay,
            adam_ratio=recipe.adam_learning_rate / recipe.learning_rate,
            **shared,
        )
    return Lamb(beta_1=recipe.momentum, decay=recipe.weight_decay, epsilon=1e-6, global_clipnorm=clip, **shared)


def decays(variable: keras.Variable) -> bool:
    """Whether weight decay applies: to kernels, not to biases, gammas and betas (Goyal 2017, section 5.1)."""
    return len(variable.shape) > 1


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate as a function of the step: linear warm-up to `peak`, then one of four schedules.

    "constant" is flat; "cosine" and "linear" reach zero after the last step (Loshchilov 2016, arXiv:1608.03983);
    "steps" falls to a tenth at each milestone. An optimizer that begins later in the run counts its steps from `start`.
    Keras counts the `parts` of a batch. In float16, steps whose gradients overflow are not counted.
    """

    def __init__(
        self,
        kind: str,
        peak: float,
        *,
        warmup: float,
        total: float,
        milestones: Sequence[float] = (),
        start: int = 0,
        parts: int = 1,
    ) -> None:
        self.kind, self.peak, self.warmup, self.total = kind, peak, warmup, total
        self.milestones, self.start, self.parts = tuple(milestones), start, parts

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int, *, start: int = 0) -> Schedule:
        return cls(
            recipe.schedule,
            recipe.learning_rate,
            warmup=min(recipe.warmup, recipe.epochs / 2) * steps_per_epoch,
            total=float(recipe.epochs * steps_per_epoch),
            milestones=[epoch * steps_per_epoch for epoch in recipe.milestones],
            start=start,
            parts=recipe.parts,
        )

    def __call__(self, step: Tensor) -> Tensor:
        step = ops.floor((ops.cast(step, "float32") + 0.5) / self.parts) + self.start
        progress = ops.clip((step - self.warmup) / max(self.total - self.warmup, 1.0), 0.0, 1.0)
        if self.kind == "cosine":
            factor = 0.5 * (1.0 + ops.cos(progress * 3.141592653589793))
        elif self.kind == "linear":
            factor = 1.0 - progress
        else:
            factor = ops.ones_like(step)
            for milestone in self.milestones:
                factor = factor * ops.where(step >= milestone, 0.1, 1.0)
        warming = ops.minimum((step + 1.0) / self.warmup, 1.0) if self.warmup else 1.0
        return self.peak * factor * warming

    def at(self, number: int) -> float:
        """The rate of the step with this number in the run, from 1."""
        return float(self((number - 1 - self.start) * self.parts))

    def get_config(self) -> dict[str, Any]:
        keys = ("kind", "peak", "warmup", "total", "milestones", "start", "parts")
        return {key: getattr(self, key) for key in keys}


class _PerVariableRate:
    """Base of all optimizers here: a learning rate per variable, and updates of all variables at once."""

    def __init__(self, *, factors: Mapping[int, float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factors = factors

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self.make_slots(variables)
        for slot in self.variables:  # type: ignore[attr-defined]
            backend.set_kernel_layout(slot)
        self.factor_of = [self.factors[id(v)] if self.factors else 1.0 for v in variables]

    def make_slots(self, variables: Sequence[keras.Variable]) -> None:
        super().build(variables)  # type: ignore[misc]

    def apply(self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Keras's, but for gradients that are first added up over all devices, before the L2 term and clipping."""
        variables = self._trainable_variables if trainable_variables is None else trainable_variables  # type: ignore[attr-defined]
        super().apply(self.regularized(backend.sum_over_devices(grads), variables), trainable_variables)  # type: ignore[misc]

    def _all_reduce_sum_gradients(self, grads_and_vars: list[tuple[Tensor, Any]]) -> list[tuple[Tensor, Any]]:
        """Keras's hook on TensorFlow, for what `apply` has done."""
        return grads_and_vars

    def regularized(self, gradients: list[Tensor], variables: Sequence[keras.Variable]) -> list[Tensor]:
        """The gradients of the loss with its regularisation."""
        return gradients

    def rate_of(self, variable: keras.Variable, learning_rate: Tensor) -> Tensor:
        fraction = self.factor_of[self._get_variable_index(variable)]  # type: ignore[attr-defined]
        return learning_rate if fraction == 1.0 else learning_rate * fraction

    def _backend_update_step(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """Keras's hook for an update of all variables."""
        if not self.update_together(grads, trainable_variables, learning_rate):
            super()._backend_update_step(grads, trainable_variables, learning_rate)  # type: ignore[misc]

    def update_together(
        self, gradients: Sequence[Tensor], variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> bool:
        """Update all variables at once if the backend supports it; returns whether it was done."""
        raise NotImplementedError

    def _settings(self, variables: Sequence[keras.Variable], learning_rate: Tensor) -> dict[str, Any]:
        """The arguments that all update kernels share: the learning rate, and each variable's fraction of it."""
        index = [self._get_variable_index(variable) for variable in variables]  # type: ignore[attr-defined]
        fractions = [self.factor_of[i] for i in index]
        return {"rate": learning_rate, "fractions": None if set(fractions) == {1.0} else fractions}

    def _slots(self, slots: Sequence[keras.Variable], variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        return [slots[self._get_variable_index(variable)] for variable in variables]  # type: ignore[attr-defined]


class SGD(_PerVariableRate, keras.optimizers.SGD):
    """SGD with (Nesterov) momentum and L2 regularisation inside the gradient, as in He 2015.

    Keras's own `weight_decay` is decoupled: it bypasses the momentum.
    """

    def __init__(self, *, l2: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.l2 = l2

    def regularized(self, gradients: list[Tensor], variables: Sequence[keras.Variable]) -> list[Tensor]:
        if self.l2:
            decayed = [i for i, variable in enumerate(variables) if decays(variable)]
            sums = backend.add_scaled([gradients[i] for i in decayed], [variables[i] for i in decayed], self.l2)
            for i, total in zip(decayed, sums, strict=True):
                gradients[i] = total
        return gradients

    def update_together(
        self, gradients: Sequence[Tensor], variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> bool:
        return backend.sgd_update(
            variables,
            self._slots(self.momentums, variables) if self.momentum else (),
            gradients,
            momentum=self.momentum,
            nesterov=self.nesterov,
            **self._settings(variables, learning_rate),
        )

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        rate = self.rate_of(variable, learning_rate)
        velocity = self.momentums[self._get_variable_index(variable)] if self.momentum else None
        if velocity is None or not backend.momentum_update(
            variable, velocity, gradient, rate=rate, momentum=self.momentum, nesterov=self.nesterov
        ):
            super().update_step(gradient, variable, rate)


class _Moments(_PerVariableRate):
    """Base of AdamW and LAMB: two moments of each gradient, and weight decay of kernels only."""

    kernel: Callable[..., bool]  # of `backend`

    def __init__(self, *, decay: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decay = decay

    def update_together(
        self, gradients: Sequence[Tensor], variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> bool:
        slots = (self._slots(self._momentums, variables), self._slots(self._velocities, variables))  # type: ignore[attr-defined]
        return type(self).kernel(
            variables,
            slots,
            gradients,
            betas=(self.beta_1, self.beta_2),  # type: ignore[attr-defined]
            step=ops.cast(self.iterations + 1, "float32"),  # type: ignore[attr-defined]
            epsilon=self.epsilon,  # type: ignore[attr-defined]
            decay=self.decay,
            decays=[decays(variable) for variable in variables],
            **self._settings(variables, learning_rate),
        )


class AdamW(_Moments, keras.optimizers.Adam):
    """AdamW (Loshchilov 2017, arXiv:1711.05101, algorithm 2) with decay of kernels only, each at its own rate.

    As in Keras's Adam, epsilon (1e-7) is added before the bias correction of the second moment; in the paper after it.
    """

    kernel = staticmethod(backend.adam_update)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        rate = self.rate_of(variable, learning_rate)
        if self.decay and decays(variable):
            self.assign_sub(variable, variable * (rate * self.decay))
        super().update_step(gradient, variable, rate)


class Muon(AdamW):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for convolution kernels, AdamW for all other weights.

    A kernel is seen as a matrix (k * k * in, out). Its step is the momentum with all singular values set to about 1,
    so that no direction of the matrix is favoured, times the learning rate; decay is decoupled. The kernel of a grouped
    convolution is one matrix too. All other weights are updated by AdamW, with betas 0.9 and 0.99, at `adam_ratio`
    times the learning rate.

    There are three Newton-Schulz steps, as in the author's code for CIFAR-10 (arXiv:2404.00498's repository), which
    also scales each kernel to a constant norm before each step; that is left out here. Keras's own Muon has AdamW for
    convolutions too.
    """

    def __init__(self, *, momentum: float, nesterov: bool, adam_ratio: float, **kwargs: Any) -> None:
        super().__init__(beta_1=0.9, beta_2=0.99, epsilon=1e-10, **kwargs)
        self.momentum, self.nesterov, self.adam_ratio = momentum, nesterov, adam_ratio

    def make_slots(self, variables: Sequence[keras.Variable]) -> None:
        keras.optimizers.Optimizer.build(self, variables)
        self._momentums = [self.add_variable_from_reference(v, "momentum") for v in variables]
        self._velocities = [
            None if is_convolution(v) else self.add_variable_from_reference(v, "velocity") for v in variables
        ]

    def update_together(
        self, gradients: Sequence[Tensor], variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> bool:
        others = [i for i, variable in enumerate(variables) if not is_convolution(variable)]
        some, theirs = ([each[i] for i in others] for each in (gradients, variables))
        if not super().update_together(some, theirs, learning_rate * self.adam_ratio):
            return False
        for gradient, variable in zip(gradients, variables, strict=True):
            if is_convolution(variable):
                self.update_step(gradient, variable, learning_rate)
        return True

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        if not is_convolution(variable):
            super().update_step(gradient, variable, learning_rate * self.adam_ratio)
            return
        rate = self.rate_of(variable, learning_rate)
        buffer = self._momentums[self._get_variable_index(variable)]
        total = buffer * self.momentum + gradient
        self.assign(buffer, total)
        step = gradient + self.momentum * total if self.nesterov else total
        columns = variable.shape[-1]
        step = ops.reshape(orthogonalize(ops.reshape(step, (-1, columns))), variable.shape)
        self.assign(variable, variable * (1.0 - rate * self.decay) - rate * step)


def is_convolution(variable: keras.Variable) -> bool:
    return len(variable.shape) == 4


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """U V^T of a matrix U S V^T, roughly: with three steps, singular values of 0.02 to 1 times the matrix's norm end
    between 0.6 and 1.3.

    The Newton-Schulz iteration of Muon, X <- a X + b X (X^T X) + c X (X^T X)^2, whose coefficients make small singular
    values grow fastest. All its factors are polynomials in X^T X, so they are multiplied first, as small matrices.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    rows, columns = matrix.shape
    x = matrix / (ops.sqrt(ops.sum(ops.square(matrix))) + 1e-7)
    gram = ops.matmul(ops.transpose(x), x) if rows >= columns else ops.matmul(x, ops.transpose(x))
    product = None
    for step in range(steps):
        factor = a * ops.eye(min(rows, columns)) + b * gram + c * ops.matmul(gram, gram)
        product = factor if product is None else ops.matmul(factor, product)
        if step < steps - 1:
            gram = ops.matmul(factor, ops.matmul(gram, factor))
    return ops.matmul(x, product) if rows >= columns else ops.matmul(product, x)


class Lamb(_Moments, keras.optimizers.Lamb):
    """LAMB (You 2019, arXiv:1904.00962, algorithm 2): weight decay is part of the update that the trust ratio scales.

    Keras's own leaves it outside. Biases and batch norms are neither decayed nor scaled, as in the paper's code.
    """

    kernel = staticmethod(backend.lamb_update)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        self.assign_add(m, (gradient - m) * (1.0 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1.0 - self.beta_2))
        step = ops.cast(self.iterations + 1, variable.dtype)
        unbiased_m = m / (1.0 - ops.power(self.beta_1, step))
        unbiased_v = v / (1.0 - ops.power(self.beta_2, step))
        update, ratio = unbiased_m / (ops.sqrt(unbiased_v) + self.epsilon), 1.0
        if decays(variable):
            update = update + self.decay * variable
            weight_norm, update_norm = (ops.sqrt(ops.sum(ops.square(t))) for t in (variable, update))
            nonzero = ops.logical_and(weight_norm > 0.0, update_norm > 0.0)
            ratio = ops.where(nonzero, weight_norm / ops.maximum(update_norm, 1e-12), 1.0)
        self.assign_sub(variable, self.rate_of(variable, learning_rate) * ratio * update)
