"""Each error names the argument, what was given and what is accepted."""

from __future__ import annotations

import math
import re

import pytest
import torch

from snnrobust import checks
from snnrobust.encoders import ENCODERS, Encoder
from snnrobust.layers.readout import READOUTS, Readout
from snnrobust.neurons import NEURONS, Neuron
from snnrobust.neurons.surrogate import SURROGATES, Surrogate


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (lambda: checks.number("decay", 1, 0, 1), 1.0),
        (lambda: checks.number("decay", 0.0, 0, 1), 0.0),
        (lambda: checks.count("T", 1), 1),
        (lambda: checks.count("T", 0, low=0), 0),
        (lambda: checks.fraction("eps", "8/255"), 8 / 255),
        (lambda: checks.fraction("eps", " 1 / 4 "), 0.25),
        (lambda: checks.fraction("eps", "0.5"), 0.5),
        (lambda: checks.fraction("eps", 0.1), 0.1),
        (lambda: checks.choice("reset", "soft", ["soft", "hard"]), "soft"),
        (lambda: checks.nearest("sofd", ["soft", "hard"]), " (did you mean 'soft'?)"),
        (lambda: checks.nearest("zzz", ["soft", "hard"]), ""),
    ],
)
def test_accepted_values_come_back(check, expected):
    value = check()
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: checks.number("decay", 1.3, 0, 1, hint="eh"), ValueError, "decay must be in [0, 1], got 1.3: eh"),
        (lambda: checks.number("decay", -1e-9, 0, 1), ValueError, "decay must be in [0, 1], got -1e-09"),
        (lambda: checks.number("theta", 0, 0, exclusive_low=True), ValueError, "theta must be in (0, inf], got 0"),
        (lambda: checks.number("theta", math.nan), ValueError, "theta must be in [-inf, inf], got nan"),
        (lambda: checks.number("theta", math.inf), ValueError, "theta must be finite and in [-inf, inf], got inf"),
        (lambda: checks.number("theta", 10**400, 0), ValueError, "theta must be in [0, inf], got 1000"),
        (lambda: checks.number("theta", True), TypeError, "theta must be a number, got True"),
        (lambda: checks.number("theta", "1"), TypeError, "theta must be a number, got '1'"),
        (lambda: checks.count("T", 0, hint="one step"), ValueError, "T must be at least 1, got 0: one step"),
        (lambda: checks.count("T", 2.0), TypeError, "T must be an integer, got 2.0"),
        (lambda: checks.count("T", True), TypeError, "T must be an integer, got True"),
        (lambda: checks.fraction("eps", "8:255"), ValueError, "eps must be a number or a fraction such as"),
        (lambda: checks.fraction("eps", "1/0"), ValueError, "eps must be a number or a fraction"),
        (lambda: checks.fraction("eps", "1e999"), ValueError, "eps must be a number or a fraction"),
        (lambda: checks.fraction("eps", "-1/255"), ValueError, "eps must be in [0, inf], got -0.0039"),
        (lambda: checks.fraction("eps", None), TypeError, "eps must be a number, got None"),
        (lambda: checks.choice("r", "of", ["off", "on"]), ValueError, "r must be one of off, on; got 'of' (did you mean 'off'"),
    ],
)  # fmt: skip
def test_refused_values(check, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        check()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "x must be a tensor [T, B, ...], got list"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "x must be floating, got torch.int64: convert with x.float()"),
        (torch.ones(3), ValueError, "x must be [T, B, ...] with at least one time step, got shape (3,)"),
        (torch.ones(0, 3), ValueError, "x must be [T, B, ...] with at least one time step, got shape (0, 3)"),
    ],
)
def test_sequence(x, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        checks.sequence("x", x)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "x must be a tensor [B, ...], got NoneType"),
        (torch.ones(2, 3, dtype=torch.uint8), TypeError, "x must be floating, got torch.uint8: convert with x.float("),
        (torch.ones(3), ValueError, "x must be a batch [B, ...] that is not empty, got shape (3,)"),
        (torch.ones(0, 3), ValueError, "x must be a batch [B, ...] that is not empty, got shape (0, 3)"),
        (torch.tensor([[0.0, math.nan]]), ValueError, "x contains NaN"),
        (torch.tensor([[0.0, math.inf]]), ValueError, "x contains infinity"),
        (torch.tensor([[-0.25, 1.0]]), ValueError, "x must lie in [0, 1], but lies in [-0.25, 1]: scale it"),
        (torch.tensor([[0.0, 255.0]]), ValueError, "x must lie in [0, 1], but lies in [0, 255]: scale it"),
        (torch.tensor([[0.0, 1.0000001]]), ValueError, "x must lie in [0, 1]"),
    ],
)  # fmt: skip
def test_pixels(x, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        checks.pixels("x", x)


def test_pixels_takes_the_borders_and_other_bounds():
    x = torch.tensor([[0.0, 1.0]])
    assert checks.pixels("x", x) is x
    assert checks.pixels("x", -2 * x, bounds=(-2, 2)) is not None


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ([0, 1], TypeError, "y must be int64 class labels [B], got list: use y.long()"),
        (torch.zeros(2), TypeError, "y must be int64 class labels [B], got torch.float32 of shape (2,)"),
        (torch.zeros(2, 3).long(), TypeError, "y must be int64 class labels [B], got torch.int64 of shape (2, 3)"),
        (torch.zeros(3).long(), ValueError, "y must have one label a sample: 3 labels for 2 samples"),
        (torch.tensor([0, 10]), ValueError, "y must lie in 0..9, got 0..10"),
        (torch.tensor([-1, 3]), ValueError, "y must lie in 0..9, got -1..3"),
    ],
)
def test_labels(y, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        checks.labels("y", y, batch=2, classes=10)


def test_labels_takes_the_first_and_the_last_class():
    y = torch.tensor([0, 9])
    assert checks.labels("y", y, batch=2, classes=10) is y


@pytest.mark.parametrize(
    ("base", "registry"), [(Neuron, NEURONS), (Encoder, ENCODERS), (Readout, READOUTS), (Surrogate, SURROGATES)]
)
def test_no_registry_gives_a_taken_name_away(base, registry):
    """The same class may be defined again, as a notebook does."""
    before = dict(registry)
    name, kind = next(iter(registry.items()))
    message = f"the name {name} is taken by {kind.__module__}.{kind.__qualname__}: give elsewhere.Mine another"
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        type(name, (base,), {"__module__": "elsewhere", "__qualname__": "Mine"})
    assert registry == before
    again = type(name, (base,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})
    assert registry[name] is again
    registry[name] = kind
