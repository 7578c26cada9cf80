"""Not enough memory for a training step: what was asked for, and what fits."""

from __future__ import annotations

import traceback
from dataclasses import replace
from types import FrameType

import keras

from resnetlab.data.stream import Stream
from resnetlab.errors import first_informative_line, is_out_of_memory
from resnetlab.recipes import Recipe


def rows_that_fit(trainer: keras.Model, stream: Stream, step: int) -> int | None:
    """How many images a training step has enough memory for: half as many as it should, a quarter, ...

    The steps are carried out, so the trainer is of no use afterwards.

    Returns:
        None if the backend cannot continue after the first error.
    """
    rows = stream.batch_size // stream.accumulate // 2
    while rows:
        try:
            trainer.train_on_batch(*replace(stream, batch_size=rows, accumulate=1).batch(step))
        except Exception as error:
            if not is_out_of_memory(error):
                return None
            release_tensors(error)
            rows //= 2
        else:
            return rows
    return None


def release_tensors(error: BaseException) -> None:
    """Forget the variables of the functions that have failed, which hold the tensors of the step on PyTorch."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        failed: FrameType | None = frame
        while failed is not None:
            try:
                failed.clear()
            except RuntimeError:  # it still runs
                break
            failed = failed.f_back


def divisors(number: int) -> list[int]:
    """The numbers that divide `number`, from 1 on."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def out_of_memory(recipe: Recipe, error: Exception, fits: int | None) -> str:
    """The message; `fits` is what `rows_that_fit` found."""
    size, side = recipe.batch_size, recipe.image_size
    at_once = size // recipe.parts
    fewer = fits or max(at_once // 2, 1)
    parts = next(number for number in divisors(size) if size // number <= fewer)
    tried = f" A step with {fits} images was tried, and fits." if fits else ""
    advice = [f"a smaller batch, and a learning rate in proportion to it: {_smaller_batch(recipe, fewer)}"]
    if recipe.precision != "float16" and parts > recipe.parts:
        advice.insert(0, f"--accumulate {parts}, for the same batch in parts of {size // parts} images")
    return (
        f"Out of memory: training {recipe.model} on {at_once} images of {side}x{side} at a time in {recipe.precision} "
        f"({first_informative_line(error)}).{tried} Use {'; or '.join(advice)}; or smaller images, or a smaller model. "
        "`resnetlab compare` shows which batch sizes fit."
    )


def _smaller_batch(recipe: Recipe, size: int) -> str:
    return f"--batch-size {size} --learning-rate {recipe.learning_rate * size / recipe.batch_size:g}"
