"""A training in the given number of processes: ``python parallel.py PROCESSES FILE`` writes weights and history."""

import sys

import torch
from lightning_fabric import Fabric
from torch import nn

from snnrobust import data
from snnrobust.learning_rules import BPTT


def train(fabric: Fabric, path: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    train, validation = (data.take(data.load("digits", split), 129) for split in ("train", "test"))
    rule = BPTT(lr=1e-2, batch_size=32)  # batches of 32 and one of a single sample: fewer than processes
    history = rule.fit(model, train, validation, epochs=2, progress=False, fabric=fabric)
    if fabric.is_global_zero:
        torch.save({"weights": model.state_dict(), "history": history.records, "processes": fabric.world_size}, path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes = int(sys.argv[1])
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto")
    fabric.launch(train, sys.argv[2])
