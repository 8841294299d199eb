"""Zeroth-order estimates for the first layers, backpropagation for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import derive, normal
from snnrobust.learning_rules.chain import Chain, chain
from snnrobust.learning_rules.losses import LOSSES, Answer
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES
from snnrobust.models import SpikingClassifier

__all__ = ["ElasticZO"]

Section = Sequence[nn.Module]
_WORD = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class ElasticZO(Supervised):
    r"""SPSA on the first C synaptic layers, backpropagation (through time) on the others.

    .. math:: g = \frac{L(\theta + \epsilon z) - L(\theta - \epsilon z)}{2 \epsilon}, \quad \nabla_\theta L \approx g z, \quad
        z \sim \mathcal{N}(0, I)

    With the first C layers go all parameters before them and up to layer C + 1, such as those of normalisations. :math:`z` is
    drawn again from its key wherever it is needed; weights are never moved in place, so nothing has to be restored. Both losses
    are under the same draws of the model and leave running statistics alone: those, the gradient of the other layers and the
    reported loss are of one more pass with the weights as they are, whose graph begins after the first C layers.

    Args:
        zeroth: C. 0 is BPTT; with all synaptic layers there is no backward pass.
        eps: :math:`\epsilon` > 0. In a network of spikes the loss is piecewise constant in :math:`\theta`: there this is the
            width over which it is smoothed, and must not be tiny.
        samples: Directions whose estimates are averaged; each costs two forward passes.
        loss: As in :class:`~snnrobust.learning_rules.BPTT`.

    Source: Sugiura and Matsutani 2025, "ElasticZO: A memory-efficient on-device learning with combined zeroth- and first-order
    optimization"; SPSA: Spall 1992. They take the backward pass of a perturbed network; here it is that of the network itself.
    """

    name: ClassVar[str] = "ElasticZO"

    zeroth: int = 1
    eps: float = 1e-2
    samples: int = 1
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count("zeroth", self.zeroth, low=0)
        checks.number("eps", self.eps, 0.0, exclusive_low=True)
        checks.count("samples", self.samples)
        checks.choice("loss", self.loss, LOSSES)

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        found = chain(model, self.name)
        if self.zeroth > len(found.blocks):
            raise ValueError(
                f"zeroth is {self.zeroth}, but the model has {len(found.blocks)} synaptic layers: use 0..{len(found.blocks)}"
            )
        if not isinstance(model, SpikingClassifier) and self.loss != "cross_entropy":
            raise ValueError(f"loss {self.loss!r} is of outputs over time, and the model has none: use 'cross_entropy'")
        first, rest = self._divided(found)
        shared = {id(p) for p in _parameters(first)} & {id(p) for part in rest for p in part.parameters()}
        if shared:
            raise ValueError("the first layers and the rest share a parameter: give each its own, or use zeroth=0")

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        found = chain(model, self.name)
        first, rest = self._divided(found)
        names = {id(p): name for name, p in model.named_parameters()}
        moved = list({id(p): p for p in _parameters(first)}.values())
        counter = nn.Module()
        counter.register_buffer("step", torch.zeros((), dtype=torch.int64))
        step: Tensor = counter.step  # type: ignore[assignment]

        def noise(p: Tensor, sample: int) -> Tensor:
            return _noise(derive(self.seed, "direction", int(step), sample, names[id(p)]), p)

        def loss_at(encoded: Tensor, y: Tensor, shift: Callable[[Tensor], Tensor]) -> float:
            with torch.no_grad(), _same_draws(encoded):
                h = encoded
                for section in first:
                    with _shifted(section, shift):
                        h = found.run(section, h)
                return float(LOSSES[self.loss](_answer(found, rest, h), y))

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            encoded = x if found.encoder is None else found.encoder(x)
            with _same_draws(encoded):
                with torch.set_grad_enabled(not first and torch.is_grad_enabled()):
                    h = found.run([m for section in first for m in section], encoded) if first else encoded
                with torch.set_grad_enabled(bool(rest) and torch.is_grad_enabled()):
                    given = _answer(found, rest, h)
                    loss = LOSSES[self.loss](given, y)
            if loss.requires_grad:  # before other passes, which would change statistics that the graph may hold
                with torch.autocast(x.device.type, enabled=False):  # backwards, types are those of the forward pass
                    (loss * scale).backward()
            loss, logits = loss.detach(), given.logits.detach()
            del given, h
            with _statistics_kept(model):
                for sample in range(self.samples if moved else 0):

                    def shift(p: Tensor, sample: int = sample) -> Tensor:
                        return noise(p, sample) * self.eps

                    difference = loss_at(encoded, y, shift) - loss_at(encoded, y, lambda p: -shift(p))
                    slope = scale * difference / (2 * self.eps * self.samples)
                    for p in moved:
                        estimate = noise(p, sample).mul_(slope)
                        p.grad = estimate if p.grad is None else p.grad.add_(estimate)
            return loss, logits

        def count() -> None:
            step.add_(1)

        yield Lent(backward, learnt=counter, after=count)

    def _divided(self, found: Chain) -> tuple[list[Section], list[nn.Module]]:
        """Sections of the first layers, and the parts of the rest."""
        if self.zeroth == 0:
            return [], [*found.head, *(m for block in found.blocks for m in block.modules)]
        sections = [found.head, *(block.modules for block in found.blocks[: self.zeroth])]
        return [s for s in sections if s], [m for block in found.blocks[self.zeroth :] for m in block.modules]


def _answer(found: Chain, rest: Section, h: Tensor) -> Answer:
    outputs = found.run(rest, h) if rest else h
    return Answer(outputs, None) if found.readout is None else Answer(found.readout(outputs), outputs)


def _parameters(sections: Sequence[Section]) -> list[nn.Parameter]:
    return [p for section in sections for part in section for p in part.parameters() if p.requires_grad]


def _noise(key: int, p: Tensor) -> Tensor:
    words = torch.tensor([key & _WORD, (key >> 32) & _WORD], device=p.device)
    return normal(words, torch.zeros(1, dtype=torch.int64, device=p.device), (1, 1, *p.shape))[0, 0].to(p.dtype)


@contextmanager
def _shifted(section: Section, shift: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, each parameter of ``section`` is a moved copy; itself it is not touched, so rounding cannot change it."""
    own: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in {id(m): m for part in section for m in part.modules()}.values():
            for name, p in list(module._parameters.items()):
                if p is not None and p.requires_grad:
                    own.append((module, name, p))
                    module._parameters[name] = nn.Parameter(p + shift(p), requires_grad=False)
        yield
    finally:
        for module, name, p in own:
            module._parameters[name] = p


@contextmanager
def _same_draws(x: Tensor) -> Iterator[None]:
    """torch's generators go back at the end: the next pass has the same masks of ``nn.Dropout``. (Our own draws have keys.)"""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        yield


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Buffers, such as running statistics, are afterwards what they were."""
    buffers = list(model.buffers())
    kept = [b.clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


RULES[ElasticZO.name] = ElasticZO
