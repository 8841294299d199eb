"""What holds for every test."""

import os
from typing import Any

# The tensors of the tests are small: on a busy machine a second thread makes them five times slower, not faster.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

torch.set_num_threads(1)


class Meter(TorchDispatchMode):
    """Counts kernels, and the bytes of the new tensors that they return."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        new = [
            t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in before
        ]
        self.kernels += 1
        self.bytes += sum(t.untyped_storage().nbytes() for t in new)
        return result


@pytest.fixture
def meter() -> type[Meter]:
    return Meter
