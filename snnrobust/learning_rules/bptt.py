"""Backpropagation through time."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from snnrobust import checks
from snnrobust.data import Batch, Data, batches
from snnrobust.draws import derive, device_of, draws
from snnrobust.learning_rules.resume import load_state, save_state
from snnrobust.learning_rules.trainer import RULES, History
from snnrobust.models.description import describe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["BPTT"]

Schedule = Literal["constant", "cosine"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class BPTT:
    """Backpropagation through time with the neurons' surrogates, on the cross-entropy of the logits, by Adam.

    For a network without time this is ordinary backpropagation.

    Args:
        lr: Learning rate of Adam.
        weight_decay: Decoupled weight decay (AdamW); 0 is Adam.
        batch_size: Samples a step, over all processes. A DataLoader keeps its own.
        schedule: ``"constant"``, or ``"cosine"`` from ``lr`` to 0 over all epochs (a step each epoch).
        seed: Key of shuffling and of every draw of the model.
        precision: ``"bfloat16"`` runs the layers that gain from it in 16 bits (``torch.autocast``); weights, potentials and the
            optimiser stay in float32. It is faster where the processor has it.

    Source: Neftci, Mostafa and Zenke 2019.
    """

    name: ClassVar[str] = "BPTT"

    lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    schedule: Schedule = "constant"
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        checks.number("lr", self.lr, 0.0, exclusive_low=True)
        checks.number("weight_decay", self.weight_decay, 0.0)
        checks.count("batch_size", self.batch_size)
        checks.choice("schedule", self.schedule, get_args(Schedule))
        checks.count("seed", self.seed, low=0)
        checks.choice("precision", self.precision, get_args(Precision))

    def fit(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None = None,
        *,
        epochs: int,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        fabric: Fabric | None = None,
    ) -> History:
        """Train ``model`` in place and leave it in eval mode.

        Args:
            model: Inputs to logits ``[B, K]``.
            train: Dataset, DataLoader or pair of tensors; see :func:`snnrobust.data.batches`.
            validation: Its accuracy is recorded after each epoch.
            epochs: Passes over ``train``.
            checkpoint: File that holds the whole training state after each epoch. If it is there already, training goes on
                from it, bit for bit as if it had never stopped.
            progress: Show a progress bar.
            fabric: A launched ``lightning_fabric.Fabric`` for other devices, precisions or several processes, among which
                each batch is divided; default: the device where the model is.

        Raises:
            ValueError: empty data, bad inputs or labels, a checkpoint of another training.
            FloatingPointError: the loss is not finite.
        """
        from lightning_fabric import Fabric

        checks.module("model", model)
        checks.count("epochs", epochs)
        _preflight(model, train)
        if validation is not None:
            _preflight(model, validation)
        if fabric is None:
            device = device_of(model)
            devices: int | list[int] = 1 if device.type == "cpu" else [device.index or 0]
            precision = "bf16-mixed" if self.precision == "bfloat16" else "32-true"
            fabric = Fabric(accelerator=device.type, devices=devices, precision=precision)  # type: ignore[arg-type]
        elif self.precision != "float32":
            raise ValueError(
                f"precision is {self.precision!r}, but a fabric has its own: make that one with precision='bf16-mixed'"
            )
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        path = None if checkpoint is None else Path(checkpoint)
        identity = {"rule": self.name, **asdict(self), **({"epochs": epochs} if self.schedule == "cosine" else {})}
        identity["model"], identity["data"] = _structure(model), _digest(train)
        history = History() if path is None or not path.exists() else load_state(path, model, optimizer, identity)
        if len(history.records) > epochs:
            raise ValueError(f"{path} is already at epoch {len(history.records)}, past epochs={epochs}: raise epochs")
        parallel, parallel_optimizer = fabric.setup(model, optimizer)
        if len(history.records) < epochs:
            with _EpochBar(progress and fabric.is_global_zero, epochs) as bar:
                bar.show(history)
                for epoch in range(len(history.records), epochs):
                    for group in optimizer.param_groups:
                        group["lr"] = self.lr * (
                            0.5 * (1 + math.cos(math.pi * epoch / epochs)) if self.schedule == "cosine" else 1.0
                        )
                    began = time.perf_counter()
                    record = self._epoch(model, parallel, parallel_optimizer, train, epoch, fabric)
                    accuracy = None if validation is None else self._accuracy(model, validation, epoch, fabric)
                    seconds = time.perf_counter() - began
                    history.records.append(
                        {"epoch": epoch + 1, **record, "validation_accuracy": accuracy, "seconds": seconds}
                    )
                    if path is not None and fabric.is_global_zero:
                        save_state(path, model, optimizer, identity, history)
                    bar.show(history)
        model.eval()
        return history

    def _epoch(
        self, model: nn.Module, parallel: nn.Module, optimizer: Any, data: Data, epoch: int, fabric: Fabric
    ) -> dict[str, float]:
        model.train()
        loss_sum, correct, seen = 0.0, 0, 0
        for index, batch in enumerate(batches(data, self.batch_size, derive(self.seed, "shuffle", epoch))):
            mine, share = _shard(batch, fabric)
            x, y = mine.x.to(fabric.device), mine.y.to(fabric.device)
            with draws(model, derive(self.seed, "train", epoch, index), mine.sample_ids):
                logits = parallel(x)
                checks.labels("labels", y, len(logits), logits.shape[1])
                loss = F.cross_entropy(logits, y)
                optimizer.zero_grad()
                fabric.backward(loss * share)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch + 1}: lower lr ({self.lr})")
            optimizer.step()
            if share > 0:  # else the sample is another process's
                loss_sum += loss.item() * len(x)
                correct += int((logits.argmax(1) == y).sum())
                seen += len(x)
        total = _total(fabric, loss_sum, correct, seen)
        return {"loss": float(total[0] / total[2]), "accuracy": float(total[1] / total[2])}

    @torch.no_grad()
    def _accuracy(self, model: nn.Module, data: Data, epoch: int, fabric: Fabric) -> float:
        model.eval()
        correct, seen = 0, 0
        for index, batch in enumerate(batches(data, self.batch_size)):
            with draws(model, derive(self.seed, "validate", epoch, index), batch.sample_ids):
                logits = checks.call(model, batch.x.to(fabric.device), batch.y.to(fabric.device))
            correct += int((logits.argmax(1).cpu() == batch.y).sum())
            seen += len(batch.y)
        return correct / seen


RULES[BPTT.name] = BPTT


def _preflight(model: nn.Module, data: Data) -> None:
    """Find bad data before work is wasted: all of it where it is in memory, else its first batch."""
    tensors = data if isinstance(data, tuple) else data.tensors if isinstance(data, TensorDataset) else None
    if tensors is None:
        first = next(iter(batches(data, 2)))
        tensors = (first.x, first.y)
    x, y = tensors[0], tensors[1]
    checks.pixels("inputs", x, bounds=(-math.inf, math.inf))
    training = model.training
    device = device_of(model)
    try:
        with torch.no_grad(), draws(model.eval(), 0):
            try:
                logits = model(x[:1].to(device))
            except RuntimeError as error:
                raise ValueError(f"the model does not take inputs of shape {tuple(x.shape)}: {error}") from error
    finally:
        model.train(training)
    checks.labels("labels", y, len(x), logits.shape[1] if logits.dim() == 2 else None)
    checks.logits(logits, y[:1])


def _structure(model: nn.Module) -> Any:
    """What tells models of equal shapes apart, such as the constants of their neurons."""
    try:
        return describe(model)
    except (TypeError, AttributeError):  # of classes that have no description
        return str(model)


def _digest(data: Data) -> str:
    """Of data in memory the content, else the number of samples or batches."""
    tensors = data if isinstance(data, tuple) else data.tensors if isinstance(data, TensorDataset) else None
    if tensors is None:
        return f"{len(data)}" if hasattr(data, "__len__") else "unknown"
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shard(batch: Batch, fabric: Fabric) -> tuple[Batch, float]:
    """This process's part of a batch, and the weight that makes the mean over processes the mean over the batch."""
    size, world = len(batch.x), fabric.world_size
    part = torch.arange(fabric.global_rank, size, world)
    share = len(part) * world / size
    if len(part) == 0:  # a last batch smaller than the number of processes
        part = torch.zeros(1, dtype=torch.int64)
    return Batch(*(t[part] for t in batch)), share


def _total(fabric: Fabric, *values: float) -> Tensor:
    mine = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    return fabric.all_reduce(mine, reduce_op="sum")  # type: ignore[return-value]


class _EpochBar:
    """A progress bar of epochs, or nothing."""

    def __init__(self, visible: bool, epochs: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._progress = Progress(*columns, disable=not visible)
        self._task = self._progress.add_task("", total=epochs)

    def __enter__(self) -> _EpochBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, history: History) -> None:
        if not history.records:
            return
        last = history.last
        validation = last["validation_accuracy"]
        text = f"epoch {last['epoch']}, loss {last['loss']:.3f}, accuracy {last['accuracy']:.1%}"
        text += "" if validation is None else f", validation {validation:.1%}"
        self._progress.update(self._task, completed=last["epoch"], description=text)
