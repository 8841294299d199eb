r"""Structured sparsity: parts of a weight that a crossbar can leave out, and the nearest weight that keeps only k of them.

A structure divides the elements of a weight into groups. With :math:`W_g` the elements of group g,

.. math:: \Pi_k(W) = \operatorname*{argmin}_{Z:\, \#\{g:\, Z_g \ne 0\} \le k} \|W - Z\|_F

keeps the k groups of largest :math:`\|W_g\|_F` and zeroes the others, whatever their sizes: what is dropped is what the squared
distance consists of. Ties keep the group that comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.hardware.operation import Operation

__all__ = [
    "STRUCTURES",
    "Blocks",
    "Channels",
    "Elements",
    "Filters",
    "Keep",
    "Projection",
    "Rows",
    "Structure",
    "group_norms",
    "keep_strongest",
]

Projection = Callable[[Tensor, Operation], Tensor]
"""From a weight, and what its layer does with it, to the nearest weight of a set."""

STRUCTURES: dict[str, type[Structure]] = {}


class Structure:
    """How the elements of a weight are grouped; subclasses register themselves by name."""

    def __init_subclass__(cls) -> None:
        checks.free_name(STRUCTURES, cls)
        STRUCTURES[cls.__name__] = cls

    def groups(self, weight: Tensor, operation: Operation) -> Tensor:
        """The group of each element, int64 like ``weight``, numbered from 0 without a gap."""
        raise NotImplementedError


@dataclass(frozen=True)
class Filters(Structure):
    """All that reaches one output: a filter, a row of a linear layer's weight, a column (bit line) of the array."""

    def groups(self, weight: Tensor, operation: Operation) -> Tensor:
        return _along(weight, 0)


@dataclass(frozen=True)
class Channels(Structure):
    """All that one input channel feeds: ``weight[:, c]``. In a grouped convolution every group has channels of its own."""

    def groups(self, weight: Tensor, operation: Operation) -> Tensor:
        share = _along(weight, 1)
        owner = _along(weight, 0) // (weight.shape[0] // operation.groups)
        return owner * weight.shape[1] + share


@dataclass(frozen=True)
class Rows(Structure):
    """A row (word line) of the array ``[groups, K, out / groups]``: the same place in all filters.

    Papers that write filters as rows call it column pruning. In a linear layer it is :class:`Channels`.
    """

    def groups(self, weight: Tensor, operation: Operation) -> Tensor:
        return Blocks(1, weight.shape[0]).groups(weight, operation)


@dataclass(frozen=True)
class Blocks(Structure):
    """Tiles of ``rows`` x ``columns`` of the array ``[groups, K, out / groups]``, those at the edges smaller.

    ``Blocks(rows, 1)`` is one column of a tile. A crossbar of the same size is left out where its block is zero.
    """

    rows: int = 64
    columns: int = 64

    def __post_init__(self) -> None:
        checks.count("rows", self.rows)
        checks.count("columns", self.columns)

    def groups(self, weight: Tensor, operation: Operation) -> Tensor:
        inputs, outputs = weight[0].numel(), weight.shape[0] // operation.groups
        device = weight.device
        row = torch.arange(inputs, device=device) // self.rows
        column = torch.arange(outputs, device=device) // self.columns
        across = -(-outputs // self.columns)
        one = row[:, None] * across + column
        each = -(-inputs // self.rows) * across
        stacked = one + each * torch.arange(operation.groups, device=device)[:, None, None]
        return operation.unmatrix(stacked, weight.shape)


@dataclass(frozen=True)
class Elements(Structure):
    """Each weight by itself: pruning without structure, which leaves out devices and no crossbar."""

    def groups(self, weight: Tensor, operation: Operation) -> Tensor:
        return torch.arange(weight.numel(), device=weight.device).view(weight.shape)


@dataclass(frozen=True)
class Keep:
    """The projection that keeps the strongest groups of a structure: ``Keep(Filters(), 0.25)(weight, operation)``.

    Args:
        structure: What is kept or left out as a whole.
        share: Of the groups of a layer, in (0, 1]: k is the nearest integer, and at least 1.
    """

    structure: Structure
    share: float

    def __post_init__(self) -> None:
        if not isinstance(self.structure, Structure):
            raise TypeError(
                f"structure must be one of {', '.join(STRUCTURES)}, such as Filters(), got {self.structure!r:.80}"
            )
        checks.number("share", self.share, 0.0, 1.0, exclusive_low=True, hint="the share of the groups that stay")

    def __call__(self, weight: Tensor, operation: Operation) -> Tensor:
        groups = self.structure.groups(weight, operation)
        k = max(1, math.floor(self.share * (int(groups.max()) + 1) + 0.5))
        return weight * keep_strongest(weight, groups, k)

    def describe(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in asdict(self.structure).items())  # type: ignore[call-overload]
        return f"{self.share:.0%} of {type(self.structure).__name__}({values})"


def group_norms(weight: Tensor, groups: Tensor) -> Tensor:
    r""":math:`\|W_g\|_F` of each group, float64."""
    squares = weight.detach().double().square().flatten()
    norms = squares.new_zeros(int(groups.max()) + 1).index_add_(0, groups.flatten(), squares)
    return norms.sqrt_()


def keep_strongest(weight: Tensor, groups: Tensor, k: int) -> Tensor:
    """Which elements are in the ``k`` groups of largest Frobenius norm, bool like ``weight``.

    Raises:
        ValueError: the weight is empty or not finite, ``groups`` has another shape, or ``k`` is below 1 or above their number.
    """
    if weight.numel() == 0:
        raise ValueError(f"weight has no elements, shape {tuple(weight.shape)}: there is nothing to prune")
    if not bool(weight.isfinite().all()):
        raise ValueError("weight contains NaN or infinity, which have no norm: train again or load a sound checkpoint")
    if groups.shape != weight.shape:
        raise ValueError(f"groups must have the shape of weight, {tuple(weight.shape)}, got {tuple(groups.shape)}")
    norms = group_norms(weight, groups)
    if checks.count("k", k) > len(norms):
        raise ValueError(f"k must be at most {len(norms)}, the number of groups, got {k}")
    kept = torch.zeros_like(norms, dtype=torch.bool)
    kept[norms.argsort(descending=True, stable=True)[:k]] = True
    return kept[groups]


def _along(weight: Tensor, axis: int) -> Tensor:
    """The index of each element along ``axis``."""
    index = torch.arange(weight.shape[axis], device=weight.device)
    return index.view(-1, *(1,) * (weight.dim() - 1 - axis)).expand(weight.shape)
