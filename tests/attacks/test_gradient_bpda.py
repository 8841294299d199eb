"""BPDA: the value of the module, the gradient of the approximation."""

import pytest
import torch
from torch import nn

from snnrobust.attacks import BPDA, EOT, PGD, Linf, Surrogate, cross_entropy
from snnrobust.draws import Stream
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan


class Quantizer(nn.Module):
    def forward(self, x):
        return (4 * x).round() / 4


def network(*first):
    torch.manual_seed(0)
    model = nn.Sequential(*first, nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.rand(6, 5, dtype=torch.float64), torch.arange(6) % 3, Stream(0, torch.arange(6))


def chain_rule(model, x, y, slope):
    """The gradient at h(x) of what follows, times the approximation's derivative."""
    leaf = model[0](x).detach().requires_grad_()
    loss = cross_entropy(model[1:](leaf), y).sum()
    return torch.autograd.grad(loss, leaf)[0] * slope


@pytest.mark.parametrize("target", ["0", None])
@pytest.mark.parametrize(
    ("approximation", "slope"),
    [((), lambda x: 1.0), ((torch.square,), lambda x: 2 * x), ((torch.tanh,), lambda x: 1 - x.tanh() ** 2)],
)
def test_value_of_the_module_gradient_of_the_approximation(target, approximation, slope):
    model, x, y, stream = network(Quantizer())
    source = BPDA(model[0] if target is None else target, *approximation)
    found, logits = source(model, x, y, cross_entropy, stream)
    torch.testing.assert_close(found, chain_rule(model, x, y, slope(x)), rtol=1e-12, atol=1e-15)
    assert torch.equal(logits, model(x).detach())
    assert "forward" not in vars(model[0])


def test_an_encoder_that_cuts_the_gradient_gets_the_straight_through_one():
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), LIF(threshold=0.5), nn.Linear(8, 3)
    cut, open_ = (
        SpikingClassifier(Poisson(4, gradient=g), Sequential(*layers), MeanOutput()).double()
        for g in ("none", "straight_through")
    )
    x, y, stream = torch.rand(6, 5, dtype=torch.float64), torch.arange(6) % 3, Stream(3, torch.arange(6) + 7)
    for n in (1, 3):
        found, logits = EOT(n, BPDA("encoder"))(cut, x, y, cross_entropy, stream)
        expected, same = EOT(n)(open_, x, y, cross_entropy, stream)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
        assert torch.equal(logits, same)  # the draws of the encoder are the same
    inside = BPDA("encoder", source=Surrogate(ATan(5.0)))(cut, x, y, cross_entropy, stream)
    around = Surrogate(ATan(5.0), BPDA("encoder"))(cut, x, y, cross_entropy, stream)
    assert torch.equal(inside[0], around[0])


def test_the_identity_for_an_encoder_that_repeats_changes_nothing():
    torch.manual_seed(0)
    model = SpikingClassifier(
        Direct(4), Sequential(nn.Linear(5, 8), LIF(threshold=0.5), nn.Linear(8, 3)), MeanOutput()
    ).double()
    x, y, stream = torch.rand(6, 5, dtype=torch.float64), torch.arange(6) % 3, Stream(3, torch.arange(6))
    (found, _), (expected, _) = (s(model, x, y, cross_entropy, stream) for s in (BPDA("encoder"), EOT(1)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("own", [False, True])
def test_the_module_is_as_it_was_also_after_a_failure(own):
    model, x, y, stream = network(Quantizer())
    mine = lambda x: x.round()  # noqa: E731
    if own:
        model[0].forward = mine

    def broken(logits, y):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        BPDA("0")(model, x, y, broken, stream)
    assert vars(model[0]).get("forward") is (mine if own else None)


def test_an_attack_through_a_quantizer_that_cuts_the_gradient():
    model, x, y, _ = network(Quantizer())
    with torch.no_grad():
        clean = cross_entropy(model(x), y)
        found = cross_entropy(model(PGD(Linf(0.3), gradient=BPDA("0"))(model, x, y, seed=0)), y)
    assert (found > clean + 0.05).all()


@pytest.mark.parametrize(
    ("target", "approximation", "words"),
    [
        ("1.weights", None, r"Sequential holds no module '1.weights'"),
        ("encoder", None, "holds no module 'encoder'"),
        ("", None, "holds no module ''"),
        (Quantizer(), None, "holds no module Quantizer"),
        ("0", lambda x: x[:, :2], r"the approximation gives \(6, 2\), which does not broadcast to \(6, 5\)"),
        ("0", lambda x: x[None], r"the approximation gives \(1, 6, 5\), which does not broadcast to \(6, 5\)"),
    ],
)
def test_what_does_not_fit_is_named(target, approximation, words):
    model, x, y, stream = network(Quantizer())
    source = BPDA(target) if approximation is None else BPDA(target, approximation)
    with pytest.raises(ValueError, match=words):
        source(model, x, y, cross_entropy, stream)


def test_a_module_that_is_not_called_is_an_error():
    model, x, y, stream = network(nn.Identity())
    model[0].unused = Quantizer()
    with pytest.raises(ValueError, match="BPDA approximates Quantizer, but the model did not call"):
        BPDA("0.unused")(model, x, y, cross_entropy, stream)


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="target must be a module or its path"):
        BPDA(3)
    with pytest.raises(TypeError, match="approximation must be a function"):
        BPDA("encoder", "identity")
