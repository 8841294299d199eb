"""What is installed and what is found: the lines of ``snnrobust doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from snnrobust import data, kernels
from snnrobust.experiments.run import versions

__all__ = ["findings"]


def findings() -> Iterator[tuple[str, str]]:
    """Versions, threads, kernels, devices and data sets, each by name."""
    yield from versions().items()
    for package in ("snntorch", "spikingjelly", "tonic", "nir", "ray"):
        yield f"{package} (optional)", _version(package)
    yield "threads", str(torch.get_num_threads())
    yield "kernels", kernels.status()
    limit = kernels.memory().limit
    yield "recycled memory", f"at most {limit / 2**20:,.0f} MiB idle" if limit else "off"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "devices", ", ".join(["cpu", *gpus])
    yield "data folder", str(data.data_root())
    for name in data.DATASETS:
        try:
            sizes = [len(data.load(name, split)) for split in ("train", "test")]
            yield f"data: {name}", f"{sizes[0]:,} training and {sizes[1]:,} test samples"
        except (FileNotFoundError, ValueError) as error:
            yield f"data: {name}", str(error)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
