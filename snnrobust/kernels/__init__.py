"""Kernels: fused C code for the hot paths, each with a fallback in torch operations that gives the same forward bits."""

from snnrobust.kernels.bits import packed_spikes
from snnrobust.kernels.buffers import Memory, limit_memory, memory, release_memory
from snnrobust.kernels.lif import saving
from snnrobust.kernels.native import available, status

__all__ = ["Memory", "available", "limit_memory", "memory", "packed_spikes", "release_memory", "saving", "status"]
