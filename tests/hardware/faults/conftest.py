import pytest
import torch


@pytest.fixture(autouse=True)
def _the_same_numbers_each_time():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
