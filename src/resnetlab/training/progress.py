"""Training as a terminal shows it: a bar with images/s and the time that remains, and one line per epoch."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TerminalProgress:
    """Where output is not a terminal, the bar is left out and the lines remain."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f} %  {task.fields[logs]}  {task.fields[speed]:,.0f} images/s  left"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> TerminalProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def start(self, epochs: int, steps_per_epoch: int, batch_size: int, step: int) -> None:
        self.epochs, self.steps_per_epoch, self.batch_size = epochs, steps_per_epoch, batch_size
        self.clock, self.clock_step = time.perf_counter(), step
        self.speed = 0.0
        self.task = self.bar.add_task(
            "train", total=epochs * steps_per_epoch, completed=step, epoch=f"1/{epochs}", logs="", speed=0.0
        )

    def step(self, step: int, logs: dict[str, float]) -> None:
        now = time.perf_counter()
        if now - self.clock > 0.5:
            self.speed = (step - self.clock_step) * self.batch_size / (now - self.clock)
            self.clock, self.clock_step = now, step
        shown = f"loss {float(logs['loss']):.4f}" if "loss" in logs else ""
        epoch = f"{min((step - 1) // self.steps_per_epoch + 1, self.epochs)}/{self.epochs}"
        self.bar.update(self.task, completed=step, epoch=epoch, logs=shown, speed=self.speed)

    def epoch(self, record: dict[str, Any], *, best: bool) -> None:
        width = len(str(self.epochs))
        line = (
            f"epoch {record['epoch']:{width}}/{self.epochs}  loss {record['loss']:.4f}  top-1 {record['accuracy']:6.1%}"
        )
        if "val_loss" in record:
            line += f"  |  validation loss {record['val_loss']:.4f}  top-1 {record['val_top1']:6.1%}"
        line += f"  |  {record['images_per_second']:,.0f} images/s  {record['seconds']:.1f} s"
        self.console.print(line + ("  *" if best else ""), highlight=False, soft_wrap=True)
        self.clock, self.clock_step = time.perf_counter(), record["step"]

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)
