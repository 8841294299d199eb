"""Kernels: fused C code for the hot paths, each with a fallback in torch operations that gives the same forward bits."""

from snnrobust.kernels.lif import saving
from snnrobust.kernels.native import available, status

__all__ = ["available", "saving", "status"]
