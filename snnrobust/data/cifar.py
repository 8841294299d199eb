"""CIFAR-10 in its official binary files: records of one label byte and 3,072 bytes of red, green and blue planes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["cifar10", "cifar10_small", "records"]

_RECORD, _CLASSES, _EACH = 1 + 3 * 32 * 32, 10, 1000
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_SMALL = {"train": ("train_first1000perclass", "train_next1000perclass"), "test": ("test_first1000",)}


def records(path: str | Path) -> tuple[Tensor, Tensor]:
    """Images uint8 ``[N, 3, 32, 32]`` and labels int64 ``[N]`` of a ``.bin`` or ``.bin.gz`` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is truncated, or a label is not one of 0..9.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put the official file there (CIFAR-10 binary version)")
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not gzip ({error}): fetch it again") from error
    if not content or len(content) % _RECORD:
        raise ValueError(f"{path} is {len(content)} bytes, not records of {_RECORD}: it is truncated, fetch it again")
    table = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, _RECORD)
    labels = table[:, 0].long()
    if int(labels.max()) >= _CLASSES:
        raise ValueError(f"{path} has the label {int(labels.max())}: it is not a file of CIFAR-10")
    return table[:, 1:].reshape(-1, 3, 32, 32), labels


def cifar10(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The official set, 50,000 and 10,000 images, as :func:`records` gives them."""
    return _joined(folder, _TRAIN if split == "train" else ("test_batch",))


def cifar10_small(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The first 1,000 training images of each class, then the next 1,000 of each; the first 1,000 test images.

    Read from files of their own (``train_first1000perclass.bin.gz``, ...) or taken out of the official ones.
    """
    if any(_file(folder, name).is_file() for name in _SMALL[split]):
        return _joined(folder, _SMALL[split])
    images, labels = cifar10(folder, split)
    if split == "test":
        return images[:_EACH], labels[:_EACH]
    rank = torch.empty_like(labels)
    for k in range(_CLASSES):
        mine = labels == k
        rank[mine] = torch.arange(int(mine.sum()))
    order = torch.cat([((rank >= low) & (rank < low + _EACH)).nonzero()[:, 0] for low in (0, _EACH)])
    return images[order], labels[order]


def _joined(folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*(records(_file(folder, name)) for name in names), strict=True)
    return torch.cat(images), torch.cat(labels)


def _file(folder: Path, name: str) -> Path:
    """Unpacked where it is, else packed; the official archive has a folder of its own inside."""
    for path in (folder, folder / "cifar-10-batches-bin"):
        for ending in (".bin", ".bin.gz"):
            if (path / f"{name}{ending}").is_file():
                return path / f"{name}{ending}"
    return folder / f"{name}.bin"
