"""What ``input_gradient`` and ``alignment`` promise for all rules; the gradients themselves are tested with each rule."""

import math

import pytest
import torch
from torch import nn

from snnrobust.attacks import BluntGradientWarning
from snnrobust.defenses import RAT, TRADES, FastAT, NoiseTraining, PGDTraining
from snnrobust.draws import keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.learning_rules import (
    BPTT,
    DECOLLE,
    DFA,
    FA,
    LE,
    OTTT,
    STDB,
    Conversion,
    ElasticZO,
    EProp,
    alignment,
)  # fmt: skip
from snnrobust.learning_rules.chain import chain
from snnrobust.models import Dense as DenseLayer
from snnrobust.models import SpikingClassifier, spiking
from snnrobust.neurons import IF

SHAPE = (1, 3, 4)
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3
ASK = {"FA": {"input_feedback": "random"}, "DFA": {"input_feedback": "transpose"}}
HAVE = [BPTT(), FA(), DFA(), LE(), OTTT(), DECOLLE(), STDB(ann_epochs=0)]


def make(encoder=None, threshold=0.2, hidden=8):
    with keyed(0):
        layer = IF([threshold] * hidden) if isinstance(threshold, list) else IF(threshold)
        return spiking((DenseLayer(hidden),), SHAPE, 3, encoder or Direct(3), layer, "none", MeanOutput())


@pytest.mark.parametrize("rule", HAVE, ids=lambda r: r.name)
def test_a_blunt_model_is_said(rule):
    ask = ASK.get(rule.name, {})
    model = make().train()
    found = rule.input_gradient(model, X, Y, **ask)  # no warning, which would be an error
    assert found.shape == X.shape
    assert found.any()
    assert all(m.training for m in model.modules())
    with pytest.warns(BluntGradientWarning, match=f"^{rule.name}: the input gradient is exactly zero for all 6"):
        rule.input_gradient(make(Poisson(3, gradient="none")), X, Y, **ask)


@pytest.mark.parametrize("rule", HAVE, ids=lambda r: r.name)
def test_bad_input_is_named(rule):
    ask, model = ASK.get(rule.name, {}), make()
    with pytest.raises(ValueError, match="x contains NaN"):
        rule.input_gradient(model, X * math.nan, Y, **ask)
    with pytest.raises(ValueError, match="one label a sample"):
        rule.input_gradient(model, X, Y[:5], **ask)
    with pytest.raises(ValueError, match=r"must lie in 0..2"):
        rule.input_gradient(model, X, Y + 1, **ask)
    if not rule.input_feedbacks:
        with pytest.raises(ValueError, match=f"{rule.name} has no choice of input_feedback, got 'random'"):
            rule.input_gradient(model, X, Y, input_feedback="random")


@pytest.mark.parametrize("rule", [EProp(), ElasticZO(), Conversion()], ids=lambda r: r.name)
def test_rules_without_one_say_so(rule):
    with pytest.raises(TypeError, match=f"{rule.name} has no input gradient of its own: use the model's true one"):
        rule.input_gradient(make(), X, Y)


@pytest.mark.parametrize("rule", [PGDTraining(), TRADES(), FastAT(), RAT(), NoiseTraining()], ids=lambda r: r.name)
def test_robust_rules_have_the_gradient_of_bptt_and_an_angle(rule):
    model = make()
    assert torch.equal(rule.input_gradient(model, X, Y), BPTT().input_gradient(model, X, Y))
    angles = alignment(rule, model, X, Y)
    assert angles.keys() == {"network.1", "network.3"}
    assert 0 < angles["network.1"] < 90
    assert 0 <= angles["network.3"] < 90


def test_stdb_has_an_angle_also_when_it_would_convert_and_conversion_has_none():
    assert alignment(STDB(), make(), X, Y).keys() == {"network.1", "network.3"}
    with pytest.raises(TypeError, match="Conversion trains an ordinary network and has no gradient"):
        alignment(Conversion(), make(), X, Y)


@pytest.mark.parametrize("rule", [DFA(), LE(), ElasticZO()], ids=lambda r: r.name)
def test_weights_without_feedback_are_refused(rule):
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.ConvTranspose2d(2, 2, 2), nn.Flatten(), nn.Linear(24, 3))
    with pytest.raises(TypeError, match=r"2 \(ConvTranspose2d\) holds weights"):
        rule.fit(network, (X, Y), epochs=1, progress=False)


def test_nested_sequences_are_one_chain():
    with keyed(0):
        flat = [nn.Flatten(), nn.Linear(12, 8), IF(0.2), nn.Linear(8, 3)]
    nested = SpikingClassifier(Direct(3), Sequential(flat[0], Sequential(*flat[1:3]), flat[3]), MeanOutput())
    plain = SpikingClassifier(Direct(3), Sequential(*flat), MeanOutput())
    assert torch.equal(nested(X), plain(X))
    parts = chain(nested, "DFA")
    assert [b.name for b in parts.blocks] == ["network.1.0", "network.2"]
    assert all(name in dict(nested.named_modules()) for b in parts.blocks for name in (b.name, *b.names))
    assert torch.equal(parts.readout(parts.run([*parts.head, *(m for b in parts.blocks for m in b.modules)],
                                               nested.encoder(X))), nested(X))  # fmt: skip


def test_no_gradient_stays_after_training_or_an_error():
    model = make()
    FA(batch_size=3).fit(model, (X, Y), epochs=1, progress=False)
    assert all(p.grad is None for p in model.parameters())
    handle = model.network[3].register_full_backward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        BPTT(batch_size=3).fit(model, (X, Y), epochs=1, progress=False)
    handle.remove()
    assert all(p.grad is None for p in model.parameters())


def test_thresholds_by_channel_are_named():
    model = make()
    model.network._modules["2"] = IF([0.2] * 8)
    with pytest.raises(ValueError, match=r"STDB trains layers of one threshold, and network\.2 has one per channel"):
        STDB(ann_epochs=0).input_gradient(model, X, Y)
