"""Batches with the identity of each sample, from any way of giving data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from snnrobust import checks
from snnrobust.draws import derive, keyed

__all__ = ["Batch", "Data", "batches", "count_batches", "take"]

Data = Dataset[tuple[Tensor, ...]] | DataLoader[tuple[Tensor, ...]] | tuple[Tensor, Tensor]
"""A map-style dataset of (input, label), a DataLoader of such batches, or a pair of tensors."""


class Batch(NamedTuple):
    x: Tensor
    y: Tensor
    sample_ids: Tensor


def batches(data: Data, batch_size: int, shuffle_key: int | None = None) -> Iterator[Batch]:
    """The whole of ``data`` once; no sample is dropped.

    A dataset or pair of tensors is shuffled by ``shuffle_key`` (None: in order), and a sample's id is its index; when
    shuffled, a last sample on its own joins the batch before. A
    DataLoader keeps its own batches and order, with torch's generator seeded from ``shuffle_key``; ids count from 0.

    Raises:
        TypeError, ValueError: not data, no sample, or inputs and labels that are not ``[B, *]`` and int64 ``[B]``.
    """
    seen = 0
    for x, y, ids in _iterate(data, checks.count("batch_size", batch_size), shuffle_key):
        if x.dim() < 2 or len(x) == 0:
            raise ValueError(f"inputs must be batches [B, ...] that are not empty, got shape {tuple(x.shape)}")
        checks.labels("labels", y, len(x))
        yield Batch(x, y, torch.arange(seen, seen + len(x)) if ids is None else ids)
        seen += len(x)
    if seen == 0:
        raise ValueError("the data is empty: there is not one sample to use")


def count_batches(data: Data, batch_size: int) -> int | None:
    """How many batches :func:`batches` gives, to within one; None where that is not known."""
    if isinstance(data, DataLoader):
        return len(data) if hasattr(data.dataset, "__len__") else None
    size = len(data[0]) if isinstance(data, tuple) else len(data)  # type: ignore[arg-type]
    return -(-size // batch_size)


def _iterate(data: Data, batch_size: int, shuffle_key: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    if isinstance(data, DataLoader):
        if data.drop_last:
            raise ValueError("the DataLoader has drop_last=True and would leave samples out: use drop_last=False")
        yield from ((*pair, None) for pair in _load(data, 0 if shuffle_key is None else shuffle_key))
        return
    if isinstance(data, list) and data and isinstance(data[0], Tensor):
        raise TypeError(
            "data must be a map-style dataset, a DataLoader or a tuple (x, y), got a list of tensors: use (x, y)"
        )
    if isinstance(data, tuple):
        checks.labels("labels", data[1], len(data[0]))
    dataset = TensorDataset(*data) if isinstance(data, tuple) else data
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"data must be a map-style dataset, a DataLoader or (x, y), got {type(data).__name__}")
    size = len(dataset)
    order = torch.arange(size)
    if shuffle_key is not None:
        order = torch.randperm(size, generator=torch.Generator().manual_seed(shuffle_key))
    parts = list(order.split(batch_size)) if size else []
    if shuffle_key is not None and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]  # batch normalisation cannot train on one sample, and none is dropped
    for index in parts:
        if isinstance(dataset, TensorDataset):
            x, y = (t[index] for t in dataset.tensors)
        else:
            x, y = _stack(dataset[i] for i in index.tolist())
        yield x, y, index


def _load(loader: DataLoader[tuple[Tensor, ...]], key: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Its batches, with torch's generator, or the loader's own, seeded from ``key`` and put back afterwards."""
    own = loader.generator
    state = None if own is None else own.get_state()
    try:
        if own is not None:
            own.manual_seed(key)
        with keyed(key):
            iterator = iter(loader)
        for index in itertools.count():
            with keyed(derive(key, index)):  # samplers and random transforms draw only when a batch is asked for
                pair = next(iterator, None)
            if pair is None:
                return
            yield pair[0], pair[1]
    finally:
        if own is not None and state is not None:
            own.set_state(state)


def _stack(samples: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    pairs = list(samples)
    return torch.stack([torch.as_tensor(p[0]) for p in pairs]), torch.as_tensor(
        [p[1].item() if isinstance(p[1], Tensor) else p[1] for p in pairs]
    )


def take(data: Data, n: int | None = None, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """The first ``n`` samples (None: all) as tensors ``[n, *]`` and ``[n]``.

    Raises:
        ValueError: fewer than ``n`` samples.
    """
    xs, ys, count = [], [], 0
    for batch in batches(data, batch_size):
        xs.append(batch.x)
        ys.append(batch.y)
        count += len(batch.x)
        if n is not None and count >= n:
            break
    if n is not None and count < checks.count("n", n):
        raise ValueError(f"{n} samples are asked for, but the data has only {count}")
    return torch.cat(xs)[:n], torch.cat(ys)[:n]
