"""Sparse random search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.projection import top
from snnrobust.attacks.random_search import Budget, search
from snnrobust.attacks.threat import ThreatModel, uniform_like
from snnrobust.draws import Stream

__all__ = ["SparseRS"]

_SCHEDULE = ((0, 1), (50, 2), (200, 4), (500, 5), (1000, 6), (2000, 8), (4000, 10), (6000, 12), (8000, 15))
"""Up to which of 10,000 queries the first share is divided by what; later by 20."""


@dataclass(frozen=True)
class SparseRS(Attack):
    r"""Random search over which ``eps`` pixels are at which corner of the box; asks for logits only.

    .. math:: x_{i+1} = x' \text{ if } m(x') \ge m(x_i), \text{ else } x_i

    with m the margin of the goal. In :math:`x'` a share :math:`\alpha_i` of the changed pixels, at least one, are as in x again,
    and as many others have every channel at an end of the box, at random.

    Args:
        threat: ``L0``, of pixels or of elements.
        queries: Forward passes per sample, the first point included.
        alpha_init: The first :math:`\alpha`; it falls to a twentieth of that in the published steps.
        draws, early_stop, selection_draws: As in :class:`Square`.

    Source: Croce, Andriushchenko, Singh, Flammarion and Hein 2022, "Sparse-RS: a versatile framework for query-efficient sparse
    black-box adversarial attacks"; schedule and ``alpha_init`` as in the authors' code. Ours: equal margins are accepted, a
    colour that is the pixel's own is replaced by the opposite, and a pixel may be chosen again, with another colour.
    """

    threat: ThreatModel
    queries: int = 5000
    alpha_init: float = 0.8
    draws: int = 1
    early_stop: bool | None = None
    selection_draws: int = 32

    def __post_init__(self) -> None:
        self._budget()
        checks.number("alpha_init", self.alpha_init, 0.0, 1.0, exclusive_low=True)
        if isinstance(self.threat, ThreatModel) and not isinstance(self.threat, L0):
            raise ValueError(f"SparseRS works in L0, got a threat in {self.threat.name}: use Square")

    def _budget(self) -> Budget:
        return Budget(self.queries, self.draws, self.early_stop, self.selection_draws)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        about, numbers = self._about(x)
        u = uniform_like(x.new_empty(len(x), numbers, dtype=torch.float64), stream.fork("start"))
        return self.search(model, x, self._move(about, x, u, 0.0), goal, stream)

    def search(self, model: nn.Module, x: Tensor, start: Tensor, goal: Goal, stream: Stream) -> Tensor:
        """The search alone, from legal inputs ``start`` on."""
        about, numbers = self._about(x)
        return search(model, start, goal, stream, self._budget(), self._move, numbers, about)

    def _about(self, x: Tensor) -> tuple[tuple[Tensor, ...], int]:
        pixels = self._ball._count(x)
        most = torch.as_tensor(self._ball.budget(pixels), dtype=torch.float64, device=x.device).expand(len(x), 1)
        return (x, most), 2 * pixels.shape[1] + x[0].numel()

    def _move(self, about: tuple[Tensor, ...], held: Tensor, u: Tensor, spent: float) -> Tensor:
        x, most = about
        count, spread = self._ball._count, self._ball._spread
        changed = count((held != x).double()) > 0  # [B, pixels]
        leaving, entering, colours = u.split([changed.shape[1], changed.shape[1], x[0].numel()], 1)
        share = self.alpha_init / next((part for end, part in _SCHEDULE if int(10_000 * spent) <= end), 20)
        gone = (share * most).floor().clamp(min=1)
        kept = changed & ~top(torch.where(changed, leaving, -1.0), gone)
        free = most - kept.sum(1, keepdim=True)
        new = ~kept & top(torch.where(kept, -1.0, entering), free)
        low, high = self._ball.bounds
        upper = colours.view(x.shape) < 0.5
        colour = torch.where(upper, high, low).to(x.dtype)
        own = spread(count((colour != x).double()) == 0, x)
        colour = torch.where(own, torch.where(upper, low, high).to(x.dtype), colour)
        return torch.where(spread(new, x), colour, torch.where(spread(kept, x), held, x))

    @property
    def _ball(self) -> L0:
        assert isinstance(self.threat, L0)
        return self.threat
