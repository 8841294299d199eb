"""Data sets, and batches that know which sample is which."""

from snnrobust.data.batches import Batch, Data, batches, take
from snnrobust.data.images import DATASETS, data_root, load

__all__ = ["DATASETS", "Batch", "Data", "batches", "data_root", "load", "take"]
