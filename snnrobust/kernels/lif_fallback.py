"""LIF over a whole sequence in torch operations, on any device: spikes and potentials of the compiled kernel, to the bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["backward", "forward", "slopes", "steps_since_spike"]

_SILENT = 1000.0


def _state(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _constant(number: float, tensor: Tensor | None, one: Tensor) -> float | Tensor:
    if tensor is None:
        return number
    tensor = tensor.detach().to(_state(one))
    return tensor if tensor.dim() == 0 or tensor.numel() == 1 else tensor.view(-1, *[1] * (one.dim() - 2))


def _reset(h: Tensor, s: Tensor, threshold: float | Tensor, hard: bool, out: Tensor | None = None) -> Tensor:
    if hard:
        return torch.mul(h, 1.0 - s, out=out)
    if isinstance(threshold, Tensor):
        return torch.sub(h, s * threshold, out=out)
    return torch.sub(h, s, alpha=threshold, out=out)


def forward(
    x: Tensor, steps: int, v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float,
    decays: Tensor | None, thresholds: Tensor | None, hard: bool, refractory: int, keep_h: bool, keep_state: bool, timed: bool,
) -> list[Tensor]:  # fmt: skip
    """As :func:`snnrobust.kernels.lif.lif_forward`."""
    one, T = (x, steps) if steps else (x[0], x.shape[0])
    dtype = _state(x)
    beta, theta = _constant(decay, decays, one), _constant(threshold, thresholds, one)
    spikes = torch.empty((T, *one.shape), dtype=x.dtype, device=x.device) if steps else torch.empty_like(x)
    potentials = torch.empty_like(spikes, dtype=dtype) if keep_h else None
    v = torch.zeros_like(one, dtype=dtype) if v0 is None else v0.to(dtype, copy=True)
    quiet = _silent(one, quiet0) if refractory or timed else None
    h, s = torch.empty_like(v), torch.empty_like(v)
    for t in range(T):
        if potentials is not None:
            h = potentials[t]
        torch.mul(v, beta, out=h)
        active = None if quiet is None or not refractory else quiet > refractory
        x_t = one if steps else x[t]
        # multiply and add stay apart: step() and the compiled kernel round alike
        h.add_(x_t if active is None else x_t * active)
        torch.ge(h, theta, out=s)
        if active is not None:
            s.mul_(active)
        if quiet is not None:
            quiet = torch.where(s > 0, 1.0, quiet + 1.0)
        _reset(h, s, theta, hard, out=v)
        spikes[t] = s
    spikes[-1].masked_fill_(h.isnan(), math.nan)  # NaN never fires, but stays: the last step tells
    out = [spikes] if potentials is None else [spikes, potentials]
    if keep_state:
        out.append(v)
        if quiet is not None:
            out.append(quiet)
    return out


def _silent(one: Tensor, quiet0: Tensor | None) -> Tensor:
    return torch.full_like(one, _SILENT, dtype=torch.float32) if quiet0 is None else quiet0


def steps_since_spike(
    h: Tensor, quiet0: Tensor | None, threshold: float, thresholds: Tensor | None, refractory: int
) -> Tensor:
    """Steps since the last spike before each step, ``[T, B, *]``, from the potentials."""
    theta = _constant(threshold, thresholds, h[0])
    quiet, trace = _silent(h[0], quiet0), []
    for h_t in h.unbind(0):
        trace.append(quiet)
        fired = h_t >= theta
        quiet = torch.where(fired & (quiet > refractory) if refractory else fired, 1.0, quiet + 1.0)
    return torch.stack(trace)


def slopes(kind: int, a: float, b: float, u: Tensor) -> Tensor:
    """The derivative of the compiled surrogate ``kind`` at ``u`` = h - threshold, or steps since the last spike."""
    size = u.abs()
    match kind:
        case 0:
            return a / (u * b).square_().add_(1.0)
        case 1:
            return size.mul_(-b).add_(a).clamp_(min=0.0)
        case 2:
            return size.mul_(a).add_(1.0).square_().reciprocal_()
        case 3:
            e = size.mul_(-a).exp_()
            return a * e / (1.0 + e).square_()
        case 4:
            return (size <= a).to(u.dtype).mul_(b)
        case 5:
            return u.square().mul_(a).exp_().mul_(b)
        case 6:
            return size.mul_(-b).exp_().mul_(a)
        case 7:
            return torch.ones_like(u)
        case 8:
            return u.mul(-b).exp_().mul_(a)
    raise ValueError(f"kind must be one of the compiled surrogates 0 to 8, got {kind}: give slope")


def backward(
    grad: Tensor, x: Tensor | None, steps: int, h: Tensor | None, slope: Tensor | None, grad_v: Tensor | None,
    v0: Tensor | None, quiet0: Tensor | None, decay: float, threshold: float, decays: Tensor | None, thresholds: Tensor | None,
    hard: bool, refractory: int, timed: bool, detach: bool, kind: int, a: float, b: float,
    of_v0: bool, of_decay: bool, of_threshold: bool,
) -> list[Tensor]:  # fmt: skip
    """As :func:`snnrobust.kernels.lif.lif_backward`."""
    dtype = grad.dtype
    if h is None:
        assert x is not None
        h = forward(x, steps, v0, quiet0, decay, threshold, decays, thresholds, hard, refractory, True, False, timed)[1]
    one = h[0]
    beta, theta = _constant(decay, decays, one), _constant(threshold, thresholds, one)
    quiet = steps_since_spike(h, quiet0, threshold, thresholds, refractory) if refractory or timed else None
    if slope is None:
        slope = slopes(kind, a, b, quiet.to(h.dtype) if kind == 8 and quiet is not None else h - theta)
    active = quiet > refractory if quiet is not None and refractory else None
    if active is not None:
        slope = slope * active
    s = (
        (h >= theta if active is None else (h >= theta) & active).to(h.dtype)
        if hard or of_decay or of_threshold
        else None
    )
    grad = grad.to(h.dtype)
    plain = detach and not of_threshold
    # grad_h = slope * (grad + carried * feedback) + carried * kept, where carried is what reaches v_t from step t + 1
    grad_h = slope * grad if plain else torch.empty_like(h)
    grad_decay, grad_threshold = torch.zeros_like(one), torch.zeros_like(one)
    carried = torch.zeros_like(one) if grad_v is None else grad_v.to(h.dtype)
    for t in range(len(h) - 1, -1, -1):
        grad_t = grad_h[t]
        if t < len(h) - 1:
            if of_decay and s is not None:
                grad_decay += grad_h[t + 1] * _reset(h[t], s[t], theta, hard)
            carried = grad_h[t + 1] * beta
        kept = carried * (1.0 - s[t]) if hard and s is not None else carried
        if plain:
            grad_t.add_(kept)
            continue
        through = grad[t] if detach else grad[t] - carried * (h[t] if hard else theta)
        through = through * slope[t]
        torch.add(through, kept, out=grad_t)
        if of_threshold and s is not None:
            grad_threshold -= through if hard else through + carried * s[t]
    if of_decay and v0 is not None:
        grad_decay += grad_h[0] * v0
    grad_x = grad_h if active is None else grad_h * active
    out = [(grad_x.sum(0) if steps else grad_x).to(dtype)]
    maps = ((grad_h[0] * beta, of_v0), (grad_decay, of_decay), (grad_threshold, of_threshold))
    return out + [value for value, asked in maps if asked]
