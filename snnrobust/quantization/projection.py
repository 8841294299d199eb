"""The nearest quantized tensor: step and codes that leave the smallest squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.quantization.levels import Levels

__all__ = ["least_squares_step", "project"]

_STARTS = 12  # clipping points from the largest magnitude down to a sixth of it
_SHRINK = 0.85
_ROUNDS = 100
_AT_ONCE = 1 << 16  # numbers: all starts together where the tensor is small


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
    top = rows.abs().amax(1) / largest if largest > 0 else torch.zeros_like(rows[:, 0])
    starts = top * _SHRINK ** torch.arange(_STARTS, dtype=rows.dtype, device=rows.device)[:, None]
    parts = starts.split(max(1, _AT_ONCE // rows.numel()))
    tried = [_given_codes(rows, levels, at) for at in parts]
    gains = torch.cat([gain for _, gain in tried])
    gain, best = gains.max(0)
    step = torch.cat([found for found, _ in tried]).gather(0, best[None])[0]
    for _ in range(_ROUNDS):
        found, taken = (t[0] for t in _given_codes(rows, levels, step[None]))
        better = taken > gain
        if not better.any():
            break
        step, gain = torch.where(better, found, step), torch.where(better, taken, gain)
    return step


def _given_codes(rows: Tensor, levels: Levels, at: Tensor) -> tuple[Tensor, Tensor]:
    """The best steps for the codes at steps ``at`` ``[K, C]``, and what they take off the squared error; 0 where none is."""
    safe = torch.where(at > 0, at, 1.0)
    codes = levels.nearest(rows / safe[..., None])
    product, norm = (rows * codes).sum(-1), codes.square().sum(-1)
    found = torch.where((at > 0) & (norm > 0), product / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    found = found.clamp(min=0.0)
    return found, found * product
