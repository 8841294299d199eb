"""Data sets, and batches that know which sample is which."""

from snnrobust.data.batches import Batch, Data, batches, count_batches, take
from snnrobust.data.images import DATASETS, SHAPES, data_root, load
from snnrobust.data.strokes import mnist_strokes

__all__ = [
    "DATASETS",
    "SHAPES",
    "Batch",
    "Data",
    "batches",
    "count_batches",
    "data_root",
    "load",
    "mnist_strokes",
    "take",
]
