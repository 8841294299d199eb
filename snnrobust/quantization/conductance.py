r"""Weights that differential pairs of devices with a few states can hold, and the nearest of them.

.. math:: w = s \, \ell, \quad \ell \in \{ (g_i - g_j) / (g_{max} - g_{min}) \}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.hardware.operation import Operation

__all__ = ["NearestLevel", "fit_scale", "nearest_level", "pair_levels"]

_GRID = 64  # scales that are tried first


def pair_levels(states: Sequence[float], *, both: bool = False) -> tuple[float, ...]:
    """The differences that a pair of devices can hold, ascending, relative to the largest.

    Args:
        states: Conductances that one device can be set to, ascending, at least two, in any unit; they need not be equidistant,
            so a measured set, mismatch included, does as well.
        both: Of the pair both devices are set. By default one of them stays at the lowest state, as
            :mod:`snnrobust.hardware.pairs` has it: n states then give 2 n - 1 levels.

    Raises:
        TypeError, ValueError: fewer than two states, or states that do not ascend.
    """
    if isinstance(states, str) or not isinstance(states, Sequence):
        raise TypeError(f"states must be a sequence of conductances such as (1.0, 20.0, 40.0), got {states!r:.80}")
    found = [checks.number("states", g, 0.0) for g in states]
    if len(found) < 2:
        raise ValueError(f"states must be at least two conductances, got {len(found)}: one level can store nothing")
    if any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"states must ascend, each once, got {list(states)!r:.120}: sort them and drop duplicates")
    g = torch.tensor(found, dtype=torch.float64)
    span = g[-1] - g[0]
    if both:
        differences = (g[:, None] - g[None]).flatten() / span
    else:
        up = (g - g[0]) / span
        differences = torch.cat([-up, up])
    differences = differences.sort().values
    distinct = torch.cat([differences[:1], differences[1:][differences.diff() > 1e-9]])  # equal but for rounding
    distinct[distinct.abs() < 1e-9] = 0.0
    return tuple(distinct.tolist())


def nearest_level(u: Tensor, levels: Tensor) -> Tensor:
    """Of each element of ``u`` the nearest of the ascending ``levels``, in the dtype of ``u``; a tie goes to the lower one."""
    exact = u.double().contiguous()
    index = torch.bucketize(exact, (levels[1:] + levels[:-1]) / 2)
    return levels[index].to(u.dtype)


def fit_scale(weight: Tensor, levels: Sequence[float]) -> float:
    r"""s > 0 with a small :math:`\min_\ell \|w - s \ell\|`; at most that of :math:`s = \max|w| / \max|\ell|`.

    The distance is not convex in s. The best of a grid up to :math:`\max|w| / \max|\ell|` is improved by alternating levels and
    least squares, :math:`s = \langle w, \ell \rangle / \langle \ell, \ell \rangle`, neither of which can raise it. Zeros take
    no part. A weight of zeros has the scale 1.
    """
    values = torch.tensor(levels, dtype=torch.float64, device=weight.device)
    w = weight.detach().double()
    w = w[w != 0]
    if w.numel() == 0:
        return 1.0
    largest = float(w.abs().amax() / values.abs().amax())

    def distance(s: float) -> float:
        return float((w - s * nearest_level(w / s, values)).square().sum())

    best = min((largest * (i + 1) / _GRID for i in range(_GRID)), key=distance)
    for _ in range(20):
        q = nearest_level(w / best, values)
        square = float(q.square().sum())
        s = float((w * q).sum()) / square if square > 0 else best
        if s <= 0 or distance(s) >= distance(best):
            break
        best = s
    return best


@dataclass(frozen=True)
class NearestLevel:
    """The projection to the nearest level, ``NearestLevel(levels, scale)(weight, operation)``; zero stays zero.

    Args:
        levels: Ascending, each once, zero among them, since pruned weights are zero: such as :func:`pair_levels` gives.
        scale: The weight that level 1 stands for, > 0; None fits one to each weight that is projected (:func:`fit_scale`).

    Raises:
        TypeError, ValueError: an empty level set, one with duplicates, without order or without zero.
    """

    levels: tuple[float, ...]
    scale: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.levels, str) or not isinstance(self.levels, Sequence):
            raise TypeError(
                f"levels must be a sequence of numbers such as pair_levels((0, 1, 2)), got {self.levels!r:.80}"
            )
        levels = tuple(checks.number("levels", level) for level in self.levels)
        if len(levels) < 2:
            raise ValueError(f"levels must be at least two values, got {len(levels)}: see pair_levels")
        if any(a >= b for a, b in pairwise(levels)):
            raise ValueError(f"levels must ascend, each once, got {list(levels)!r:.120}: sort them and drop duplicates")
        if 0.0 not in levels:
            raise ValueError(
                f"levels must contain 0, which pruned weights are, got {list(levels)!r:.120}: see pair_levels"
            )
        object.__setattr__(self, "levels", levels)
        if self.scale is not None:
            checks.number("scale", self.scale, 0.0, exclusive_low=True, hint="the weight of level 1, or None to fit it")

    def fitted(self, weight: Tensor) -> NearestLevel:
        """The same with the scale that fits ``weight``, if it has none."""
        return self if self.scale is not None else NearestLevel(self.levels, fit_scale(weight, self.levels))

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest weight; the scale must be known."""
        scale = self._known()
        return scale * self.levels[0], scale * self.levels[-1]

    def __call__(self, weight: Tensor, operation: Operation | None = None) -> Tensor:
        if self.scale is None:
            return self.fitted(weight)(weight)
        values = torch.tensor(self.levels, dtype=torch.float64, device=weight.device)
        return (nearest_level(weight.detach().double() / self.scale, values) * self.scale).to(weight.dtype)

    def _known(self) -> float:
        if self.scale is None:
            raise ValueError("scale is not known yet: call fitted(weight) first")
        return self.scale
