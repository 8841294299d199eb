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
from snnrobust.quantization.levels import Levels, LevelSet
from snnrobust.quantization.projection import least_squares_step

__all__ = ["NearestLevel", "pair_levels"]


def pair_levels(states: Sequence[float], *, both: bool = False) -> LevelSet:
    """The differences that a pair of devices can hold, relative to the largest.

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
    up = ((g[:, None] - g[None]).flatten() if both else g - g[0]) / span
    differences = torch.cat([-up, up]).sort().values
    distinct = torch.cat([differences[:1], differences[1:][differences.diff() > 1e-9]])  # equal but for rounding
    distinct[distinct.abs() < 1e-9] = 0.0
    return LevelSet(tuple(distinct.tolist()))


@dataclass(frozen=True)
class NearestLevel:
    """The projection to the nearest level, ``NearestLevel(levels, scale)(weight, operation)``; zero stays zero.

    Args:
        levels: With zero among them, since pruned weights are zero: such as :func:`pair_levels` gives, ``Ternary()`` or
            ``Integer(4)``.
        scale: The weight that level 1 stands for, > 0; None fits one to each weight that is projected, by
            :func:`~snnrobust.quantization.least_squares_step`; zeros have no part in it.

    Raises:
        TypeError, ValueError: no level set, or one without zero.
    """

    levels: Levels
    scale: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.levels, Levels):
            raise TypeError(f"levels must be a set of levels such as pair_levels((0, 1, 2)), got {self.levels!r:.80}")
        if not bool((self.levels.values() == 0).any()):
            raise ValueError(
                f"levels must contain 0, which pruned weights are, got {self.levels!r:.120}: see pair_levels"
            )
        if self.scale is not None:
            checks.number("scale", self.scale, 0.0, exclusive_low=True, hint="the weight of level 1, or None to fit it")

    def fitted(self, weight: Tensor) -> NearestLevel:
        """The same with the scale that fits ``weight``, if it has none. A weight of zeros has the scale 1."""
        if self.scale is not None:
            return self
        return NearestLevel(self.levels, float(least_squares_step(weight.detach().double(), self.levels)))

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest weight; the scale must be known."""
        if self.scale is None:
            raise ValueError("scale is not known yet: call fitted(weight) first")
        return self.scale * self.levels.low, self.scale * self.levels.high

    def __call__(self, weight: Tensor, operation: Operation | None = None) -> Tensor:
        if self.scale is None:
            return self.fitted(weight)(weight)
        return (self.levels.nearest(weight.detach().double() / self.scale) * self.scale).to(weight.dtype)
