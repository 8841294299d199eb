"""The parameter attack on SRAM: against its fault map, enumeration and random flips."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust import attacks, data
from snnrobust.attacks import SRAMAttack, cross_entropy
from snnrobust.draws import keyed
from snnrobust.encoders import Direct
from snnrobust.hardware import SRAM, deploy
from snnrobust.hardware.bits import store
from snnrobust.hardware.sram import StoredArray
from snnrobust.learning_rules import BPTT
from snnrobust.models import Dense, ordinary, spiking
from snnrobust.neurons.surrogate import ATan


def trained(kind):
    with keyed(0):
        layers, shape = (Dense(24),), data.SHAPES["digits"]
        model = ordinary(layers, shape, 10) if kind == "ann" else spiking(layers, shape, 10, Direct(3))
    BPTT(lr=1e-2, seed=0).fit(model, data.load("digits", "train"), epochs=2, progress=False)
    return model


@pytest.fixture(scope="module")
def models():
    return {kind: trained(kind) for kind in ("ann", "snn")}


@pytest.fixture(scope="module")
def samples():
    x, y = data.take(data.load("digits", "test"), 300)
    return (x[:100], y[:100]), (x[100:], y[100:])


def faults(model, sram, seed):
    chip = deploy(model, sram, seed=seed)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = {}
    for name in names:
        (array,) = [m for m in chip.get_submodule(name).modules() if isinstance(m, StoredArray)]
        found[name] = array
    return found


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_only_weak_cells_are_flipped_and_chosen_ones_do_more_harm(models, samples, kind):
    model, sram = models[kind], SRAM(0.78, ratio="2:6")
    before = {n: p.clone() for n, p in model.state_dict().items()}
    result = SRAMAttack(sram=sram, rounds=5)(model, *samples, seed=3)
    weak, count = faults(model, sram, 3), 0
    for name, array in weak.items():
        own = store(dict(model.named_modules())[name].weight, 8)
        flipped = torch.zeros_like(array.faults)
        for flip in result.flips:
            if flip.layer == name:
                assert not int(flipped[flip.index]) >> flip.bit & 1, "twice"
                flipped[flip.index] |= 1 << flip.bit
                assert flip.before == int(own.codes[flip.index])
        assert torch.equal(flipped & array.faults, flipped)
        assert torch.equal(result.model.get_submodule(name).weight, sram_values(own, flipped))
        count += int(sum(((array.faults >> b) & 1).sum() for b in range(8)))
    assert count == result.weak
    assert 0 < len(result.flips) < count
    none, every = result.points[:6], result.points[6:]
    assert [c for c, _ in none] == sorted(c for c, _ in none)
    assert none[-1][0] < count  # not all weak cells help
    assert [c for c, _ in every] == sorted((c for c, _ in every), reverse=True)
    assert every[0][0] == count
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    random = sum(t.accuracy[-1] for t in result.random) / len(result.random)
    assert result.judgement.accuracy[-1] < random - 0.1
    assert result.judgement.accuracy[-1] < result.undervolted[0]
    assert result.selection.accuracy[-1] == min(accuracy for _, accuracy in result.points)
    assert "weak cells fail" in str(result)


def sram_values(stored, flipped):
    return type(stored)(stored.words ^ flipped, stored.largest, stored.bits).values(torch.float32)


def test_all_weak_cells_are_the_chip_itself(models, samples):
    model, sram = models["ann"], SRAM(0.78, ratio="2:6")
    result = SRAMAttack(sram=sram, rounds=2, random_runs=0)(model, *samples, seed=4)
    x, y = samples[1]
    with torch.no_grad():
        chip = deploy(model, sram, seed=4)
        accuracy = float((chip(x).argmax(1) == y).double().mean())
    assert result.undervolted[0] == pytest.approx(accuracy)


def test_the_first_round_takes_the_largest_gains(models, samples):
    """Against gradients times the change of each weak cell, one by one."""
    model, sram = models["ann"], SRAM(0.8, ratio="2:6")
    result = SRAMAttack(sram=sram, flips=7, rounds=1, random_runs=0)(model, *samples, seed=5)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    copy = quantized(model, layers)
    x, y = samples[0]
    cross_entropy(copy(x), y).mean().backward()
    gains = {}
    for name, array in faults(model, sram, 5).items():
        own, slope = store(layers[name].weight, 8), copy.get_submodule(name).weight.grad
        for i, j in array.faults.nonzero().tolist():
            for b in range(8):
                if int(array.faults[i, j]) >> b & 1:
                    word = int(own.words[i, j]) ^ (1 << b)
                    code = word - 256 if word > 127 else word
                    gains[name, (i, j), b] = float(slope[i, j] * own.step) * (code - int(own.codes[i, j]))
    expected = sorted(gains, key=gains.get, reverse=True)[:7]
    assert [(f.layer, f.index, f.bit) for f in result.flips] == expected
    assert result.points[1][0] == 7


def quantized(model, layers):
    copy = deepcopy(model).eval()
    for name in layers:
        with torch.no_grad():
            weight = copy.get_submodule(name).weight
            weight.copy_(store(weight, 8).values(torch.float32))
    return copy


def test_budget_layers_and_surrogate_are_kept(models, samples):
    model = models["snn"]
    name = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][0]  # noqa: RUF015
    attack = SRAMAttack(sram=SRAM(0.78), flips=20, rounds=4, layers=[name], surrogate=ATan(2.0), random_runs=1)
    result = attack(model, *samples, seed=0)
    assert [count for count, _ in result.points] == [0, 5, 10, 15, 20]  # and no path from all cells
    assert {flip.layer for flip in result.flips} <= {name}
    again = attack(model, *samples, seed=0)
    assert [str(f) for f in again.flips] == [str(f) for f in result.flips]
    assert str(attack(model, *samples, seed=1)) != str(result)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"sram": 0.8}, TypeError, "sram must be a memory such as SRAM"),
        ({"sram": SRAM(0.8, axis=1)}, ValueError, "axis=1"),
        ({"sram": SRAM(0.8), "flips": 0}, ValueError, "flips"),
        ({"sram": SRAM(0.8), "rounds": 0}, ValueError, "rounds"),
        ({"sram": SRAM(0.8), "loss": 3}, TypeError, "loss"),
        ({"sram": SRAM(0.8), "surrogate": "ATan"}, TypeError, "surrogate must be None or a Surrogate"),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        SRAMAttack(**arguments)


def test_bad_calls_are_named(models, samples):
    given, judged = samples
    with pytest.raises(ValueError, match="no 6T cell of chip 0 fails at voltage"):
        SRAMAttack(sram=SRAM(1.2))(models["ann"], given, judged)
    with pytest.raises(ValueError, match="judge must be other samples"):
        SRAMAttack(sram=SRAM(0.8))(models["ann"], given, given)
    with pytest.raises(ValueError, match="layers"):
        SRAMAttack(sram=SRAM(0.8), layers=["nothing"])(models["ann"], given, judged)
    assert attacks.SRAMAttackResult is not attacks.BitFlipResult
