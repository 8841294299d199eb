"""What holds for every test."""

import os

# The tensors of the tests are small: on a busy machine a second thread makes them five times slower, not faster.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import torch

torch.set_num_threads(1)
