"""A digest changes with everything that a stored result depends on, and with nothing else."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snnrobust import hardware, models
from snnrobust.attacks import L0, L1, L2, PGD, Linf, cross_entropy, margin
from snnrobust.draws import draws, keyed
from snnrobust.encoders import ENCODERS, Poisson
from snnrobust.evaluation.fingerprint import fingerprint
from snnrobust.layers import READOUTS
from snnrobust.neurons import LIF, NEURONS
from snnrobust.neurons.surrogate import ATan, Surrogate


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Table(nn.Module):
    """What a state_dict does not hold: a large array, whose repr is cut, and a buffer that is not saved."""

    def __init__(self, array: float, buffer: float) -> None:
        super().__init__()
        self.array = np.zeros(5000)
        self.array[2500] = array
        self.register_buffer("hidden", torch.tensor(buffer), persistent=False)


def snn(decay: float = 0.9, steps: int = 2) -> nn.Module:
    with keyed(0):
        return models.spiking(models.ARCHITECTURES["mlp"], (4,), 3, Poisson(steps), LIF(decay))


def chip(seed: int) -> nn.Module:
    return hardware.deploy(snn(), hardware.GaussianNoise(0.1, drawn="chip"), seed=seed)


def weighted(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: factor * cross_entropy(z, y)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Scaled(1.0), Scaled(-1.0)),
        (PGD(L2(0.5)), PGD(L1(0.5))),
        (PGD(L2(0.5)), PGD(Linf(0.5))),
        (PGD(L1(0.5)), PGD(L1(0.5, density=0.2))),
        (PGD(L0(2)), PGD(L0(2, unit="element"))),
        (PGD(L2((0.5, 0.5))), PGD(L2(0.5))),
        (PGD(L2((0.5, 0.4))), PGD(L2((0.4, 0.5)))),
        (Table(0.0, 0.0), Table(1.0, 0.0)),
        (Table(0.0, 0.0), Table(0.0, 1.0)),
        (snn(0.9), snn(0.8)),
        (chip(1), chip(2)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.sum(), lambda x: x.mean()),
        (weighted(1.0), weighted(2.0)),
        (partial(weighted, 1.0), partial(weighted, 2.0)),
        (PGD(Linf(0.1)), PGD(Linf(0.1), loss=margin)),
        (PGD(Linf(0.1)), PGD(Linf(0.2))),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        ([1, [2]], [[1], 2]),
        (nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
    ],
)
def test_different_things_differ(a: object, b: object) -> None:
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(a) == fingerprint(a)


PARTS = [
    (kind, name)
    for registry in (NEURONS, ENCODERS, READOUTS)
    for kind in registry.values()
    if kind.__module__.startswith("snnrobust.")  # tests register theirs
    for name, parameter in inspect.signature(kind).parameters.items()
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
]
FIRST = {"time_steps": 4}


def another(kind: type, name: str) -> object:
    """A value that the argument ``name`` may have, other than its first."""
    value = FIRST.get(name, inspect.signature(kind).parameters[name].default)
    if isinstance(value, str):
        (choices,) = (get_args(t) for n, t in get_type_hints(kind.__init__).items() if n == name)
        return next(c for c in choices if c != value)
    if isinstance(value, Surrogate):
        return ATan(3.0)
    if isinstance(value, bool):
        return not value
    return 3 if value is None else value + 1 if isinstance(value, int) else 0.5 * value or 0.25


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_every_argument_of_a_part_counts(kind: type, name: str) -> None:
    first = {n: v for n, v in FIRST.items() if n in inspect.signature(kind).parameters}
    one, same, other = kind(**first), kind(**first), kind(**{**first, name: another(kind, name)})
    assert fingerprint(nn.Sequential(one)) == fingerprint(nn.Sequential(same))
    assert fingerprint(nn.Sequential(one)) != fingerprint(nn.Sequential(other))


def test_what_does_not_matter_changes_nothing() -> None:
    model = snn()
    before = fingerprint(model)
    model.train()
    with draws(model, 5):
        assert fingerprint(model) == before
        model(torch.rand(2, 4))
    model.eval()
    assert fingerprint(snn()) == before
    assert fingerprint(chip(1)) == fingerprint(chip(1))


def test_equal_in_every_process() -> None:
    code = (
        "from snnrobust import attacks, hardware, models; from snnrobust.encoders import Poisson\n"
        "from snnrobust.draws import keyed\n"
        "from snnrobust.evaluation.fingerprint import fingerprint\n"
        "with keyed(0): m = models.spiking(models.ARCHITECTURES['mlp'], (4,), 3, Poisson(2))\n"
        "c = hardware.deploy(m, hardware.GaussianNoise(0.1), seed=1)\n"
        "print(fingerprint(c, attacks.Transfer(attacks.PGD(attacks.Linf(0.1)), m)))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1
