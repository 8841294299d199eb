"""What trainings on adversarial examples have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import EOT, Attack, Backprop, GradientSource, Linf, cross_entropy
from snnrobust.draws import Stream, evaluating
from snnrobust.encoders import Encoder
from snnrobust.learning_rules import BPTT, Lent

__all__ = ["Adversarial", "Given", "positive"]

Backward = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def positive(name: str, value: float | str | None) -> float | None:
    """A number or fraction greater than 0, or None."""
    return None if value is None else checks.number(name, checks.fraction(name, value), 0.0, exclusive_low=True)


class Given:
    """What the loop says of a batch before it is learnt: the source of its draws, and the ids of the whole batch."""

    stream: Stream
    whole: Tensor

    def set(self, stream: Stream, whole: Tensor) -> None:
        self.stream, self.whole = stream, whole


@dataclass(frozen=True, kw_only=True)
class Adversarial(BPTT):
    """Backpropagation of the loss at inputs that an attack has changed: a subclass gives :meth:`attack`.

    The model is attacked in eval mode, by its own backward pass (with ``surrogate``, through that). The draws of an example are
    a function of the training's seed, its step and the sample's id, so it does not depend on the batch around it.

    Args:
        eps: Budget of :class:`~snnrobust.attacks.Linf`, greater than 0.
        bounds: Its box.
        eot: Draws averaged in each gradient of the attack, for models with randomness.
    """

    eps: float | str = "8/255"
    bounds: tuple[float, float] = (0.0, 1.0)
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.eps, str | int | float):
            raise TypeError(
                f'eps must be the budget of an Linf threat, a number or a fraction "8/255", got {self.eps!r:.80}'
            )
        bounds = tuple(self.bounds) if isinstance(self.bounds, list) else self.bounds  # an experiment file has lists
        eps = checks.fraction("eps", self.eps)
        threat = Linf(eps, bounds)
        checks.number("eps", eps, 0.0, exclusive_low=True, hint="without a budget this is BPTT")
        object.__setattr__(self, "eps", eps)
        object.__setattr__(self, "bounds", threat.bounds)
        checks.count("eot", self.eot)

    @property
    def threat(self) -> Linf:
        return Linf(self.eps, self.bounds)

    @property
    def budget(self) -> float:
        return checks.fraction("eps", self.eps)

    @property
    def attack(self) -> Attack:
        """What finds the examples."""
        raise NotImplementedError

    def attacked(self, size: int) -> int:
        """How many of a batch of ``size`` are attacked: the first so many."""
        return size

    def _gradient(self) -> GradientSource:
        source = Backprop(self.precision)
        return source if self.eot == 1 else EOT(self.eot, source)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        super().refuse(model, example)
        for name, module in model.named_modules():
            if isinstance(module, Encoder) and getattr(module, "gradient", None) == "none":
                raise ValueError(
                    f'{name} ({type(module).__name__}) has gradient="none", so that no attack finds anything and {self.name} '
                    'would train on clean data: use gradient="straight_through"'
                )
        if example.is_meta:  # a rehearsal: there are no values
            return
        checks.pixels("inputs", example, bounds=self.bounds)
        with evaluating(model):
            label = torch.zeros(1, dtype=torch.int64, device=example.device)
            Backprop()(model, example, label, cross_entropy, Stream(0, torch.arange(1)))  # raises where there is none

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        with super().lend(model, example) as lent:
            given = Given()
            lent.before, lent.backward = given.set, self._robust(model, lent, given)
            yield lent

    def _robust(self, model: nn.Module, lent: Lent, given: Given) -> Backward:
        attack, learn, right = self.attack, lent.backward, [0.0, 0.0]
        lent.tally["adversarial_accuracy"] = right

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            stream = given.stream
            chosen = torch.isin(stream.sample_ids, given.whole[: self.attacked(len(given.whole))])
            inputs, on = x, chosen.to(x.device)
            if chosen.any():
                ids = stream.sample_ids[chosen]
                inputs = x.clone()
                inputs[on] = attack(model, x[on], y[on], seed=stream.key, sample_ids=ids)
            loss, logits = learn(inputs, y, scale)
            if scale > 0:  # else these samples are only there to go along
                right[0] += float((logits.argmax(1) == y)[on].sum())
                right[1] += float(chosen.sum())
            return loss, logits

        return backward
