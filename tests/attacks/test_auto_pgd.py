import copy
import math

import pytest
import torch
from torch import nn

from snnrobust.attacks import (
    APGD,
    APGDT,
    EOT,
    FGSM,
    L0,
    L1,
    L2,
    LOSSES,
    PGD,
    Backprop,
    Linf,
    cross_entropy,
    dlr,
    margin,
)
from snnrobust.attacks.ascent import _order, checkpoints
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
    x, y = x[:80], y[:80]
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(x.shape, generator=g, dtype=torch.float64)
    t = 2 * noise - 1
    start = (x + eps * t / t.flatten(1).abs().amax(1).view(-1, 1, 1, 1)).clamp(0, 1)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise)
    reference = torchattacks.APGD(model, norm="Linf", eps=eps, steps=100, loss=name)
    _, still_right, reference_loss, _ = reference.attack_single_run(x, y)
    monkeypatch.setattr(Linf, "random_start", lambda *_: start)
    monkeypatch.setattr(
        "snnrobust.attacks.ascent.is_stochastic", lambda *_: True
    )  # so that the last point is asked too
    recorder = Recorder()
    APGD(Linf(eps), steps=100, loss=loss, gradient=recorder)(model, x, y)
    with torch.no_grad():
        asked = torch.stack([model(at) for at in recorder.asked])
    losses = torch.stack([loss(logits, y) for logits in asked])
    assert torch.equal((asked.argmax(2) == y).all(0), still_right)
    same = (losses.amax(0) - reference_loss).abs() < 1e-9
    # DLR is chaotic where its denominator is small, and theirs has 1e-12 more
    assert same.all() if name == "ce" else same.double().mean() > 0.5


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(("name", "loss"), [("ce", cross_entropy), ("dlr", dlr)])
def test_is_not_weaker_than_torchattacks(norm, name, loss, digits_ann):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits_ann
    model, x = copy.deepcopy(model).float(), x.float()
    eps = {"Linf": 0.08, "L2": 0.5}[norm]
    with torch.random.fork_rng():
        theirs = torchattacks.APGD(model, norm=norm, eps=eps, steps=50, loss=name)(x, y)
    ours = APGD({"Linf": Linf, "L2": L2}[norm](eps), steps=50, loss=loss)(model, x, y, seed=0)
    with torch.no_grad():
        right, reference = ((model(at).argmax(1) == y).double().mean() for at in (ours, theirs))
    assert 0.1 < reference < 0.8
    assert right <= reference + 0.01


def test_reaches_the_optimum_of_a_linear_model_from_anywhere():
    """Two classes: the worst case is the corner x + eps sign(w_other - w_true), in the box."""
    model, x, y = linear_model()
    with torch.no_grad():
        worst = (x + THREAT.eps * (model.weight[1 - y] - model.weight[y]).sign()).clamp(0, 1)
    for attack in (APGD(THREAT, steps=10), APGD(THREAT, steps=10, restarts=2), APGDT(THREAT, steps=10, loss=margin)):
        assert (attack(model, x, y, seed=0) - worst).abs().max() < 1e-15


@pytest.mark.parametrize(("threat", "pgd"), [(L2(0.7), 40), (L1(1.5), 60), (L0(2), 20)])
def test_gains_as_much_as_pgd_in_other_norms(threat, pgd):
    """Without a random start and with the margin for a loss, which is linear with two classes."""
    model, x, y = linear_model()
    x_pgd = PGD(threat, steps=pgd, random_start=False, loss=margin)(model, x, y)
    x_adv = APGD(threat, steps=pgd, random_start=False, loss=margin)(model, x, y)
    with torch.no_grad():
        gained, reference, before = (margin(model(at), y) for at in (x_adv, x_pgd, x))
    share = (gained - before) / (reference - before)
    assert share.mean() > {"L2": 0.999, "L1": 0.99, "L0 (pixels)": 0.99}[threat.name]
    assert share.min() > 0.9


def test_early_stop_keeps_the_first_adversarial_input_and_asks_no_more(digits_ann):
    model, x, y = digits_ann
    x, y = x[:40], y[:40]
    paths, _ = literal(model, x, y, 0.1, 12, cross_entropy, x)
    recorder = Recorder()
    x_adv = APGD(Linf(0.1), steps=12, random_start=False, early_stop=True, gradient=recorder)(model, x, y)
    expected_calls = torch.zeros(12, dtype=torch.int64)
    reached = 0
    for i, (points, _) in enumerate(paths):
        with torch.no_grad():
            logits = model(torch.cat(points))
        wrong = (logits.argmax(1) != y[i]).nonzero()[:, 0]
        expected_calls[: int(wrong[0]) + 1 if len(wrong) else 12] += 1
        reached += bool(len(wrong))
        chosen = wrong[0] if len(wrong) else margin(logits, y[i].expand(len(logits))).argmax()
        assert (x_adv[i] - points[int(chosen)][0]).abs().max() < 1e-12
    assert 10 < reached < 40
    assert [len(asked) for asked in recorder.asked] == expected_calls.tolist()


class Ids(Backprop):
    """Remembers who was asked for."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "ids", [])

    def __call__(self, model, x, y, loss, stream):
        self.ids.append(set(stream.sample_ids.tolist()))
        return super().__call__(model, x, y, loss, stream)


def test_restarts_and_targets_are_spent_on_those_that_stand(digits_ann):
    model, x, y = digits_ann
    x, y = x[:60], y[:60]
    threat, steps = Linf(0.08), 6
    first = APGD(threat, steps=steps, early_stop=True)(model, x, y, seed=0)
    with torch.no_grad():
        standing = set((model(first).argmax(1) == y).nonzero()[:, 0].tolist())
    source = Ids()
    x_adv = APGD(threat, steps=steps, early_stop=True, restarts=3, gradient=source)(model, x, y, seed=0)
    assert set.union(*source.ids[steps:]) == standing
    with torch.no_grad():
        after = model(x_adv).argmax(1) == y
    assert set(after.nonzero()[:, 0].tolist()) <= standing
    fallen = [i for i in range(60) if i not in standing]
    assert torch.equal(x_adv[fallen], first[fallen])


def test_budgets_follow_their_samples_when_others_are_dropped(digits_ann):
    model, x, y = digits_ann
    x, y = x[:12], y[:12]
    budgets = torch.linspace(0.15, 0.02, 12, dtype=torch.float64)
    source = Ids()
    arguments = {"steps": 6, "restarts": 2, "early_stop": True}
    together = APGD(Linf(budgets), gradient=source, **arguments)(model, x, y, seed=0)
    assert 0 < len(source.ids[6]) < 12
    for i in range(0, 12, 3):
        ids = torch.tensor([i])
        alone = APGD(Linf(float(budgets[i])), **arguments)(model, x[ids], y[ids], seed=0, sample_ids=ids)
        assert (together[i] - alone[0]).abs().max() < 1e-9


def test_more_restarts_are_never_worse(digits_ann):
    model, x, y = digits_ann
    stream, goal = Stream(5, torch.arange(len(x))), Goal(y)
    last = torch.full((len(x),), -torch.inf, dtype=torch.float64)
    for restarts in (1, 2, 4):
        x_adv = APGD(Linf(0.08), steps=4, restarts=restarts).perturb(model, x, goal, stream)
        margins = measure(model, x_adv, goal, stream, 1).margin
        assert (margins >= last).all()
        last = margins


def test_what_a_run_costs(victims):
    """A gradient a step, and one pass for the last point: a gradient for a model with randomness, whose logits are means."""
    for kind, eot, gradients in (("ann", 1, 5), ("poisson", 3, 3 * 6)):
        model, x, y = victims(kind)
        calls = []

        class Counting(Backprop):
            def __call__(self, *arguments, calls=calls):
                calls.append(arguments[-1].key)
                return super().__call__(*arguments)

        APGD(THREAT, steps=5, gradient=EOT(eot, Counting()))(model, x, y, seed=0)
        assert len(calls) == gradients
        assert len(set(calls)) == gradients


def test_early_stop_of_a_random_model_asks_all_selection_draws(victims):
    model, x, y = victims("poisson")
    x, y = x.repeat(6, 1, 1, 1), y.repeat(6)
    stream, goal = Stream(3, torch.arange(len(x))), Goal(y)
    source = Ids()
    APGD(Linf(0.2), steps=8, early_stop=True, selection_draws=5, gradient=source).perturb(model, x, goal, stream)
    left = [len(ids) for ids in source.ids]
    assert left[0] == len(x)
    assert 0 < left[-1] < len(x)
    APGD(Linf(0.2), steps=8, early_stop=True, selection_draws=1, gradient=(spy := Ids())).perturb(
        model, x, goal, stream
    )
    once = [len(ids) for ids in spy.ids]
    assert sum(once) < sum(left)  # one lucky draw would stop more


def test_a_tie_that_reaches_the_goal_is_better_than_one_that_does_not():
    goal = Goal(torch.tensor([0, 1]))
    tied = _order(goal, torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
    assert tied[0] < 0
    assert tied[1] == 0
    assert tied[0] > _order(goal, torch.tensor([[1.0, 1.0 - 1e-7, 0.0]] * 2))[0]


class Counts(nn.Module):
    """Spike counts: whole numbers, most of them equal, with the gradient of the membrane behind them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))

    def forward(self, x):
        h = x.flatten(1) @ self.weight
        return h + (h.clamp(0, 3).round() - h).detach()


@pytest.mark.parametrize("loss", list(LOSSES.values()))
@pytest.mark.parametrize("kind", [APGD, APGDT])
def test_outputs_that_tie(kind, loss):
    model, x = Counts(), torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = model(x).argmax(1)
    x_adv = kind(Linf(0.1), steps=20, loss=loss)(model, x, y, seed=0)
    broken = (model(x_adv).argmax(1) != y).double().mean()
    fgsm = (model(FGSM(Linf(0.1))(model, x, y)).argmax(1) != y).double().mean()
    assert broken >= fgsm - 0.05
    assert broken > 0.3


@pytest.mark.parametrize("kind", [APGD, APGDT])
def test_targets_are_reached(kind, digits_ann):
    model, x, y = digits_ann
    x, y = x[:50], y[:50]
    with torch.no_grad():
        targets = Goal(y).next_classes(model(x), 2)[:, 1]
        for early_stop in (False, True):
            x_adv = kind(Linf(0.15), steps=30, loss=dlr, early_stop=early_stop)(model, x, y, targets=targets, seed=0)
            assert (model(x_adv).argmax(1) == targets).double().mean() > 0.8


def test_apgdt_goes_for_the_likeliest_classes_in_turn(digits_ann):
    model, x, y = digits_ann
    x, y = x[:30], y[:30]
    asked = []

    class Spy(Backprop):
        def __call__(self, model, x, y, loss, stream):
            asked.append((y.clone(), loss))
            return super().__call__(model, x, y, loss, stream)

    APGDT(Linf(0.05), steps=2, targets=3, gradient=Spy())(model, x, y, seed=0)
    with torch.no_grad():
        likeliest = model(x).scatter(1, y[:, None], -torch.inf).topk(3, 1).indices
    assert torch.equal(torch.stack([a for a, _ in asked[::2]], 1), likeliest)
    assert all(loss is dlr_targeted for _, loss in asked)


def test_apgdt_takes_all_classes_if_there_are_few():
    model, x, y = linear_model(classes=3)
    source = Ids()
    x_adv = APGDT(Linf(0.1), steps=4, gradient=source)(model, x, y, seed=0)
    assert len(source.ids) == 2 * 4
    with torch.no_grad():
        assert (margin(model(x_adv), y) > margin(model(x), y) + 0.3).all()


@pytest.mark.slow
def test_apgdt_is_not_weaker_than_torchattacks(digits_ann):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits_ann
    model, x = copy.deepcopy(model).float(), x.float()
    with torch.random.fork_rng():
        theirs = torchattacks.APGDT(model, eps=0.08, steps=30)(x, y)
    ours = APGDT(Linf(0.08), steps=30, early_stop=True)(model, x, y, seed=0)
    with torch.no_grad():
        right, reference = ((model(at).argmax(1) == y).double().mean() for at in (ours, theirs))
    assert right <= reference + 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"restarts": 0}, ValueError, "restarts"),
        ({"restarts": 2, "random_start": False}, ValueError, "restarts > 1 need random_start"),
        ({"selection_draws": 0}, ValueError, "selection_draws"),
        ({"rho": 1.5}, ValueError, "rho"),
        ({"momentum": -0.1}, ValueError, "momentum"),
        ({"gradient": 8}, TypeError, "gradient must be a function"),
        ({"loss": "dlr"}, TypeError, "loss must be a function"),
    ],
)
@pytest.mark.parametrize("kind", [APGD, APGDT])
def test_bad_arguments_are_named(kind, arguments, error, words):
    with pytest.raises(error, match=words):
        kind(THREAT, **arguments)


def test_bad_number_of_targets():
    with pytest.raises(ValueError, match="targets"):
        APGDT(THREAT, targets=0)
