"""The pen strokes of the MNIST digits, as sequences of points."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from snnrobust import checks

__all__ = ["POINTS", "Coordinates", "mnist_strokes"]

Coordinates = Literal["absolute", "relative"]
POINTS = 40
"""The median of the points of a digit."""
_SIDE = 28
_FIELDS = ("points", "offsets", "labels")


def mnist_strokes(
    folder: str | Path, split: str, points: int = POINTS, coordinates: Coordinates = "absolute"
) -> TensorDataset:
    r"""The first ``points`` pen points of each digit, ``[N, points, 2]`` float32 in [0, 1], and int64 labels.

    .. math:: x_t = p_t / 28 \ \text{(absolute)}, \quad x_t = 1/2 + (p_t - p_{t-1}) / 56, \ p_{-1} = 0 \ \text{(relative)}

    where the pen position :math:`p_t` is in pixels 1..28, right and down, and a pixel is one step. After the last point come
    zeros before that map: the corner (0, 0), where no point lies, or 1/2, a pen that rests. Ends of strokes are left out.

    Args:
        folder: Holds ``mnist_strokes.npz``: ``{train,test}_points`` int8 ``[P, 4]`` (dx, dy, end of stroke, end of digit),
            ``_offsets`` (sample i is ``points[offsets[i]:offsets[i + 1]]``) and ``_labels``.
        split: ``"train"`` (60,000) or ``"test"`` (10,000), in MNIST's order.
        points: Longer digits are cut, shorter ones filled up.
        coordinates: See above.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is truncated or holds something else.

    Source: E. D. de Jong 2016, "MNIST digits stroke sequence data"; used so by Qin and Vucinic 2018, who do not say how many
    points they take, nor whether coordinates are absolute.
    """
    checks.count("points", points)
    checks.choice("coordinates", coordinates, get_args(Coordinates))
    checks.choice("split", split, ("train", "test"))
    path = Path(folder) / "mnist_strokes.npz"
    steps, offsets, labels = _read(path, split)
    position = np.cumsum(steps, 0)
    # a digit starts at the corner: what the digits before it have summed up is taken away
    position -= np.repeat(np.concatenate([np.zeros((1, 2), np.int64), position])[offsets[:-1]], np.diff(offsets), 0)
    if position.min() < 0 or position.max() > _SIDE:
        raise _damaged(path, f"it has pen points outside of {_SIDE} x {_SIDE}")
    rows = np.repeat(np.arange(len(labels)), np.diff(offsets))
    columns = np.arange(len(steps)) - np.repeat(offsets[:-1], np.diff(offsets))
    seen = columns < points
    x = np.zeros((len(labels), points, 2), np.float32)
    x[rows[seen], columns[seen]] = (position if coordinates == "absolute" else steps)[seen]
    sequences = torch.from_numpy(x)
    sequences = sequences.div_(_SIDE) if coordinates == "absolute" else sequences.div_(2 * _SIDE).add_(0.5)
    return TensorDataset(sequences, _labels(labels))


def _labels(labels: Any) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _read(path: Path, split: str) -> tuple[Any, Any, Any]:
    """Steps int64 ``[P, 2]``, offsets int64 ``[N + 1]`` and labels ``[N]``."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: put the file there, or set SNNROBUST_DATA to the folder that holds {path.parent.name}/"
        )
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            points, offsets, labels = (file[f"{split}_{field}"] for field in _FIELDS)
    except KeyError as error:
        raise _damaged(path, f"it has no array {error.args[0]!r:.80}") from error
    except (OSError, EOFError, ValueError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    shapes = [a.shape for a in (points, offsets, labels)]
    if any(a.dtype.kind not in "iu" for a in (points, offsets, labels)):
        raise _damaged(path, "its arrays are not of integers")
    size = len(labels) if labels.ndim == 1 else 0
    if points.ndim != 2 or points.shape[1] != 4 or size == 0 or offsets.shape != (size + 1,):
        raise _damaged(path, f"its points, offsets and labels have the shapes {shapes}, not [P, 4], [N + 1] and [N]")
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(points) or (np.diff(offsets) < 1).any():
        raise _damaged(path, f"its offsets do not go up from 0 to {len(points)}")
    if labels.min() < 0 or labels.max() > 9:
        raise _damaged(path, "its labels are not digits")
    return points[:, :2].astype(np.int64), offsets, labels


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not a file of pen strokes: {why}: fetch it again")
