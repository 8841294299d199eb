import torch

from snnrobust.attacks import Linf, RandomSign


def test_every_pixel_moves_by_the_whole_budget_up_or_down(victims):
    model, _, y = victims("ann")
    x = torch.full((6, 1, 4, 4), 0.5, dtype=torch.float64)
    shift = RandomSign(Linf(0.1))(model, x, y, seed=0) - x
    assert (shift.abs() - 0.1).abs().max() < 1e-15
    assert 24 < (shift > 0).sum() < 72  # of 96: 48 +- 5 standard deviations
    assert len({tuple(s.sign().flatten().tolist()) for s in shift}) == 6  # each sample its own


def test_pixels_at_the_edge_of_the_box_stay_inside(victims):
    model, x, y = victims("ann")
    x_adv = RandomSign(Linf(0.1))(model, x.round(), y, seed=0)
    moved = (x_adv - x.round()).abs()
    assert ((moved == 0) | ((moved - 0.1).abs() < 1e-15)).all()
    assert (moved > 0).any()
    assert (moved == 0).any()


def test_the_model_is_never_called(victims):
    _, x, y = victims("ann")

    class Untouchable(torch.nn.Module):
        def forward(self, x):
            raise AssertionError("called")

    RandomSign(Linf(0.1))(Untouchable(), x, y)
