from itertools import pairwise

import foolbox
import pytest
import torch
from torch import nn

from snnrobust.attacks import EOT, FGSM, PGD, Backprop, Linf, cross_entropy, margin
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.selection import better, measure
from snnrobust.draws import Stochastic, Stream

THREAT = Linf("8/255")


def linear_model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(20, 2).double()
    model.weight.data = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    x = torch.rand(50, 20, generator=generator, dtype=torch.float64)
    return model, x, torch.arange(50) % 2


def trajectory(model, x, y, threat, size, steps):
    """Every iterate of PGD from ``x``, and how many gradient components were exactly zero: written out once more."""
    at, path, ties = x, [x], 0
    for _ in range(steps):
        leaf = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        ties += int((gradient == 0).sum())
        at = torch.clamp(x + (at + size * gradient.sign() - x).clamp(-threat.eps, threat.eps), 0, 1)
        path.append(at)
    return path, ties


@pytest.mark.parametrize(("eps", "steps", "share"), [("8/255", 10, 0.25), (0.1, 7, 1 / 3), (0.3, 20, 0.1)])
def test_equals_foolbox(eps, steps, share, digits_ann, record_property):
    model, x, y = digits_ann
    threat = Linf(eps)
    reference = foolbox.attacks.LinfPGD(rel_stepsize=share, steps=steps, random_start=False).run(
        foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilon=threat.eps
    )
    attack = PGD(threat, steps=steps, step_size=share * threat.eps, random_start=False)
    _, ties = trajectory(model, x, y, threat, share * threat.eps, steps)
    record_property("components of the gradient that are exactly zero", ties)
    assert ties == 0  # so no pixel is excused below
    assert (attack(model, x, y) - reference).abs().max() < 1e-6


def test_the_default_step_is_two_and_a_half_budgets_over_the_steps(digits_ann):
    model, x, y = digits_ann
    path, _ = trajectory(model, x, y, THREAT, 2.5 * THREAT.eps / 4, 4)
    assert (PGD(THREAT, steps=4, random_start=False)(model, x, y) - path[-1]).abs().max() < 1e-12


def test_reaches_the_optimum_of_a_linear_model_from_anywhere():
    """Two classes: the worst case is the corner x + eps sign(w_other - w_true), in the box."""
    model, x, y = linear_model()
    with torch.no_grad():
        worst = (x + THREAT.eps * (model.weight[1 - y] - model.weight[y]).sign()).clamp(0, 1)
    for attack in (PGD(THREAT, steps=5), PGD(THREAT, steps=5, restarts=3), PGD(THREAT, steps=20, loss=margin)):
        x_adv = attack(model, x, y, seed=0)
        assert (x_adv - worst).abs().max() < 1e-15
        with torch.no_grad():
            assert (cross_entropy(model(x_adv), y) >= cross_entropy(model(FGSM(THREAT)(model, x, y)), y) - 1e-12).all()


def test_is_stronger_than_fgsm_where_the_loss_is_curved(digits_ann):
    model, x, y = digits_ann
    threat = Linf(0.1)
    with torch.no_grad():
        one, ten = (
            cross_entropy(model(attack(model, x, y)), y)
            for attack in (FGSM(threat), PGD(threat, steps=10, random_start=False))
        )
    assert ten.mean() > one.mean() + 0.1


def test_starts_uniformly_in_the_ball(digits_ann):
    """A step of size zero leaves the start."""
    model, x, y = digits_ann
    start = PGD(Linf(0.1), steps=1, step_size=0.0)(model, x, y, seed=1)
    assert torch.equal(start, PGD(Linf(0.1), steps=3, step_size=0.0)(model, x, y, seed=1))
    inner = (x > 0.1) & (x < 0.9)
    shift = (start - x)[inner] / 0.1
    assert shift.abs().max() > 0.99
    assert abs(shift.mean()) < 4 / (3 * len(shift)) ** 0.5  # 4 standard deviations


def test_early_stop_keeps_the_first_adversarial_input(digits_ann):
    model, x, y = digits_ann
    size, steps = 0.01, 12
    path, _ = trajectory(model, x, y, Linf(0.1), size, steps)
    expected, done = path[-1].clone(), torch.zeros_like(y, dtype=torch.bool)
    for at in path[:-1]:
        with torch.no_grad():
            broken = (model(at).argmax(1) != y) & ~done
        expected[broken], done = at[broken], done | broken
    assert 20 < done.sum() < 180
    attack = PGD(Linf(0.1), steps=steps, step_size=size, random_start=False, early_stop=True)
    assert (attack(model, x, y) - expected).abs().max() < 1e-12


def test_early_stop_of_a_random_model_asks_all_selection_draws(victims, monkeypatch):
    """Who is wrong in each of the draws stays where it is; who is right once moves on."""
    model, x, y = victims("poisson")
    x, y = x.repeat(8, 1, 1, 1), y.repeat(8)
    active, stopped, undecided = [], {}, set()

    class Spy(Backprop):
        def __call__(self, model, x, y, loss, stream):
            active.append(set(stream.sample_ids.tolist()))
            return super().__call__(model, x, y, loss, stream)

    def spy(model, x, y, stream, n):
        assert n == 7
        measured = measure(model, x, y, stream, n)
        for i, sample in enumerate(stream.sample_ids.tolist()):
            if measured.correct[i] == 0:
                stopped[sample] = (len(active), x[i])
            elif measured.correct[i] < n:
                undecided.add(sample)
        return measured

    monkeypatch.setattr("snnrobust.attacks.selection.measure", spy)
    attack = PGD(THREAT, steps=6, early_stop=True, selection_draws=7, gradient=Spy())
    x_adv = attack(model, x, y, seed=0)
    for step, ids in enumerate(active):
        assert ids == set(range(48)) - {sample for sample, (when, _) in stopped.items() if when <= step}
    assert all(torch.equal(x_adv[sample], at) for sample, (_, at) in stopped.items())
    assert stopped
    assert undecided - stopped.keys()


def test_more_restarts_are_never_worse_on_the_selection_draws(victims):
    model, x, y = victims("poisson")
    x, y = x.repeat(4, 1, 1, 1), y.repeat(4)
    stream = Stream(11, torch.arange(len(x)))
    measured = []
    for restarts in (1, 2, 3, 5):
        x_adv = PGD(THREAT, steps=2, restarts=restarts, selection_draws=8).perturb(model, x, Goal(y), stream)
        measured.append(measure(model, x_adv, Goal(y), stream.fork("selection"), 8))
    for fewer, more in pairwise(measured):
        assert not better(fewer, more).any()
        assert better(more, fewer).any()


class Noisy(Stochastic):
    """A linear model of two classes with noise on the logits, which remembers its keys."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
        self.keys = {True: set(), False: set()}

    def forward(self, x):
        self.keys[torch.is_grad_enabled()].add(tuple(self._key.tolist()))
        return x @ self.weight + self.normal((1, len(x), 2))[0]


def test_selection_has_draws_of_its_own():
    model, steps, restarts, eot, draws = Noisy(), 3, 2, 2, 5
    attack = PGD(THREAT, steps=steps, restarts=restarts, gradient=EOT(eot), selection_draws=draws)
    attack(model, torch.full((4, 4), 0.5), torch.zeros(4, dtype=torch.int64), seed=0)
    climbing, selecting = model.keys[True], model.keys[False]
    assert not climbing & selecting
    assert len(climbing) == steps * restarts * eot  # fresh ones for each gradient
    assert len(selecting) == draws  # the same for all candidates: a fair comparison


class Down(Backprop):
    def __call__(self, *arguments):
        gradient, logits = super().__call__(*arguments)
        return -gradient, logits


@pytest.mark.parametrize("other", [{"gradient": Down()}, {"loss": lambda z, y: -cross_entropy(z, y)}])
def test_the_loss_and_the_gradient_source_are_those_asked_for(other, digits_ann):
    model, x, y = digits_ann
    x_adv = PGD(THREAT, steps=1, step_size=THREAT.eps, random_start=False, **other)(model, x, y)
    up = FGSM(THREAT)(model, x, y)
    inner = (x > THREAT.eps) & (x < 1 - THREAT.eps)
    assert torch.allclose((x_adv - x)[inner], (x - up)[inner], atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 2.0}, TypeError, "steps"),
        ({"restarts": 0}, ValueError, "restarts"),
        ({"restarts": 2, "random_start": False}, ValueError, "restarts > 1 need random_start"),
        ({"selection_draws": 0}, ValueError, "selection_draws"),
        ({"step_size": -0.1}, ValueError, "step_size"),
        ({"gradient": 8}, TypeError, "gradient must be a function"),
        ({"loss": "margin"}, TypeError, "loss must be a function"),
        ({"step_size": float("nan")}, ValueError, "step_size"),
        ({"step_size": "big"}, ValueError, "step_size"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        PGD(THREAT, **arguments)


def test_the_step_may_be_a_fraction():
    assert PGD(THREAT, step_size="2/255") == PGD(THREAT, step_size=2 / 255)
