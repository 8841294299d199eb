import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnrobust import data
from snnrobust.data import mnist_strokes
from snnrobust.data.strokes import POINTS
from snnrobust.experiments import parse

DIGITS = [  # (dx, dy) of each digit; the first from the corner
    [(11, 9), (1, 0), (0, -1), (-2, 3)],
    [(28, 28)],
    [(1, 2), (0, 1), (5, -3)],
]


def arrays(digits=DIGITS, labels=None, split="test"):
    points = [
        (*step, int(i == len(digit) - 1), int(i == len(digit) - 1)) for digit in digits for i, step in enumerate(digit)
    ]
    return {
        f"{split}_points": np.array(points, np.int8),
        f"{split}_offsets": np.concatenate([[0], np.cumsum([len(d) for d in digits])]).astype(np.int32),
        f"{split}_labels": np.array(range(len(digits)) if labels is None else labels, np.uint8),
    }


def write(folder, content=None):
    np.savez(folder / "mnist_strokes.npz", **(arrays() if content is None else content))
    return folder


def brute_force(digit, points, coordinates):
    """One digit, point by point."""
    rows, x, y = [], 0, 0
    for dx, dy in digit[:points]:
        x, y = x + dx, y + dy
        rows.append((x / 28, y / 28) if coordinates == "absolute" else (0.5 + dx / 56, 0.5 + dy / 56))
    return rows + [(0.0, 0.0) if coordinates == "absolute" else (0.5, 0.5)] * (points - len(rows))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("coordinates", ["absolute", "relative"])
@pytest.mark.parametrize("points", [1, 2, 4, 7])
def test_digits_are_cut_and_filled_up(split, coordinates, points, tmp_path):
    x, y = mnist_strokes(write(tmp_path, arrays(split=split)), split, points, coordinates).tensors
    expected = torch.tensor([brute_force(d, points, coordinates) for d in DIGITS])
    assert (x.shape, x.dtype, y.dtype) == ((3, points, 2), torch.float32, torch.int64)
    assert torch.allclose(x, expected, rtol=0, atol=1e-7)
    assert y.tolist() == [0, 1, 2]


walks = st.lists(
    st.lists(st.tuples(st.integers(0, 28), st.integers(0, 28)), min_size=1, max_size=6), min_size=1, max_size=5
)


@given(walks, st.integers(1, 8))
def test_any_walk_inside_the_image_is_read_and_stays_in_the_box(tmp_path_factory, positions, points):
    digits = [[(b[0] - a[0], b[1] - a[1]) for a, b in zip([(0, 0), *p], p, strict=False)] for p in positions]
    folder = write(tmp_path_factory.mktemp("strokes"), arrays(digits))
    for coordinates in ("absolute", "relative"):
        x, _ = mnist_strokes(folder, "test", points, coordinates).tensors
        assert torch.allclose(x, torch.tensor([brute_force(d, points, coordinates) for d in digits]), rtol=0, atol=1e-7)
        assert 0 <= x.min() <= x.max() <= 1


def test_it_is_a_data_set_by_name(tmp_path, monkeypatch):
    (tmp_path / "mnist-strokes").mkdir()
    write(tmp_path / "mnist-strokes")
    monkeypatch.setenv("SNNROBUST_DATA", str(tmp_path))
    x, y = data.take(data.load("mnist-strokes", "test"), 2)
    assert x.shape[1:] == data.SHAPES["mnist-strokes"] == (POINTS, 2)
    assert y.tolist() == [0, 1]
    assert torch.equal(x, mnist_strokes(tmp_path / "mnist-strokes", "test").tensors[0][:2])


def changed(**arrays_of):
    return {**arrays(), **arrays_of}


POINT = arrays()["test_points"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"test_points": POINT}, "has no array 'test_offsets|has no array 'test_offsets is not"),
        (arrays(split="train"), "has no array 'test_points"),
        (changed(test_points=POINT[:, :3]), r"shapes \[\(8, 3\), \(4,\), \(3,\)\], not \[P, 4\]"),
        (changed(test_points=POINT[:-1]), "offsets do not go up from 0 to 7"),
        (changed(test_offsets=np.array([0, 4, 4, 8])), "offsets do not go up from 0 to 8"),
        (changed(test_offsets=np.array([0, 5, 4, 8])), "offsets do not go up"),
        (changed(test_offsets=np.array([1, 4, 5, 8])), "offsets do not go up"),
        (changed(test_labels=np.arange(4)), r"shapes .* \(4,\), \(4,\)"),
        (changed(test_labels=np.array([0, 1, 10])), "labels are not digits"),
        (changed(test_labels=np.zeros((3, 1), int)), "shapes"),
        (changed(test_labels=np.zeros(0, int), test_offsets=np.zeros(1, int), test_points=POINT[:0]), "shapes"),
        (changed(test_points=POINT.astype(float)), "not of integers"),
        (changed(test_labels=np.array(["a", "b", "c"])), "not of integers"),
        (arrays([[(11, 9), (18, 0)]]), "outside of 28 x 28"),
        (arrays([[(1, 1), (0, -2)]]), "outside of 28 x 28"),
    ],
)
def test_a_file_of_something_else_is_named(content, words, tmp_path):
    with pytest.raises(
        ValueError, match=rf"mnist_strokes\.npz is not a file of pen strokes: .*({words}).*fetch it again"
    ):
        mnist_strokes(write(tmp_path, content), "test")


def test_objects_are_never_unpickled(tmp_path):
    write(tmp_path, changed(test_labels=np.array([{}, {}, {}], dtype=object)))
    with pytest.raises(ValueError, match=r"it cannot be read .*pickle"):
        mnist_strokes(tmp_path, "test")


def test_a_damaged_file_is_named(tmp_path):
    path = write(tmp_path) / "mnist_strokes.npz"
    content = path.read_bytes()
    single = io.BytesIO()
    np.save(single, POINT)
    for wrong in (b"", b"PK", content[:-30], content[: len(content) // 2], b"x" + content[1:], single.getvalue()):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"is not a file of pen strokes: .*fetch it again"):
            mnist_strokes(tmp_path, "test")
    place = content.find(POINT.tobytes())
    assert place > 0
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])  # against the checksum
    with pytest.raises(ValueError, match="cannot be read"):
        mnist_strokes(tmp_path, "test")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test_points.npy", b"no array")
    with pytest.raises(ValueError, match="is not a file of pen strokes"):
        mnist_strokes(tmp_path, "test")


def test_a_missing_file_says_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mnist_strokes\.npz is missing: .*SNNROBUST_DATA"):
        mnist_strokes(tmp_path, "test")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"split": "valid"}, ValueError, "split must be one of train, test"),
        ({"points": 0}, ValueError, "points must be at least 1"),
        ({"points": 3.5}, TypeError, "points must be an integer"),
        ({"coordinates": "relativ"}, ValueError, r"did you mean 'relative'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words, tmp_path):
    with pytest.raises(error, match=words):
        mnist_strokes(write(tmp_path), **{"split": "test", **arguments})


def test_the_real_file():
    folder = Path(os.environ.get("SNNROBUST_DATA", "nowhere")) / "mnist-strokes"
    if not folder.is_dir():
        pytest.skip("SNNROBUST_DATA names no folder with mnist-strokes/")
    x, y = mnist_strokes(folder, "test", 200).tensors
    assert x.shape == (10_000, 200, 2)
    assert torch.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # MNIST's
    drawn = (x > 0).any(2)
    lengths = drawn.sum(1)
    assert (lengths.min(), lengths.median(), lengths.max()) == (13, POINTS, 108)
    assert all(bool(d[:n].all()) for d, n in zip(drawn, lengths.tolist(), strict=True))  # no point lies in the corner
    if (folder.parent / "mnist").is_dir():
        assert torch.equal(y, data.load("mnist", "test").tensors[1])  # in the same order


FILE = """
name = "strokes"
[data]
name = "mnist-strokes"
[[models]]
name = "one"
MODEL
[[attacks]]
name = "pgd"
attack = { type = "PGD" }
[[chips]]
name = "noisy"
backends = [{ type = "GaussianNoise", multiplicative = 0.3 }]
"""


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ('kind = "ordinary"\narchitecture = "lstm"', None),
        ('architecture = "recurrent"', None),
        ('architecture = "recurrent"\nencoder = { type = "Frames", time_steps = 40 }', None),
        ('architecture = "mlp"', None),
        (
            'architecture = "recurrent"\nencoder = { type = "Frames", time_steps = 20 }',
            "its first axis must be its 20 frames",
        ),
        ('architecture = "conv-small"', r"needs an input of shape \(C, H, W\), but there it is \(40, 2\)"),
    ],
)
def test_experiments_over_sequences_are_rehearsed(model, words):
    text = FILE.replace("MODEL", model)
    if words is None:
        assert parse(text, "here").data.name == "mnist-strokes"
    else:
        with pytest.raises(ValueError, match=words):
            parse(text, "here")
