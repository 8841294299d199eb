"""Sets by name: scikit-learn's digits (embedded), MNIST-like sets and CIFAR-10 in their official files, pen strokes."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from snnrobust import checks
from snnrobust.data.cifar import cifar10, cifar10_small
from snnrobust.data.strokes import POINTS, mnist_strokes

__all__ = ["DATASETS", "SHAPES", "data_root", "load"]

SHAPES: dict[str, tuple[int, ...]] = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar10-small": (3, 32, 32),
    "mnist-strokes": (POINTS, 2),
}
"""Shape of one sample of each set: images ``(C, H, W)``, sequences ``(T, F)``."""
DATASETS = tuple(SHAPES)


def data_root() -> Path:
    """Where data sets lie: ``$SNNROBUST_DATA``, else ``~/.cache/snnrobust``."""
    return Path(os.environ.get("SNNROBUST_DATA") or Path.home() / ".cache" / "snnrobust")


def load(name: str, split: str, root: str | Path | None = None) -> TensorDataset:
    """Images ``[N, C, H, W]`` or sequences ``[N, T, F]``, float32 in [0, 1], and int64 labels, in the official order.

    Args:
        name: ``"digits"`` (1,797 scans of 8 x 8, embedded in scikit-learn; 500 of them, stratified, are the test set),
            ``"mnist"`` or ``"fashion-mnist"`` (60,000 and 10,000 of 28 x 28), ``"cifar10"`` (50,000 and 10,000 of 3 x 32 x 32) or
            ``"cifar10-small"`` (20,000 and 1,000 of them: the first 2,000 of each class, the first test images);
            ``"mnist-strokes"``, sequences of 40 x 2: :func:`~snnrobust.data.mnist_strokes` has other lengths and coordinates.
        split: ``"train"`` or ``"test"``.
        root: Folder that holds the sets; default :func:`data_root`.

    Raises:
        FileNotFoundError: the set's files are not there.
        ValueError: an unknown name, or a file that is truncated or of another format.
    """
    checks.choice("data set", name, DATASETS)
    checks.choice("split", split, ("train", "test"))
    if name == "digits":
        return _digits(split)
    root = data_root() if root is None else Path(root)
    if name.startswith("cifar10"):
        images, labels = (cifar10 if name == "cifar10" else cifar10_small)(root / "cifar10", split)
        return TensorDataset(images.float().div_(255), labels)
    folder = root / name
    if name == "mnist-strokes":
        return mnist_strokes(folder, split)
    prefix = "train" if split == "train" else "t10k"
    images = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", rank=3)
    labels = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", rank=1)
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} images but {len(labels)} labels")
    return TensorDataset(images[:, None].float().div_(255), labels.long())


def _digits(split: str) -> TensorDataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    order = train_test_split(np.arange(len(digits.target)), test_size=500, stratify=digits.target, random_state=0)
    index = order[0 if split == "train" else 1]
    images = torch.from_numpy(digits.images[index]).float().div_(16)
    return TensorDataset(images[:, None], torch.from_numpy(digits.target[index]).long())


def _idx(path: Path, rank: int) -> Tensor:
    """An array of unsigned bytes in the idx format: magic 0, 0, 8, rank; the sizes, big-endian; the bytes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: put the official file there, or set SNNROBUST_DATA to the folder that holds {path.parent.name}/"
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not gzip ({error}): fetch it again") from error
    start = 4 + 4 * rank
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if content[:4] != bytes((0, 0, 8, rank)) or len(content) < start or len(content) != start + math.prod(sizes):
        raise ValueError(f"{path} is not an idx file of {rank} dimensions of bytes: fetch it again")
    if len(content) == start:
        raise ValueError(f"{path} is empty: its sizes are {sizes}: fetch it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)
