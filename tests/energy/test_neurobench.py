"""Against NeuroBench itself, recorded, and against networks counted by hand.

The recorded numbers are those of NeuroBench 2.3.0 with snnTorch 1.0.0 (``reset_delay=False``) and torch 2.13 on the same weights
and inputs, made by the formulas below. Potentials neither meet their threshold exactly (snnTorch fires above it, we at it) nor
stay above it after a soft reset (there snnTorch resets once more at the next step).
"""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from snnrobust.draws import draws
from snnrobust.energy import neurobench
from snnrobust.hardware import Chain, deploy
from snnrobust.layers import Sequential
from snnrobust.neurons import ALIF, LIF, CuBaLIF


def filled(network):
    """Weights in sixteenths; about one in 17 is zero."""
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            k = torch.arange(parameter.numel()) * (5 + 2 * i) + 3
            parameter.copy_(((k % 17 - 8).double() / 16).view(parameter.shape))
    return network


def images(*shape):
    k = torch.arange(torch.Size(shape).numel())
    return ((k * 7 % 11).float() / 10 * (k * 3 % 4 > 0)).view(shape)


def spikes(*shape):
    k = torch.arange(torch.Size(shape).numel())
    return ((k * 7 + 1) % 13 < 5).float().view(shape)


def ann():
    return filled(
        nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 5),
            nn.ReLU(),
            nn.Linear(5, 4),
        )
    )


def normalised():
    return filled(nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 2)))


def leaky(threshold=0.67, reset="soft"):
    return LIF(decay=0.5, threshold=threshold, reset=reset)


def dense(bias=True, last="soft"):
    return filled(Sequential(nn.Linear(7, 9, bias=bias), leaky(), nn.Linear(9, 4, bias=bias), leaky(reset=last)))


def conv():
    first = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
    return filled(Sequential(first, leaky(1.37), nn.Flatten(), nn.Linear(27, 4, bias=False), leaky(1.37)))


def synaptic():
    return filled(Sequential(nn.Linear(7, 9, bias=False), CuBaLIF(current_decay=0.25, decay=0.5, threshold=0.67)))


RECORDED = {
    # network, input with the batch first; footprint (without neurons' states), parameters, connection sparsity, activation
    # sparsity, dense, effective MACs and ACs, membrane updates, neuron operations and dense ones
    "ann": (ann, images(6, 1, 8, 8), (1196, 299, 0.0592, 0.6446540880503144, 623, 344, 0, 0, 0, 0)),
    "batch norm": (normalised, images(5, 7), (520, 110, 0.0617, 0.5777777777777777, 81, 46.6, 0, 0, 0, 0)),
    "dense": (dense, spikes(5, 6, 7), (448, 112, 0.0606, 0.9641025641025641, 594, 0, 146.2, 77.4, 309.6, 312)),
    "silent input": (dense, 0 * spikes(5, 6, 7), (448, 112, 0.0606, 0.9871794871794872, 594, 0, 4, 71, 284, 312)),
    "hard reset": (
        lambda: dense(False, "hard"), spikes(5, 6, 7),
        (396, 99, 0.0606, 0.9871794871794872, 594, 0, 140.6, 71.4, 285.6, 312),
    ),
    "conv": (conv, spikes(4, 5, 2, 5, 6), (648, 162, 0.0617, 0.9822580645161291, 2220, 0, 612.75, 153.5, 614, 620)),
    "conv, values": (conv, images(4, 5, 2, 5, 6), (648, 162, 0.0617, 1.0, 2220, 1169, 0, 138.75, 555, 620)),
    "synaptic": (synaptic, spikes(5, 6, 7), (252, 63, 0.0635, 0.9592592592592593, 378, 0, 136.6, 53.6, 321.6, 324)),
}  # fmt: skip
NAMES = (
    "footprint", "parameter_count", "connection_sparsity", "activation_sparsity", "dense", "effective_macs", "effective_acs",
    "membrane_updates", "neuron_operations", "neuron_dense",
)  # fmt: skip


@pytest.mark.parametrize("name", list(RECORDED))
def test_neurobench_counts_the_same(name):
    make, x, recorded = RECORDED[name]
    model = make()
    ours = neurobench(model, x.transpose(0, 1) if isinstance(model, Sequential) else x)
    for metric, expected in zip(NAMES, recorded, strict=True):
        tolerance = 5.1e-5 if metric == "connection_sparsity" else 1e-9  # which it rounds
        assert getattr(ours, metric) == pytest.approx(expected, rel=1e-9, abs=tolerance), metric


def test_names():
    report = neurobench(ann(), images(6, 1, 8, 8)).to_json()
    assert list(report) == [
        "Footprint", "ParameterCount", "ConnectionSparsity", "ActivationSparsity", "SynapticOperations", "MembraneUpdates",
        "NeuronOperations",
    ]  # fmt: skip
    assert report["SynapticOperations"] == {"Effective_MACs": 344, "Effective_ACs": 0, "Dense": 623}


def test_by_hand():
    """Two steps, two samples, three inputs, two outputs; one weight is zero, and the first neuron spikes at 1."""
    linear = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0.25, 0.0], [0.25, 0.25, 0.25]]))
    x = torch.tensor([[[1.0, 0, 0], [0, 0, 1]], [[0, 0, 0], [1, 1, 1]]])
    found = neurobench(Sequential(linear, LIF(decay=1.0)), x)
    assert found.dense == 2 * 6
    assert found.effective_acs == (2 + 0 + 1 + 5) / 2
    assert found.connection_sparsity == 1 / 6
    # potentials: sample 1: (1 -> 0, 0.25), then unchanged; sample 2: (0, 0.25), then (1.25 -> 0.25, 1 -> 0)
    assert found.activation_sparsity == 1 - 3 / 8
    assert found.membrane_updates == 2 + (0 + 2) / 2
    assert (found.neuron_operations, found.neuron_dense) == (4 * 3, 4 * 4)


def test_an_image_of_ones_is_no_spike_train():
    """NeuroBench counts 342 accumulates and 83 multiply-accumulates here."""
    ones = neurobench(ann(), torch.ones(6, 1, 8, 8))
    assert (ones.effective_macs, ones.effective_acs) == (425, 0)
    saturated = neurobench(dense(), torch.ones(6, 5, 7))
    assert saturated.effective_macs == 0
    signs = neurobench(nn.Sequential(nn.Linear(2, 3)), torch.tensor([[1.0, -1.0]]))
    assert (signs.effective_macs, signs.effective_acs) == (0, 6)


class Rounded(nn.Module):
    def forward(self, weight):
        return torch.round(weight * 4) / 4


def test_a_parametrized_layer_counts_by_the_weight_that_it_shows():
    """NeuroBench counts 5.8 of 36.6 operations here, 18 of 81 dense ones, and the sparsity of the second layer alone."""
    x = images(5, 7)
    made, plain = (
        filled(nn.Sequential(nn.Linear(7, 9, bias=False), nn.ReLU(), nn.Linear(9, 2, bias=False))) for _ in range(2)
    )
    parametrize.register_parametrization(made[0], "weight", Rounded())
    with torch.no_grad():
        plain[0].weight.copy_(Rounded()(plain[0].weight))
    ours = neurobench(made, x)
    assert ours.to_json() == neurobench(plain, x).to_json()
    assert (ours.effective_macs, ours.dense) == (36.6, 81)
    assert ours.connection_sparsity == pytest.approx(0.2469, abs=5e-5)


def test_large_layers_are_counted_exactly():
    """In float32, as NeuroBench sums, it would be 18,020,998.67."""
    model = nn.Sequential(nn.Linear(3000, 6007, bias=False))
    assert neurobench(model, torch.linspace(0.1, 1, 9000).view(3, 3000)).effective_macs == 3000 * 6007


def test_recurrent_layers_and_unknown_neurons():
    rnn = neurobench(Sequential(nn.RNN(4, 3)), spikes(2, 6, 4))
    assert rnn.dense == 2 * (3 * 4 + 3 * 3)
    assert neurobench(Sequential(nn.Linear(4, 3), ALIF()), spikes(2, 6, 4)).neuron_operations is None


def test_a_chip_counts_as_its_model():
    model, x = dense(), spikes(5, 6, 7).transpose(0, 1)
    chip = deploy(model, Chain(), seed=1)
    with draws(chip, 0):
        theirs = neurobench(chip, x).to_json()
    for name, value in neurobench(model, x).to_json().items():
        if name not in ("Footprint", "ParameterCount"):  # a chip has buffers instead
            assert theirs[name] == value
