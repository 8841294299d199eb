"""Philox4x32-10 on a GPU, in Triton: the draws of :mod:`snnrobust.draws`, to the bit. Importing this does not import Triton."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from snnrobust.kernels.triton_lif import code, on

__all__ = ["bernoulli", "uniform"]

_BLOCK = 256


def uniform(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int = 0) -> Tensor:
    """As :func:`snnrobust.draws.uniform`: float32 in [0, 1) with 24 random bits, shape ``[T, B, *]``."""
    out = torch.empty(tuple(shape), device=sample_ids.device)
    _draw(key, sample_ids, None, out, start)
    return out


def bernoulli(key: Tensor, sample_ids: Tensor, x: Tensor, steps: int, start: int = 0) -> Tensor:
    """Spikes :math:`s_t = [u_t < x]`, ``[steps, B, *]`` in the dtype of ``x`` ``[B, *]``; the uniforms are never stored."""
    out = torch.empty((steps, *x.shape), dtype=x.dtype, device=x.device)
    _draw(key, sample_ids.to(x.device), x.detach().contiguous(), out, start)
    return out


def _draw(key: Tensor, sample_ids: Tensor, x: Tensor | None, out: Tensor, start: int) -> None:
    T, B = out.shape[:2]
    elements = prod(out.shape[2:])
    if out.numel() == 0:
        return
    blocks = -(-elements // 4)
    size = min(_BLOCK, max(32, 1 << (blocks - 1).bit_length()))
    with on(out):
        code().draw[T * B, -(-blocks // size)](
            key.to(out.device), sample_ids.contiguous(), x, out, B, elements, start, BLOCK=size
        )
