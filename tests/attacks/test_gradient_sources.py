"""What all gradient sources have in common: a name, a budget, no traces; and what they find where others are blind."""

from dataclasses import fields, replace
from inspect import isclass

import pytest
import torch

from snnrobust import attacks
from snnrobust.attacks import (
    ASSG,
    BPDA,
    BPTR,
    EOT,
    HART,
    PDSG,
    PGD,
    RGA,
    SOURCES,
    SPSA,
    Backprop,
    EvolutionStrategies,
    FromModel,
    Frozen,
    LearningSignal,
    Linf,
    Mixed,
    StraightThrough,
    Surrogate,
    TimeSummed,
    TrueTranspose,
    cross_entropy,
)
from snnrobust.attacks.gradient import registered
from snnrobust.draws import Stream
from snnrobust.learning_rules import BPTT
from snnrobust.neurons import surrogate
from snnrobust.neurons.surrogate import ATan

ALL = {
    "ASSG": lambda model: ASSG(),
    "BPDA": lambda model: BPDA("encoder"),
    "BPTR": lambda model: BPTR(),
    "Backprop": lambda model: Backprop(),
    "EOT": lambda model: EOT(2),
    "EvolutionStrategies": lambda model: EvolutionStrategies(100),
    "Frozen": lambda model: Frozen(),
    "FromModel": lambda model: FromModel(model),
    "HART": lambda model: HART(),
    "Mixed": lambda model: Mixed((ASSG(), RGA(), Surrogate(ATan(4.0)))),
    "LearningSignal": lambda model: LearningSignal(BPTT()),
    "PDSG": lambda model: PDSG(),
    "RGA": lambda model: RGA(),
    "SPSA": lambda model: SPSA(100),
    "StraightThrough": lambda model: StraightThrough(),
    "Surrogate": lambda model: Surrogate(ATan(4.0)),
    "TimeSummed": lambda model: TimeSummed(),
    "TrueTranspose": lambda model: TrueTranspose(),
}


def test_every_source_is_registered_and_tested_here():
    assert set(SOURCES) == set(ALL)
    assert all(getattr(attacks, name) is kind for name, kind in SOURCES.items())
    assert all(
        isclass(kind) and isinstance(kind.spiking, bool) and fields(kind) is not None for kind in SOURCES.values()
    )
    with pytest.raises(TypeError, match="the name RGA is taken"):
        registered(type("RGA", (), {}))
    assert SOURCES["RGA"] is RGA


@pytest.mark.parametrize("name", ALL)
def test_pgd_stays_in_its_budget_finds_something_and_leaves_no_trace(name, digits_snn):
    model, x, y = digits_snn
    model.network[2].surrogate = own = ATan(2.0)
    attack, before = PGD(Linf(0.1), steps=4, gradient=ALL[name](model)), x.clone()
    x_adv = attack(model, x, y, seed=1)
    assert (x_adv - x).abs().max() <= 0.1
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    clean, left = (int((model(z).argmax(1) == y).sum()) for z in (x, x_adv))
    assert left < clean - 5
    assert torch.equal(attack(model, x, y, seed=1), x_adv)  # nothing is kept from one run to the next
    assert torch.equal(x, before)
    assert all("forward" not in vars(m) and "step" not in vars(m) for m in model.modules())
    assert model.network[2].surrogate is own
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_a_sample_does_not_depend_on_its_batch(name, digits_snn):
    model, x, y = digits_snn
    attack = PGD(Linf(0.1), steps=2, gradient=ALL[name](model))
    ids = torch.arange(7, 17)
    together = attack(model, x[:10], y[:10], seed=1, sample_ids=ids)
    halves = [attack(model, x[i], y[i], seed=1, sample_ids=ids[i]) for i in (slice(0, 3), slice(3, 10))]
    assert torch.allclose(together, torch.cat(halves), rtol=0, atol=1e-12)


def test_masked_neurons_are_seen_through(digits_snn, record_property):
    """ATan(300) has a gradient nowhere zero, and hides the model: what ignores it or needs none finds far more."""
    model, x, y = digits_snn
    left = {}
    with surrogate.override(model, ATan(300.0)):
        for source in (Backprop(), ASSG(), PDSG(), RGA(), BPTR(), HART(), EvolutionStrategies(200, sigma=0.1)):
            x_adv = PGD(Linf(0.1), steps=10, gradient=source)(model, x, y, seed=0)
            left[type(source).__name__] = int((model(x_adv).argmax(1) == y).sum())
    record_property("right of 60", str(left))
    assert left.pop("Backprop") - max(left.values()) >= 5, left
    gradient, _ = Backprop()(model, x, y, cross_entropy, Stream(0, torch.arange(60)))
    assert gradient.ne(0).any(1).any(1).any(1).all()


@pytest.mark.parametrize(
    "name",
    sorted(
        set(ALL)
        - {
            "Backprop",
            "EOT",
            "Surrogate",
            "FromModel",
            "Mixed",
            "EvolutionStrategies",
            "SPSA",
            "LearningSignal",
            "TimeSummed",
        }
    ),
)
def test_each_passes_on_the_errors_of_what_it_calls(name, digits_snn):
    model, x, y = digits_snn
    x, y, stream = x[:4], y[:4], Stream(0, torch.arange(4))
    source = ALL[name](model)
    with pytest.raises(ValueError, match="gradient of 4 of 4 samples has NaN"):
        source(model, x, y, lambda z, y: (z * torch.nan).sum(1), stream)
    with pytest.raises(ValueError, match="do not depend on x"):
        source(model, x, y, lambda z, y: z.detach().sum(1), stream)
    asked = []

    def inner(model, x, y, loss, stream):
        asked.append(stream.key)
        return Backprop()(model, x, y, loss, stream)

    found, logits = replace(source, source=inner)(model, x, y, cross_entropy, stream)
    expected, same = source(model, x, y, cross_entropy, stream)
    assert torch.equal(found, expected)
    assert torch.equal(logits, same)
    assert asked == [stream.key]
