"""Data-parallel training: each process takes a part of every batch, and gradients are summed over the processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snnrobust.data import Batch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Alone", "broadcast", "reduce_gradients", "shard", "total"]


@dataclass(frozen=True)
class Alone:
    """What the loop needs of a ``Fabric``, for one process on one device; to make a ``Fabric`` takes as long as a few steps."""

    device: torch.device
    bfloat16: bool = False
    world_size: int = 1
    global_rank: int = 0
    is_global_zero: bool = True

    def to_device(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def barrier(self) -> None:
        """There is nobody to wait for."""


def shard(batch: Batch, fabric: Fabric | Alone) -> Batch:
    """This process's part of a batch: every n-th sample, perhaps none."""
    if fabric.world_size == 1:
        return batch
    part = torch.arange(fabric.global_rank, len(batch.x), fabric.world_size)
    return Batch(*(t[part] for t in batch))


def total(fabric: Fabric | Alone, *values: float) -> list[float]:
    """Sums over the processes."""
    if fabric.world_size == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    dist.all_reduce(summed)
    return summed.tolist()


def broadcast(fabric: Fabric | Alone, *modules: nn.Module) -> None:
    """Parameters and buffers of the first process everywhere: training begins from one model."""
    if fabric.world_size == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            value = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(value.view(torch.uint8) if value.dtype == torch.bool else value, 0)
            tensor.data.copy_(value)


def reduce_gradients(fabric: Fabric | Alone, parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over the processes; a parameter without one on every process stays without."""
    if fabric.world_size == 1:
        return
    for dtype in sorted({p.dtype for p in parameters}, key=str):
        group = [p for p in parameters if p.dtype == dtype]
        has = torch.tensor([float(p.grad is not None) for p in group], dtype=dtype, device=fabric.device)
        parts: list[Tensor] = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        summed = torch.cat([*(g.flatten() for g in parts), has])
        dist.all_reduce(summed)
        *gradients, has = summed.split([*(p.numel() for p in group), len(group)])
        for p, gradient, present in zip(group, gradients, has.tolist(), strict=True):
            p.grad = gradient.view_as(p) if present else None
