"""One description, two networks with the same synaptic layers."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.encoders import Delta, Direct, Frames, Latency, Phase, Poisson, Population, Rows, SignedPoisson
from snnrobust.layers import BNTT, TDBN, TEBN, LastOutput, MeanMembrane, SpikeCount
from snnrobust.models import (
    ARCHITECTURES,
    NORMS,
    Activation,
    Conv,
    Dense,
    DenseBlock,
    Dropout,
    GlobalPool,
    Normalise,
    Pool,
    Recurrent,
    Residual,
    SpikingClassifier,
    Transition,
    ordinary,
    remembers,
    spiking,
)
from snnrobust.models.architecture import fit
from snnrobust.neurons import IF, LIF, NEURONS, LearnableThresholdLIF
from snnrobust.neurons import Recurrent as RecurrentNeurons

SHAPE = (1, 8, 8)
NORMALISED = {
    "BNTT": (BNTT, BNTT),
    "TDBN": (TDBN, TDBN),
    "TEBN": (TEBN, TEBN),
    "BatchNorm": (nn.BatchNorm2d, nn.BatchNorm1d),
}


def _synapses(model):
    return [(type(m), tuple(m.weight.shape)) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("name", ["mlp", "conv-small", "conv-medium", "conv-mnist"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13)])
def test_twins_have_the_same_synapses(name, shape):
    ann = ordinary(ARCHITECTURES[name], shape, 10)
    snn = spiking(ARCHITECTURES[name], shape, 10, Direct(3))
    assert _synapses(ann) == _synapses(snn)
    x = torch.rand(2, *shape)
    assert ann(x).shape == snn(x).shape == (2, 10)


WEIGHTS = st.builds(Conv, st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 2)) | st.builds(
    Dense, st.integers(1, 4)
)
LAYERS = WEIGHTS | st.sampled_from(
    [Conv(2, activated=False), Conv(3, 2, padding=1), Pool(), Pool(3, "max"), GlobalPool(), Dropout(0.3), Activation(),
     DenseBlock(2, 2), Transition(0.5)]
) | st.builds(lambda body, last: Residual((*body, last)), st.lists(WEIGHTS, max_size=2), WEIGHTS)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    architecture=st.lists(LAYERS, max_size=5),
    shape=st.sampled_from([(2, 8, 8), (1, 5, 9), (6,)]),
    norm=st.sampled_from(list(NORMS)),
)
def test_whatever_fits_is_built_twice(architecture, shape, norm):
    """Both twins take the input, end in the predicted shape, have the same synapses, and the spiking one streams."""
    try:
        out = fit(architecture, shape)
    except ValueError:
        assume(False)
    ann = ordinary(architecture, shape, 3).eval()
    snn = spiking(architecture, shape, 3, Direct(3), LIF(0.9, 0.3), norm).double().eval()
    assert _synapses(ann) == _synapses(snn)
    x = torch.rand(2, *shape)
    assert ann[: len(ann) - 1 - (len(out) > 1)](x).shape == (2, *out)
    assert ann(x).shape == (2, 3)
    with torch.no_grad():
        *_, last = snn.stream(x.double())
        torch.testing.assert_close(last, snn(x.double()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_layers_by_hand(norm):
    architecture = (Conv(4), Pool(), Dense(5))
    kinds = [type(m) for m in ordinary(architecture, SHAPE, 3)]
    assert kinds == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d),
        *(nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU),
        nn.Linear,
    ]
    spatial, flat = NORMALISED.get(norm, (None, None))
    twin = {nn.BatchNorm2d: spatial, nn.BatchNorm1d: flat, nn.ReLU: LIF}
    model = spiking(architecture, SHAPE, 3, Poisson(6), LIF(threshold=0.3), norm)
    expected = [twin.get(kind, kind) for kind in kinds]
    assert [type(m) for m in model.network] == [kind for kind in expected if kind is not None]
    norms = [m for m in model.network if type(m) in (spatial, flat)]
    assert len(norms) == (0 if norm == "none" else 2)
    assert {getattr(m, "time_steps", 6) for m in norms} <= {6}
    assert {getattr(m, "threshold", 0.3) for m in norms} <= {0.3}
    assert model(torch.rand(2, *SHAPE)).shape == (2, 3)


def test_bntt_is_the_default():
    assert type(spiking((Dense(5),), SHAPE, 3, Direct(2)).network[2]) is BNTT


def test_biases():
    """A layer before a normalisation has none: the normalisation would cancel it."""

    def biases(model):
        return [m.bias is not None for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    architecture = (Conv(4), Residual((Conv(8),)), Dense(5))
    hidden = [False] * 4
    assert biases(ordinary(architecture, SHAPE, 3)) == [*hidden, True]
    assert biases(spiking(architecture, SHAPE, 3, Direct(2))) == [*hidden, True]
    assert biases(spiking(architecture, SHAPE, 3, Direct(2), norm="none")) == [True] * 5


def test_neuron_is_copied_and_readout_kept():
    neuron, readout, encoder = IF(threshold=0.5), SpikeCount(), Direct(2)
    model = spiking((Conv(4), Dense(5), Recurrent(6)), SHAPE, 3, encoder, neuron, readout=readout)
    copies = [m for m in model.modules() if isinstance(m, LIF)]
    assert [type(n) for n in copies] == [IF, IF, IF]
    assert [n.threshold for n in copies] == [0.5, 0.5, 0.5]
    assert len({id(n) for n in [neuron, *copies]}) == 4
    assert model.readout is readout
    assert model.encoder is encoder
    assert isinstance(spiking((), SHAPE, 3, encoder).readout, MeanMembrane)


def test_learnt_neurons_do_not_share_what_they_learn():
    model = spiking((Dense(5), Dense(4)), SHAPE, 3, Direct(2), LearnableThresholdLIF(threshold=0.5), norm="TDBN")
    learnt = [m.log_threshold for m in model.modules() if isinstance(m, LearnableThresholdLIF)]
    assert len({id(p) for p in learnt}) == 2
    assert [m.threshold for m in model.modules() if isinstance(m, TDBN)] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [k for k in NEURONS.values() if k.__module__.startswith("snnrobust.")])
def test_every_neuron_under_every_norm(kind, norm, device):
    with torch.device(device):
        model = spiking((Dense(4), Dense(4)), SHAPE, 3, Direct(2), kind(threshold=0.5), norm)
    scales = [m.threshold for m in model.modules() if isinstance(m, TDBN)]
    assert scales == ([0.5, 0.5] if norm == "TDBN" else [])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("thresholds", [(0.5, 0.7), (0.5, 0.5)])
def test_a_threshold_for_each_channel_is_no_scale(thresholds, device):
    with torch.device(device):
        neuron = LIF(threshold=thresholds)
        with pytest.raises(ValueError, match="norm TDBN scales by one threshold, but the neuron has one per channel"):
            spiking((Dense(2),), SHAPE, 3, Direct(2), neuron, "TDBN")
    neuron = LIF(threshold=thresholds)
    assert spiking((Dense(2),), SHAPE, 3, Direct(2), neuron)(torch.rand(2, *SHAPE)).shape == (2, 3)


def test_the_network_takes_what_the_encoder_gives():
    assert spiking((Conv(4),), (3, 8, 8), 3, Population(2, neurons=5)).network[0].in_channels == 15
    assert spiking((Dense(4),), (3, 8, 5), 3, Rows(8)).network[0].in_features == 15
    frames = spiking((Conv(4),), (6, 2, 8, 8), 3, Frames(6))
    assert frames.network[0].in_channels == 2
    assert frames(torch.rand(2, 6, 2, 8, 8)).shape == (2, 3)


# --- recurrent ------------------------------------------------------------------------------------------------------


def test_recurrent_twins():
    ann = ordinary((Recurrent(5),), (2, 8, 4), 3)
    snn = spiking((Recurrent(5),), (2, 8, 4), 3, Rows(8))
    assert type(ann) is SpikingClassifier
    assert type(ann.readout) is LastOutput
    assert (type(ann.encoder), ann.time_steps) == (Rows, 8)
    lstm, linear = ann.network
    assert (lstm.input_size, lstm.hidden_size, linear.in_features) == (8, 5, 5)
    assert [type(m) for m in snn.network] == [nn.Linear, BNTT, RecurrentNeurons, nn.Linear]
    assert snn.network[0].in_features == 8
    x = torch.rand(6, 2, 8, 4)
    assert ann(x).shape == snn(x).shape == (6, 3)
    h = torch.zeros(1, 6, 5)
    y, _ = lstm(x.permute(2, 0, 1, 3).flatten(2), (h, h))
    torch.testing.assert_close(ann(x), linear(y[-1]))


def test_what_remembers():
    assert remembers((Dense(3), Recurrent(4)))
    assert remembers((Dense(3), Residual((Residual((Recurrent(6), Dense(5))), Dense(5)))))
    assert not remembers((Dense(3), Residual((Dense(4),)), DenseBlock(1, 1)))
    assert type(ordinary((Residual((Recurrent(6), Dense(5))),), (3, 5), 2)) is SpikingClassifier


def test_recurrent_layers_without_normalisation_have_a_bias():
    linear, neurons, _ = spiking((Recurrent(5),), (8, 4), 3, Frames(8), norm="none").network
    assert linear.bias is not None
    assert type(neurons) is RecurrentNeurons


def test_sequences_of_images():
    """What stands before and between the recurrent layers is the same for each frame; branches may hold one too."""
    layers = (Conv(4), Pool(), Residual((Recurrent(6), Dense(5))), Recurrent(4))
    ann, x = ordinary(layers, (3, 2, 4, 4), 3, Frames(3)).eval(), torch.rand(5, 3, 2, 4, 4)
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d]
    assert [type(m) for m in ann.network][:4] == kinds
    assert [type(m) for m in ann.network[4].body] == [nn.Flatten, nn.LSTM, nn.Linear, nn.BatchNorm1d]
    *_, last = ann.stream(x)
    torch.testing.assert_close(last, ann(x), rtol=1e-4, atol=1e-6)
    assert spiking(layers, (3, 2, 4, 4), 3, Frames(3))(x).shape == (5, 3)


def test_default_encoders_of_recurrent_networks():
    assert isinstance(ordinary((Recurrent(4),), (7, 5), 3).encoder, Frames)
    assert ordinary((Recurrent(4),), (7, 5), 3)(torch.rand(2, 7, 5)).shape == (2, 3)
    kept = Poisson(4)
    assert ordinary((Recurrent(4),), (7, 5), 3, kept).encoder is kept
    with pytest.raises(
        ValueError, match=r"needs images \(C, H, W\) or sequences \(T, F\), got shape \(7,\): give an encoder"
    ):
        ordinary((Recurrent(4),), (7,), 3)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"norm": "bntt"}, ValueError, "norm must be one of BNTT, TDBN, TEBN, BatchNorm, none; got 'bntt' (did you mean 'BNTT'"),
        ({"norm": True}, ValueError, "norm must be one of BNTT, TDBN, TEBN, BatchNorm, none; got True"),
        ({"neuron": nn.ReLU()}, TypeError, "neuron must be a spiking neuron such as LIF(), got ReLU()"),
        ({"neuron": LIF}, TypeError, "neuron must be a spiking neuron such as LIF(), got <class"),
        ({"encoder": 8}, TypeError, "encoder must be an Encoder such as Direct(8), got 8"),
        ({"encoder": nn.Identity()}, TypeError, "encoder must be an Encoder such as Direct(8), got Identity()"),
        ({"readout": LIF()}, TypeError, "readout must be a Readout, got LIF"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        spiking(**{"architecture": (Dense(4),), "shape": SHAPE, "classes": 3, "encoder": Direct(2)} | arguments)


def test_encoders_of_ordinary_networks():
    with pytest.raises(
        ValueError, match="an ordinary network without a Recurrent layer has no encoder: leave out Direct"
    ):
        ordinary((Dense(4),), SHAPE, 3, Direct(4))
    with pytest.raises(TypeError, match=r"encoder must be an Encoder such as Rows\(28\), got 4"):
        ordinary((Recurrent(4),), SHAPE, 3, 4)


def test_a_norm_can_be_added(monkeypatch):
    monkeypatch.setitem(NORMS, "layer", lambda site: nn.GroupNorm(1, site.features))
    assert type(spiking((Conv(4),), SHAPE, 3, Direct(2), norm="layer").network[1]) is nn.GroupNorm


@pytest.mark.parametrize("encoder", [Poisson(2), SignedPoisson(2), Population(2), Phase(2), Latency(2), Delta(1)])
def test_spikes_are_not_normalised(encoder):
    described = (Normalise(0.3, 0.2), Dense(4))
    with pytest.raises(ValueError, match=rf"would normalise the spikes of {type(encoder).__name__}.*SignedPoisson"):
        spiking(described, SHAPE, 3, encoder)
    for values in (Direct(2), Rows(8), Frames(1)):
        assert isinstance(spiking(described, SHAPE, 3, values), SpikingClassifier)


@pytest.mark.parametrize("build", [ordinary, lambda *args: spiking(*args, Direct(2))])
@pytest.mark.parametrize(
    ("shape", "error"), [(4, TypeError), ("4", TypeError), (None, TypeError), ((), ValueError), ((1, 0), ValueError)]
)
@pytest.mark.parametrize("architecture", ["mlp", "lstm"])
def test_a_shape_that_is_none(build, shape, error, architecture):
    with pytest.raises(error, match=r"^shape must be"):
        build(ARCHITECTURES[architecture], shape, 10)
