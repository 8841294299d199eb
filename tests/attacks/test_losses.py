import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnrobust.attacks import LOSSES, cross_entropy, dlr, dlr_targeted, margin
from snnrobust.attacks.losses import Targeted, is_targeted, targeted

torchattacks = pytest.importorskip("torchattacks")


def _random(seed: int, batch: int = 20, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, classes, generator=g, dtype=torch.float64), torch.randint(
        0, classes, (batch,), generator=g
    )


def test_dlr_is_the_published_one_where_nothing_ties():
    z, y = _random(0)
    theirs = torchattacks.APGD(torch.nn.Identity(), loss="dlr").dlr_loss(z, y)
    assert torch.allclose(dlr(z, y), theirs, rtol=0, atol=1e-10)


def test_targeted_dlr_is_the_published_one_where_the_label_is_predicted():
    z, t = _random(1)
    y = z.argmax(1)
    keep = y != t
    z, y, t = z[keep], y[keep], t[keep]
    order = z.sort(1).values
    theirs = -(z.gather(1, y[:, None]) - z.gather(1, t[:, None]))[:, 0] / (
        order[:, -1] - 0.5 * (order[:, -3] + order[:, -4])
    )
    assert torch.allclose(dlr_targeted(z, t), theirs, rtol=0, atol=1e-12)


counts = st.lists(st.integers(0, 4), min_size=2, max_size=6)


@given(st.lists(counts, min_size=1, max_size=8), st.floats(0.1, 50), st.floats(-9, 9))
def test_dlr_of_spike_counts_is_finite_has_the_sign_of_the_margin_and_no_scale(rows, scale, shift):
    width = min(map(len, rows))
    z = torch.tensor([row[:width] for row in rows], dtype=torch.float64)
    y = torch.arange(len(z)) % width
    for loss in (dlr, lambda z, y: -dlr_targeted(z, y)):
        value = loss(z, y)
        assert value.isfinite().all()
        assert value.abs().max() <= 4 * width  # a ratio of counts, not 1e12
        assert torch.equal(value.sign(), margin(z, y).sign())
        assert torch.allclose(loss(scale * z + shift, y), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("z", [[2.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 1.0, 1.0], [3.0, 0.0]])
def test_gradients_of_dlr_are_finite_on_ties(z):
    at = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    for loss in (dlr, dlr_targeted):
        (g,) = torch.autograd.grad(loss(at, torch.tensor([1])).sum(), at)
        assert g.isfinite().all()
        assert g.any()


def test_targets_turn_losses_round():
    z, t = _random(2)
    assert torch.equal(targeted(cross_entropy)(z, t), -cross_entropy(z, t))
    assert torch.equal(targeted(margin)(z, t), -margin(z, t))
    assert targeted(dlr) is dlr_targeted
    for loss in LOSSES.values():
        assert is_targeted(targeted(loss))
        assert not is_targeted(loss)
    assert Targeted(margin) == targeted(margin)  # settings are compared and stored


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr], ids=["cross_entropy", "margin", "dlr"])
def test_raising_the_targeted_loss_leads_to_the_target(loss):
    z, t = _random(3)
    z, rises = z.requires_grad_(), targeted(loss)
    (g,) = torch.autograd.grad(rises(z, t).sum(), z)
    assert (g.gather(1, t[:, None]) > 0).all()
    assert (rises(z + 1e-4 * g, t) > rises(z, t)).all()
