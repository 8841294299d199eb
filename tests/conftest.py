"""What holds for every test."""

import torch

# The tensors of the tests are small: on a busy machine a second thread makes them five times slower, not faster.
torch.set_num_threads(1)
