import math

import pytest
import torch
from torch import nn

from snnrobust.attacks import APGD, APGDT, EOT, FGSM, L0, L1, L2, LOSSES, PGD, Backprop, Linf, cross_entropy, dlr, margin
from snnrobust.attacks.ascent import checkpoints
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.losses import dlr_targeted
from snnrobust.attacks.selection import measure
from snnrobust.draws import Stream

THREAT = Linf("8/255")


def linear_model(classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(20, classes).double()
    model.weight.data = torch.randn(classes, 20, generator=generator, dtype=torch.float64)
    x = torch.rand(50, 20, generator=generator, dtype=torch.float64)
    return model, x, torch.arange(50) % classes


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 10, 17, 20, 40, 50, 99, 100, 300, 1000])
def test_checkpoints_are_those_of_the_paper(steps):
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    assert checkpoints(steps) == sorted({w for w in (math.ceil(q * steps - 1e-9) for q in p[1:]) if w < steps})


def test_checkpoints_of_100_steps():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def literal(model, x, y, eps, steps, loss, start, rho=0.75, alpha=0.75):
    """APGD for Linf in the box [0, 1], one sample at a time: every point with its loss, and every step size."""
    paths, sizes = [], []
    for x_i, y_i, at in zip(x[:, None], y[:, None], start[:, None], strict=True):

        def f(point, y_i=y_i):
            leaf = point.clone().requires_grad_()
            value = loss(model(leaf), y_i).sum()
            return float(value.detach()), torch.autograd.grad(value, leaf)[0]

        def inside(point, x_i=x_i):
            return torch.clamp(torch.minimum(torch.maximum(point, x_i - eps), x_i + eps), 0, 1)

        points = [at]
        value, gradient = f(at)
        losses, eta, last_eta = [value], 2 * eps, None
        best, best_value, best_gradient, last_best = at, value, gradient, -math.inf
        before, w, etas = at, [0, *checkpoints(steps)], []
        for k in range(steps):
            etas.append(eta)
            z = inside(at + eta * gradient.sign())
            new = z if k == 0 else inside(at + alpha * (z - at) + (1 - alpha) * (at - before))
            before, at = at, new
            points.append(at)
            value, gradient = f(at)
            losses.append(value)
            if value > best_value:
                best, best_value, best_gradient = at, value, gradient
            if k + 1 in w:
                since = w[w.index(k + 1) - 1]
                rises = sum(losses[i + 1] > losses[i] for i in range(since, k + 1))
                stalled = eta == last_eta and best_value == last_best
                last_eta, last_best = eta, best_value
                if rises <= rho * (k + 1 - since) or stalled:
                    eta, at, gradient = eta / 2, best, best_gradient
        paths.append((points, losses))
        sizes.append(etas)
    return paths, sizes


class Recorder(Backprop):
    """Remembers where it was asked."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "asked", [])

    def __call__(self, model, x, y, loss, stream):
        self.asked.append(x.clone())
        return super().__call__(model, x, y, loss, stream)


@pytest.mark.parametrize("loss", [cross_entropy, dlr, margin])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_is_the_algorithm_of_the_paper(loss, steps, digits_ann):
    model, x, y = digits_ann
    x, y = x[:20], y[:20]
    paths, sizes = literal(model, x, y, 0.1, steps, loss, x)
    recorder = Recorder()
    x_adv = APGD(Linf(0.1), steps=steps, random_start=False, loss=loss, gradient=recorder)(model, x, y)
    asked = torch.stack(recorder.asked, 1)
    for i, (points, _) in enumerate(paths):
        # (a restart from the best point shows in the next point)
        assert (asked[i] - torch.cat(points[:-1])).abs().max() < 1e-12
        with torch.no_grad():
            logits = model(torch.cat(points))
        largest = margin(logits, y[i].expand(len(logits))).argmax()
        assert (x_adv[i] - points[int(largest)][0]).abs().max() < 1e-12
    if steps == 30:
        assert len({tuple(s) for s in sizes}) > 3  # samples differ in their step sizes


@pytest.mark.parametrize(("name", "loss"), [("ce", cross_entropy), ("dlr", dlr)])
@pytest.mark.parametrize("eps", [0.0625, 0.125])
def test_equals_torchattacks(name, loss, eps, digits_ann, monkeypatch):
    """From the same start, by the largest loss; with 100 steps both schedules are the same."""
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits_ann
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(x.shape, generator=g, dtype=torch.float64)
    t = 2 * noise - 1
    start = (x + eps * t / t.flatten(1).abs().amax(1).view(-1, 1, 1, 1)).clamp(0, 1)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise)
    reference = torchattacks.APGD(model, norm="Linf", eps=eps, steps=100, loss=name)
    best, still_right, reference_loss, _ = reference.attack_single_run(x, y)
    monkeypatch.setattr(Linf, "random_start", lambda *_: start)
    monkeypatch.setattr("snnrobust.attacks.ascent.is_stochastic", lambda *_: True)  # so that the last point is asked too
    recorder = Recorder()
    APGD(Linf(eps), steps=100, loss=loss, gradient=recorder)(model, x, y)
    with torch.no_grad():
        losses = torch.stack([loss(model(at), y) for at in recorder.asked])
        wrong = torch.stack([model(at).argmax(1) != y for at in recorder.asked]).any(0)
    same = (losses.amax(0) - reference_loss).abs() < 1e-9
    print(same.sum(), (wrong==still_right).sum())
    assert 0
