"""Where and when something was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from snnrobust import kernels

__all__ = ["allocator", "environment", "load"]


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, kernels, versions, threads, load, allocator settings, date."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load(),
        "kernels": kernels.status(),
        "allocator": allocator() or "default",
        "settings": _settings() or "default",
        "huge pages": _huge_pages(),
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", *packages)},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def load() -> list[float] | None:
    """Of the machine, over 1, 5 and 15 minutes."""
    return [round(average, 2) for average in os.getloadavg()] if hasattr(os, "getloadavg") else None


def allocator() -> dict[str, str]:
    """Settings of the environment that change how memory is allocated."""
    names = ("GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE", "LD_PRELOAD")
    return {k: v for k, v in os.environ.items() if k.startswith("MALLOC_") or k in names}


def _settings() -> dict[str, str]:
    """Of the environment, that change how kernels and threads run."""
    return {
        k: v for k, v in os.environ.items() if k.startswith(("SNNROBUST_", "OMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_"))
    }


def _huge_pages() -> str:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    text = setting.read_text() if setting.exists() else ""
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
