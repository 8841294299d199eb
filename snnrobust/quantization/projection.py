"""The nearest quantized tensor: step and codes that leave the smallest squared error."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from snnrobust import checks

__all__ = ["least_squares_step", "project"]

_STARTS = 12  # clipping points from the largest magnitude down to a sixth of it
_SHRINK = 0.85
_ROUNDS = 100


class Levels(Protocol):
    """What a projection has to know of a set of levels on a unit scale."""

    def nearest(self, u: Tensor) -> Tensor: ...
    def values(self) -> Tensor: ...


def project(w: Tensor, levels: Levels, axis: int | None = None) -> tuple[Tensor, Tensor]:
    r"""The step :math:`s` of :func:`least_squares_step`, and :math:`s \, \mathrm{nearest}(w / s)`, like ``w``."""
    step = least_squares_step(w, levels, axis)
    return step, (levels.nearest(w.detach() / step) * step).to(w.dtype)


@torch.no_grad()
def least_squares_step(w: Tensor, levels: Levels, axis: int | None = None) -> Tensor:
    r"""The step of the quantized tensor that is nearest to ``w``.

    .. math:: \min_{s > 0, \; q \in \mathcal{L}^n} \|w - s q\|^2, \qquad
        \text{given } q: \; s = \frac{\langle w, q \rangle}{\langle q, q \rangle}, \qquad
        \text{given } s: \; q_i = \mathrm{nearest}(w_i / s)

    Binary, :math:`\{-1, 1\}`: :math:`s` is the mean of :math:`|w|`, exactly the minimum. Ternary, :math:`\{-1, 0, 1\}`: the
    :math:`k` largest magnitudes are kept, and with :math:`c_k` their sum the error is :math:`\|w\|^2 - c_k^2 / k`; all
    :math:`k` are tried on the sorted prefix sums, so this too is the minimum.

    Any other set: the two equations in turn. The error never rises and there are finitely many codes, so this ends where
    neither equation changes anything (or after 100 rounds). That is a minimum over each of the two, not always over both;
    of 12 clipping points from the largest magnitude down to a sixth of it, the one with the least error is the start.

    Args:
        w: Any shape, not empty, finite.
        levels: Which values there are on a unit scale.
        axis: Each slice along it has a step of its own; None is one step for all.

    Returns:
        ``s``, greater than 0, in the dtype of ``w``: of shape ``[]``, or broadcastable to ``w``. Where no step is better
        than zeros, as for a slice of zeros, it is 1 if zero is a level, else the smallest normal number.

    Source: binary: Rastegari et al. 2016, "XNOR-Net"; the alternating scheme is Lloyd's, with the levels tied to one scale.
    """
    if not isinstance(w, Tensor):
        raise TypeError(f"w must be a tensor, got {type(w).__name__}")
    if not w.is_floating_point() or w.numel() == 0:
        raise ValueError(f"w must be a floating tensor that is not empty, got {w.dtype} of shape {tuple(w.shape)}")
    if not w.isfinite().all():
        raise ValueError("w contains NaN or infinity: it cannot be quantized")
    if axis is not None and not -w.dim() <= checks.integer("axis", axis) < w.dim():
        raise ValueError(f"axis must be one of the {w.dim()} of w, got {axis}: use None for one step for all of w")
    rows = (w.reshape(1, -1) if axis is None else w.movedim(axis, 0).flatten(1)).double()
    values = levels.values().tolist()
    if values == [-1.0, 1.0]:
        step = rows.abs().mean(1)
    elif values == [-1.0, 0.0, 1.0]:
        step = _ternary(rows.abs())
    else:
        step = _alternate(rows, levels, max(abs(v) for v in values))
    step = step.to(w.dtype)
    # a step that is no normal number would divide badly
    useless = 1.0 if 0.0 in values else torch.finfo(w.dtype).tiny
    step = torch.where(step >= torch.finfo(w.dtype).tiny, step, useless)
    if axis is None:
        return step.reshape(())
    shape = [1] * w.dim()
    shape[axis] = -1
    return step.view(shape)


def _ternary(magnitudes: Tensor) -> Tensor:
    sums = magnitudes.sort(1, descending=True).values.cumsum(1)
    kept = torch.arange(1, sums.shape[1] + 1, dtype=sums.dtype, device=sums.device)
    best = (sums.square() / kept).argmax(1, keepdim=True)
    return (sums / kept).gather(1, best).squeeze(1)


def _alternate(rows: Tensor, levels: Levels, largest: float) -> Tensor:
    """Steps of ``rows`` ``[C, n]``; 0 where none is better than zeros."""
    step, gain = torch.zeros_like(rows[:, 0]), torch.zeros_like(rows[:, 0])
    top = rows.abs().amax(1)
    start = top / largest if largest > 0 else torch.zeros_like(top)
    for _ in range(_STARTS):
        step, gain, _ = _better(rows, levels, start, step, gain)
        start = start * _SHRINK
    for _ in range(_ROUNDS):
        step, gain, changed = _better(rows, levels, step, step, gain)
        if not changed:
            break
    return step


def _better(rows: Tensor, levels: Levels, at: Tensor, step: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, bool]:
    """The best step for the codes at ``at``, where it takes more off the squared error than ``gain``."""
    safe = torch.where(at > 0, at, 1.0)
    codes = levels.nearest(rows / safe[:, None])
    product, norm = (rows * codes).sum(1), codes.square().sum(1)
    found = torch.where(norm > 0, product / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    taken = found.clamp(min=0.0) * product
    better = (at > 0) & (taken > gain)
    return torch.where(better, found, step), torch.where(better, taken, gain), bool(better.any())
