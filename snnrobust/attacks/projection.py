"""Projections onto a ball around ``x`` within a box, in float64, on sizes of changes ``[B, d]``."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fit", "norm", "room", "settle", "shrink", "slack", "stretch", "top", "unit"]


def norm(v: Tensor, p: int) -> Tensor:
    """:math:`\\|v\\|_p` of each row, ``[B, 1]``, for p = 1 or 2."""
    a = v.abs()
    if p == 1:
        return a.sum(1, keepdim=True)
    scale = a.amax(1, keepdim=True)
    safe = torch.where(scale > 0, scale, 1.0)  # squares neither overflow nor vanish
    return scale * (a / safe).square().sum(1, keepdim=True).sqrt()


def unit(gradient: Tensor, p: int) -> Tensor:
    """``gradient`` over its norm, sample by sample, in its dtype; zero stays zero, infinity counts as the largest number."""
    most = torch.finfo(gradient.dtype).max
    g = gradient.clamp(-most, most).double().flatten(1)
    scale = g.abs().amax(1, keepdim=True)
    g = g / torch.where(scale > 0, scale, 1.0)
    length = norm(g, p)
    return (g / torch.where(length > 0, length, 1.0)).view_as(gradient).to(gradient.dtype)


def slack(d: int) -> float:
    """More than the relative error of a norm of ``d`` float64 values, whatever the order of the sum."""
    return (d + 4) * 2.0**-52


def room(wish: Tensor, x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """How far each element of ``x`` can go in the direction of ``wish``."""
    return torch.where(wish >= 0, bounds[1] - x, x - bounds[0]).clamp(min=0)


def fit(size: Tensor, radius: Tensor | float, p: int) -> Tensor:
    """``size``, scaled down to ``radius`` where rounding left it larger."""
    length = norm(size, p)
    return size * torch.where(length > radius, radius / torch.where(length > 0, length, 1.0), 1.0)


def _usable(radius: Tensor | float, like: Tensor) -> Tensor:
    """``radius`` in float64, or 0 where it is so small that quotients of it overflow or its square vanishes."""
    r = torch.as_tensor(radius, dtype=torch.float64, device=like.device)
    return torch.where(r > 1e-150, r, 0.0)


def stretch(a: Tensor, most: Tensor, radius: Tensor | float, p: int) -> Tensor:
    r"""``min(s a, most)`` with the :math:`s` at which its norm is ``radius``, or ``most`` where no :math:`s` reaches that.

    For p = 2 and :math:`s \le 1` it is the Euclidean projection of ``a`` onto ball and box: the multiplier of the ball scales
    every element that the box leaves free. Elements that are full at some :math:`s` stay full, so a few rounds find them all.
    """
    radius, length = _usable(radius, a), norm(a, p)
    s = radius / torch.where(length > 0, length, 1.0)
    whole = radius**p
    for _ in range(a.shape[1] + 1):
        full = s * a >= most
        left = (whole - torch.where(full, most, 0.0).pow(p).sum(1, keepdim=True)).clamp(min=0)
        free = torch.where(full, 0.0, a).pow(p).sum(1, keepdim=True)
        larger = torch.maximum(torch.where(free > 0, left / torch.where(free > 0, free, 1.0), 0.0).pow(1 / p), s)
        if torch.equal(larger, s):
            break
        s = larger
    return fit(torch.minimum(s * a, most), radius, p)


def shrink(a: Tensor, most: Tensor, radius: Tensor | float) -> Tensor:
    r"""``min(max(a - m, 0), most)`` with the :math:`m \ge 0` at which its sum is ``radius``, where it is more at :math:`m = 0`.

    The Euclidean projection of ``a`` onto the L1 ball and the box (Croce and Hein 2021, "Mind the box: l1-APGD for sparse
    adversarial attacks on image classifiers"). The sum falls piecewise linearly in :math:`m`: Newton's method in a bracket.
    """
    radius = _usable(radius, a)
    m = low = torch.zeros_like(a[:, :1])
    high = a.amax(1, keepdim=True)
    size = torch.minimum(a, most)
    for _ in range(100):
        excess = size.sum(1, keepdim=True) - radius
        if (excess <= 1e-14 * radius).logical_and(excess >= -1e-13 * radius).logical_or((m == 0) & (excess <= 0)).all():
            break
        low, high = torch.where(excess > 0, m, low), torch.where(excess < 0, m, high)
        moving = ((a > m) & (a - m <= most)).sum(1, keepdim=True).clamp(min=1)
        newton = m + excess / moving
        inside = (newton > low) & (newton < high)
        m = torch.where(excess == 0, m, torch.where(inside, newton, (low + high) / 2))
        size = torch.minimum((a - m).clamp(min=0), most)
    return fit(size, radius, 1)


def top(scores: Tensor, k: Tensor | int) -> Tensor:
    """True at the ``k`` (or ``[B, 1]``) largest scores of each row; the first of equal ones."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(order).scatter(1, order, rank) < k


def settle(x_adv: Tensor, x: Tensor, change: Tensor, bounds: tuple[float, float]) -> Tensor:
    """``x + change`` in the dtype of ``x``, rounded towards ``x``; ``x_adv`` itself where that is the change.

    In float64 no element moves further than ``change``, which must not lead out of the box: no norm of it grows.
    """
    exact, wish = x.double(), x_adv.double()
    moved = (exact + change).clamp(*bounds).to(x.dtype)
    wide = moved.double()
    outside = ((wide - exact).abs() > change.abs()) | (wide < bounds[0]) | (wide > bounds[1])
    moved = torch.where(outside, torch.nextafter(moved, x), moved)
    granted = (change == wish - exact) & (wish >= bounds[0]) & (wish <= bounds[1])
    return torch.where(granted, x_adv, moved)
