"""Data sets, and batches with the identity of each sample."""

from snnrobust.data.batches import Batch, Data, batches, count_batches, take
from snnrobust.data.images import DATASETS, data_root, load

__all__ = ["DATASETS", "Batch", "Data", "batches", "count_batches", "data_root", "load", "take"]
