import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from snnrobust.data import load
from snnrobust.data.cifar import records

REAL = Path(os.environ.get("SNNROBUST_DATA", "nowhere"))


def bytes_of(labels, images):
    return b"".join(bytes([k]) + image.tobytes() for k, image in zip(labels, images, strict=True))


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return rng.integers(0, 10, 7), rng.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("ending", [".bin", ".bin.gz"])
def test_records_are_a_label_and_three_planes(table, tmp_path, ending):
    labels, images = table
    content = bytes_of(labels, images)
    path = tmp_path / f"some{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".bin.gz" else content)
    x, y = records(path)
    assert x.dtype == torch.uint8
    assert np.array_equal(x.numpy(), images)
    assert y.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "a.bin", "truncated"),
        (bytes(3072), "a.bin", "truncated"),
        (bytes([10]) + bytes(3072), "a.bin", "label 10"),
        (gzip.compress(bytes(3073), mtime=0)[:-9], "a.bin.gz", "truncated or not gzip"),
    ],
)
def test_damaged_files_are_named(content, name, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        records(tmp_path / name)


def test_a_missing_set_says_where_it_should_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin is missing"):
        load("cifar10", "train", tmp_path)


def official(root, folder="cifar10"):
    """A set of 50,000 images that are told apart by their first two bytes, with labels in no order."""
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(10), 5000))
    (root / folder).mkdir(parents=True)
    for part in range(5):
        chunk = np.zeros((10_000, 3073), dtype=np.uint8)
        index = np.arange(10_000 * part, 10_000 * (part + 1))
        chunk[:, 0], chunk[:, 1], chunk[:, 2] = labels[index], index // 256, index % 256
        (root / folder / f"data_batch_{part + 1}.bin").write_bytes(chunk.tobytes())
    return labels


@pytest.mark.parametrize("folder", ["cifar10", "cifar10/cifar-10-batches-bin"])
def test_the_small_set_is_taken_out_of_the_official_one(folder, tmp_path):
    labels = official(tmp_path, folder)
    x, y = load("cifar10-small", "train", tmp_path).tensors
    index = (256 * (255 * x[:, 0, 0, 0]).round() + (255 * x[:, 0, 0, 1]).round()).long().numpy()
    first = np.sort(np.concatenate([np.flatnonzero(labels == k)[:1000] for k in range(10)]))
    following = np.sort(np.concatenate([np.flatnonzero(labels == k)[1000:2000] for k in range(10)]))
    assert index.tolist() == [*first.tolist(), *following.tolist()]
    assert y.tolist() == labels[index].tolist()


@pytest.mark.parametrize(("split", "size"), [("train", 20_000), ("test", 1000)])
def test_the_real_files(split, size):
    if not (REAL / "cifar10").is_dir():
        pytest.skip("SNNROBUST_DATA names no folder with cifar10/")
    x, y = load("cifar10-small", split).tensors
    assert (x.shape, y.shape) == ((size, 3, 32, 32), (size,))
    assert (x.min(), x.max()) == (0, 1)
    if split == "train":
        assert torch.bincount(y).tolist() == [2000] * 10
        assert torch.bincount(y[:10_000]).tolist() == [1000] * 10
        mean = x.mean((0, 2, 3))
        assert (mean - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.01  # of the whole set, as published
