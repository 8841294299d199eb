import foolbox
import pytest
import torch
from torch import nn

from snnrobust.attacks import FGSM, Linf, margin


@pytest.mark.parametrize("eps", ["8/255", 0.1, 0.3])
def test_equals_foolbox(eps, digits_ann):
    model, x, y = digits_ann
    threat = Linf(eps)
    reference = foolbox.attacks.LinfFastGradientAttack().run(
        foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilon=threat.eps
    )
    assert (FGSM(threat)(model, x, y) - reference).abs().max() < 1e-12


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
def test_is_exact_for_a_linear_model(bounds):
    """Two classes: the worst case is the corner x + eps sign(w_other - w_true), in the box."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(20, 2).double()
    linear.weight.data = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    x = torch.rand(50, 20, generator=generator, dtype=torch.float64)
    y = torch.arange(50) % 2
    threat = Linf(0.2, bounds)
    with torch.no_grad():
        direction = (linear.weight[1 - y] - linear.weight[y]).sign()
    worst = (x + 0.2 * direction).clamp(*bounds)
    for loss in ({}, {"loss": margin}):
        x_adv = FGSM(threat, **loss)(linear, x, y)
        assert (x_adv - worst).abs().max() < 1e-15
