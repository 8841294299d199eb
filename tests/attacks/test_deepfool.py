import foolbox
import pytest
import torch
from torch import nn

from snnrobust.attacks import L1, L2, PGD, Backprop, BluntGradientWarning, DeepFool, EvolutionStrategies, Linf

KINDS = {"Linf": Linf, "L2": L2}
FOOLBOX = {"Linf": foolbox.attacks.LinfDeepFoolAttack, "L2": foolbox.attacks.L2DeepFoolAttack}


def linear(seed=0):
    """Far from the box: every sample is near 1/2, every boundary nearer than that."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(12, 4).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 12, generator=g))
        model.bias.copy_(-model.weight.sum(1) / 2 + 0.1 * torch.randn(4, generator=g))
    x = 0.5 + 0.05 * torch.randn(40, 12, generator=g, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def closed_form(model, x, y, q):
    z, rows = model(x), torch.arange(len(x))
    f = z[rows, y][:, None] - z
    w = torch.linalg.vector_norm(model.weight[None] - model.weight[y][:, None], q, dim=2)
    return torch.where(f > 0, f / w, torch.inf).amin(1).detach()


@pytest.mark.parametrize(("norm", "q"), [("Linf", 1), ("L2", 2)])
def test_a_linear_model_in_one_step(norm, q):
    model, x, y = linear()
    threat = KINDS[norm](0.5)
    x_adv = DeepFool(threat, steps=1)(model, x, y)
    expected = 1.02 * closed_form(model, x, y, q).clamp(min=1e-4)
    assert expected.max() < 0.5
    assert torch.allclose(threat.distance(x, x_adv), expected, rtol=1e-9)
    assert (model(x_adv).argmax(1) != y).all()


@pytest.mark.parametrize(("norm", "q"), [("Linf", 1), ("L2", 2)])
def test_targets_have_the_hyperplane_of_the_target_alone(norm, q):
    g = torch.Generator().manual_seed(1)
    model, x, y = linear()
    model = nn.Linear(12, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 12, generator=g))
        model.bias.copy_(-model.weight.sum(1) / 2)
    y = model(x).argmax(1)
    threat = KINDS[norm](0.5)
    x_adv = DeepFool(threat)(model, x, y, targets=1 - y)
    assert torch.allclose(threat.distance(x, x_adv), 1.02 * closed_form(model, x, y, q).clamp(min=1e-4), rtol=1e-9)
    model, x, y = linear()
    targets = (y + 1) % 4
    x_adv = DeepFool(threat)(model, x, y, targets=targets)
    assert (model(x_adv).argmax(1) == targets).all()


def robust(model, x, y, x_adv, threat, budgets):
    with torch.no_grad():
        wrong = model(x_adv).argmax(1) != y
    distance = torch.where(wrong, threat.distance(x, x_adv), torch.inf)
    return torch.stack([(distance > eps).double().mean() for eps in budgets])


@pytest.mark.parametrize(("norm", "budgets"), [("Linf", (0.02, 0.05, 0.08, 0.12)), ("L2", (0.1, 0.3, 0.5, 0.7))])
def test_no_weaker_than_foolbox(norm, budgets, digits_ann):
    """foolbox adds 1e-4 to every distance and overwrites what it found when it is over: equal but for that."""
    model, x, y = digits_ann
    threat = KINDS[norm](1.0 if norm == "Linf" else 8.0)
    reference = FOOLBOX[norm]().run(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y)
    x_adv = DeepFool(threat)(model, x, y)
    mine, theirs = (robust(model, x, y, at, threat, budgets) for at in (x_adv, reference))
    assert (mine <= theirs + 0.01).all()
    ratio = threat.distance(x, x_adv) / threat.distance(x, reference)
    ratio = ratio[ratio.isfinite()]
    assert ratio.median() < 1.0001
    assert (ratio - 1).abs().quantile(0.8) < 0.01


def test_fewer_classes_look_at_the_likeliest(digits_ann):
    model, x, y = digits_ann
    calls = []

    class Spy(Backprop):
        def __call__(self, model, x, y, loss, stream):
            calls.append(y)
            return super().__call__(model, x, y, loss, stream)

    DeepFool(L2(8.0), classes=3, steps=1, gradient=Spy())(model, x[:8], y[:8])
    with torch.no_grad():
        z = model(x[:8])
    right = z.argmax(1) == y[:8]
    assert torch.equal(torch.stack(calls, 1), z.argsort(1, descending=True)[right, 1:4])
    calls.clear()
    DeepFool(L2(8.0), classes=None, steps=1, gradient=Spy())(model, x[:8], y[:8])
    assert len(calls) == 9


def test_a_budget_is_kept_and_helps(digits_ann):
    """What is found beyond it is projected, and some of that is adversarial still."""
    model, x, y = digits_ann
    x_adv = DeepFool(Linf(0.05))(model, x, y)
    free = DeepFool(Linf(1.0))(model, x, y)
    inside = Linf(1.0).distance(x, free) <= 0.05
    assert torch.equal(x_adv[inside], free[inside])
    assert 0.1 < inside.double().mean() < 0.9
    shrunk = Linf(0.05).project(free, x)[~inside]
    same = (x_adv[~inside] == shrunk).flatten(1).all(1)
    assert same.double().mean() > 0.9
    assert x_adv.ne(x).flatten(1).any(1).double().mean() > 0.9


def test_any_gradient_source(digits_snn):
    model, x, y = digits_snn
    x_adv = DeepFool(L2(3.0), steps=4, classes=2, gradient=EvolutionStrategies(queries=40, sigma=0.1))(
        model, x[:6], y[:6], seed=0
    )
    assert x_adv.ne(x[:6]).flatten(1).any(1).sum() >= 4


class Plateau(nn.Module):
    """Counts: no slope for the first sample, ties for all."""

    def forward(self, x):
        z = (2 * x[:, :3]).round()
        slope = x[:, :3] * torch.tensor([0.0, 1.0])[: len(x), None]
        return z.detach() + slope - slope.detach()


def test_ties_and_plateaus_give_no_nan():
    x, y = torch.full((2, 3), 0.6), torch.tensor([0, 0])
    x_adv = DeepFool(L2(1.5), steps=20)(Plateau(), x, y)
    assert x_adv.isfinite().all()
    assert torch.equal(x_adv[0], x[0])
    assert Plateau()(x_adv).argmax(1)[1] != 0


def test_a_blunt_gradient_is_reported():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([0 * x.sum(1) + 1, 0 * x.sum(1)], 1)

    with pytest.warns(BluntGradientWarning):
        x_adv = DeepFool(Linf(0.1))(Flat(), torch.full((2, 3), 0.5), torch.zeros(2, dtype=torch.int64))
    assert (x_adv == 0.5).all()


def test_misclassified_samples_stay(digits_ann):
    model, x, _ = digits_ann
    with torch.no_grad():
        y = (model(x).argmax(1) + 1) % 10
    assert torch.equal(DeepFool(L2(1.0))(model, x, y), x)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"steps": 0}, "steps"),
        ({"overshoot": -0.1}, "overshoot"),
        ({"classes": 0}, "classes"),
        ({"selection_draws": 0}, "selection_draws"),
    ],
)
def test_bad_settings_are_named(settings, error):
    with pytest.raises(ValueError, match=error):
        DeepFool(L2(1.0), **settings)


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="DeepFool is an attack for L2 and Linf, got a threat in L1"):
        DeepFool(L1(1.0))
    with pytest.raises(TypeError, match="threat must be a threat model"):
        DeepFool("L2")(nn.Linear(2, 2), torch.zeros(1, 2), torch.tensor([0]))
    assert PGD  # the remedy that the error names is there
