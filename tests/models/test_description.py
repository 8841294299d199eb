"""``build(describe(module))`` has the same structure, for every class; a bad description is a ``ValueError``."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from snnrobust.encoders import ENCODERS, Direct, Poisson
from snnrobust.layers import BNTT, READOUTS, MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.models import SpikingClassifier, build, describe
from snnrobust.models.description import MODULES
from snnrobust.neurons import IF, LIF, NEURONS
from snnrobust.neurons.surrogate import SURROGATES, ATan, FastSigmoid, Sigmoid, Triangle

CASES = [
    nn.Linear(3, 2), nn.Linear(3, 2, bias=False),
    nn.Conv1d(2, 4, 3, stride=2, dilation=2), nn.Conv2d(2, 4, (3, 1), padding="same", groups=2, bias=False),
    nn.Conv2d(2, 4, 3, padding=(1, 0), padding_mode="reflect"), nn.Conv3d(2, 4, 3),
    nn.BatchNorm1d(3), nn.BatchNorm2d(3, eps=1e-3, momentum=None, affine=False), nn.BatchNorm3d(3, track_running_stats=False),
    nn.LayerNorm([3, 4], eps=1e-3), nn.LayerNorm(3, elementwise_affine=False), nn.LayerNorm(3, bias=False), nn.GroupNorm(2, 4),
    nn.AvgPool1d(3, 2, padding=1), nn.AvgPool2d((2, 3), ceil_mode=True, divisor_override=5), nn.AvgPool3d(2),
    nn.MaxPool1d(3, padding=1), nn.MaxPool2d((2, 3), stride=(1, 2), dilation=2), nn.MaxPool3d(2, return_indices=True),
    nn.AdaptiveAvgPool2d((None, 2)), nn.AdaptiveAvgPool2d(1), nn.Flatten(2, 3), nn.Identity(), nn.ReLU(inplace=True),
    nn.Tanh(), nn.Sigmoid(), nn.Dropout(0.2, inplace=True), nn.Dropout2d(0.3),
    BNTT(3, 5, eps=1e-2, momentum=0.3),
    LIF(0.8, 0.6, "hard", Triangle(0.5, 2.0)), LIF(surrogate=FastSigmoid(3.0)), IF(0.7, "hard", ATan(3.0)),
    IF(surrogate=Sigmoid(2.0)),
    Direct(3), Poisson(4, gradient="none"),
    MeanMembrane(0.7), MeanOutput(), SpikeCount(),
    nn.Sequential(nn.Linear(2, 3), nn.Sequential(), nn.ReLU()), Sequential(nn.Sequential(nn.Linear(2, 3), LIF()), BNTT(3, 2)),
    SpikingClassifier(Poisson(2), Sequential(nn.Linear(2, 3), LIF()), SpikeCount()),
]  # fmt: skip


@pytest.mark.parametrize("module", CASES, ids=lambda m: type(m).__name__)
def test_round_trip(module):
    description = json.loads(json.dumps(describe(module)))
    built = build(description)
    assert type(built) is type(module)
    assert repr(built) == repr(module)
    assert describe(built) == description
    assert [type(m) for m in built.modules()] == [type(m) for m in module.modules()]
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}


def test_every_registered_class_has_a_case():
    registered = {*MODULES.values(), *NEURONS.values(), *ENCODERS.values(), *READOUTS.values()}
    ours = {c for c in registered if c.__module__.startswith(("snnrobust.", "torch."))}
    assert ours | {nn.Sequential, Sequential, SpikingClassifier} == {type(case) for case in CASES}
    surrogates = {type(case.surrogate) for case in CASES if isinstance(case, LIF)}
    assert surrogates == {s for s in SURROGATES.values() if s.__module__.startswith("snnrobust.")}


def test_a_description_is_what_a_person_would_write():
    assert describe(Sequential(nn.Linear(2, 3), LIF(0.9))) == {
        "type": "Sequential",
        "modules": [
            {"type": "torch.Linear", "in_features": 2, "out_features": 3, "bias": True},
            {
                "type": "LIF",
                "decay": 0.9,
                "threshold": 1.0,
                "reset": "soft",
                "surrogate": {"type": "ATan", "alpha": 2.0},
            },
        ],
    }
    assert isinstance(build({"type": "LIF"}), LIF)  # what is left out has its default


class MyLIF(LIF):
    """Not registered."""


class MyClassifier(SpikingClassifier):
    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize(
    "module",
    [
        MyLIF(),
        Sequential(nn.Linear(2, 2), MyLIF()),
        nn.Sequential(nn.LSTM(2, 2)),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        MyClassifier(Direct(2), Sequential(nn.Linear(2, 2)), MeanOutput()),
    ],
    ids=["subclass", "inside", "LSTM", "parametrized", "classifier"],
)
def test_unregistered_classes_are_refused(module):
    with pytest.raises(
        TypeError, match=r"\w+ cannot be described: add its class to snnrobust.models.description.MODULES"
    ):
        describe(module)


def test_a_class_can_be_added(monkeypatch):
    monkeypatch.setitem(MODULES, "torch.ELU", nn.ELU)
    assert repr(build(describe(nn.ELU(alpha=0.5)))) == "ELU(alpha=0.5)"


def _deep(levels):
    description = {"type": "torch.Identity"}
    for _ in range(levels):
        description = {"type": "torch.Sequential", "modules": [description]}
    return description


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "a module description must be an object with a type, got None"),
        ([], "a module description must be an object with a type, got []"),
        ({}, "a module description must be an object with a type, got {}"),
        ({"type": ["LIF"]}, "a module description must be an object with a type"),
        ({"type": "LIFF"}, "module type must be one of "),
        ({"type": "os.system"}, "module type must be one of "),
        ({"type": "LIF", "dekay": 0.9}, "argument of LIF must be one of decay, threshold, reset, surrogate; got 'dekay' (did"),
        ({"type": "torch.Linear", "in_features": 2}, "Linear in a module description: "),
        ({"type": "torch.Linear", "in_features": 2, "out_features": "x"}, "Linear in a module description: "),
        ({"type": "torch.Linear", "in_features": 2, "out_features": -1}, "Linear in a module description: "),
        ({"type": "torch.Linear", "in_features": 2, "out_features": 2, "dtype": 3}, "argument of Linear must be one of"),
        ({"type": "torch.Linear", "kind": 2}, "argument of Linear must be one of"),
        ({"type": "torch.Identity", "args": 1}, "argument of Identity must be one of"),
        ({"type": "torch.GroupNorm", "num_groups": 0, "num_channels": 2}, "GroupNorm in a module description: "),
        ({"type": "BNTT", "features": 2, "time_steps": 0}, "BNTT in a module description: time_steps must be at least 1"),
        ({"type": "LIF", "decay": 1.5}, "LIF in a module description: decay must be in [0, 1], got 1.5"),
        ({"type": "LIF", "decay": float("nan")}, "LIF in a module description: decay must be in [0, 1], got nan"),
        ({"type": "LIF", "threshold": 10**400}, "LIF in a module description: threshold must be in (0, inf], got 1000"),
        ({"type": "LIF", "surrogate": 2.0}, "LIF in a module description: surrogate must be a Surrogate"),
        ({"type": "LIF", "surrogate": {"type": "Atan"}}, "surrogate must be one of "),
        ({"type": "LIF", "surrogate": {"type": "ATan", "beta": 1}}, "surrogate ATan: "),
        ({"type": "LIF", "surrogate": {"type": "ATan", "alpha": -1}}, "ATan.alpha must be in (0, inf], got -1"),
        ({"type": "Poisson", "time_steps": 4, "gradient": "fake"}, "Poisson in a module description: gradient must be one"),
        ({"type": "Sequential"}, "Sequential in a module description needs a list of modules"),
        ({"type": "Sequential", "modules": {}}, "Sequential in a module description needs a list of modules"),
        ({"type": "Sequential", "modules": [], "x": 1}, "Sequential in a module description needs a list of modules and"),
        ({"type": "torch.Sequential", "modules": [3]}, "a module description must be an object with a type, got 3"),
        ({"type": "SpikingClassifier"}, "SpikingClassifier in a module description: "),
        ({"type": "SpikingClassifier", "encoder": {"type": "LIF"}, "network": {"type": "LIF"}, "readout": {"type": "LIF"}},
         "SpikingClassifier in a module description: encoder must be a Encoder, got LIF"),
        ({"type": "Sequential", "modules": [describe(CASES[-1])]}, "Sequential in a module description: SpikingClassifier"),
        (_deep(5000), "the module description is nested too deeply"),
    ],
)  # fmt: skip
def test_bad_descriptions(description, message):
    with torch.device("meta"), pytest.raises(ValueError, match="^" + re.escape(message)):
        build(description)


def test_repeated_modules():
    relu = nn.ReLU()
    described = describe(nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu))
    assert [part["type"] for part in described["modules"]] == ["torch.Linear", "torch.ReLU"] * 2
    shared = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="stands in two places"):
        describe(nn.Sequential(shared, relu, nn.Sequential(shared)))
