"""Progress of long work: the protocol, and how it is shown in a terminal, in a notebook, or only logged."""

from __future__ import annotations

import atexit
import html
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

from resnetlab.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

Record = Mapping[str, Any]  # of an epoch, as in metrics.jsonl
CountCallback = Callable[[int, int], None]  # done, total
ESTIMATE_AFTER = 10.0  # seconds of training, after which its duration is estimated
logger = logging.getLogger("resnetlab")


@runtime_checkable
class Progress(Protocol):
    """An object that is notified of the progress of training and other long tasks. Calls may come from another thread.

    Training calls `start`, `step` after each training step, `epoch` after each epoch, and `stop` at the end, also
    after an error.
    """

    def info(self, text: str) -> None:
        """A message about the current task."""

    def warning(self, text: str) -> None:
        """A message about a condition that may affect the result."""

    def count(self, task: str, done: int, total: int) -> None:
        """`done` of `total` items of a task, such as "decoding", are finished."""

    def start(self, epochs: int, steps_per_epoch: int, batch_size: int, step: int) -> None:
        """Training starts, or resumes, at `step`."""

    def step(self, step: int, logs: Mapping[str, float]) -> None:
        """`step` training steps are finished; `logs` has the running loss and accuracy of the epoch."""

    def epoch(self, record: Record, *, best: bool) -> None:
        """An epoch is finished; `best`: its validation loss is the lowest so far."""

    def stop(self) -> None:
        """Training has ended, finished or not."""


class LogProgress:
    """Shows nothing: messages and epochs go to the logger "resnetlab"."""

    def info(self, text: str) -> None:
        logger.info(text)

    def warning(self, text: str) -> None:
        logger.warning(text)

    def count(self, task: str, done: int, total: int) -> None:
        pass

    def start(self, epochs: int, steps_per_epoch: int, batch_size: int, step: int) -> None:
        self.epochs = epochs

    def step(self, step: int, logs: Mapping[str, float]) -> None:
        pass

    def epoch(self, record: Record, *, best: bool) -> None:
        logger.info(format_epoch(record, self.epochs, best=best))

    def stop(self) -> None:
        pass


class WithoutMessages(LogProgress):
    """The progress of another one, without its messages: what they say was shown before."""

    def __init__(self, progress: Progress) -> None:
        self.warning, self.count = progress.warning, progress.count  # type: ignore[method-assign]

    def info(self, text: str) -> None:
        pass


class _Clock:
    """Training speed, averaged over intervals of at least half a second, and the current epoch."""

    def __init__(self, epochs: int, steps_per_epoch: int, batch_size: int) -> None:
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.batch_size, self.total = batch_size, epochs * steps_per_epoch
        self.speed = 0.0
        self.reset()

    def reset(self) -> None:
        """Begin anew with the end of the next step: it may trace and compile the network, or follow a validation."""
        self.time: float | None = None

    def update(self, step: int) -> bool:
        """Update `speed` if half a second has passed since the last update; returns whether it was updated."""
        now = time.perf_counter()
        if self.time is None:
            self.time, self.first = now, step
        if now - self.time < 0.5:
            return False
        self.speed = (step - self.first) * self.batch_size / (now - self.time)
        self.time, self.first = now, step
        return True

    def epoch(self, step: int) -> int:
        return min((step - 1) // self.steps_per_epoch + 1, self.epochs)


class TerminalProgress(LogProgress):
    """A bar in a terminal, and a line for each epoch; the bar is left out where output is not a terminal.

    Args:
        console: for messages and epochs; by default stderr.
        warnings: for warnings and the bar of `count`; by default stderr.
    """

    def __init__(self, console: Console | None = None, warnings: Console | None = None) -> None:
        from rich.console import Console

        self.warnings = warnings or Console(stderr=True)
        self.console = console or self.warnings
        self._bar: Any = None

    def info(self, text: str) -> None:
        self._print(self.console, text)

    def warning(self, text: str) -> None:
        self._print(self.warnings, f"warning: {text}")

    def _print(self, console: Console, text: str) -> None:
        text = wrap(text, terminal_width(console.file))
        console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def count(self, task: str, done: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            console = self.warnings
            self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self._task = self._bar.add_task(task, total=total)
            self._show()
        self._bar.update(self._task, completed=done, total=total)
        if done >= total:
            self.stop()

    def start(self, epochs: int, steps_per_epoch: int, batch_size: int, step: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.stop()
        self.epochs, self.clock = epochs, _Clock(epochs, steps_per_epoch, batch_size)
        self._estimate_at: float | None = time.perf_counter() + ESTIMATE_AFTER
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f} %  {task.fields[logs]}  {task.fields[speed]:,.0f} images/s  left"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(
            "train", total=self.clock.total, completed=step, epoch=f"1/{epochs}", logs="", speed=0.0
        )
        self._show()

    def step(self, step: int, logs: Mapping[str, float]) -> None:
        if self.clock.update(step) and self._estimate_at and time.perf_counter() > self._estimate_at:
            self._estimate_at = None
            seconds = (self.clock.total - step) * self.clock.batch_size / self.clock.speed
            self.info(f"about {format_duration(seconds)} at {self.clock.speed:,.0f} images/s, without validation")
        loss = f"loss {float(logs['loss']):.4f}" if "loss" in logs else ""
        epoch = f"{self.clock.epoch(step)}/{self.epochs}"
        self._bar.update(self._task, completed=step, epoch=epoch, logs=loss, speed=self.clock.speed)

    def epoch(self, record: Record, *, best: bool) -> None:
        self.info(format_epoch(record, self.epochs, best=best))
        self.clock.reset()

    def _show(self) -> None:
        """Show the bar; the cursor that it hides is shown again, however the process ends."""
        self._bar.start()
        atexit.register(self._bar.stop)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            atexit.unregister(self._bar.stop)
            self._bar = None


class NotebookProgress(LogProgress):
    """A bar and the lines of messages and epochs, in the output of a notebook's cell."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._handle: Any = None
        self._bar = ""
        self._shown = 0.0

    def info(self, text: str) -> None:
        self._lines.append(text)
        self._show()

    def warning(self, text: str) -> None:
        self.info(f"warning: {text}")

    def count(self, task: str, done: int, total: int) -> None:
        self._set_bar(f"{task} {done:,}/{total:,}", done, total)
        if done >= total:
            self.stop()
        elif time.perf_counter() - self._shown > 0.5:
            self._show()

    def start(self, epochs: int, steps_per_epoch: int, batch_size: int, step: int) -> None:
        self.epochs, self.clock = epochs, _Clock(epochs, steps_per_epoch, batch_size)

    def step(self, step: int, logs: Mapping[str, float]) -> None:
        if not self.clock.update(step):
            return
        loss = f", loss {float(logs['loss']):.4f}" if "loss" in logs else ""
        text = f"epoch {self.clock.epoch(step)}/{self.epochs}{loss}, {self.clock.speed:,.0f} images/s"
        self._set_bar(text, step, self.clock.total)
        self._show()

    def epoch(self, record: Record, *, best: bool) -> None:
        self.info(format_epoch(record, self.epochs, best=best))
        self.clock.reset()

    def stop(self) -> None:
        self._bar = ""
        self._show()

    def _set_bar(self, text: str, done: int, total: int) -> None:
        self._bar = f'<div><progress value="{done}" max="{total}"></progress> {html.escape(text)}</div>'

    def _show(self) -> None:
        from IPython.display import HTML, display

        self._shown = time.perf_counter()
        content = HTML(f"<pre>{html.escape(chr(10).join(self._lines))}</pre>{self._bar}")
        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


def format_epoch(record: Record, epochs: int, *, best: bool) -> str:
    """One line on an epoch, marked with * if it is the best so far."""
    number = f"{record['epoch']:{len(str(epochs))}}/{epochs}"
    line = f"epoch {number}  loss {record['loss']:.4f}  top-1 {record['accuracy']:6.1%}"
    if "val_loss" in record:
        line += f"  val {record['val_loss']:.4f}  {record['val_top1']:6.1%}"
    return f"{line}  {record['images_per_second']:,.0f} images/s" + (" *" if best else "")


def format_count(number: int, noun: str) -> str:
    """A number and its noun: "1 core", "1,024 cores"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_duration(seconds: float) -> str:
    """Seconds in the unit that people would choose: "8.1 s", "25 min", "3.2 h"."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return (
        f"{seconds / 60:.1f} min"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def wrap(text: str, width: int | None, indent: int | None = None) -> str:
    """Break the lines that are longer than `width` between words, and never inside a command in `backticks`.

    Args:
        width: columns; None, as `terminal_width` gives for a file, leaves the text as it is.
        indent: of what continues a line; by default two more than the line's own.
    """
    if width is None or width < 20:  # below that, nothing sensible can be done
        return text
    lines = []
    for line in text.split("\n"):
        start = line[: len(line) - len(line.lstrip())]
        continued = " " * (len(start) + 2 if indent is None else indent)
        joined = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", "\0"), line.strip())
        words, gaps = (re.split(r"(\s+)", joined)[first::2] for first in (0, 1))
        current = start
        for gap, word in zip(["", *gaps], words, strict=True):
            if current.strip() and cell_width(current + gap + word) > width:
                lines.append(current)
                current = continued + word
            else:
                current += gap + word
        lines.append(current)
    return "\n".join(lines).replace("\0", " ")


def terminal_width(stream: IO[str] | None = None) -> int | None:
    """Columns of the terminal that a stream (stdout) is, or that $COLUMNS states; None in a file or a pipe."""
    if "COLUMNS" not in os.environ and not (stream or sys.stdout).isatty():
        return None
    return shutil.get_terminal_size().columns


def cell_width(text: str) -> int:
    """Columns of a terminal that a text takes: East Asian characters take two."""
    from rich.cells import cell_len

    return cell_len(text)


def make_progress(progress: Progress | str | None) -> Progress:
    """The `Progress` object for a `progress` argument: "auto", None or an object with its methods.

    "auto" shows a progress bar in a notebook or a terminal; elsewhere it is the same as None: messages go to the
    logger "resnetlab" (by default Python prints its warnings), and nothing else is printed.

    Raises:
        UsageError: any other value.
    """
    if progress is None:
        return LogProgress()
    if progress == "auto":
        if _in_notebook():
            return NotebookProgress()
        return TerminalProgress() if sys.stderr is not None and sys.stderr.isatty() else LogProgress()
    if isinstance(progress, Progress):
        return progress
    raise UsageError(f"Received progress={progress!r}, expected 'auto', None, or an object like resnetlab.Progress.")


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
