from copy import deepcopy
from dataclasses import dataclass
from math import acos, degrees, isnan

import pytest
import torch
from torch import nn

from snnrobust.draws import draws, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.learning_rules import BPTT, DFA, FA, LE, alignment
from snnrobust.models import Conv, Dense, Pool, spiking
from snnrobust.neurons import LIF

SHAPE = (1, 6, 6)


def fresh(make, seed=0):
    with keyed(seed):
        return make()


def cnn():
    return spiking((Conv(4), Pool(), Dense(8)), SHAPE, 3, Poisson(4), LIF(0.9, threshold=0.3))


def batch(size=8):
    return torch.rand(size, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.arange(size) % 3


@dataclass(frozen=True, kw_only=True)
class Rotated(BPTT):
    """The true gradient, turned by a known angle in the plane of its first two elements' direction."""

    by: float = 0.0

    def lend(self, model, example):
        from contextlib import contextmanager

        @contextmanager
        def turned():
            with super(Rotated, self).lend(model, example) as lent:
                inner = lent.backward

                def backward(x, y, scale):
                    result = inner(x, y, scale)
                    for m in model.modules():
                        if isinstance(m, nn.Linear | nn.Conv2d):
                            g = m.weight.grad.flatten()
                            other = torch.zeros_like(g)
                            i, j = int(g.abs().argmax()), int((g.abs() > 0).nonzero()[0])
                            if i == j:
                                j = int((g.abs() > 0).nonzero()[1])
                            other[i], other[j] = g[j], -g[i]  # at right angles to g
                            angle = torch.tensor(self.by).deg2rad()
                            turned = angle.cos() * g / g.norm() + angle.sin() * other / other.norm()
                            m.weight.grad.copy_((3.0 * turned).view_as(m.weight))
                    return result

                lent.backward = backward
                yield lent

        return turned()


@pytest.mark.parametrize("angle", [0.0, 0.01, 30.0, 90.0, 150.0, 180.0])
def test_a_known_angle_is_found(angle):
    found = alignment(Rotated(by=angle), fresh(cnn).double(), batch()[0].double(), batch()[1])
    assert list(found) == ["network.0", "network.5", "network.8"]
    for value in found.values():
        assert value == pytest.approx(angle, abs=1e-4)


def test_of_bptt_it_is_zero_and_of_a_local_rule_that_of_its_gradient():
    x, y = batch()
    model = fresh(cnn)
    assert set(alignment(BPTT(), model, x, y).values()) == {0.0}
    rule = DFA()
    grads = []
    for r in (rule, BPTT()):
        copy = deepcopy(model).train()
        with r.lend(copy, x[:1]) as lent, draws(copy, 0):
            lent.backward(x, y, 1.0)
        grads.append(copy.network[0].weight.grad.double().flatten())
    cosine = float(grads[0] @ grads[1] / grads[0].norm() / grads[1].norm())
    assert alignment(rule, model, x, y)["network.0"] == pytest.approx(degrees(acos(cosine)), abs=1e-3)


def test_gradients_are_those_of_training_whatever_mode_the_model_is_in():
    """With batch normalisation the two modes have other gradients."""
    x, y = batch()
    model = fresh(cnn)
    assert alignment(FA(), model.eval(), x, y) == (found := alignment(FA(), model.train(), x, y))
    copy, grads = deepcopy(model), []
    for rule in (FA(), BPTT()):
        copy.zero_grad()
        with rule.lend(copy, x[:1]) as lent, draws(copy, 0):
            lent.backward(x, y, 1.0)
        grads.append(copy.network[0].weight.grad.double().flatten())
    cosine = float(grads[0] @ grads[1] / grads[0].norm() / grads[1].norm())
    assert found["network.0"] == pytest.approx(degrees(acos(cosine)), abs=1e-3)


def test_the_loss_is_the_rules_own_and_the_draws_those_of_the_key():
    x, y = batch()
    model = fresh(cnn)
    assert set(alignment(BPTT(loss="tet"), model, x, y).values()) == {0.0}
    assert alignment(FA(loss="tet"), model, x, y)["network.8"] < 1e-4
    assert alignment(FA(), model, x, y, key=1) == alignment(FA(), model, x, y, key=1)
    assert alignment(FA(), model, x, y, key=1) != alignment(FA(), model, x, y, key=2)


def test_learnt_readouts_count():
    x, y = batch()
    model, rule = fresh(cnn), LE(readout="learnt")
    start = alignment(rule, model, x, y)
    assert start == alignment(LE(), model, x, y)  # which begin alike
    readouts = rule.readouts(model, x[:1]).state_dict()
    assert start == alignment(rule, model, x, y, learnt=readouts)
    turned = alignment(rule, model, x, y, learnt={name: -value for name, value in readouts.items()})
    assert turned["network.0"] != start["network.0"]
    assert turned["network.8"] == start["network.8"]


def test_all_stays_as_it_is():
    x, y = batch()
    model = fresh(cnn).eval()
    model(x).sum().backward()
    before = deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    for rule in (BPTT(), FA(), DFA(), LE()):
        with torch.no_grad():
            alignment(rule, model, x, y)
    assert all(torch.equal(before[0][name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(before[1], model.parameters(), strict=True))
    assert torch.equal(before[2], torch.get_rng_state())
    assert not any(m.training or "forward" in vars(m) for m in model.modules())


def test_without_a_gradient_there_is_no_angle_and_what_is_frozen_is_left_out():
    x, y = batch()
    model = fresh(lambda: spiking((Dense(4), Dense(4)), SHAPE, 3, Direct(2)))
    model.network[1].requires_grad_(False)
    model.network[7].weight.data.zero_()  # so that nothing comes back through it
    found = alignment(FA(), model, x, y)
    assert list(found) == ["network.4", "network.7"]
    assert isnan(found["network.4"])


def test_bad_input():
    x, y = batch()
    with pytest.raises(TypeError, match="rule must be one that trains by minibatches"):
        alignment("FA", fresh(cnn), x, y)
    with pytest.raises(ValueError, match="learnt is not what LE learns beside this model"):
        alignment(LE(readout="learnt"), fresh(cnn), x, y, learnt={})
    with pytest.raises(TypeError, match="model must be"):
        alignment(FA(), "cnn", x, y)
    with pytest.raises(TypeError, match="DFA trains a chain"):
        alignment(DFA(), nn.Linear(36, 3), x.flatten(1), y)
