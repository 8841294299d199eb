"""What a measured converter answers: tables P(code | ideal partial sum), read from files or made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from snnrobust import checks
from snnrobust.draws import derive
from snnrobust.kernels.philox import uniform

__all__ = ["alias_table", "checked_table", "code_values", "read_table", "synthetic_table"]

READERS = (".npy", ".safetensors", ".csv")


def checked_table(table: Any, rows: int | None = None, name: str = "table") -> Tensor:
    """``table`` as float64 ``[rows + 1, codes]``, each row a distribution, renormalised to the last bit.

    Args:
        table: A tensor, an array or nested lists: P(code | ideal partial sum 0, 1, ..., rows).
        rows: Of a sub-array; None takes any.
        name: For the error.

    Raises:
        ValueError: not two-dimensional, too small, another number of rows, negative or not finite, or rows whose sum is not
            1 within 1e-4.
    """
    try:
        p = torch.as_tensor(table, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers in rows of equal length: {error}") from None
    if p.dim() != 2 or p.shape[0] < 2 or p.shape[1] < 2:
        raise ValueError(
            f"{name} must be [rows + 1, codes], P(code | ideal partial sum), both at least 2, got {tuple(p.shape)}"
        )
    if rows is not None and p.shape[0] != rows + 1:
        raise ValueError(
            f"{name} must have rows + 1 = {rows + 1} rows, one for each partial sum 0..{rows}, got {p.shape[0]}: set "
            f"rows={p.shape[0] - 1}, or transpose it if its rows are the codes"
        )
    if not p.isfinite().all() or (p < 0).any():
        raise ValueError(
            f"{name} must hold probabilities, finite and at least 0: it has negative, NaN or infinite entries"
        )
    sums = p.sum(1, keepdim=True)
    worst = int((sums - 1).abs().argmax())
    if (sums[worst] - 1).abs() > 1e-4:
        raise ValueError(
            f"every row of {name} must sum to 1, but that of the partial sum {worst} sums to {sums[worst].item():.6g}: divide "
            "counts by their sum, and transpose it if its rows are the codes"
        )
    return p / sums


def read_table(path: str | Path, rows: int | None = None) -> Tensor:
    """A table from a ``.npy`` file (no pickle), a ``.csv`` (numbers alone, a line for each partial sum) or a ``.safetensors``
    (its one tensor, or that called ``table``); see :func:`checked_table`."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in READERS:
        raise ValueError(f"table must be a {', '.join(READERS)} file, got {path.name!r}")
    if not path.is_file():
        raise FileNotFoundError(f"table: there is no file {path}")
    try:
        if kind == ".npy":
            values: Any = np.load(path, allow_pickle=False)
            if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
                raise ValueError("it holds no plain array of numbers")
        elif kind == ".csv":
            values = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64)
        else:
            tensors = load_file(path)
            if "table" not in tensors and len(tensors) != 1:
                raise ValueError(f"it holds {sorted(tensors)}: name one of them 'table'")
            values = tensors["table"] if "table" in tensors else next(iter(tensors.values()))
    except (ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"table: {path} cannot be read: {error}") from None
    return checked_table(values, rows, f"table ({path.name})")


def synthetic_table(
    rows: int,
    codes: int | None = None,
    sigma: float = 0.5,
    offset: float = 0.0,
    nonlinearity: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    r"""A table with Gaussian noise around a monotone mean, for tests and studies without chip data.

    .. math:: P(c \mid p) = \Phi\left(\frac{c + 1/2 - m_p}{\sigma}\right) - \Phi\left(\frac{c - 1/2 - m_p}{\sigma}\right), \quad
        m_p = o + (C - 1) \frac{\sum_{i \le p} d_i}{\sum_i d_i}, \quad d_i = 1 + n\,(2 u_i - 1)

    with the tails in the first and the last code. Without nonlinearity, noise and offset, and with rows + 1 codes, it is the
    identity.

    Args:
        rows: Of a sub-array: the largest partial sum.
        codes: Of the converter, default rows + 1.
        sigma: Standard deviation before rounding, in codes.
        offset: o, in codes.
        nonlinearity: n in [0, 1): how much the steps of the mean differ.
        seed: Of the u in [0, 1): an integer, or the two words of a key.

    Returns:
        float64 ``[rows + 1, codes]``.
    """
    checks.count("rows", rows)
    codes = rows + 1 if codes is None else checks.count("codes", codes, low=2)
    checks.number("sigma", sigma, 0.0)
    checks.number("offset", offset)
    if checks.number("nonlinearity", nonlinearity, 0.0) >= 1:
        raise ValueError(f"nonlinearity must be in [0, 1), got {nonlinearity}: at 1 the mean would stand still")
    if isinstance(seed, Tensor):
        key = seed.cpu()
    else:
        word = derive(checks.count("seed", seed, low=0), "table")
        key = torch.tensor([word & 0xFFFFFFFF, word >> 32])
    u = uniform(key, torch.zeros(1, dtype=torch.int64), (1, 1, rows))[0, 0].double()
    climb = torch.cat((torch.zeros(1, dtype=torch.float64), (1 + nonlinearity * (2 * u - 1)).cumsum(0)))
    mean = offset + (codes - 1) * climb / climb[-1]
    if sigma == 0:
        nearest = (mean + 0.5).floor().clamp(0, codes - 1).long()
        return torch.nn.functional.one_hot(nearest, codes).double()
    edges = torch.arange(codes - 1, dtype=torch.float64) + 0.5
    below = torch.special.ndtr((edges - mean[:, None]) / sigma)
    whole = torch.cat((torch.zeros(rows + 1, 1), below, torch.ones(rows + 1, 1)), 1)
    return whole.diff(dim=1).clamp_(min=0.0)


def code_values(codes: int, rows: int, values: Sequence[float] | None = None) -> Tensor:
    """The partial sum that each code stands for, float64 ``[codes]``: evenly from 0 to ``rows``, or as given."""
    if values is None:
        return torch.arange(codes, dtype=torch.float64) * (rows / (codes - 1))
    given = torch.tensor([checks.number("values", v) for v in values], dtype=torch.float64)
    if len(given) != codes:
        raise ValueError(f"values must have one number for each of the {codes} codes, got {len(given)}")
    return given


def alias_table(p: Tensor) -> tuple[Tensor, Tensor]:
    r"""Walker's alias method: a code of ``p`` from one uniform number, by one comparison.

    With :math:`C u = i + f`, i the whole part, the code is i if :math:`f < \theta_{pi}`, else :math:`a_{pi}`.

    Args:
        p: Distributions, float64 ``[rows + 1, codes]``.

    Returns:
        :math:`\theta` and a, ``[rows + 1, codes]``, float64 and int64.

    Source: Walker 1977, "An efficient method for generating discrete random variables with general distributions".
    """
    left = p * p.shape[1]  # of each code, in columns of height 1
    threshold, alias = torch.ones_like(p), torch.arange(p.shape[1]).repeat(len(p), 1)
    open_, lines = torch.ones_like(p, dtype=torch.bool), torch.arange(len(p))
    for _ in range(p.shape[1] - 1):  # the lowest column is filled up from the highest, and closed
        low = left.masked_fill(~open_, torch.inf).argmin(1)
        high = left.masked_fill(~open_, -torch.inf).argmax(1)
        height = left[lines, low].clamp(0.0, 1.0)
        threshold[lines, low], alias[lines, low] = height, high
        left[lines, high] -= torch.where(low == high, 0.0, 1.0 - height)
        open_[lines, low] = False
    return threshold, alias
