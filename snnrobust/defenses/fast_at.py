"""Adversarial training with one step, and the check that it has not overfitted to it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import PGD
from snnrobust.data import Data, batches
from snnrobust.defenses.adversarial import Adversarial, positive
from snnrobust.draws import Stream, derive, device_of, draws, evaluating
from snnrobust.learning_rules import RULES, Lent, TrainingWarning
from snnrobust.learning_rules.schedule import Schedule

__all__ = ["FastAT"]


@dataclass(frozen=True, kw_only=True)
class FastAT(Adversarial):
    r"""Learn what one long step from a random start finds.

    .. math:: x' = \Pi \big( x + \delta + \alpha \operatorname{sign} \nabla_x L(f(x + \delta), y) \big), \quad
        \delta \sim U(-\epsilon, \epsilon), \quad \alpha = 1.25 \, \epsilon

    A model can learn to answer to this very step and lose its robustness to all others within an epoch (catastrophic
    overfitting). After each epoch PGD attacks held-out samples (``pgd_accuracy`` in the history); if the accuracy is more than
    ``fall`` below that of the epoch before, the training says so, goes back to the weights before that epoch and ends.

    Args:
        step_size: :math:`\alpha`; default :math:`1.25 \epsilon`.
        fall: 1 never stops.
        check_steps: Steps of that PGD.
        check_samples: So many samples of the validation data or, without any, of the training data; the same each time.

    Warns:
        TrainingWarning: catastrophic overfitting.

    Source: Wong, Rice and Kolter 2020, "Fast is better than free: revisiting adversarial training".
    """

    name: ClassVar[str] = "FastAT"

    lr: float = 5e-3
    schedule: Schedule = "cyclic"
    step_size: float | str | None = None
    fall: float = 0.2
    check_steps: int = 10
    check_samples: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("fall", self.fall, 0.0, 1.0)
        checks.count("check_steps", self.check_steps)
        checks.count("check_samples", self.check_samples)
        object.__setattr__(self, "step_size", positive("step_size", self.step_size))

    @property
    def attack(self) -> PGD:
        size = positive("step_size", self.step_size) or 1.25 * self.budget
        return PGD(self.threat, steps=1, step_size=size, gradient=self._gradient())

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        with super().lend(model, example) as lent:
            keep, before = {}, lent.before  # type: dict[str, Tensor], Any

            def begin(stream: Stream, whole: Tensor) -> None:
                if not keep:  # the first step of an epoch
                    keep.update({name: t.detach().clone() for name, t in model.state_dict().items()})
                before(stream, whole)

            def judge(records: list[dict[str, Any]], data: Data) -> None:
                accuracy = self.pgd_accuracy(model, data)
                records[-1]["pgd_accuracy"] = accuracy
                previous = records[-2]["pgd_accuracy"] if len(records) > 1 else 0.0
                if previous - accuracy > self.fall:
                    model.load_state_dict(keep)
                    records[-1]["stopped"] = "catastrophic overfitting"
                    records[-1]["validation_accuracy"] = records[-2]["validation_accuracy"]  # of the weights that stay
                    self._warn(previous, accuracy, records[-1]["epoch"])
                keep.clear()

            lent.before, lent.judge = begin, judge
            yield lent

    def pgd_accuracy(self, model: nn.Module, data: Data) -> float:
        """On the samples of ``data`` that are checked."""
        device, right, seen = device_of(model), 0.0, 0
        attack = PGD(self.threat, steps=self.check_steps, gradient=self._gradient())
        for batch in batches(data, self.batch_size, derive(self.seed, "check")):
            left = self.check_samples - seen
            x, y, ids = batch.x[:left].to(device), batch.y[:left].to(device), batch.sample_ids[:left]
            x_adv = attack(model, x, y, seed=derive(self.seed, "check"), sample_ids=ids)
            with torch.no_grad(), evaluating(model), draws(model, derive(self.seed, "check", "judge"), ids):
                right += float((checks.call(model, x_adv, y).argmax(1) == y).sum())
            seen += len(x)
            if seen >= self.check_samples:
                break
        return right / seen

    def _warn(self, previous: float, accuracy: float, epoch: int) -> None:
        warnings.warn(
            f"catastrophic overfitting in epoch {epoch}: PGD-{self.check_steps} accuracy fell from {previous:.1%} to "
            f"{accuracy:.1%}. The training ends with the weights of epoch {epoch - 1}. Lower step_size or lr, or use PGDTraining",
            TrainingWarning,
            stacklevel=2,
        )


RULES[FastAT.name] = FastAT
