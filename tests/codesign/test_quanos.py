"""The procedure against its steps by hand, for ordinary and spiking networks; interrupted, it ends the same."""

import json

import pytest
import torch
from torch import nn

from snnrobust import data, models
from snnrobust.attacks import FGSM, Linf
from snnrobust.codesign import (
    ByDensity,
    BySensitivity,
    HybridPrecision,
    activation_density,
    adversarial_noise_sensitivity,
    density_bits,
    quanos,
    sensitivity_bits,
    unquantized,
)
from snnrobust.defenses import PGDTraining
from snnrobust.draws import derive, draws, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy import PrecisionScalable
from snnrobust.layers import MeanMembrane, Sequential
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import LIF, Recurrent
from snnrobust.quantization import Integer, Quantizer, calibrate, precision, quantize

ATTACK = FGSM(Linf(0.1))
RULE = BPTT(lr=5e-3, seed=1)
LAYERS = (Conv(6), Pool(), Dense(24))
AFFINE = Quantizer(affine=True)


@pytest.fixture(scope="module")
def train():
    return data.take(data.load("digits", "train"), 400)


@pytest.fixture(scope="module")
def test():
    return data.take(data.load("digits", "test"), 300)


def fresh(kind, encoder=None):
    with keyed(0):
        if kind == "ann":
            return ordinary(LAYERS, (1, 8, 8), 10)
        return spiking(LAYERS, (1, 8, 8), 10, encoder or Direct(3), LIF(threshold=0.5))


def accuracy(model, pair):
    with torch.no_grad(), draws(model, 0):
        return float((model(pair[0]).argmax(1) == pair[1]).double().mean())


def equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_end_to_end(kind, train, test):
    model = fresh(kind)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    result = quanos(RULE, ATTACK, early=2, most=6)(model, train, epochs=6, progress=False)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [len(h.records) for h in result.histories] == [2, 4]
    assert accuracy(result.model, test) > 0.8
    assert not result.model.training
    (one,) = result.rounds
    assert result.bits == one.bits == sensitivity_bits(one.measured, start=6)
    assert max(result.bits.values()) == 6
    assert {name: p.weights for name, p in result.precision.items()} == result.bits
    assert {name: p.inputs for name, p in result.precision.items()} == result.bits
    for p in precision(result.model).values():
        assert p.steps == 1
    sizes = [p.count for p in result.precision.values()]
    stored = sum(n * k / 8 + 4 for n, k in zip(sizes, result.bits.values(), strict=True))
    assert result.compression == pytest.approx(4 * sum(sizes) / stored)
    for name, layer in result.model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            k = next(b for plain, b in result.bits.items() if name == f"{plain}.1")
            assert len(layer.weight.unique()) <= 2**k - 1


def test_each_step_by_hand(train):
    model = fresh("ann")
    result = quanos(RULE, ATTACK, early=1, samples=100, seed=3)(model, train, epochs=2, progress=False)
    by_hand = quantize(model, weights=Quantizer(Integer(16)), inputs=AFFINE.with_bits(16))
    x, y = (t[:100] for t in train)
    calibrate(by_hand, x)
    RULE.fit(by_hand, train, epochs=1, progress=False)
    found = adversarial_noise_sensitivity(by_hand, (x, y), ATTACK, seed=derive(3, "measure", 0) >> 1)
    assert result.rounds[0].measured == found.ans
    assert result.rounds[0].details == found.to_json()
    bits = sensitivity_bits(found.ans)
    then = quantize(unquantized(by_hand, model), weights=Quantizer(), inputs=AFFINE, bits=bits)
    calibrate(then, x)
    RULE.fit(then, train, epochs=1, progress=False)
    assert equal(then, result.model)


def test_density_in_two_rounds(train):
    procedure = HybridPrecision(rule=RULE, allocation=ByDensity(keep_ends=True), early=1, rounds=2, bits=8)
    result = procedure(fresh("ann"), train, epochs=3, progress=False)
    first, second = result.rounds
    names = list(result.bits)
    once = density_bits(first.measured, 8)
    assert [first.bits[n] for n in names] == [8, once[names[1]], 8]
    twice = density_bits(second.measured, first.bits)
    assert [second.bits[n] for n in names] == [8, twice[names[1]], 8]
    assert second.bits[names[1]] <= first.bits[names[1]] < 8
    assert result.bits == second.bits
    assert len(result.histories) == 3
    plain = ByDensity()
    measured, _ = plain.measure(result.model, train, 0)
    assert measured == activation_density(result.model, train)
    assert plain.bits(measured, result.bits) == density_bits(measured, result.bits)


def test_direction(train):
    found = {
        direction: quanos(RULE, ATTACK, early=1, direction=direction)(fresh("ann"), train, epochs=2, progress=False)
        for direction in ("more", "fewer")
    }
    ans = found["more"].rounds[0].measured
    assert ans == found["fewer"].rounds[0].measured
    assert found["more"].bits[max(ans, key=ans.__getitem__)] == 16
    assert found["fewer"].bits[min(ans, key=ans.__getitem__)] == 16


class StopHere(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_training_goes_on(after, train, tmp_path, monkeypatch):
    procedure = quanos(RULE, ATTACK, early=2)
    whole = procedure(fresh("snn", Poisson(3)), train, epochs=4, progress=False)
    from snnrobust.learning_rules import supervised

    save, saved = supervised.save_state, []

    def stop(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == after:
            raise StopHere

    monkeypatch.setattr(supervised, "save_state", stop)
    with pytest.raises(StopHere):
        procedure(fresh("snn", Poisson(3)), train, epochs=4, folder=tmp_path, progress=False)
    monkeypatch.setattr(supervised, "save_state", save)
    result = procedure(fresh("snn", Poisson(3)), train, epochs=4, folder=tmp_path, progress=False)
    assert equal(result.model, whole.model)
    assert result.bits == whole.bits
    assert result.rounds[0].measured == whole.rounds[0].measured
    with pytest.raises(ValueError, match="is of another training"):
        quanos(BPTT(lr=1e-4), ATTACK, early=2)(
            fresh("snn", Poisson(3)), train, epochs=4, folder=tmp_path, progress=False
        )


def test_robust_training_then_weights_alone(train):
    rule = PGDTraining(eps=0.05, steps=2, lr=5e-3)
    result = quanos(RULE, ATTACK, then=rule, early=1, inputs=None)(fresh("ann"), train, epochs=2, progress=False)
    assert {p.inputs for p in result.precision.values()} == {32}
    assert {name: p.weights for name, p in result.precision.items()} == result.bits
    assert list(result.bits) == [n for n, m in fresh("ann").named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def test_weights_before_rounding_come_back():
    with keyed(0):
        network = Sequential(
            nn.Linear(6, 8),
            Recurrent(8, LIF(threshold=0.2)),
            nn.BatchNorm1d(8),
            nn.Linear(8, 8),
            LIF(),
            nn.Linear(8, 3),
        )
        model = SpikingClassifier(Direct(4), network, MeanMembrane())
        x = torch.rand(32, 6)
    layers = [f"network.{name}" for name in ("0", "1.recurrent", "3", "4", "5")]  # not the neuron of Recurrent
    for inputs in (AFFINE, None):
        for membranes in (Quantizer(Integer(6)), None):
            for scale in ("minmax", "learned"):
                recipes = {"weights": Quantizer(Integer(2), scale=scale), "inputs": inputs, "membranes": membranes}
                quantized = quantize(model, layers=layers, **recipes)
                if inputs or membranes:
                    calibrate(quantized, x)
                assert equal(unquantized(quantized, model), model)
                quantized.train()(x)
                BPTT(lr=0.1).fit(quantized, (x, torch.arange(32) % 3), epochs=1, progress=False)
                found = unquantized(quantized, model)
                assert not equal(found, model)
                again = quantize(found, layers=layers, **recipes)
                expected = {n: p for n, p in quantized.state_dict().items() if "original" in n or "running" in n}
                assert len(expected) >= 4
                for name, value in expected.items():
                    assert torch.equal(again.state_dict()[name], value)
    assert equal(unquantized(model, model), model)


def test_a_single_layer_network_keeps_its_name():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    quantized = quantize(model, weights=Quantizer(), inputs=AFFINE)
    assert equal(unquantized(quantized, model), model)


def test_energy_and_what_is_kept(train, tmp_path):
    result = quanos(RULE, ATTACK, early=1, most=8)(fresh("snn"), train, epochs=2, progress=False)
    report = result.energy(train[0][:20], PrecisionScalable())
    names = {name: f"{name}.1" for name in result.bits}
    first = next(iter(result.bits))
    k = result.bits[first]
    count = next(p.count for p in report.parts if p.name == names[first] and p.what == "MAC")
    assert report.of(names[first], what="MAC") == pytest.approx(count * (3.1 * k / 32 + 0.1))
    assert report.of(names[first], what="weights") == pytest.approx(count * 2.5 * k)
    result.save(tmp_path / "quanos.json")
    kept = json.loads((tmp_path / "quanos.json").read_text())
    assert kept == json.loads(json.dumps(result.to_json()))
    assert kept["bits"] == result.bits
    assert kept["rounds"][0]["details"]["n"] == 256
    assert len(kept["histories"]) == 2
    lines = result.table().splitlines()
    assert lines[0].split()[:5] == ["layer", "measured", "1", "bits", "1"]
    assert lines[2].split()[0] == first
    assert lines[2].split()[2] == str(k)
    assert lines[-1] == f"{result.compression:.2f} times smaller than 32-bit weights"
    models.save(result.model, tmp_path / "model.safetensors")
    assert equal(models.load(tmp_path / "model.safetensors"), result.model)


def test_a_layer_that_is_silent_before_training_gets_its_range_then(train):
    with keyed(0):
        model = spiking(LAYERS, (1, 8, 8), 10, Direct(3), LIF())
    hidden = list(activation_density(model, train).values())[1]
    assert hidden == 0.0
    result = quanos(RULE, ATTACK, early=1)(model, train, epochs=2, progress=False)
    assert all(value > 0 for value in activation_density(result.model, train).values())


def test_a_layer_that_stays_silent_is_named(train):
    with keyed(0):
        model = spiking((Dense(24),), (1, 8, 8), 10, Direct(3), LIF(threshold=50.0), norm="none")
    with pytest.raises(ValueError, match=r"network\.1: the activations of all 256 clean samples are 0"):
        quanos(BPTT(lr=1e-6), ATTACK, early=1)(model, train, epochs=2, progress=False)


@pytest.mark.parametrize(
    ("arguments", "kind", "error"),
    [
        ({"rule": "BPTT"}, TypeError, "rule must be a learning rule"),
        ({"then": "BPTT"}, TypeError, "then must be a learning rule"),
        ({"allocation": "ANS"}, TypeError, "allocation must be an instance"),
        ({"early": 0}, ValueError, "early must be at least 1"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1"),
        ({"samples": 0}, ValueError, "samples must be at least 1"),
        ({"bits": 17}, ValueError, "bits"),
        ({"bits": 0}, ValueError, "bits"),
        ({"weights": 4}, TypeError, "weights and inputs must be Quantizers"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_bad_settings(arguments, kind, error):
    with pytest.raises(kind, match=error):
        HybridPrecision(**{"rule": RULE, "allocation": ByDensity(), **arguments})


def test_bad_allocations_and_calls(train):
    with pytest.raises(TypeError, match="attack must be an attack"):
        BySensitivity(attack="FGSM")
    with pytest.raises(ValueError, match="direction must be one of"):
        quanos(RULE, ATTACK, direction="both")
    with pytest.raises(ValueError, match="shape must be one of"):
        quanos(RULE, ATTACK, shape="cube")
    with pytest.raises(ValueError, match="least must be at most start = 3, got 4"):
        quanos(RULE, ATTACK, most=3, least=4)
    with pytest.raises(ValueError, match="least must be at least 1"):
        ByDensity(least=0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        quanos(RULE, ATTACK, epochs=3)
    with pytest.raises(ValueError, match=r"epochs must be more than rounds \* early = 4, got 4"):
        quanos(RULE, ATTACK, early=2, rounds=2)(fresh("ann"), train, epochs=4)
    with pytest.raises(ValueError, match="1000 samples are asked for"):
        quanos(RULE, ATTACK, samples=1000)(fresh("ann"), train, epochs=4)
    with pytest.raises(TypeError, match="quantized already"):
        quanos(RULE, ATTACK)(quantize(fresh("ann"), inputs=AFFINE), train, epochs=4)
