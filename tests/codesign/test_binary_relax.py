"""Relaxed weights: two equal parametrisations, the schedule, composition with any rule, exact resume."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust import data
from snnrobust.codesign import BinaryRelax, relaxed, theta_of
from snnrobust.defenses import TRADES, NoiseTraining, PGDTraining, TradeOff
from snnrobust.encoders import Direct
from snnrobust.learning_rules import BPTT, RULES, STDP, ElasticZO
from snnrobust.models import Dense, load, ordinary, save, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import Integer, Quantizer, Ternary, WeightQuantizer, project, quantize, weight_quantizer

TERNARY = Quantizer(Ternary(), scale="least-squares")
DIGITS = data.take(data.load("digits", "train"), 96)
SETTINGS = {"optimizer": "sgd", "lr": 0.1, "batch_size": 32, "seed": 3}


def plain(seed=0, kind="ann"):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "ann":
            return ordinary((Dense(12),), (1, 8, 8), 10)
        return spiking((Dense(12),), (1, 8, 8), 10, Direct(3), LIF(threshold=0.3), norm="none")


def make(seed=0, kind="ann", recipe=TERNARY):
    return quantize(plain(seed, kind), weights=recipe)


def quantizers(model):
    return [m for m in model.modules() if isinstance(m, WeightQuantizer)]


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


vectors = st.lists(st.floats(-3, 3), min_size=1, max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64))


@settings(deadline=None, max_examples=60)
@given(y=vectors, strength=st.floats(0, 1e6))
def test_both_parametrisations_are_one_map(y, strength):
    q = project(y, Ternary())[1]
    module = WeightQuantizer(TERNARY, y)
    module.relax(theta_of(strength))
    assert torch.allclose(relaxed(y, q, strength), module(y), rtol=1e-12, atol=1e-12)
    assert torch.allclose(relaxed(y, q, math.inf), q)
    # it minimises |w - y|^2 + lambda |w - q|^2: the gradient there is zero
    w = relaxed(y, q, strength)
    assert torch.allclose((w - y) + strength * (w - q), torch.zeros_like(w), atol=1e-9 * (1 + strength))


def test_both_parametrisations_train_alike():
    """``w <- (lambda q + y) / (lambda + 1)`` by hand, against the module, over 30 steps of gradient descent in float64."""
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(20, 6, generator=generator).double(), torch.randn(20, 3, generator=generator).double()
    layer = nn.Linear(6, 3, bias=False).double()
    y = layer.weight.detach().clone()
    model = quantize(nn.Sequential(layer), weights=TERNARY)
    step = torch.optim.SGD(model.parameters(), lr=0.05)
    strength = 0.5
    for epoch in range(30):
        weight_quantizer(model[0]).relax(theta_of(strength))
        w = relaxed(y, project(y, Ternary())[1], strength).requires_grad_()
        (gradient,) = torch.autograd.grad(F.mse_loss(F.linear(x, w), target), w)
        y = y - 0.05 * gradient
        step.zero_grad()
        F.mse_loss(model(x), target).backward()
        step.step()
        strength *= 1.1
        assert torch.allclose(model[0].parametrizations.weight.original, y, rtol=1e-10), epoch
    assert theta_of(strength) > 0.8


def test_schedules_by_hand():
    geometric = BinaryRelax(relaxed=3, strength=0.5, factor=2.0)
    assert [geometric.theta(e) for e in range(5)] == pytest.approx([1 / 3, 1 / 2, 2 / 3, 1, 1])
    linear = BinaryRelax(relaxed=4, growth="linear", start=0.2)
    assert [linear.theta(e) for e in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert BinaryRelax(relaxed=0).theta(0) == 1.0
    assert BinaryRelax(relaxed=10**6, factor=10.0).theta(10**5) == 1.0  # overflows


def test_theta_is_that_of_the_epoch_and_the_end_is_hard():
    seen = []
    model = make()
    model[1].register_forward_pre_hook(
        lambda m, _: seen.append(float(weight_quantizer(m).theta)) if m.training else None
    )
    rule = BinaryRelax(rule=BPTT(**SETTINGS), relaxed=2, growth="linear")
    history = rule.fit(model, DIGITS, DIGITS, epochs=4, progress=False)
    assert seen == [0.0] * 3 + [0.5] * 3 + [1.0] * 6
    assert [r["theta"] for r in history.records] == [0.0, 0.5, 1.0, 1.0]
    assert [float(q.theta) for q in quantizers(model)] == [1.0, 1.0]
    layer = model[1]
    assert torch.equal(layer.weight, project(layer.parametrizations.weight.original, Ternary())[1])
    assert layer.weight.unique().numel() <= 3


@pytest.mark.parametrize("kind", ["ann", "snn"])
@pytest.mark.parametrize(
    "rule",
    [
        BPTT(**SETTINGS),
        PGDTraining(eps=0.1, steps=2, **SETTINGS),
        TradeOff(eps=0.1, steps=2, **SETTINGS),
        TRADES(eps=0.1, steps=2, start=0.02, **SETTINGS),
        NoiseTraining(**SETTINGS),
    ],
    ids=lambda rule: rule.name,
)
def test_hard_from_the_start_is_the_rule_itself(kind, rule):
    one, two = make(kind=kind), make(kind=kind)
    found = records(BinaryRelax(rule=rule, relaxed=0).fit(one, DIGITS, epochs=2, progress=False))
    expected = records(rule.fit(two, DIGITS, epochs=2, progress=False))
    assert found == [{**r, "theta": 1.0} for r in expected]
    assert same(one, two)
    relaxing = make(kind=kind)
    BinaryRelax(rule=rule, relaxed=1).fit(relaxing, DIGITS, epochs=2, progress=False)
    assert not same(one, relaxing)


def test_theta_zero_is_training_in_full_precision():
    model, reference = make(), plain()
    rule = BPTT(**SETTINGS)
    BinaryRelax(rule=rule, relaxed=2, growth="linear", start=0.0)
    with BinaryRelax(rule=rule, relaxed=2, growth="linear").lend(model, DIGITS[0][:1]) as lent:
        lent.backward(DIGITS[0][:9], DIGITS[1][:9], 1.0)
    F.cross_entropy(reference(DIGITS[0][:9]), DIGITS[1][:9]).backward()
    assert torch.allclose(model[1].parametrizations.weight.original.grad, reference[1].weight.grad, atol=1e-7)
    assert float(weight_quantizer(model[1]).theta) == 1.0  # given back hard


def test_rules_without_autograd_relax_too():
    one, two = make(), make()
    rule = ElasticZO(lr=0.05, batch_size=32, seed=1)
    BinaryRelax(rule=rule, relaxed=0).fit(one, DIGITS, epochs=1, progress=False)
    rule.fit(two, DIGITS, epochs=1, progress=False)
    assert same(one, two)


@pytest.mark.parametrize("growth", ["geometric", "linear"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_is_bit_for_bit(growth, stop, tmp_path):
    rule = BinaryRelax(rule=PGDTraining(eps=0.1, steps=1, **SETTINGS), relaxed=2, growth=growth, factor=3.0)
    whole, resumed, path = make(), make(9), tmp_path / "state"
    expected = records(rule.fit(whole, DIGITS, DIGITS, epochs=4, progress=False))

    class StopError(Exception):
        pass

    def interrupt(module, _):
        if module.training:
            interrupt.calls += 1
            if interrupt.calls > 3 * stop:
                raise StopError

    interrupt.calls = 0
    first = make()
    first[1].register_forward_pre_hook(interrupt)
    with pytest.raises(StopError):
        rule.fit(first, DIGITS, DIGITS, epochs=4, progress=False, checkpoint=path)
    assert all(float(q.theta) == 1.0 for q in quantizers(first))
    assert records(rule.fit(resumed, DIGITS, DIGITS, epochs=4, progress=False, checkpoint=path)) == expected
    assert same(whole, resumed)
    other = BinaryRelax(rule=rule.rule, relaxed=2, growth=growth, factor=3.0, strength=2.0)
    with pytest.raises(ValueError, match=r"another training \(relaxation differ\)"):
        other.fit(make(), DIGITS, DIGITS, epochs=4, progress=False, checkpoint=path)
    with pytest.raises(ValueError, match="another training"):
        rule.rule.fit(make(), DIGITS, DIGITS, epochs=4, progress=False, checkpoint=path)


def test_it_is_saved_hard(tmp_path):
    model = make(kind="snn", recipe=Quantizer(Integer(3), scale="least-squares", axis=0))
    BinaryRelax(rule=BPTT(**SETTINGS), relaxed=1).fit(model, DIGITS, epochs=2, progress=False)
    save(model, tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors")(DIGITS[0]), model(DIGITS[0]))


def test_as_an_experiment_file_names_it():
    assert RULES["BinaryRelax"] is BinaryRelax
    rule = BinaryRelax(rule={"type": "PGDTraining", "eps": "8/255", "steps": 3}, seed=5, lr=0.01, relaxed=2)
    assert rule.rule == PGDTraining(eps="8/255", steps=3, seed=5, lr=0.01)
    assert (rule.lr, rule.seed) == (0.01, 5)
    assert BinaryRelax(seed=2).rule == BPTT(seed=2)
    assert BinaryRelax(rule=BPTT(lr=0.3)).lr == 0.3
    assert BinaryRelax(rule={"type": "BPTT", "lr": 0.3}).lr == 0.3


def test_float_models_are_refused():
    with pytest.raises(ValueError, match=r"no layer of the model has quantized weights: train quantization.quantize"):
        BinaryRelax(relaxed=0).fit(plain(), DIGITS, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"epochs must be more than relaxed=10, got 10"):
        BinaryRelax().fit(make(), DIGITS, epochs=10, progress=False)
    model = make()
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="lies in"):  # of the rule that it stands around
        BinaryRelax(rule=PGDTraining(), relaxed=0).fit(model, (DIGITS[0] * 2, DIGITS[1]), epochs=1, progress=False)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relaxed": -1}, "relaxed must be at least 0, got -1"),
        ({"growth": "cubic"}, "growth must be one of geometric, linear; got 'cubic'"),
        ({"strength": 0.0}, r"strength must be in \(0, inf\], got 0.0"),
        ({"factor": 0.9}, "factor must be in"),
        ({"start": 1.0}, "start must be below 1, got 1: relaxed=0 is quantized from the start"),
        ({"keep": "best"}, "keep='best' and patience go by epochs whose weights may be relaxed"),
        ({"patience": 3}, "keep='best' and patience"),
        ({"rule": BPTT(lr=0.3), "lr": 0.1}, "lr is the rule's: give it to rule, not to BinaryRelax"),
        ({"rule": {"type": "PGDTrainin"}}, r"rule.type must be one of .*did you mean 'PGDTraining'"),
        ({"rule": {"type": "PGDTraining", "stepz": 2}}, "rule: .*stepz"),
        ({"rule": {}}, "rule.type must be one of"),
        ({"rule": BinaryRelax()}, "rule must be a rule by minibatches with the common training loop"),
        ({"rule": STDP()}, "rule must be a rule by minibatches with the common training loop"),
        ({"rule": "BPTT"}, "rule must be a rule by minibatches"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        BinaryRelax(**arguments)
    with pytest.raises(ValueError, match="strength must be in"):
        theta_of(-1.0)
    with pytest.raises(ValueError, match="strength must be in"):
        relaxed(torch.ones(1), torch.ones(1), -1.0)
