"""Samples that chose something must not judge it."""

from __future__ import annotations

import hashlib

from torch import Tensor

__all__ = ["demand_disjoint", "sample_digests"]


def sample_digests(x: Tensor) -> list[str]:
    """One for each sample of ``x`` ``[N, *]``: equal samples have equal ones."""
    rows = x.detach().cpu().contiguous().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=12).hexdigest() for row in rows]


def demand_disjoint(x: Tensor, x_judge: Tensor, why: str) -> None:
    """Raise ValueError if a sample of ``x_judge`` is one of ``x``, in any order; ``why`` says what ``x`` has chosen."""
    if x.shape[1:] != x_judge.shape[1:]:
        raise ValueError(
            f"data and judge must be of one shape, got {tuple(x.shape[1:])} and {tuple(x_judge.shape[1:])}"
        )
    common = len(set(sample_digests(x)) & set(sample_digests(x_judge)))
    if common:
        raise ValueError(f"judge must be other samples than data: {common} are in both, and {why}")
