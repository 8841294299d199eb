"""Gradient sources whose surrogate follows each neuron's potentials."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.gradient import EOT, Around, Backprop, GradientSource, registered
from snnrobust.attacks.losses import Loss
from snnrobust.draws import Stream
from snnrobust.layers import Chunked
from snnrobust.neurons import surrogate as surrogates

__all__ = ["ASSG", "PDSG"]


@registered
@dataclass(frozen=True)
class ASSG:
    r"""Adaptive sharpness surrogate gradient: an arctangent as sharp as the neuron's distance from its threshold allows.

    .. math::

        M \leftarrow \mu M + (1 - \mu) |u|, \quad D \leftarrow \mu D + (1 - \mu) \big| |u| - M \big|, \quad
        \alpha = \frac{\omega}{M + \rho D + 10^{-4}}, \quad \omega = \frac{2}{\pi} \tan(\pi a)

    and :math:`\partial s / \partial u = \frac{\alpha}{2} / (1 + (\frac{\pi}{2} \alpha u)^2)`, for each sample, neuron and time
    step by itself, where :math:`u` is the potential less the threshold. :math:`M = 1` and :math:`D = 0` before the first
    iteration of an attack. With ``EOT`` around it, only the first draw of an iteration moves them.

    Args:
        degree: :math:`a` in (0, 0.5), half of the share of the gradient that may vanish; greater is sharper.
        relaxation: :math:`\rho`.
        momentum: :math:`\mu`.
        source: What is called with these surrogates.

    Raises:
        ValueError: a model without surrogates, or one whose surrogates were never asked; equal sample ids in a batch.

    Source: arXiv 2512.22522, "Towards Reliable Evaluation of Adversarial Robustness for Spiking Neural Networks"; start and
    order of the updates as in its authors' code.
    """

    spiking: ClassVar[bool] = True

    degree: float = 0.4
    relaxation: float = 1.5
    momentum: float = 0.9
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.number("degree", self.degree, 0.0, 0.5, exclusive_low=True)
        if self.degree >= 0.5:
            raise ValueError(f"degree must be below 0.5, got {self.degree}: there the surrogate is the step itself")
        checks.number("relaxation", self.relaxation, 0.0)
        checks.number("momentum", self.momentum, 0.0, 1.0)
        _one_draw(self.source, "ASSG")

    def begin(self) -> GradientSource:
        return _Run(self, {}, {}, moves=True)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        return self.begin()(model, x, y, loss, stream)

    def sharpness(self, M: Tensor, D: Tensor) -> Tensor:
        omega = 2 / math.pi * math.tan(math.pi * self.degree)
        return omega / (M + self.relaxation * D + 1e-4)


Moments = tuple[Tensor, Tensor]  # M and D of one layer at one call, with a row for each sample of the run
Layer = list[Moments]


class _Run:
    """ASSG over one run: M and D of every neuron, and which row belongs to which sample id."""

    def __init__(self, rule: ASSG, layers: dict[nn.Module, Layer], rows: dict[int, int], moves: bool) -> None:
        self.rule, self.layers, self.rows, self.moves = rule, layers, rows, moves

    def again(self) -> GradientSource:
        return _Run(self.rule, self.layers, self.rows, moves=False)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        ids = stream.sample_ids.tolist()
        if len(set(ids)) < len(ids):
            raise ValueError("ASSG tells samples apart by their ids from one iteration to the next, but some are equal")
        rows = torch.tensor([self.rows.setdefault(i, len(self.rows)) for i in ids], device=x.device)
        lent: list[_Adaptive] = []

        def choose(module: nn.Module) -> surrogates.Surrogate:
            lent.append(_Adaptive(self, self.layers.setdefault(module, []), rows, [0]))
            return lent[-1]

        with surrogates.lend(model, choose):
            answer = self.rule.source(model, x, y, loss, stream)
        _reached(any(a.calls[0] for a in lent), "ASSG", model)
        return answer

    def moments(self, layer: Layer, call: int, u: Tensor, rows: Tensor, axis: int) -> Moments:
        """M and D of the samples in ``rows`` after |u|, the ``call``-th of its layer in this iteration."""
        if u.shape[axis] != len(rows):
            raise ValueError(
                f"ASSG keeps statistics of each sample, but neurons got a batch of {u.shape[axis]} under {len(rows)} sample ids"
            )
        if call == len(layer):
            layer.append((u.narrow(axis, 0, 0).clone(), u.narrow(axis, 0, 0).clone()))
        M, D = (_grown(m, len(self.rows), axis, start) for m, start in zip(layer[call], (1.0, 0.0), strict=True))
        mine = M.index_select(axis, rows), D.index_select(axis, rows)
        if self.moves:
            mu, distance = self.rule.momentum, u.abs()
            first = mine[0].mul_(mu).add_(distance, alpha=1 - mu)
            mine = first, mine[1].mul_(mu).add_((distance - first).abs_(), alpha=1 - mu)
            layer[call] = M.index_copy_(axis, rows, mine[0]), D.index_copy_(axis, rows, mine[1])
        return mine


def _grown(moment: Tensor, rows: int, axis: int, start: float) -> Tensor:
    missing = rows - moment.shape[axis]
    if missing == 0:
        return moment
    shape = list(moment.shape)
    shape[axis] = missing
    return torch.cat([moment, moment.new_full(shape, start)], axis)


@dataclass(frozen=True, eq=False)
class _Adaptive(surrogates.Surrogate, registered=False):
    """The surrogate of one layer in one iteration."""

    run: _Run
    layer: Layer
    rows: Tensor
    calls: list[int]  # made so far, in one place

    def __post_init__(self) -> None: ...

    def derivative(self, u: Tensor) -> Tensor:
        return self._next(u, 1).derivative(u)

    def observed(self, u: Tensor) -> surrogates.Surrogate:
        return self._next(u, 0)

    def _next(self, u: Tensor, axis: int) -> _ATanOf:
        moments = self.run.moments(self.layer, self.calls[0], u.detach(), self.rows, axis)
        self.calls[0] += 1
        return _ATanOf(self.run.rule.sharpness(*moments))


@dataclass(frozen=True, eq=False)
class _ATanOf(surrogates.Surrogate, registered=False):
    """``ATan`` with a sharpness for each element."""

    alpha: Tensor

    def __post_init__(self) -> None: ...

    def derivative(self, u: Tensor) -> Tensor:
        return (self.alpha / 2) / (u * self.alpha * (math.pi / 2)).square_().add_(1.0)


Over = Literal["sample", "batch"]


@registered
@dataclass(frozen=True)
class PDSG(Around):
    r"""Potential-dependent surrogate gradient: a Gaussian as wide as the potentials spread, shifted by half of that.

    .. math::

        \frac{\partial s_t}{\partial u_t} = \frac{1}{\sqrt{2 \pi} \sigma_t}
        \exp \Big( -\frac{(u_t - \sigma_t / 2)^2}{2 \sigma_t^2} \Big)

    with :math:`\sigma_t` the standard deviation (unbiased) of the potentials of the channel at the steps 1 to t, and 1 where
    that is 0.

    Args:
        over: ``"batch"`` takes it over the whole batch, as published, so a sample's gradient depends on its batch. ``"sample"``
            takes it over the positions of the channel within the sample, and, where a channel has one position (behind a
            dense layer), over all neurons of the layer.
        source: What is called with these surrogates.

    Raises:
        ValueError: a model without surrogates, or one whose surrogates were never asked; a ``Chunked`` network, whose layers
            see a part of the steps only.

    Source: "Towards Effective and Sparse Adversarial Attack on Spiking Neural Networks via Breaking Invisible Surrogate
    Gradients" (CVPR 2025), after its code; ``over="sample"`` is ours.
    """

    spiking: ClassVar[bool] = True

    over: Over = "sample"
    source: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.choice("over", self.over, get_args(Over))
        _one_draw(self.source, "PDSG")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        if any(isinstance(m, Chunked) for m in model.modules()):
            raise ValueError("PDSG looks at all steps so far, but Chunked shows a layer some of them: take its network")
        lent: list[_Potential] = []

        def choose(_: nn.Module) -> surrogates.Surrogate:
            lent.append(_Potential(self.over == "batch", [], [0]))
            return lent[-1]

        with surrogates.lend(model, choose):
            answer = self.source(model, x, y, loss, stream)
        _reached(any(p.calls[0] for p in lent), "PDSG", model)
        return answer


@dataclass(frozen=True, eq=False)
class _Potential(surrogates.Surrogate, registered=False):
    """The surrogate of one layer in one forward pass."""

    batch: bool
    past: list[Tensor]  # potentials of a layer that runs step by step
    calls: list[int]

    def __post_init__(self) -> None: ...

    def derivative(self, u: Tensor) -> Tensor:
        self.calls[0] += 1
        return _GaussianOf(_spread(u, self.batch)).derivative(u)

    def observed(self, u: Tensor) -> surrogates.Surrogate:
        self.calls[0] += 1
        self.past.append(u.detach())
        return _GaussianOf(_spread(torch.stack(self.past), self.batch)[-1])


def _spread(u: Tensor, batch: bool) -> Tensor:
    """The standard deviation of ``u`` ``[T, B, C, *]`` over the steps so far, as something that broadcasts to it."""
    positions = tuple(range(3, u.dim()))
    own = (1, *positions) if batch else positions or (2,)
    each = u.double()
    pivot = each[:1].mean(own, keepdim=True)
    each = each - pivot  # from there sums of squares cancel little
    count = torch.arange(1, len(u) + 1, device=u.device, dtype=each.dtype).view(-1, *[1] * (u.dim() - 1))
    count = count * math.prod(u.shape[axis] for axis in own)
    first, second = (part.sum(own, keepdim=True).cumsum(0) for part in (each, each.square()))
    variance = (second - first.square() / count).clamp(min=0.0) / (count - 1).clamp(min=1)
    spreads = variance > (1e-12 * pivot).square()  # more than rounding
    return torch.where(spreads, variance.sqrt(), 1.0).to(u.dtype)


@dataclass(frozen=True, eq=False)
class _GaussianOf(surrogates.Surrogate, registered=False):
    """``Gaussian`` with a width for each element, half of it to the right."""

    sigma: Tensor

    def __post_init__(self) -> None: ...

    def derivative(self, u: Tensor) -> Tensor:
        return (u / self.sigma - 0.5).square_().mul_(-0.5).exp_() / (math.sqrt(2 * math.pi) * self.sigma)


def _one_draw(source: Callable[..., object], name: str) -> None:
    checks.function("source", source)
    if isinstance(source, EOT):
        raise TypeError(
            f"{name} follows one forward pass at a time: put the draws around it, EOT({source.samples}, {name}())"
        )


def _reached(reached: bool, name: str, model: nn.Module) -> None:
    if not reached:
        raise ValueError(
            f"{name} was lent to {type(model).__name__}, but no surrogate was asked for its derivative: do its neurons use "
            "their surrogate, and does the source differentiate the model?"
        )
