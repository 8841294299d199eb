"""Alternating direction method of multipliers: weights that learn while they are pulled into a set, such as of sparse ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.codesign.constrained import Constrained, synaptic_layers
from snnrobust.data import Data
from snnrobust.hardware.operation import Operation
from snnrobust.learning_rules import History, Lent
from snnrobust.quantization.structured import Projection

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["ADMM", "ADMMWarning", "Convergence", "Round", "Split"]


class ADMMWarning(UserWarning):
    """The weights have not arrived in their set."""


@dataclass(frozen=True)
class Round:
    r"""One round. Residuals are over all layers together, relative.

    Attributes:
        epoch: After which it was.
        rho: :math:`\rho` of its W-step.
        primal: :math:`\|W - Z\| / \max(\|W\|, \|Z\|)`: how far the weights are from their set.
        dual: :math:`\|Z - Z_{old}\| / \|Z\|`: how far the point of the set has moved.
    """

    epoch: int
    rho: float
    primal: float
    dual: float


@dataclass(frozen=True)
class Convergence:
    """Residuals by round, and what the last ones must be at most."""

    rounds: tuple[Round, ...]
    tolerance: float

    @classmethod
    def of(cls, history: History, tolerance: float) -> Convergence:
        """From the records of a training by :class:`ADMM`."""
        rounds = [
            Round(r["epoch"], r["rho"], r["primal"], r["dual"]) for r in history.records if r.get("primal") is not None
        ]
        if not rounds:
            raise ValueError("history has no round of ADMM: give what ADMM(...).fit returned")
        return cls(tuple(rounds), checks.number("tolerance", tolerance, 0.0))

    @property
    def converged(self) -> bool:
        last = self.rounds[-1]
        return max(last.primal, last.dual) <= self.tolerance

    def missed(self) -> str:
        """By how much the tolerance is missed; empty if it is not."""
        last = self.rounds[-1]
        found = [
            f"{what} residual {value:.2g}, {value / self.tolerance:.1f} times the tolerance of {self.tolerance:g}"
            if self.tolerance > 0
            else f"{what} residual {value:.2g}, above the tolerance of 0"
            for what, value in (("primal", last.primal), ("dual", last.dual))
            if not value <= self.tolerance
        ]
        return " and ".join(found)

    def table(self) -> str:
        lines = ["round  epoch       rho    primal      dual"]
        lines += [
            f"{i:5d}  {r.epoch:5d}  {r.rho:8.2e}  {r.primal:8.2e}  {r.dual:8.2e}" for i, r in enumerate(self.rounds, 1)
        ]
        return "\n".join([*lines, self.missed() or f"both residuals are at most {self.tolerance:g}"])

    def to_json(self) -> dict[str, Any]:
        return {
            "tolerance": self.tolerance, "converged": self.converged,
            "rounds": [vars(r) for r in self.rounds],
        }  # fmt: skip


class Split(nn.Module):
    r"""Z and the scaled dual U of some weights.

    .. math:: Z \leftarrow \Pi(W + U), \qquad U \leftarrow U + W - Z

    Buffers, so that a training that is interrupted goes on with them.
    """

    steps: Tensor

    def __init__(self, layers: Mapping[str, nn.Module], projections: Mapping[str, Projection]) -> None:
        super().__init__()
        self._of = [(layer, Operation.of(layer), projections[name]) for name, layer in layers.items()]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for i, (layer, operation, projection) in enumerate(self._of):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            self.register_buffer(f"z{i}", _projected(projection, weight.detach(), operation))
            self.register_buffer(f"u{i}", torch.zeros_like(weight))

    def __iter__(self) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """W, Z and U of each layer."""
        for i, (layer, _, _) in enumerate(self._of):
            yield layer.weight, getattr(self, f"z{i}"), getattr(self, f"u{i}")  # type: ignore[misc]

    @torch.no_grad()
    def pull(self, strength: float) -> None:
        r"""Add ``strength`` times the gradient :math:`W - Z + U` of the penalty to that of W."""
        for weight, z, u in self:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.add_(weight - z + u, alpha=strength)

    @torch.no_grad()
    def update(self) -> tuple[float, float]:
        """The Z-step and the step of U; the relative primal and dual residuals."""
        squares = dict.fromkeys(("primal", "dual", "w", "z"), 0.0)
        for (_, operation, projection), (weight, z, u) in zip(self._of, self, strict=True):
            new = _projected(projection, weight + u, operation)
            u.add_(weight - new)
            for name, value in (("primal", weight - new), ("dual", new - z), ("w", weight), ("z", new)):
                squares[name] += float(value.double().square().sum())
            z.copy_(new)
        self.steps.add_(1)
        size = max(squares["w"], squares["z"])
        return (
            math.sqrt(squares["primal"] / size) if size > 0 else 0.0,
            math.sqrt(squares["dual"] / squares["z"])
            if squares["z"] > 0
            else (math.inf if squares["dual"] > 0 else 0.0),
        )

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        r"""For a :math:`\rho` that is ``factor`` times the last: the multiplier :math:`\rho U` stays."""
        for _, _, u in self:
            u.div_(factor)


@dataclass(frozen=True, kw_only=True)
class ADMM(Constrained):
    r"""Trains by another rule, and pulls the weights into a set that has a projection :math:`\Pi`.

    .. math:: \min_W L(W) \;\text{s.t.}\; W \in S: \qquad
        W \leftarrow \text{a few epochs of the rule on } L(W) + \tfrac{\rho}{2} \|W - Z + U\|^2, \quad
        Z \leftarrow \Pi(W + U), \quad U \leftarrow U + W - Z

    starting from :math:`Z = \Pi(W), U = 0`. The gradient of the penalty is added to that of the rule, whatever that is, so
    that any rule by minibatches will do, adversarial training among them. The set of sparse or quantized weights is not convex:
    the method is a heuristic there, and the residuals say whether it has arrived. Adam divides the gradient by its size: it
    weighs the penalty otherwise than SGD does, and the fixed points are the same.

    Afterwards the weights are near the set and not in it: :func:`~snnrobust.codesign.prune` maps them.
    The records of the history have ``rho``, ``primal`` and ``dual`` for each round, see :class:`Convergence`.

    Args:
        rule: As of :class:`~snnrobust.codesign.constrained.Constrained`. A schedule that lowers the learning rate, such as
            ``"cosine"``, lets the dual residual vanish.
        projections: By the name of a layer: ``Keep(Filters(), 0.25)``, ``NearestLevel(...)``, or any function from a weight and
            its :class:`~snnrobust.hardware.Operation` to the nearest weight of the set.
        rho: :math:`\rho` > 0 of the first round. No published value is known to us.
        growth: Factor of :math:`\rho` from one round to the next, at least 1; the multiplier :math:`\rho U` is kept.
        most: Largest :math:`\rho`.
        every: Epochs a round.
        tolerance: Of the relative residuals of the last round.

    Raises:
        ValueError: layers that do not exist; epochs that are no multiple of ``every``.
        TypeError: a projection that is no function, or a rule with a training loop of its own.

    Warns:
        ADMMWarning: the tolerance is missed, and by how much.

    Sources: Boyd et al. 2011, "Distributed optimization and statistical learning via the alternating direction method of
    multipliers" (scaled form, and U under a changing rho); the use is that of Yuan et al. 2019 (arXiv:1908.11691).
    """

    name: ClassVar[str] = "ADMM"

    projections: Mapping[str, Projection]
    rho: float = 1e-2
    growth: float = 1.3
    most: float = math.inf
    every: int = 1
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.projections, Mapping) or not self.projections:
            raise TypeError(
                f"projections must map names of layers to projections such as Keep(Filters(), 0.25), got {self.projections!r:.80}"
            )
        for name, projection in self.projections.items():
            checks.function(f"the projection of {name}", projection)
        checks.number("rho", self.rho, 0.0, exclusive_low=True)
        checks.number("growth", self.growth, 1.0, hint="1 keeps rho")
        if self.most != math.inf:
            checks.number("most", self.most, self.rho, hint="it limits rho")
        checks.count("every", self.every)
        checks.number("tolerance", self.tolerance, 0.0)
        if self.keep == "best":
            raise ValueError(
                "keep='best' would take an epoch in which the weights are not in their set yet: use keep='last'"
            )

    def described(self) -> dict[str, str]:
        settings = f"{self.rho!r} {self.growth!r} {self.most!r} {self.every}"
        return {"settings": settings, **{name: repr(p) for name, p in self.projections.items()}}

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        super().refuse(model, example)
        for name, layer in synaptic_layers(model, self.projections, "projections").items():
            if not layer.weight.requires_grad:
                raise ValueError(f"{name}.weight has requires_grad=False, so that nothing pulls it: leave {name} out")

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
        if checks.count("epochs", epochs) % self.every:
            raise ValueError(f"epochs must be a multiple of every={self.every}, the epochs of a round, got {epochs}")
        history = super().fit(
            model, train, validation, epochs=epochs, checkpoint=checkpoint, progress=progress, fabric=fabric, log=log
        )
        missed = Convergence.of(history, self.tolerance).missed()
        if missed:
            warnings.warn(
                f"ADMM has not converged after {epochs // self.every} rounds: {missed}. Train for more rounds, or with a larger "
                "rho or growth (primal) or a learning rate that falls to 0 (dual)",
                ADMMWarning,
                stacklevel=2,
            )
        return history

    def rho_at(self, round: int) -> float:
        r""":math:`\rho` of a round, from 0."""
        return min(self.rho * self.growth**round, self.most)

    def constrain(self, model: nn.Module, lent: Lent) -> nn.Module:
        split = Split(synaptic_layers(model, self.projections, "projections"), self.projections)
        inner, judge = lent.backward, lent.judge

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            found = inner(x, y, scale)
            split.pull(scale * self.rho_at(int(split.steps)))
            return found

        def conclude(records: list[dict[str, Any]], data: Data) -> None:
            if judge is not None:
                judge(records, data)
            records[-1] |= {"rho": None, "primal": None, "dual": None}
            if len(records) % self.every == 0:
                rho = self.rho_at(int(split.steps))
                primal, dual = split.update()
                records[-1] |= {"rho": rho, "primal": primal, "dual": dual}
                split.rescale(self.rho_at(int(split.steps)) / rho)

        lent.backward, lent.judge = backward, conclude
        return split


def _projected(projection: Projection, weight: Tensor, operation: Operation) -> Tensor:
    found = projection(weight, operation)
    if not isinstance(found, Tensor) or found.shape != weight.shape:
        raise TypeError(f"a projection must return a weight of shape {tuple(weight.shape)}, got {found!r:.80}")
    return found.detach().clone()
