import copy
from itertools import pairwise

import pytest
import torch

from snnrobust.attacks import ASSG, EOT, L1, L2, PGD, SAPGD, Backprop, Linf, cross_entropy, margin
from snnrobust.attacks.ascent import checkpoints


def gradient_of(model, at, y):
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(leaf), y).sum(), leaf)[0]


def mean(values):
    return values.flatten(1).mean(1).view(-1, *[1] * (values.dim() - 1))


def literal(model, x, y, eps, steps, decay=0.5, decay_square=0.8):
    at, m, v, eta, path = x, torch.zeros_like(x), torch.zeros_like(x), eps, [x]
    for i in range(steps):
        if i in checkpoints(steps):
            eta /= 2
        g = gradient_of(model, at, y)
        m = decay * m + g / mean(g.abs())
        v = decay_square * v + g**2 / mean(g**2)
        at = at + (eta * m / v.sqrt()).clamp(-eta, eta)
        at = torch.minimum(torch.maximum(at, x - eps), x + eps).clamp(0, 1)
        path.append(at)
    return path


@pytest.mark.parametrize(("steps", "decays"), [(1, {}), (6, {}), (30, {}), (12, {"decay": 0.9, "decay_square": 0.5})])
def test_is_the_published_recursion(steps, decays, digits_ann):
    model, x, y = digits_ann
    path = literal(model, x, y, 0.1, steps, **decays)
    asked = []

    class Spy(Backprop):
        def __call__(self, model, x, y, loss, stream):
            asked.append(x.clone())
            return super().__call__(model, x, y, loss, stream)

    x_adv = SAPGD(Linf(0.1), steps=steps, random_start=False, gradient=Spy(), **decays)(model, x, y)
    assert len(asked) == steps
    for ours, theirs in zip(asked, path[:-1], strict=True):
        assert (ours - theirs).abs().max() < 1e-9
    with torch.no_grad():
        margins = torch.stack([margin(model(at), y) for at in path])
        assert (margin(model(x_adv), y) - margins.amax(0)).abs().max() < 1e-9


def test_halves_on_schedule_whatever_the_loss_does(digits_ann):
    """Against a gradient that turns round at each step, the steps show their sizes."""
    model, x, y = digits_ann
    x, threat = torch.zeros_like(x[:2]), Linf(1.0)
    sizes = []

    def alternate(model, x, y, loss, stream):
        sizes.append(float(x.mean()))
        sign = 1.0 if len(sizes) % 2 else -1.0
        return torch.full_like(x, sign), torch.zeros(len(x), 10, dtype=x.dtype)

    SAPGD(threat, steps=20, random_start=False, decay=0.0, decay_square=0.0, gradient=alternate)(model, x, y[:2])
    moved = [abs(b - a) for a, b in pairwise(sizes)]
    etas = [0.5 ** sum(w <= i for w in checkpoints(20)) for i in range(19)]
    assert moved == pytest.approx(etas)


def test_scale_of_the_gradient_does_not_matter(digits_ann):
    model, x, y = digits_ann
    model, x = copy.deepcopy(model).float(), x.float()

    class Scaled(Backprop):
        def __call__(self, *arguments):
            gradient, logits = super().__call__(*arguments)
            return gradient * 2.0**-90, logits

    plain, tiny = (SAPGD(Linf(0.1), steps=5, gradient=g)(model, x, y, seed=0) for g in (Backprop(), Scaled()))
    assert torch.allclose(plain, tiny, atol=1e-5)


@pytest.mark.parametrize("threat", [Linf(0.08), L2(0.5), L1(2.0)])
def test_is_at_least_as_strong_as_pgd(threat, digits_snn):
    model, x, y = digits_snn
    with torch.no_grad():
        right = [
            (model(attack(model, x, y, seed=0)).argmax(1) == y).double().mean()
            for attack in (PGD(threat, steps=20), SAPGD(threat, steps=20))
        ]
    assert right[1] <= right[0] + 0.02


def test_composes_with_sources(victims):
    model, x, y = victims("poisson")
    x_adv = SAPGD(Linf(0.1), steps=4, gradient=EOT(2, ASSG()), restarts=2, selection_draws=4)(model, x, y, seed=0)
    Linf(0.1).validate(x, x_adv)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"decay": 1.5}, ValueError, "decay"),
        ({"decay_square": -0.5}, ValueError, "decay_square"),
        ({"restarts": 2, "random_start": False}, ValueError, "restarts > 1 need"),
        ({"gradient": 8}, TypeError, "gradient"),
        ({"loss": "margin"}, TypeError, "loss"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        SAPGD(Linf(0.1), **arguments)
