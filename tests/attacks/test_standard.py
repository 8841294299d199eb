import importlib

import pytest
import torch
from torch import nn

from snnrobust import attacks
from snnrobust.attacks import APGD, BPDA, EOT, L0, PGD, BluntGradientWarning, Goal, Linf, Standard, Surrogate, Transfer
from snnrobust.draws import Stream, evaluating
from snnrobust.encoders import Direct, Poisson
from snnrobust.models import Conv, spiking
from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan

THREAT = Linf(0.1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    module = importlib.import_module("snnrobust.attacks.standard")
    monkeypatch.setattr(module, "STEPS", 4)
    monkeypatch.setattr(module, "QUERIES", 40)
    monkeypatch.setattr(module, "TARGETS", 2)


def _snn(encoder, alpha=2.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking((Conv(4),), (1, 4, 4), 3, encoder, LIF(surrogate=ATan(alpha)))
        model.train()(torch.rand(6, 1, 4, 4))
        return model.eval(), torch.rand(12, 1, 4, 4), torch.arange(12) % 3


def _named(stages):
    return {s.name: s for s in stages}


def test_the_stages_of_a_spiking_network():
    model, x, _ = _snn(Direct(4))
    found = _named(Standard(THREAT).stages(model, x))
    for source in ("own", "ASSG", "ATan(10)", "Triangle(1)", "PDSG", "BPTR"):
        for optimiser in ("APGD", "SA-PGD"):
            assert found[f"{optimiser} ({source})"].attack is not None
    assert found["APGD (ATan(2))"].skipped == "it is the same as own"
    assert found["transfer"].skipped == "no other model was given"
    assert list(found)[-1] == "Square"
    other, _, _ = _snn(Direct(4), alpha=3.0)
    assert _named(Standard(THREAT).stages(other, x))["APGD (ATan(2))"].attack is not None


def test_what_an_ordinary_network_does_not_have_is_named(victims):
    model, x, _ = victims("ann")
    found = _named(Standard(THREAT).stages(model, x))
    ran = [name for name, stage in found.items() if stage.attack is not None]
    assert ran == ["APGD (own)", "SA-PGD (own)", "APGD (own, DLR)", "APGD-T (own)", "Square"]
    assert "surrogate" in found["APGD (ATan(10))"].skipped
    assert "SparseRS" in _named(Standard(L0(3)).stages(model, x))  # where Square does not apply


def test_randomness_is_attacked_through_the_expectation():
    model, x, _ = _snn(Poisson(4))
    for stage in Standard(THREAT).stages(model, x):
        gradient = getattr(stage.attack, "gradient", None)
        assert gradient is None or isinstance(gradient, EOT)
    assert _named(Standard(THREAT).stages(model, x))["Square"].attack.draws == 4


def test_an_encoder_without_gradient_is_passed():
    model, x, y = _snn(Poisson(4, gradient="none"))
    own = _named(Standard(THREAT).stages(model, x))["APGD (own)"].attack
    with evaluating(model):
        gradient, _ = Goal(y).gradient(own.gradient, model, x, attacks.cross_entropy, Stream(0, torch.arange(12)))
    assert gradient.flatten(1).any(1).all()


@pytest.mark.parametrize("kind", ["direct", "poisson", "ann"])
def test_no_stage_costs_more_than_it_declares(kind, victims):
    model, x, y = victims(kind)
    suite = Standard(THREAT, transfer=(victims("ann", 1)[0],))
    for stage in [*suite.stages(model, x), *suite.control(model, x, 100, 60)]:
        if stage.attack is None:
            continue
        count = {"forwards": 0, "gradients": 0}

        def counted(module, inputs, output, count=count):
            differentiated = torch.is_grad_enabled() and inputs[0].requires_grad
            count["gradients" if differentiated else "forwards"] += len(inputs[0])

        target = stage.attack.source if isinstance(stage.attack, Transfer) else model
        handle = target.register_forward_hook(counted)
        stage.attack(model, x, y, seed=0)
        handle.remove()
        assert count["gradients"] <= len(x) * stage.gradients
        assert count["forwards"] <= len(x) * stage.forwards


def test_the_control_spends_the_budget_of_the_suite(victims):
    model, x, _ = victims("direct")
    suite = Standard(THREAT)
    stages = suite.control(model, x, gradients=100, forwards=60)
    assert all(isinstance(s.attack, APGD) for s in stages)
    restarts = sum(s.attack.restarts for s in stages)
    assert restarts * 4 == 100 + 60 / 3
    assert sum(s.gradients for s in stages) == restarts * 4
    assert len({s.name for s in stages}) == len(stages)


def test_saturated_logits_are_attacked_by_the_margin(victims):
    """Cross-entropy of logits times a large number has a gradient of exactly zero, which says nothing of the surrogates."""
    model, x, _ = _snn(Direct(4))
    x = x[:8]

    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return 1e4 * self.model(x)

    found = _named(Standard(THREAT).stages(Loud().eval(), x))
    assert found["APGD (own)"].attack.loss is attacks.margin
    assert found["APGD (ATan(10))"].attack is not None
    assert _named(Standard(THREAT).stages(model, x))["APGD (own)"].attack.loss is attacks.cross_entropy


class Cut(nn.Module):
    """A model behind a module, not called encoder, that lets no gradient through."""

    def __init__(self, model):
        super().__init__()
        self.front, self.model = Wall(), model

    def forward(self, x):
        return self.model(self.front(x))


class Wall(nn.Module):
    def forward(self, x):
        return x.detach()


def test_a_gradient_that_is_cut_is_said_and_can_be_given(victims):
    model, x, y = victims("ann")
    cut = Cut(model).eval()
    with pytest.warns(BluntGradientWarning, match=r"no gradient of Cut .*only transfer and the search by queries"):
        stages = Standard(THREAT).stages(cut, x)
    assert [s.name for s in stages if s.attack is not None] == ["Square"]
    assert all(s.attack is None for s in Standard(THREAT).control(cut, x, 100, 60))
    given = Standard(THREAT, gradient=BPDA("front"))
    own = _named(given.stages(cut, x))["APGD (own)"].attack
    assert own.gradient == BPDA("front")
    assert all(s.attack.gradient == BPDA("front") for s in given.control(cut, x, 100, 60))
    with torch.no_grad():
        through, around = (m(s(m, x, y, seed=0)).argmax(1) == y for s, m in ((given, cut), (Standard(THREAT), model)))
    assert through.sum() <= around.sum()


def test_the_control_passes_a_blunt_encoder_too():
    model, x, _ = _snn(Poisson(4, gradient="none"))
    for stage in Standard(THREAT).control(model, x, 1000, 60):
        assert isinstance(stage.attack.gradient.source, BPDA)


@pytest.mark.parametrize("kind", ["ann", "direct", "poisson"])
def test_the_suite_is_at_least_as_strong_as_its_first_stage(kind, victims):
    model, x, y = victims(kind)
    with evaluating(model):
        stream = Stream(5, torch.arange(len(x)))
        found = Standard(THREAT).perturb(model, x, Goal(y), stream)
        first = Standard(THREAT).stages(model, x)[0]
        alone = first.attack.perturb(model, x, Goal(y), stream.fork(first.name))
        measured = [
            attacks.selection.measure(
                model, at, Goal(y), stream.fork("selection"), 1 if kind != "poisson" else 32
            ).correct
            for at in (found, alone)
        ]
    assert (measured[0] <= measured[1]).all()


def test_a_transfer_finds_what_the_victims_gradient_hides():
    """A victim whose gradient points nowhere useful, and a twin with the same decisions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        twin = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
        x = torch.rand(40, 1, 4, 4, dtype=torch.float64)

    class Hidden(nn.Module):
        def forward(self, x):
            return twin(x.detach()) + 1e-3 * torch.sin(1e3 * x.flatten(1)[:, :3])

    with torch.no_grad():
        y = twin(x).argmax(1)
    hidden = Hidden().eval()

    def accuracy(attack):
        with torch.no_grad():
            return float((hidden(attack(hidden, x, y, seed=0)).argmax(1) == y).double().mean())

    best = float((twin(PGD(THREAT)(twin, x, y, seed=0)).argmax(1) == y).double().mean())
    assert accuracy(PGD(THREAT)) > best + 0.1
    assert accuracy(Standard(THREAT, transfer=(twin,))) <= best + 0.03


def test_bad_arguments_are_named(victims):
    model = victims("ann")[0]
    with pytest.raises(TypeError, match="transfer must be a sequence"):
        Standard(THREAT, transfer=model)
    with pytest.raises(TypeError, match=r"transfer must be a torch\.nn\.Module"):
        Standard(THREAT, transfer=("model",))
    for inner in (EOT(2), Surrogate(ATan(2.0)), BPDA("encoder", source=Surrogate(ATan(2.0))), EOT(2, BPDA("encoder"))):
        with pytest.raises(ValueError, match="the suite puts surrogates and EOT around it itself"):
            Standard(THREAT, gradient=inner)
    assert attacks.standard(THREAT, gradient=BPDA("a")).gradient == BPDA("a")
    with pytest.raises(ValueError, match="effort must be at least 1"):
        Standard(THREAT, effort=0)
    assert attacks.standard(THREAT) == Standard(THREAT)
