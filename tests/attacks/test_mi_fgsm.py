import copy

import pytest
import torch

from snnrobust.attacks import BIM, L2, MIFGSM, Linf
from snnrobust.attacks.losses import cross_entropy


@pytest.mark.parametrize(
    ("eps", "steps", "size", "decay"), [(0.1, 10, 0.02, 1.0), (0.05, 4, None, 1.0), (0.2, 7, 0.05, 0.5)]
)
def test_equals_torchattacks(eps, steps, size, decay, digits_ann):
    """They divide by the mean where we divide by the sum: the same direction."""
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits_ann
    alpha = size or eps / steps
    reference = torchattacks.MIFGSM(copy.deepcopy(model), eps=eps, alpha=alpha, steps=steps, decay=decay)(x, y)
    ours = MIFGSM(Linf(eps), steps=steps, step_size=size, decay=decay)(model, x, y)
    assert (ours - reference).abs().max() < 1e-6


def test_without_memory_it_is_bim(digits_ann):
    model, x, y = digits_ann
    assert torch.equal(MIFGSM(Linf(0.1), steps=5, decay=0.0)(model, x, y), BIM(Linf(0.1), steps=5)(model, x, y))


def test_in_l2_the_sum_is_followed(digits_ann):
    model, x, y = digits_ann
    at, total = x, torch.zeros_like(x)
    for _ in range(3):
        leaf = at.clone().requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(model(leaf), y).sum(), leaf)[0]
        total = total + gradient / gradient.flatten(1).abs().sum(1).view(-1, 1, 1, 1)
        at = (at + 0.01 * total / total.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    x_adv = MIFGSM(L2(8), steps=3, step_size=0.01)(model, x, y)
    assert (x_adv - at).abs().max() < 1e-12


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="decay"):
        MIFGSM(Linf(0.1), decay=-1.0)
    with pytest.raises(ValueError, match="steps"):
        MIFGSM(Linf(0.1), steps=0)
