"""The exact worst case, by another enumeration, and what attacks reach of it."""

import pytest
import torch
from torch import nn

from benchmarks import oracle
from snnrobust.attacks import L0, SparseRS


@pytest.fixture(scope="module")
def small():
    """A network on 3 x 3 bits, which it sees as such."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(9, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
        model = oracle.Binary(network)
        x = (torch.rand(40, 1, 3, 3) < 0.5).float()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_all_flips_are_tried_once(most, small):
    _, x, _ = small
    seen = {tuple(candidate[0].flatten().tolist()) for candidate in oracle.flips(x, most)}
    everything = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 9)
    near = everything[(everything != x[0].flatten()).sum(1) <= most]
    assert seen == {tuple(bits.tolist()) for bits in near}
    assert len(list(oracle.flips(x, most))) == len(near)


def test_the_count_of_the_page():
    assert len(list(oracle.flips(torch.zeros(1, 1, 8, 8), 2))) == 2081


@pytest.mark.parametrize("most", [0, 1, 2])
def test_worst_case_by_brute_force(most, small):
    model, x, y = small
    everything = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 9)
    with torch.no_grad():
        wrong = model(everything.view(-1, 1, 3, 3)).argmax(1)[None] != y[:, None]
    near = (everything[None] != x.flatten(1)[:, None]).sum(2) <= most
    expected = (wrong & near).any(1)
    assert torch.equal(oracle.broken(model, x, y, most), expected)
    assert bool(expected.any()) == (most > 0)
    assert most != 1 or not expected.all()


def test_the_network_sees_bits_only(small):
    model, x, _ = small
    grey = torch.where(x > 0.5, 0.5 + 0.5 * torch.rand_like(x), 0.499 * torch.rand_like(x))
    assert torch.allclose(model(grey), model(x), atol=1e-6)
    grey.requires_grad_()
    model(grey).sum().backward()
    assert grey.grad.any()  # the straight-through gradient


@pytest.mark.filterwarnings("ignore::snnrobust.attacks.BluntGradientWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if "2,000" in n else ()) for n in oracle.ATTACKS]
)
@pytest.mark.parametrize("most", [1, 2])
def test_no_attack_breaks_more_than_can_be_broken(name, most, small):
    model, x, y = small
    truth = oracle.broken(model, x, y, most)
    x_adv = oracle.ATTACKS[name](L0(most))(model, x, y, seed=0)
    with torch.no_grad():
        reached = model(x_adv).argmax(1) != y
    assert not (reached & ~truth).any()
    if name == "SparseRS, 500 queries":  # more than ten for each point
        assert torch.equal(reached, truth)


@pytest.mark.filterwarnings("ignore::snnrobust.attacks.BluntGradientWarning")
def test_the_table(small, monkeypatch):
    model, x, y = small
    monkeypatch.setattr(oracle, "ATTACKS", {name: oracle.ATTACKS[name] for name in ("FGSM", "SparseRS, 500 queries")})
    lines = oracle.table(model, x, y, 1).splitlines()
    truth = 100 * float((~oracle.broken(model, x, y, 1)).double().mean())
    assert f"n = 40: clean 100.0 %, true worst case {truth:.1f} %" in lines[0]
    assert lines[-1].split(" | ")[1:3] == [f"{truth:.1f} %", "0.0"]


def test_an_attack_that_cheats_is_refused(small, monkeypatch):
    model, x, y = small
    monkeypatch.setattr(oracle, "ATTACKS", {"SparseRS": lambda _: SparseRS(L0(5), queries=500)})
    with pytest.raises(AssertionError, match="cannot be"):
        oracle.table(model, x, y, 1)
