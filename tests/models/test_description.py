"""``build(describe(module))`` has the same structure, for every class; a bad description is a ``ValueError``."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from snnrobust.defenses import Voting
from snnrobust.encoders import (
    ENCODERS,
    Delta,
    Direct,
    Frames,
    Latency,
    LevelCrossing,
    Phase,
    Poisson,
    Population,
    Rows,
    SignedPoisson,
)
from snnrobust.layers import (
    BNTT,
    QCFS,
    READOUTS,
    TDBN,
    TEBN,
    ActivationNoise,
    Chunked,
    Concat,
    Dropout,
    LastOutput,
    MeanMembrane,
    MeanOutput,
    Normalise,
    OrdinaryActivationNoise,
    OrdinaryConcat,
    OrdinaryDropout,
    OrdinaryResidual,
    Residual,
    Sequential,
    SpikeCount,
)
from snnrobust.models import EarlyExit, Ensemble, SpikingClassifier, build, describe
from snnrobust.models.description import MODULES
from snnrobust.neurons import ALIF, IF, LIF, NEURONS, PLIF, CuBaLIF, LearnableThresholdLIF, PrechargedIF, Recurrent
from snnrobust.neurons.surrogate import SURROGATES, ATan, FastSigmoid, Sigmoid, Triangle
from snnrobust.quantization import Integer, LevelSet, QuantizedMembrane, Quantizer, SignalQuantizer
from snnrobust.temporal import Temporal

CASES = [
    Voting(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), votes=3, rule="mean_logits"),
    SignalQuantizer(Quantizer(Integer(8), affine=True, gradient="identity")),
    SignalQuantizer(Quantizer(Integer(3), scale="learned")),
    QuantizedMembrane(LIF(), SignalQuantizer(Quantizer(LevelSet([-1.0, 0.0, 0.5, 1.0]), scale="constant", limits=(-2.0, 2.0)))),
    nn.Linear(3, 2), nn.Linear(3, 2, bias=False),
    nn.Conv1d(2, 4, 3, stride=2, dilation=2), nn.Conv2d(2, 4, (3, 1), padding="same", groups=2, bias=False),
    nn.Conv2d(2, 4, 3, padding=(1, 0), padding_mode="reflect"), nn.Conv3d(2, 4, 3),
    nn.BatchNorm1d(3), nn.BatchNorm2d(3, eps=1e-3, momentum=None, affine=False), nn.BatchNorm3d(3, track_running_stats=False),
    nn.LayerNorm([3, 4], eps=1e-3), nn.LayerNorm(3, elementwise_affine=False), nn.LayerNorm(3, bias=False), nn.GroupNorm(2, 4),
    nn.AvgPool1d(3, 2, padding=1), nn.AvgPool2d((2, 3), ceil_mode=True, divisor_override=5), nn.AvgPool3d(2),
    nn.MaxPool1d(3, padding=1), nn.MaxPool2d((2, 3), stride=(1, 2), dilation=2), nn.MaxPool3d(2, return_indices=True),
    nn.AdaptiveAvgPool2d((None, 2)), nn.AdaptiveAvgPool2d(1), nn.Flatten(2, 3), nn.Identity(), nn.ReLU(inplace=True),
    nn.Tanh(), nn.Sigmoid(), nn.Dropout(0.2, inplace=True), nn.Dropout2d(0.3),
    nn.LSTM(3, 4, 2, bias=False, dropout=0.2, proj_size=2), nn.GRU(3, 4, bidirectional=True), nn.RNN(3, 4, nonlinearity="relu"),
    BNTT(3, 5, eps=1e-2, momentum=0.3), TDBN(3, 0.5, 0.7, 1e-3, 0.2), TEBN(3, 5, 1e-3, 0.2),
    Normalise((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), Normalise(0.5, 0.25),
    Residual(Sequential(nn.Linear(3, 3), LIF())), Residual(Sequential(LIF()), Sequential(nn.Linear(3, 3))),
    Concat(Sequential(nn.Linear(3, 2))), OrdinaryConcat(nn.Linear(3, 2)), Chunked(Sequential(nn.Linear(3, 2))), Chunked(LIF(), 4),
    Chunked(LIF(), 4, truncated=True), Dropout(0.3, drawn="step"), Dropout(0.0), OrdinaryDropout(0.2),
    OrdinaryResidual(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Conv2d(3, 4, 1)), OrdinaryResidual(OrdinaryResidual(nn.ReLU())),
    QCFS(4, 2.5), ActivationNoise(0.2, 0.0), OrdinaryActivationNoise(0.3),
    Ensemble(nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2))),
    LIF(0.8, 0.6, "hard", Triangle(0.5, 2.0)), LIF(surrogate=FastSigmoid(3.0)), IF(0.7, "hard", ATan(3.0)),
    IF(surrogate=Sigmoid(2.0)), LIF((0.5, 0.9), (0.1, 1 / 3), refractory=2, detach_reset=False),
    PrechargedIF(0.7, 0.25), PrechargedIF((0.5, 0.9), surrogate=Triangle()),
    ALIF(0.9, 0.5, torch.tensor([0.1, 0.3]), 0.7), CuBaLIF(), PLIF(0.7, 0.6, features=3, decay_input=True),
    LearnableThresholdLIF(0.8, 0.3, learn_decay=True), LearnableThresholdLIF(0.8, 0.3, 4),
    Recurrent(3), Recurrent(4, ALIF(0.5, surrogate=Triangle())),
    Direct(3), Poisson(4, gradient="none"), SignedPoisson(3, (0.1, 0.2), (0.3, 0.4)), Latency(4), Phase(8), Delta(3),
    LevelCrossing(3), Population(3, 5), Frames(4), Rows(4),
    MeanMembrane(0.7), MeanOutput(), SpikeCount(), LastOutput(),
    nn.Sequential(nn.Linear(2, 3), nn.Sequential(), nn.ReLU()), Sequential(nn.Sequential(nn.Linear(2, 3), LIF()), BNTT(3, 2)),
    EarlyExit(SpikingClassifier(Poisson(2), Sequential(nn.Linear(2, 3)), MeanOutput()).eval(), 0.8),
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
    assert ours | {nn.Sequential, Sequential, Ensemble, SpikingClassifier} == {type(case) for case in CASES}


def test_every_surrogate():
    for kind in SURROGATES.values():
        built = build(json.loads(json.dumps(describe(LIF(surrogate=kind())))))
        assert built.surrogate == kind()


@pytest.mark.parametrize("name", ["decay", "threshold"])
def test_numbers_per_channel_come_back(name):
    """They are buffers too: a checkpoint restores them to the bit, the description decides their number and range."""
    values = torch.tensor([0.1, 1 / 3, 0.9])
    for given in (values, tuple(values.tolist())):
        neuron = LIF(**{name: given})
        description = json.loads(json.dumps(describe(Sequential(neuron))))
        assert torch.equal(getattr(build(description)[0], name), values)
        with torch.device("meta"):
            assert build(description)[0].state_dict()[name].shape == (3,)


def test_learnt_values_start_where_they_did():
    neuron = PLIF(0.7)
    with torch.no_grad():
        neuron.logit_decay += 1.0
    assert describe(neuron)["decay"] == 0.7


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_bounded(kind):
    """A layer costs memory even on the meta device."""
    description = {"type": f"torch.{kind.__name__}", "input_size": 2, "hidden_size": 2, "num_layers": 10**9}
    with torch.device("meta"), pytest.raises(ValueError, match=r"num_layers .* must be at most 1000, got 1000000000"):
        build(description)
    assert describe(build(description | {"num_layers": 2})) == describe(kind(2, 2, 2))


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
                "detach_reset": True,
                "refractory": 0,
            },
        ],
    }
    assert isinstance(build({"type": "LIF"}), LIF)  # what is left out has its default

    classifier = SpikingClassifier(Direct(2), Sequential(Residual(Sequential(IF()))), SpikeCount())
    described = describe(classifier)
    assert list(described) == ["type", "encoder", "network", "readout"]
    residual = described["network"]["modules"][0]
    assert (residual["type"], residual["body"]["type"], residual["shortcut"]) == ("Residual", "Sequential", None)


class Mine(Temporal):
    """Not registered."""


class MyClassifier(SpikingClassifier):
    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize(
    "module",
    [
        Mine(),
        Sequential(nn.Linear(2, 2), Mine()),
        nn.Sequential(nn.LSTMCell(2, 2)),
        Residual(Mine()),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        MyClassifier(Direct(2), Sequential(nn.Linear(2, 2)), MeanOutput()),
    ],
    ids=["subclass", "inside", "LSTMCell", "branch", "parametrized", "classifier"],
)
def test_unregistered_classes_are_refused(module):
    with pytest.raises(
        TypeError, match=r"\w+ cannot be described: add its class to snnrobust.models.description.MODULES"
    ):
        describe(module)


def test_a_class_can_be_added(monkeypatch):
    monkeypatch.setitem(MODULES, "torch.ELU", nn.ELU)
    assert repr(build(describe(nn.ELU(alpha=0.5)))) == "ELU(alpha=0.5)"


def _deep_branches(levels):
    description = {"type": "LIF"}
    for _ in range(levels):
        description = {"type": "Residual", "body": description}
    return description


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
        ({"type": "LIF", "dekay": 0.9}, "argument of LIF must be one of decay, threshold, reset, surrogate, detach_reset, "
         "refractory; got 'dekay' (did"),
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
        ({"type": "Residual"}, "Residual in a module description: "),
        ({"type": "Residual", "body": {"type": "torch.ReLU"}}, "Residual in a module description: body must be a temporal"),
        ({"type": "Residual", "body": 3}, "Residual in a module description: body must be a temporal module"),
        ({"type": "Residual", "body": {"type": "ATan"}}, "Residual in a module description: body must be a temporal module"),
        ({"type": "Residual", "body": {"type": "Lif"}}, "module type must be one of "),
        ({"type": "Residual", "body": {}}, "a module description must be an object with a type, got {}"),
        ({"type": "Residual", "body": {"type": ["LIF"]}}, "a module description must be an object with a type"),
        ({"type": "Recurrent", "features": 3, "neuron": {"type": "torch.ReLU"}}, "Recurrent in a module description: neuron"),
        ({"type": "LIF", "surrogate": {"type": "LIF"}}, "surrogate must be one of "),
        ({"type": "LIF", "surrogate": {"type": ["ATan"]}}, "surrogate must be one of "),
        ({"type": "LIF", "threshold": [1.0, -1.0]}, "LIF in a module description: threshold must be in (0, inf], got -1.0"),
        ({"type": "LIF", "threshold": [1.0, "x"]}, "LIF in a module description: threshold must be a number, got 'x'"),
        ({"type": "torch.LSTM", "input_size": 2, "hidden_size": 2, "args": 3}, "argument of LSTM must be one of"),
        ({"type": "torch.GRU", "input_size": 2, "hidden_size": 2, "proj_size": 3}, "argument of GRU must be one of"),
        ({"type": "torch.LSTM", "input_size": 2, "hidden_size": -1}, "LSTM in a module description: "),
        ({"type": "torch.LSTM", "input_size": 2, "hidden_size": "x"}, "LSTM in a module description: "),
        ({"type": "Sequential"}, "Sequential in a module description needs a list of modules"),
        ({"type": "Sequential", "modules": {}}, "Sequential in a module description needs a list of modules"),
        ({"type": "Sequential", "modules": [], "x": 1}, "Sequential in a module description needs a list of modules and"),
        ({"type": "torch.Sequential", "modules": [3]}, "a module description must be an object with a type, got 3"),
        ({"type": "SpikingClassifier"}, "SpikingClassifier in a module description: "),
        ({"type": "SpikingClassifier", "encoder": {"type": "LIF"}, "network": {"type": "LIF"}, "readout": {"type": "LIF"}},
         "SpikingClassifier in a module description: encoder must be a Encoder, got LIF"),
        ({"type": "Sequential", "modules": [describe(CASES[-1])]}, "Sequential in a module description: SpikingClassifier"),
        (_deep_branches(5000), "the module description is nested too deeply"),
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
