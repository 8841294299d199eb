"""A robust training in the given number of processes: ``python parallel.py RULE PROCESSES FILE`` writes weights and history."""

import sys
from importlib import util
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from snnrobust import data

spec = util.spec_from_file_location("adversarial_rules", Path(__file__).with_name("test_adversarial.py"))
rules = util.module_from_spec(spec)
spec.loader.exec_module(rules)


def train(fabric: Fabric, name: str, path: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    x, y = data.take(data.load("digits", "train"), 65)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x.double(), y), batch_size=32)
    history = rules.RULES_HERE[name](lr=1e-2).fit(model, loader, epochs=2, progress=False, fabric=fabric)
    if fabric.is_global_zero:
        torch.save({"weights": model.state_dict(), "history": history.records, "processes": fabric.world_size}, path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes = int(sys.argv[2])
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto")
    fabric.launch(train, sys.argv[1], sys.argv[3])
