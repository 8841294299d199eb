"""MNIST and Fashion-MNIST with batch normalisation through time: trains the networks behind docs/normalisation.md.

    python examples/mnist.py [OUTPUT]        # default runs/mnist; interrupt it as you like, it goes on where it stopped

Each run is a conv32-pool-conv64-pool-fc network, T = 8. Training takes about 3.5 minutes an epoch on one core.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torch import nn
from torch.utils.data import TensorDataset

from snnrobust import data, models
from snnrobust.draws import derive, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import MeanOutput
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Pool
from snnrobust.neurons import LIF

TIME_STEPS, EPOCHS = 8, 4
ARCHITECTURE = (Conv(32), Pool(), Conv(64), Pool())


@dataclass(frozen=True)
class Run:
    """One trained network."""

    encoder: str
    seed: int = 0
    bntt: bool = True
    images: int = 60_000
    dataset: str = "mnist"

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.encoder}-{'bntt' if self.bntt else 'plain'}-{self.images}-seed{self.seed}"

    def untrained(self) -> nn.Module:
        encoder = {"direct": Direct, "poisson": Poisson}[self.encoder](TIME_STEPS)
        with keyed(derive(self.seed, "weights")):
            return models.spiking(ARCHITECTURE, (1, 28, 28), 10, encoder, LIF(0.95), self.bntt, MeanOutput())

    def trained(self, folder: Path) -> nn.Module:
        path = folder / f"{self.name}.safetensors"
        if not path.exists():
            print(f"training {self.name}", flush=True)
            x, y = data.load(self.dataset, "train").tensors
            train = TensorDataset(x[: self.images], y[: self.images])
            rule = BPTT(lr=2e-3, schedule="cosine", batch_size=100, seed=self.seed)
            model = self.untrained()
            rule.fit(model, train, epochs=EPOCHS, checkpoint=path.with_suffix(".training"))
            models.save(model, path)
        return models.load(path)


ENCODERS = ("direct", "poisson")
RUNS = [Run(encoder, seed) for seed in range(3) for encoder in ENCODERS]
RUNS += [Run(encoder, 0, bntt, 20_000) for bntt in (True, False) for encoder in ENCODERS]
RUNS += [Run(encoder, dataset="fashion-mnist") for encoder in ENCODERS]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist")
    for run in RUNS:
        run.trained(folder)


if __name__ == "__main__":
    main()
