"""The one training loop: minibatches, schedule, data-parallel, resume. A rule says what the gradient of a batch is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.data import Batch, Data, batches, count_batches
from snnrobust.draws import Stream, derive, device_of, draws
from snnrobust.layers.synchronised import synchronised
from snnrobust.learning_rules.activity import Activity
from snnrobust.learning_rules.own_gradient import OwnGradient
from snnrobust.learning_rules.parallel import Alone, broadcast, reduce_gradients, shard, total
from snnrobust.learning_rules.preflight import digest, plain, preflight, streamed, structure
from snnrobust.learning_rules.progress import Bar, Log, check_log
from snnrobust.learning_rules.resume import load_state, put_back, save_state, weights_of
from snnrobust.learning_rules.schedule import Schedule, scheduled
from snnrobust.learning_rules.trainer import History

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Lent", "Supervised"]

Precision = Literal["float32", "bfloat16"]
Optimizer = Literal["adam", "sgd"]
Keep = Literal["last", "best"]
_WATCH = 50  # every so many steps the neurons are watched, which costs about one step in a hundred
_AGAIN = 5  # sooner, where one looks dead


@dataclass
class Lent:
    """What a rule lends to a model while it trains.

    Attributes:
        backward: ``(x, y, scale) -> (mean loss, logits [B, K])``; adds ``scale`` times the rule's gradient of the mean loss to
            ``.grad`` of what is learnt.
        learnt: Modules that are learnt, saved and resumed beside the model.
        after: Called after each step of the optimizer.
        activity: Given by a rule that runs the neurons itself and reports what they fire with ``activity.see``.
        before: Called before each ``backward`` with the source of its draws, and with the sample ids of the whole batch, of
            which it may get a part.
        judge: Called after each epoch with the records so far, and with the validation data or, without any, the training
            data. It may add to the last record; a key ``stopped`` ends the training.
        tally: Sum and number of what the rule counts while it trains; their means over an epoch enter its record.
        online: The rule takes time steps one by one, in memory that does not grow with them: so does the validation.
    """

    backward: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
    learnt: nn.Module = field(default_factory=nn.Module)
    after: Callable[[], None] | None = None
    activity: Activity | None = None
    before: Callable[[Stream, Tensor], None] | None = None
    judge: Callable[[list[dict[str, Any]], Data], None] | None = None
    tally: dict[str, list[float]] = field(default_factory=dict)
    online: bool = False


@dataclass(frozen=True, kw_only=True)
class Supervised(OwnGradient):
    """Base of trainers by minibatches: a subclass implements :meth:`lend`, and perhaps :meth:`refuse`.

    Args:
        lr: Learning rate.
        weight_decay: Decoupled from the gradient by Adam (AdamW), added to it by SGD.
        batch_size: Samples a step, over all processes. A DataLoader keeps its own.
        schedule: Of ``lr`` over the training. ``"constant"``; ``"cosine"`` to 0, a step each epoch; ``"step"``: divided by 10 at
            50, 70 and 90 % of the epochs; ``"cyclic"``: up from 0 over the first 40 % of the steps and down to 0, linearly. See
            :func:`~snnrobust.learning_rules.schedule.scheduled`.
        seed: Key of shuffling, of every draw of the model and of all that is random in the rule.
        precision: ``"bfloat16"`` runs the layers that gain from it in 16 bits (``torch.autocast``); weights, potentials and the
            optimiser stay in float32. It is faster where the processor has it.
        optimizer: ``"adam"`` or ``"sgd"``.
        momentum: Of SGD.
        clip: Largest norm of the gradient of all parameters together; None is no limit.
        accumulate: Parts into which a batch is divided to save memory; a smaller last batch into fewer. The step is the same, but
            for batch normalisation, whose statistics are those of a part.
        patience: Stop after so many epochs without a better validation accuracy; None never stops early.
        keep: ``"best"`` ends with the weights of the epoch with the best validation accuracy, ``"last"`` with the last.
    """

    name: ClassVar[str]
    needs: ClassVar[Mapping[str, Any]] = {}

    lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    schedule: Schedule = "constant"
    seed: int = 0
    precision: Precision = "float32"
    optimizer: Optimizer = "adam"
    momentum: float = 0.9
    clip: float | None = None
    accumulate: int = 1
    patience: int | None = None
    keep: Keep = "last"

    def __post_init__(self) -> None:
        checks.number("lr", self.lr, 0.0, exclusive_low=True)
        checks.number("weight_decay", self.weight_decay, 0.0)
        checks.number("momentum", self.momentum, 0.0, 1.0)
        checks.count("batch_size", self.batch_size)
        checks.count("accumulate", self.accumulate)
        checks.count("seed", self.seed, low=0)
        for name, options in (
            ("schedule", Schedule),
            ("precision", Precision),
            ("optimizer", Optimizer),
            ("keep", Keep),
        ):
            checks.choice(name, getattr(self, name), get_args(options))
        if self.clip is not None:
            checks.number("clip", self.clip, 0.0, exclusive_low=True)
        if self.patience is not None:
            checks.count("patience", self.patience)

    def lend(self, model: nn.Module, example: Tensor) -> AbstractContextManager[Lent]:
        """Inside the context ``model`` has the rule's backward pass.

        Args:
            model: Already on its device, and what :meth:`refuse` let through.
            example: One input ``[1, *]``.
        """
        raise NotImplementedError

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
        log: str | Path | None = None,
    ) -> History:
        """Train ``model`` in place and leave it in eval mode, with the backward pass that it had before.

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
            log: Folder for TensorBoard.

        Raises:
            ValueError, TypeError: empty data, bad inputs or labels, a model that the rule cannot train, a checkpoint of
                another training.
            FloatingPointError: the loss is not finite.

        Warns:
            TrainingWarning: a layer does not fire any more, or always.
        """
        checks.module("model", model)
        checks.count("epochs", epochs)
        example = preflight(model, train)
        if validation is not None:
            preflight(model, validation, "validation ")
        elif self.patience is not None or self.keep == "best":
            raise ValueError("patience and keep='best' go by the validation accuracy: give validation data")
        check_log(log)
        self.refuse(model, example)
        processes = self._fabric(model, fabric)
        path = None if checkpoint is None else Path(checkpoint)
        identity = {} if path is None else self._identity(model, train, validation, epochs)
        modes = [(m, m.training) for m in model.modules()]
        processes.to_device(model)
        try:
            with self.lend(model, example.to(processes.device)) as lent:
                processes.to_device(lent.learnt)
                broadcast(processes, model, lent.learnt)
                run = _Run(self, model, lent, processes, epochs)
                if path is not None and path.exists():
                    run.history, run.best = load_state(path, model, run.optimizer, identity, lent.learnt)
                if len(run.history.records) > epochs:
                    raise ValueError(
                        f"{path} is already at epoch {len(run.history.records)}, past epochs={epochs}: raise epochs"
                    )
                self._epochs(run, train, validation, path, identity, progress, log)
                if self.keep == "best" and run.best is not None:
                    put_back(run.best, model, lent.learnt)
                run.history.learnt = {name: t.detach().clone() for name, t in lent.learnt.state_dict().items()}
        except BaseException:
            for module, training in modes:
                module.training = training
            raise
        finally:
            model.zero_grad(set_to_none=True)  # a rule's gradient is not the model's
        model.eval()
        return run.history

    def _identity(self, model: nn.Module, train: Data, validation: Data | None, epochs: int) -> dict[str, Any]:
        """What has to be the same for a training to go on from a checkpoint."""
        found = {"rule": self.name, **plain(self), "model": structure(model), "data": digest(train)}
        found["frozen"] = [name for name, p in model.named_parameters() if not p.requires_grad]
        if self.schedule != "constant":
            found["epochs"] = epochs
        if validation is not None and (self.keep == "best" or self.patience is not None):
            found["validation"] = digest(validation)
        return found

    def _epochs(
        self,
        run: _Run,
        train: Data,
        validation: Data | None,
        path: Path | None,
        identity: dict[str, Any],
        progress: bool,
        log: str | Path | None,
    ) -> None:
        records, first = run.history.records, run.fabric.is_global_zero
        logged = Log(log if first else None)
        bar = Bar(progress and first, self.name, train, self.batch_size, run.epochs, run.history)
        try:
            with bar if len(records) < run.epochs else nullcontext():
                while len(records) < run.epochs and not self._exhausted(records):
                    began = time.perf_counter()
                    record = run.epoch(train, len(records), bar)
                    accuracy = None if validation is None else run.accuracy(validation, len(records))
                    records.append({**record, "validation_accuracy": accuracy})
                    if run.lent.judge is not None:
                        run.lent.judge(records, train if validation is None else validation)
                    records[-1]["seconds"] = time.perf_counter() - began
                    if self.keep == "best" and _best(records) == len(records) - 1:
                        run.best = {n: t.detach().clone() for n, t in weights_of(run.model, run.lent.learnt).items()}
                    if path is not None and first:
                        save_state(path, run.model, run.optimizer, identity, run.history, run.lent.learnt, run.best)
                    bar.epoch(records[-1])
                    logged.epoch(records[-1])
        finally:
            logged.close()
        if run.fabric.world_size > 1:
            run.fabric.barrier()  # nobody goes on, perhaps to read the file, before it is written

    def _exhausted(self, records: list[dict[str, Any]]) -> bool:
        if records and "stopped" in records[-1]:
            return True
        return bool(records) and self.patience is not None and len(records) - 1 - _best(records) >= self.patience

    def _fabric(self, model: nn.Module, fabric: Fabric | None) -> Fabric | Alone:
        if fabric is None:
            return Alone(device_of(model), self.precision == "bfloat16")
        if self.precision != "float32":
            raise ValueError(
                f"precision is {self.precision!r}, but a fabric has its own: make that one with precision='bf16-mixed'"
            )
        own = fabric._precision.precision
        if own not in ("32-true", "64-true", "bf16-mixed"):
            raise ValueError(f"fabric has precision {own!r}: use '32-true' or 'bf16-mixed', which train alike here")
        if own == "64-true" and any(p.dtype not in (torch.float64, torch.complex128) for p in model.parameters()):
            raise ValueError(
                "fabric has precision '64-true', and the model has other weights: call model.double(), give inputs in float64"
            )
        if fabric.world_size > 1 and not dist.is_initialized():
            raise ValueError(
                f"fabric is for {fabric.world_size} processes and not launched: call fabric.launch() first"
            )
        return fabric


class _Run:
    """A training that is going on."""

    def __init__(self, rule: Supervised, model: nn.Module, lent: Lent, fabric: Fabric | Alone, epochs: int) -> None:
        self.rule, self.model, self.lent, self.fabric, self.epochs = rule, model, lent, fabric, epochs
        parameters = {id(p): p for m in (model, lent.learnt) for p in m.parameters() if p.requires_grad}
        self.parameters = list(parameters.values())
        if not self.parameters:
            raise ValueError("the model has no parameter with requires_grad=True: there is nothing to learn")
        self.optimizer: torch.optim.Optimizer
        if rule.optimizer == "adam":
            self.optimizer = torch.optim.AdamW(self.parameters, lr=rule.lr, weight_decay=rule.weight_decay)
        else:
            self.optimizer = torch.optim.SGD(
                self.parameters, lr=rule.lr, momentum=rule.momentum, weight_decay=rule.weight_decay
            )
        self.size = 0  # samples of a part of a batch, known from the first
        self.history, self.best = History(), None  # type: History, dict[str, Tensor] | None
        self.activity = Activity(model) if lent.activity is None else lent.activity

    def epoch(self, data: Data, epoch: int, bar: Bar) -> dict[str, Any]:
        self.model.train()
        loss_sum, correct, seen, rule = 0.0, 0.0, 0, self.rule
        steps, lr = count_batches(data, rule.batch_size), rule.lr
        for index, batch in enumerate(batches(data, rule.batch_size, derive(rule.seed, "shuffle", epoch))):
            within = 0.5 if steps is None else min((index + 0.5) / steps, 1.0)
            lr = scheduled(rule.schedule, rule.lr, epoch, self.epochs, within)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            watched = index % _WATCH == 0 or (self.activity.suspects and index % _AGAIN == 0)
            with self.activity.watching(self.lent.activity is None) if watched else nullcontext():
                loss, right = self._step(batch, derive(rule.seed, "train", epoch, index), watched)
            if watched:
                self.activity.judge(epoch, index, partial(total, self.fabric), self.fabric.is_global_zero)
            if not (math.isfinite(loss) or batch.x.isfinite().all()):
                raise ValueError(
                    f"inputs of batch {index + 1} in epoch {epoch + 1} hold NaN or infinity: mend the data"
                )
            self._demand_finite(loss, "loss", epoch)
            if rule.clip is not None:
                self._demand_finite(float(nn.utils.clip_grad_norm_(self.parameters, rule.clip)), "gradient", epoch)
            self.optimizer.step()
            if self.lent.after is not None:
                self.lent.after()
            loss_sum, correct, seen = loss_sum + loss * len(batch.x), correct + right, seen + len(batch.x)
            bar.batch(epoch, loss_sum / seen, correct / seen, len(batch.x))
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            self._demand_finite(math.nan, "largest weight", epoch)
        rates, rate = self.activity.rates()
        found = {"epoch": epoch + 1, "loss": loss_sum / seen, "accuracy": correct / seen}
        return {**found, **self._tallied(), "spike_rate": rate, "rates": rates, "lr": lr}

    def _tallied(self) -> dict[str, float | None]:
        """Means of what the rule has counted since the last call; None of nothing."""
        found: dict[str, float | None] = {}
        for name, counted in self.lent.tally.items():
            value, number = total(self.fabric, *counted)
            found[name] = value / number if number else None
            counted[:] = 0.0, 0.0
        return found

    def _demand_finite(self, value: float, what: str, epoch: int) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} in epoch {epoch + 1}: lower lr ({self.rule.lr}), or limit the gradient with clip"
            )

    def _step(self, batch: Batch, key: int, watched: bool) -> tuple[float, float]:
        """Leave the gradient of the whole batch in the parameters; its mean loss and the number of right predictions."""
        self.optimizer.zero_grad()
        loss_sum = correct = 0.0
        for part, counted in self._parts(batch):
            x, y = part.x.to(self.fabric.device), part.y.to(self.fabric.device)
            scale = counted * len(x) / len(batch.x)
            if self.lent.before is not None:
                self.lent.before(Stream(key, part.sample_ids), batch.sample_ids)
            self.activity.on = watched and counted
            with draws(self.model, key, part.sample_ids), self._together(counted), self.fabric.autocast():
                loss, logits = self.lent.backward(x, y, scale)
            if counted:
                loss_sum += float(loss.detach()) * scale
                correct += int((logits.argmax(1) == y).sum())
        if self.fabric.world_size > 1:
            reduce_gradients(self.fabric, self.parameters)
            loss_sum, correct = total(self.fabric, loss_sum, correct)
        return loss_sum, correct

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, bool]]:
        """This process's share of each part of a batch; where it has none, a sample that does not count, to go along."""
        self.size = self.size or -(-len(batch.x) // self.rule.accumulate)
        split = -(-len(batch.x) // self.size)
        parts = [batch] if split == 1 else map(Batch._make, zip(*(t.tensor_split(split) for t in batch), strict=True))
        for part in parts:
            mine = shard(part, self.fabric)
            if len(mine.x):
                yield mine, True
            elif len(part.x):
                yield Batch(*(t[:1] for t in part)), False

    def _together(self, counted: bool) -> AbstractContextManager[None]:
        return nullcontext() if self.fabric.world_size == 1 else synchronised(self.model, counted)

    @torch.no_grad()
    def accuracy(self, data: Data, epoch: int) -> float:
        self.model.eval()
        correct, seen = 0.0, 0
        for index, batch in enumerate(batches(data, self.rule.batch_size)):
            seen += len(batch.x)
            mine = shard(batch, self.fabric)
            if len(mine.x) == 0:
                continue
            x, y = mine.x.to(self.fabric.device), mine.y.to(self.fabric.device)
            with draws(self.model, derive(self.rule.seed, "validate", epoch, index), mine.sample_ids):
                logits = (
                    checks.logits(streamed(self.model, x), y) if self.lent.online else checks.call(self.model, x, y)
                )
            correct += float((logits.argmax(1) == y).sum())
        (correct,) = total(self.fabric, correct)
        return correct / seen


def _best(records: list[dict[str, Any]]) -> int:
    """The first epoch with the best validation accuracy."""
    found = [record["validation_accuracy"] for record in records]
    return found.index(max(found))
