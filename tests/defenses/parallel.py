"""Robust trainings in the given number of processes: ``python parallel.py PROCESSES FILE`` writes weights and histories."""

import sys
from importlib import util
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snnrobust import data

spec = util.spec_from_file_location("adversarial_rules", Path(__file__).with_name("test_adversarial.py"))
rules = util.module_from_spec(spec)
spec.loader.exec_module(rules)


def train(fabric: Fabric, path: str) -> None:
    x, y = data.take(data.load("digits", "train"), 65)
    loader = DataLoader(TensorDataset(x.double(), y), batch_size=32)
    found = {}
    for name, rule in rules.RULES_HERE.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
        history = rule(lr=1e-2).fit(model, loader, epochs=2, progress=False, fabric=fabric)
        found[name] = {"weights": model.state_dict(), "history": history.records}
    if fabric.is_global_zero:
        torch.save({"rules": found, "processes": fabric.world_size}, path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes = int(sys.argv[1])
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto")
    fabric.launch(train, sys.argv[2])
