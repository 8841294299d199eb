import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from snnrobust.data import DATASETS, SHAPES, data_root, load


def idx(array, magic=None):
    head = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3))
LABELS = np.array([3, 1, 4, 1, 5])


def write(root, images=None, labels=None, name="mnist", prefix="t10k", squeeze=gzip.compress):
    folder = root / name
    folder.mkdir(exist_ok=True)
    for kind, content in (
        ("images-idx3", idx(IMAGES) if images is None else images),
        ("labels-idx1", idx(LABELS) if labels is None else labels),
    ):
        (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(squeeze(content))
    return root


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_the_official_files_are_read(name, split, prefix, tmp_path):
    x, y = load(name, split, write(tmp_path, name=name, prefix=prefix)).tensors
    assert (x.shape, x.dtype, y.dtype) == ((5, 1, 4, 3), torch.float32, torch.int64)
    assert torch.equal(x, torch.from_numpy(IMAGES)[:, None].float() / 255)
    assert y.tolist() == LABELS.tolist()


def test_the_folder_is_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNROBUST_DATA", str(write(tmp_path)))
    assert data_root() == tmp_path
    assert len(load("mnist", "test")) == 5
    monkeypatch.delenv("SNNROBUST_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / ".cache" / "snnrobust"


GOOD = idx(IMAGES)


@pytest.mark.parametrize(
    "images",
    {
        "nothing": b"",
        "half a magic number": GOOD[:2],
        "no sizes": GOOD[:4],
        "half a size": GOOD[:7],
        "no pixels": GOOD[:16],
        "a pixel too few": GOOD[:-1],
        "a pixel too many": GOOD + b"0",
        "labels": idx(LABELS),
        "floats": idx(IMAGES, magic=bytes((0, 0, 13, 3))),
        "another file": b"PNG" + GOOD,
        "no images": idx(IMAGES[:0]),
        "sizes that overflow": bytes((0, 0, 8, 3)) + b"\xff" * 12 + b"0" * 7,
    }.items(),
    ids=lambda pair: pair[0],
)
def test_a_file_of_another_format_is_named(images, tmp_path):
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is .*fetch it again"):
        load("mnist", "test", write(tmp_path, images=images[1]))


@pytest.mark.parametrize(
    "squeeze", [lambda b: b, lambda b: gzip.compress(b)[:-9], lambda b: gzip.compress(b)[:5], lambda b: b""]
)
def test_a_truncated_file_or_one_that_is_not_gzip_is_named(squeeze, tmp_path):
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is .*fetch it again"):
        load("mnist", "test", write(tmp_path, squeeze=squeeze))


def test_a_flipped_bit_is_noticed(tmp_path):
    def flipped(content):
        squeezed = bytearray(gzip.compress(content))
        squeezed[-6] ^= 1  # in the checksum
        return bytes(squeezed)

    with pytest.raises(ValueError, match="fetch it again"):
        load("mnist", "test", write(tmp_path, squeeze=flipped))


def test_images_and_labels_must_be_as_many(tmp_path):
    with pytest.raises(ValueError, match="5 images but 4 labels"):
        load("mnist", "test", write(tmp_path, labels=idx(LABELS[:4])))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_folder_says_where_to_put_it(split, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images-idx3-ubyte\.gz is missing: .*SNNROBUST_DATA .* holds mnist/"):
        load("mnist", split, tmp_path)


def test_unknown_names_are_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"data set must be one of digits, .*did you mean 'mnist'"):
        load("minst", "test")
    with pytest.raises(ValueError, match=r"split must be one of train, test; got 'tests' \(did you mean 'test'"):
        load("digits", "tests")


def test_digits_are_split_completely_and_by_class():
    (x_train, y_train), (x_test, y_test) = (load("digits", split).tensors for split in ("train", "test"))
    assert (x_train.shape, x_test.shape) == ((1297, 1, 8, 8), (500, 1, 8, 8))
    assert (x_train.dtype, y_train.dtype) == (torch.float32, torch.int64)
    assert (x_train.min(), x_train.max()) == (0, 1)
    official = load_digits()
    rows = [(*image.flatten().tolist(), label) for image, label in zip(official.images, official.target, strict=True)]
    ours = [
        (*(16 * image.flatten()).tolist(), label)
        for x, y in ((x_train, y_train), (x_test, y_test))
        for image, label in zip(x, y.tolist(), strict=True)
    ]
    assert sorted(ours) == sorted(rows)  # so the parts are disjoint and complete
    share = torch.bincount(y_test) / torch.from_numpy(np.bincount(official.target))
    assert (share - 500 / 1797).abs().max() < 0.01
    again = load("digits", "test").tensors
    assert torch.equal(again[0], x_test)


REAL = Path(os.environ.get("SNNROBUST_DATA", "nowhere"))


@pytest.mark.parametrize(
    ("name", "split", "size", "first"),
    [("mnist", "test", 10_000, 7), ("mnist", "train", 60_000, 5), ("fashion-mnist", "test", 10_000, 9)],
)
def test_the_real_files(name, split, size, first):
    if not (REAL / name).is_dir():
        pytest.skip(f"SNNROBUST_DATA names no folder with {name}/")
    x, y = load(name, split).tensors
    assert x.shape == (size, 1, 28, 28)
    assert (x.min(), x.max()) == (0, 1)
    counts = torch.bincount(y, minlength=10)
    assert len(counts) == 10
    assert counts.sum() == size
    assert y[0] == first
    if (name, split) == ("mnist", "test"):  # as published: yann.lecun.com/exdb/mnist
        assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    if name == "fashion-mnist":
        assert counts.tolist() == [1000] * 10


def test_every_data_set_is_loadable_by_name(tmp_path):
    for name in DATASETS:
        if name.startswith("cifar10"):
            (tmp_path / "cifar10").mkdir(exist_ok=True)
            (tmp_path / "cifar10" / "test_batch.bin").write_bytes(bytes(2 * 3073))
        elif name == "mnist-strokes":
            (tmp_path / name).mkdir()
            arrays = {"points": [[1, 1, 1, 1]], "offsets": [0, 1], "labels": [3]}
            np.savez(tmp_path / name / "mnist_strokes.npz", **{f"test_{k}": np.array(v) for k, v in arrays.items()})
        elif name != "digits":
            write(tmp_path, name=name)
        x, _ = load(name, "test", tmp_path).tensors
        assert len(x) > 0
        assert name not in ("digits", "cifar10") or x.shape[1:] == SHAPES[name]
