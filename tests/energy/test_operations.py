"""Totals, truncation, joining, tables and files."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy import Operations, count_operations
from snnrobust.energy.operations import joint_magnitude
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

T = 4


def make(encoder=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Sequential(nn.Linear(6, 5), LIF(threshold=0.2), nn.Linear(5, 3))
    return SpikingClassifier(encoder or Poisson(T), network, MeanOutput())


@pytest.fixture
def x():
    return torch.rand(7, 6, generator=torch.Generator().manual_seed(1))


def counted(model, x, ids=None):
    with draws(model, 3, torch.arange(len(x)) if ids is None else ids):
        return count_operations(model, x)


def counts(operations):
    return [
        *(t for layer in operations.layers for t in (layer.dense, layer.events, layer.inputs, layer.nonzero)),
        *(n.count for n in operations.neurons),
    ]


def same(a, b):
    return all(torch.equal(one, other) for one, other in zip(counts(a), counts(b), strict=True))


def test_totals_are_sums_over_layers_and_steps(x):
    operations = counted(make(Direct(T)), x)
    first, second = operations.layers
    assert (first.kind, second.kind) == ("MAC", "AC")
    assert operations.mac == pytest.approx(first.events.sum().item() / 7, rel=1e-12)
    assert operations.ac == pytest.approx(second.events.sum().item() / 7, rel=1e-12)
    assert operations.dense_mac == T * (30 + 15)
    assert operations.updates == T * 5
    for t in range(T):
        assert float(second.ac[t]) == pytest.approx(second.events[t].sum().item() / 7, rel=1e-12)
        assert float(second.rate[t]) == pytest.approx(second.nonzero[t].sum().item() / 35, rel=1e-12)
    assert not second.mac.any()
    assert not first.ac.any()


@pytest.mark.parametrize("steps", [1, 2, T])
def test_the_first_steps_are_those_of_a_shorter_model(x, steps):
    assert same(counted(make(), x).upto(steps), counted(make(Poisson(steps)), x))
    assert counted(make(), x).upto(steps).time_steps == steps


def test_each_sample_may_stop_at_its_own_step(x):
    operations, exits = counted(make(), x), torch.tensor([1, 4, 2, 2, 3, 1, 4])
    stopped = operations.upto(exits)
    for whole, part in zip(counts(operations), counts(stopped), strict=True):
        for sample, steps in enumerate(exits.tolist()):
            assert torch.equal(part[:steps, sample], whole[:steps, sample])
            assert not part[steps:, sample].any()
    singles = [counted(make(), x[i : i + 1], torch.tensor([i])).upto(int(exits[i])) for i in range(7)]
    assert stopped.ac == pytest.approx(sum(one.ac for one in singles) / 7, rel=1e-12)
    assert stopped.updates == pytest.approx(5 * float(exits.double().mean()), rel=1e-12)
    assert same(operations.upto(torch.full((7,), T)), operations)
    for kind in (np.int64, np.int32):
        assert same(operations.upto(exits.numpy().astype(kind)), stopped)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (0, ValueError, "steps must be at least 1"),
        (T + 1, ValueError, r"steps must be within 1..4, the steps that ran, got 5..5"),
        (1.0, TypeError, "steps must be an integer"),
        (torch.tensor([1] * 6), ValueError, r"int64 \[7\], one for each sample"),
        (torch.ones(7), ValueError, r"int64 \[7\], one for each sample"),
        (np.ones(6, dtype=np.int64), ValueError, r"int64 \[7\], one for each sample"),
        (np.ones(7), TypeError, "steps must be an integer"),
        (torch.tensor([0, 1, 1, 1, 1, 1, 1]), ValueError, "steps must be within 1..4, the steps that ran, got 0..1"),
        (torch.tensor([9, 1, 1, 1, 1, 1, 1]), ValueError, "steps must be within 1..4, the steps that ran, got 1..9"),
    ],
)
def test_bad_steps(x, steps, error, message):
    with pytest.raises(error, match=message):
        counted(make(), x).upto(steps)


def test_batches_join_to_the_whole(x):
    model = make()
    parts = [counted(model, x[a:b], torch.arange(a, b)) for a, b in ((0, 3), (3, 4), (4, 7))]
    joined, whole = Operations.join(iter(parts)), counted(model, x)
    assert same(joined, whole)
    assert joined.to_json() == whole.to_json()
    with pytest.raises(ValueError, match="at least one"):
        Operations.join([])
    for other in (counted(make(Poisson(2)), x), count_operations(Sequential(nn.Linear(6, 4)), x[None])):
        with pytest.raises(ValueError, match="must come from one model"):
            Operations.join([whole, other])


def test_a_joined_layer_accumulates_only_if_all_its_batches_share_one_magnitude():
    network = Sequential(nn.Linear(2, 2))
    ones, halves, none = (count_operations(network, torch.full((1, 1, 2), v)) for v in (1.0, 0.5, 0.0))
    assert Operations.join([none, ones]).layers[0].kind == "AC"
    assert Operations.join([ones, none]).layers[0].magnitude == 1.0
    assert Operations.join([ones, halves]).layers[0].kind == "MAC"
    assert Operations.join([ones, halves, ones]).layers[0].kind == "MAC"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(0.0, 0.0, 0.0), (0.0, 2.0, 2.0), (2.0, 0.0, 2.0), (2.0, 2.0, 2.0), (2.0, 1.0, None), (None, 0.0, None), (0.0, None, None),
     (None, None, None), (1.0, None, None)],
)  # fmt: skip
def test_magnitudes(one, other, expected):
    assert joint_magnitude(one, other) == expected


def test_the_table_shows_what_was_counted(x):
    operations = counted(make(Direct(T)), x)
    lines = operations.table().splitlines()
    assert lines[0].split() == ["layer", "type", "kind", "input", "output", "nonzero", "dense", "MAC", "MAC", "AC"]
    assert lines[2].split() == ["network.0", "Linear", "MAC", "6", "5", "100.0", "%", "120", "120", "0"]
    assert lines[-3].split()[:3] == ["all", "layers", "180"]
    assert lines[-2] == "per sample, mean of 7, T = 4; neuron updates: 20"
    assert lines[-1] == "same input at every step, hoisted() counts it once: network.0"
    assert "hoisted" not in counted(make(), x).table()


def test_a_file_holds_the_means(x, tmp_path):
    operations = counted(make(), x)
    operations.save(tmp_path / "new" / "operations.json")
    read = json.loads((tmp_path / "new" / "operations.json").read_text())
    assert read == json.loads(json.dumps(operations.to_json()))
    assert read["layers"][1]["ac"] == operations.layers[1].ac.tolist()
    assert (read["samples"], read["time_steps"], read["ac"]) == (7, T, operations.ac)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["operations.json"]
