"""Small trainings in several processes: ``python parallel.py PROCESSES FOLDER`` (or under torchrun) writes what each gave.

Case ``float64 *`` are steps in float64, ``float32 *`` one step in float32, whose gradients are kept.
"""

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from snnrobust import data
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import Dropout, MeanOutput, OrdinaryDropout, Sequential
from snnrobust.learning_rules import BPTT, supervised
from snnrobust.models import Conv, Pool, SpikingClassifier, spiking
from snnrobust.neurons import LIF

SHAPE, T, STEPS = (1, 8, 8), 3, 3


def ann():
    """No bias before a normalisation: its gradient is a rounding error, and Adam makes steps of the same size of it."""
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), OrdinaryDropout(0.3)),
        *(
            nn.Linear(3 * 6 * 6, 8, bias=False),
            nn.BatchNorm1d(8, affine=False, momentum=None),
            nn.ReLU(),
            nn.Linear(8, 10),
        ),
    )


def snn(norm, encoder=None):
    architecture = (Conv(3), Pool(), Conv(4), Pool())
    return lambda: spiking(architecture, SHAPE, 10, encoder or Direct(T), LIF(0.8, 0.5), norm, readout=MeanOutput())


def dropped():
    network = Sequential(
        *(nn.Flatten(), nn.Linear(64, 12), LIF(0.8, 0.3), Dropout(0.4), nn.Linear(12, 12), LIF(0.8, 0.3)),
        *(Dropout(0.3, drawn="step"), nn.Linear(12, 10)),
    )
    return SpikingClassifier(Poisson(T), network, MeanOutput())


MODELS = {
    "ANN with BatchNorm": ann,
    "BNTT, Poisson": snn("BNTT", Poisson(T)),
    "TDBN": snn("TDBN"),
    "TEBN": snn("TEBN"),
    "BatchNorm": snn("BatchNorm"),
    "Dropout, Poisson": dropped,
}
RULES = {
    "plain": BPTT(lr=1e-2, batch_size=14),
    "accumulate": BPTT(lr=1e-2, batch_size=14, accumulate=3),
    "clip": BPTT(lr=1e-2, batch_size=14, clip=0.1),
    "sgd, best": BPTT(lr=1e-2, batch_size=14, optimizer="sgd", keep="best"),
    "truncate": BPTT(lr=1e-2, batch_size=14, truncate=2),
}
CASES = [(kind, "plain") for kind in MODELS]
CASES += [
    (kind, rule) for kind in ("ANN with BatchNorm", "BNTT, Poisson") for rule in ("accumulate", "clip", "sgd, best")
]
CASES += [("BNTT, Poisson", "truncate"), ("Dropout, Poisson", "truncate")]


def make(kind, fabric=None):
    """Each process begins with another model; training begins with that of the first."""
    with torch.random.fork_rng():
        torch.manual_seed(1 if fabric is None else 1 + fabric.global_rank)
        return MODELS[kind]()


def samples(n, first=0):
    x, y = data.take(data.load("digits", "train"), first + n)
    return x[first:], y[first:]


def in_float64(kind, rule, fabric=None):
    """Two full batches, and a last one of two samples: fewer than three processes, and one for each of two."""
    model, (x, y), (vx, vy) = make(kind, fabric).double(), samples(30), samples(25, 30)
    every, supervised._WATCH = supervised._WATCH, 1  # the last batch is watched too
    try:
        history = RULES[rule].fit(model, (x.double(), y), (vx.double(), vy), epochs=1, progress=False, fabric=fabric)
    finally:
        supervised._WATCH = every
    return model.state_dict(), history.records


@dataclass(frozen=True, kw_only=True)
class Kept(BPTT):
    """Keeps the gradients of the last step, which are gone after ``fit``."""

    seen: dict = field(default_factory=dict)

    @contextmanager
    def lend(self, model, example):
        with super().lend(model, example) as lent:
            lent.after = lambda: self.seen.update({name: p.grad.clone() for name, p in model.named_parameters()})
            yield lent


def in_float32(kind, rule, fabric=None):
    """The gradients of the first step."""
    model = make(kind, fabric)
    kept = Kept(**{f.name: getattr(RULES[rule], f.name) for f in fields(BPTT)})
    history = kept.fit(model, samples(14), epochs=1, progress=False, fabric=fabric)
    return kept.seen, history.records


class Broken(nn.Linear):
    """NaN where it is shown the sample that begins with a mark."""

    def forward(self, x):
        return super().forward(x) * torch.where((x[:, :1] == 7).any(), torch.nan, 1.0)


def not_finite(fabric):
    """One sample of one process has a loss that is not finite: what each process says."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Broken(64, 10))
    x, y = samples(12)
    x[5, 0, 0, 0] = 7
    before = model[1].weight.detach().clone()
    try:
        BPTT(batch_size=12).fit(model.train(), (x, y), epochs=2, progress=False, fabric=fabric)
    except FloatingPointError as error:
        return f"{error}; {model.training}, {torch.equal(model[1].weight, before)}"
    return "nothing"


def train(fabric, folder):
    if fabric.global_rank:
        torch.manual_seed(100)
    found = {f"float64, {kind}, {rule}": in_float64(kind, rule, fabric) for kind, rule in CASES}
    found |= {f"float32, {kind}, plain": in_float32(kind, "plain", fabric) for kind in MODELS}
    path = Path(folder, "state")
    for epochs in (1, 2):  # begun anew, then gone on with
        model = make("BNTT, Poisson", fabric).double()
        x, y = samples(30)
        BPTT(batch_size=14).fit(model, (x.double(), y), epochs=epochs, progress=False, fabric=fabric, checkpoint=path)
        found[f"resumed {epochs}"] = model.state_dict(), []
    found["not finite"] = not_finite(fabric)
    torch.save(found, Path(folder, f"{fabric.global_rank}.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes = int(sys.argv[1])
    strategy = "ddp" if "TORCHELASTIC_RUN_ID" in os.environ else "ddp_fork"
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
    if strategy == "ddp":
        fabric.launch()
        train(fabric, sys.argv[2])
    else:
        fabric.launch(train, sys.argv[2])
