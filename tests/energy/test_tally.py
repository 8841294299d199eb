"""Normalisations, encoders, activations, and what an update of a neuron costs, by hand."""

import pytest
import torch
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy import count_operations, estimate
from snnrobust.layers import BNTT, TDBN, TEBN, MeanOutput, Normalise, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import ALIF, IF, LIF, PLIF, CuBaLIF, Recurrent


def elements(network, shape=(3, 2, 4)):
    return {e.name: e for e in count_operations(network, torch.ones(shape)).elementwise}


@pytest.mark.parametrize(
    ("norm", "folded"),
    [
        (nn.BatchNorm1d(5), True), (TDBN(5), True), (BNTT(5, 3), False), (TEBN(5, 3), False), (nn.LayerNorm(5), False),
        (nn.GroupNorm(1, 5), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("neurons", [True, False])
def test_a_normalisation_with_one_map_for_all_steps_folds(norm, folded, neurons):
    found = elements(Sequential(nn.Linear(4, 5), norm, *[LIF()] * neurons))["1"]
    assert (found.role, found.folded) == ("normalisation", folded)
    assert found.count.tolist() == [[5, 5]] * 3


def test_a_normalisation_that_follows_something_else_does_not_fold():
    network = Sequential(
        nn.BatchNorm1d(4), nn.Linear(4, 5), LIF(threshold=0.01), nn.BatchNorm1d(5), nn.Linear(5, 2), TDBN(2)
    )
    assert {name: e.folded for name, e in elements(network).items()} == {"0": False, "3": False, "5": True}
    ann = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5))
    assert [(e.name, e.role, e.folded) for e in count_operations(ann, torch.ones(2, 4)).elementwise] == [
        ("1", "activation", True), ("2", "normalisation", False),
    ]  # fmt: skip


def test_a_convolution_keeps_its_normalisation():
    network = Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), LIF(), nn.Conv2d(3, 4, 2), BNTT(4, 3), LIF())
    found = elements(network, (3, 2, 2, 6, 5))
    assert [(name, e.folded) for name, e in found.items()] == [("1", True), ("4", False)]
    assert found["1"].count.tolist() == [[3 * 4 * 3] * 2] * 3


def test_a_folded_normalisation_leaves_a_bias_where_there_was_none():
    for bias in (True, False):
        operations = count_operations(
            nn.Sequential(nn.Linear(4, 5, bias=bias), nn.BatchNorm1d(5)), torch.rand(2, 4) + 0.1
        )
        assert operations.elementwise[0].shift == (not bias)
        assert estimate(operations).of(what="biases") == pytest.approx(5 * 0.9)
    late = count_operations(Sequential(nn.Linear(4, 5, bias=False), IF(), nn.BatchNorm1d(5)), torch.ones(1, 2, 4))
    assert not late.elementwise[0].shift


def test_normalise_is_no_part_of_a_layer():
    assert not elements(Sequential(Normalise(0.5, 0.5), nn.Linear(4, 5)))["0"].folded


def test_encoders(monkeypatch):
    for encoder, folded in ((Direct(4), True), (Poisson(4), False)):
        model = SpikingClassifier(encoder, Sequential(nn.Linear(3, 2)), MeanOutput())
        x = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
        with draws(model, 0):
            (found,) = count_operations(model, x).elementwise
        assert (found.name, found.role, found.folded) == ("encoder", "encoder", folded)
        assert found.count.tolist() == [[3, 3]] * 4
        assert found.nonzero.tolist() == [[2, 1]] * 4


@pytest.mark.parametrize(
    ("neuron", "states", "multiplications", "additions", "soft"),
    [
        (LIF(), 1, 1, 2, True), (IF(), 1, 0, 2, True), (LIF(decay=1.0), 1, 0, 2, True), (LIF(reset="hard"), 1, 1, 2, False),
        (PLIF(), 1, 1, 2, True), (PLIF(decay_input=True), 1, 2, 2, True), (CuBaLIF(), 2, 2, 3, True),
        (CuBaLIF(current_decay=1.0), 2, 1, 3, True), (ALIF(), 2, 3, 4, True), (LIF(refractory=2), 2, 1, 2, True),
        (Recurrent(5, CuBaLIF()), 2, 2, 3, True),
    ],
)  # fmt: skip
def test_what_an_update_costs(neuron, states, multiplications, additions, soft):
    (found,) = count_operations(Sequential(nn.Linear(4, 5), neuron), torch.ones(3, 2, 4)).neurons
    assert (found.states, found.multiplications, found.additions, found.soft) == (
        states,
        multiplications,
        additions,
        soft,
    )
    assert found.after == ("1.recurrent" if isinstance(neuron, Recurrent) else "0")


def test_spikes_and_changes_by_hand():
    """A current of 0.6 into integrate-and-fire neurons of threshold 1: 0.6, 1.2 -> 0.2, 0.8; without current nothing moves."""
    x = torch.tensor([0.6, 0.0]).repeat(3, 1, 1)
    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    (found,) = count_operations(Sequential(linear, IF()), x, membranes=True).neurons
    assert found.spikes.tolist() == [[0], [1], [0]]
    assert found.changed is not None
    assert found.changed.tolist() == [[2], [1], [1]]
    (unasked,) = count_operations(Sequential(linear, IF()), x).neurons
    assert unasked.changed is None


def test_the_second_pass_through_recurrent_neurons_counts_nothing():
    network, x = Sequential(Recurrent(4, LIF(threshold=0.1))), torch.ones(3, 2, 4)
    plain, twice = count_operations(network, x), count_operations(network, x, membranes=True)
    assert plain.layers[0].events.tolist() == twice.layers[0].events.tolist()
    assert plain.dense_mac == twice.dense_mac


def test_an_activation_that_sees_something_else_than_the_batch_is_refused():
    class Folds(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            return self.relu(self.linear(x).view(-1, 2)).view(len(x), -1)

    with pytest.raises(ValueError, match=r"relu \(ReLU\) gave \(6, 2\) at its call 1, .* T = 1 steps of B = 3"):
        count_operations(Folds(), torch.ones(3, 4))
