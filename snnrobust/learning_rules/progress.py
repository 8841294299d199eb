"""What a user sees of a training: a bar, and TensorBoard where it is asked for."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from snnrobust.data import Data, count_batches
from snnrobust.learning_rules.trainer import History

__all__ = ["Bar", "Log", "check_log"]


class Bar:
    """A progress bar over all steps, or nothing; in text: epoch, loss, accuracy, spike rate, samples a second, validation."""

    def __init__(self, visible: bool, label: str, data: Data, batch_size: int, epochs: int, history: History) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(14), TextColumn("{task.description}"), TimeRemainingColumn())  # fits 80 characters
        self._progress, self._label = Progress(*columns, disable=not visible), label
        self._steps, self._epochs, self._visible = count_batches(data, batch_size), epochs, visible
        total = None if self._steps is None else self._steps * epochs
        done = len(history.records) * (self._steps or 0)
        self._task = self._progress.add_task("", total=total, completed=done)
        self._seen, self._spent = 0, 0.0  # samples, and seconds of training without validation
        self._shown = self._mark = time.perf_counter()
        self._rate: float | None = None
        self._validation = ""

    def __enter__(self) -> Bar:
        self._progress.start()
        self._mark = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def batch(self, epoch: int, loss: float, accuracy: float, samples: int) -> None:
        if not self._visible:
            return
        self._progress.update(self._task, advance=1)
        now = time.perf_counter()
        self._seen, self._spent, self._mark = self._seen + samples, self._spent + now - self._mark, now
        if now - self._shown > 0.2:
            self._shown = now
            self._describe(epoch, loss, accuracy)

    def epoch(self, record: dict[str, Any]) -> None:
        self._mark = time.perf_counter()
        self._rate = record["spike_rate"]
        found = record["validation_accuracy"]
        self._validation = "" if found is None else f", validation {found:.1%}"
        if self._steps is not None:
            self._progress.update(self._task, completed=record["epoch"] * self._steps)
        self._describe(record["epoch"] - 1, record["loss"], record["accuracy"])

    def _describe(self, epoch: int, loss: float, accuracy: float) -> None:
        speed = f", {self._seen / self._spent:,.0f} samples/s" if self._spent else ""
        rate = "" if self._rate is None else f", firing {self._rate:.1%}"
        known = "" if math.isnan(loss) else f", loss {loss:.3f}, accuracy {accuracy:.1%}"  # nan: a rule without labels
        text = f"epoch {epoch + 1}{known}{self._validation}"
        self._progress.update(self._task, description=f"{text}\nby {self._label}{rate}{speed}")


def check_log(folder: str | Path | None) -> None:
    """Raise ImportError if TensorBoard is asked for and is not there."""
    if folder is not None:
        _writer()


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("log= needs TensorBoard: pip install 'snnrobust[logging]'") from error
    return SummaryWriter


class Log:
    """TensorBoard's scalars in ``folder``, one point an epoch; nothing without a folder."""

    def __init__(self, folder: str | Path | None) -> None:
        self._writer: Any = None if folder is None else _writer()(str(folder))

    def epoch(self, record: dict[str, Any]) -> None:
        if self._writer is None:
            return
        values = {k: record[k] for k in ("loss", "accuracy", "validation_accuracy", "spike_rate", "lr", "seconds")}
        values |= {f"rates/{name}": rate for name, rate in record["rates"].items()}
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, record["epoch"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
