import foolbox
import pytest
import torch
from torch import nn

from snnrobust.attacks import CW, L2, BluntGradientWarning, Linf, margin


def linear(spread, seed=0):
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(12, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 12, generator=g))
        model.bias.copy_(-model.weight.sum(1) / 2 + 0.3 * torch.randn(2, generator=g))
    x = (0.5 + spread * (2 * torch.rand(20, 12, generator=g, dtype=torch.float64) - 1)).clamp(0, 1)
    return model, x, model(x).argmax(1)


def test_the_exact_distance_of_a_linear_model():
    model, x, y = linear(0.3)
    x_adv = CW(L2(3.0), steps=200, lr=0.02)(model, x, y)
    w = (model.weight[1] - model.weight[0]).norm()
    expected = margin(model(x), y).abs() / w
    assert (model(x_adv).argmax(1) != y).all()
    ratio = L2(3.0).distance(x, x_adv) / expected
    far = expected > 0.02
    assert far.sum() > 15
    assert ratio.min() > 1 - 1e-9
    assert ratio[far].max() < 1.03
    assert ratio[far].median() < 1.005


def test_confidence_is_the_margin():
    """The distance grows by kappa / |w|."""
    model, x, y = linear(0.2)
    w = (model.weight[1] - model.weight[0]).norm()
    x_adv = CW(L2(3.0), steps=150, lr=0.02, confidence=0.5)(model, x, y)
    reached = margin(model(x_adv), y)
    assert reached.min() >= 0.5
    assert reached.max() < 0.54
    assert torch.allclose(L2(3.0).distance(x, x_adv), (margin(model(x), y).abs() + 0.5) / w, rtol=0.03)


@pytest.mark.parametrize("targeted", [False, True])
def test_equals_foolbox(targeted, digits_ann):
    model, x, y = digits_ann
    x, y = x[:15], y[:15]
    with torch.no_grad():
        right = model(x).argmax(1) == y  # foolbox starts beside x where we return it
        targets = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    criterion = foolbox.criteria.TargetedMisclassification(targets) if targeted else y
    settings = {"steps": 40, "abort_early": False}
    reference = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=4, stepsize=0.05, initial_const=0.5, **settings
    ).run(foolbox.PyTorchModel(model, bounds=(0, 1)), x, criterion)
    attack = CW(L2(8.0), search_steps=4, lr=0.05, c=0.5, **settings)
    x_adv = attack(model, x, y, targets=targets if targeted else None)
    found = right & reference.flatten(1).any(1)  # it returns zeros where it found nothing
    assert found.sum() >= 12
    assert (x_adv - reference)[found].abs().max() < 1e-6


def test_each_sample_has_its_own_constant(digits_ann):
    """Batches of one give what the whole batch gives, with early aborts too."""
    model, x, y = digits_ann
    x, y = x[:5], y[:5]
    attack = CW(L2(8.0), steps=30, search_steps=3)
    whole = attack(model, x, y, seed=0)
    for i in range(5):
        assert (attack(model, x[i : i + 1], y[i : i + 1], seed=0) - whole[i]).abs().max() < 1e-9


def test_the_search_over_c_finds_and_shortens(digits_ann):
    """From one that is too small and from one that is too large."""
    model, x, y = digits_ann
    x, y = x[:10], y[:10]

    def run(c, n):
        return CW(L2(8.0), steps=60, search_steps=n, c=c)(model, x, y)

    with torch.no_grad():
        assert (model(run(1e-4, 1)).argmax(1) == y).sum() >= 9
        assert (model(run(1e-4, 5)).argmax(1) != y).all()
    large, searched = (L2(8.0).distance(x, run(30.0, n)).mean() for n in (1, 7))
    assert searched < 0.95 * large


def test_a_budget_is_kept(digits_ann):
    model, x, y = digits_ann
    x, y = x[:20], y[:20]
    free, tight = (CW(L2(eps), steps=40, search_steps=3)(model, x, y) for eps in (8.0, 0.4))
    inside = L2(8.0).distance(x, free) <= 0.4
    assert 3 <= inside.sum() <= 17
    assert torch.equal(free[inside], tight[inside])
    assert (L2(0.4).distance(x, tight)[~inside] > 0.39).all()


def test_other_boxes(digits_ann):
    """The same network on [-1, 3]: four times the distances."""
    model, x, y = digits_ann

    class Wide(nn.Module):
        def forward(self, x):
            return model((x + 1) / 4)

    x, y = x[:10], y[:10]
    settings = {"steps": 40, "search_steps": 4, "lr": 0.05}
    threat = L2(32.0, bounds=(-1.0, 3.0))
    plain = CW(L2(8.0), c=0.5, **settings)(model, x, y)
    wide = CW(threat, c=8.0, **settings)(Wide(), 4 * x - 1, y)
    assert ((wide + 1) / 4 - plain).abs().max() < 1e-3


def test_spiking(digits_snn):
    model, x, y = digits_snn
    x, y = x[:20], y[:20]
    x_adv = CW(L2(1.0), steps=40, search_steps=4)(model, x, y)
    with torch.no_grad():
        assert (model(x_adv).argmax(1) == y).double().mean() < 0.4


def test_blunt():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([0 * x.sum(1) + 1, 0 * x.sum(1)], 1)

    with pytest.warns(BluntGradientWarning):
        x_adv = CW(L2(0.1), steps=5, search_steps=2)(Flat(), torch.full((2, 3), 0.3), torch.tensor([0, 0]))
    assert (x_adv - 0.3).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"steps": 0}, "steps"),
        ({"search_steps": 0}, "search_steps"),
        ({"lr": 0.0}, "lr"),
        ({"c": 0.0}, "c must"),
        ({"confidence": -1.0}, "confidence"),
    ],
)
def test_bad_settings_are_named(settings, error):
    with pytest.raises(ValueError, match=error):
        CW(L2(1.0), **settings)


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="CW is an attack for L2, got a threat in Linf"):
        CW(Linf(0.1))
