"""PGD and FGSM in every norm, against closed forms and foolbox."""

import eagerpy
import foolbox
import numpy as np
import pytest
import torch

from snnrobust.attacks import FGSM, L0, L1, L2, PGD, RandomNoise


def onto_l1(x, wish, eps):
    """The projection onto the L1 ball by sorting: Duchi et al. 2008, "Efficient projections onto the l1-ball"."""
    change = (wish - x).flatten(1).numpy()
    for row in change:
        if np.abs(row).sum() > eps:
            u = np.sort(np.abs(row))[::-1]
            excess = (np.cumsum(u) - eps) / np.arange(1, len(u) + 1)
            row[:] = np.sign(row) * np.maximum(np.abs(row) - excess[u > excess][-1], 0)
    return x + torch.from_numpy(change).view(x.shape)


def linear_model(seed=0, d=20):
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(d, 2).double()
    model.weight.data = torch.randn(2, d, generator=generator, dtype=torch.float64)
    x = torch.rand(50, d, generator=generator, dtype=torch.float64)
    return model, x, torch.arange(50) % 2


def test_attacks_reach_the_optimum_of_a_linear_model():
    """Two classes: the margin is w.x with w = w_other - w_true, so the worst case has a closed form in every norm."""
    model, x, y = linear_model()
    w = (model.weight[1 - y] - model.weight[y]).detach()
    room = torch.where(w > 0, 1 - x, x)
    gain = (w.abs() * room).sort(1, descending=True).values
    order = w.abs().argsort(1, descending=True)  # L1: fill up the elements of largest weight first
    r, v = room.gather(1, order), w.abs().gather(1, order)
    before = r.cumsum(1) - r
    best = {L0(3): gain[:, :3].sum(1), L1(1.3): (v * torch.minimum(r, (1.3 - before).clamp(min=0))).sum(1)}
    s = torch.zeros(50, 1, dtype=torch.float64)
    low, high = s, s + 100
    for _ in range(200):  # L2: x + clip(s w), by bisection on the length
        s = (low + high) / 2
        over = torch.minimum(s * w.abs(), room).square().sum(1, keepdim=True) > 0.8**2
        low, high = torch.where(over, low, s), torch.where(over, s, high)
    best[L2(0.8)] = (w.abs() * torch.minimum(s * w.abs(), room)).sum(1)
    for threat, optimum in best.items():
        size = {"step_size": 0.2} if isinstance(threat, L2) else {}
        for attack in (PGD(threat, steps=100, **size), PGD(threat, steps=100, random_start=False, **size)):
            x_adv = attack(model, x, y, seed=0)
            found = (w * (x_adv - x)).sum(1)
            assert (found <= optimum + 1e-9).all()
            share = found / optimum
            if isinstance(threat, L0):  # which pixels move is decided greedily
                assert share.mean() > 0.9
                continue
            assert (share > (0.98 if isinstance(threat, L1) else 0.999)).all(), threat
    fgsm = (w * (FGSM(L0(3))(model, x, y) - x)).sum(1)
    assert (fgsm - best[L0(3)]).abs().max() < 1e-9  # one step of L0 is exact here


@pytest.mark.parametrize(("eps", "steps", "share"), [(0.5, 10, 0.25), (1.0, 20, 0.1)])
def test_pgd_equals_foolbox_where_the_box_is_far(eps, steps, share, digits_ann):
    model, x, y = digits_ann
    wide = (-20.0, 20.0)
    victim = foolbox.PyTorchModel(model, bounds=wide)
    reference = foolbox.attacks.L2PGD(rel_stepsize=share, steps=steps, random_start=False).run(
        victim, x, y, epsilon=eps
    )
    ours = PGD(L2(eps, wide), steps=steps, step_size=share * eps, random_start=False)(model, x, y)
    assert (ours - reference).abs().max() < 1e-6

    class Sparse(foolbox.attacks.SparseL1DescentAttack):  # its steps, and a projection that keeps to the ball
        def project(self, x, x0, epsilon):
            return eagerpy.astensor(onto_l1(x0.raw, x.raw, epsilon))

    reference = Sparse(rel_stepsize=share, steps=steps).run(victim, x, y, epsilon=3 * eps)
    ours = PGD(L1(3 * eps, wide), steps=steps, step_size=share * 3 * eps, random_start=False)(model, x, y)
    assert (ours - reference).abs().max() < 1e-6


@pytest.mark.parametrize("eps", [0.5, 1.0])
def test_fgm_equals_foolbox_where_the_box_is_far(eps, digits_ann):
    model, x, y = digits_ann
    wide = (-20.0, 20.0)
    reference = foolbox.attacks.L2FastGradientAttack().run(foolbox.PyTorchModel(model, bounds=wide), x, y, epsilon=eps)
    assert (FGSM(L2(eps, wide))(model, x, y) - reference).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("threat", "rival"),
    [
        (L2(0.5), foolbox.attacks.L2PGD),
        (L2(1.0), foolbox.attacks.L2PGD),
        (L1(2.0), foolbox.attacks.L1PGD),
        (L1(4.0), foolbox.attacks.L1PGD),
        (L1(4.0), foolbox.attacks.SparseL1DescentAttack),
    ],
)
def test_pgd_is_not_weaker_than_foolboxs(threat, rival, digits_ann, record_property):
    model, x, y = digits_ann
    reference = rival(rel_stepsize=2.5 / 40, steps=40, random_start=False).run(
        foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilon=threat.eps
    )
    with torch.no_grad():
        theirs = (model(reference).argmax(1) == y).double().mean()
        ours = (model(PGD(threat, steps=40, random_start=False)(model, x, y)).argmax(1) == y).double().mean()
        noise = (model(RandomNoise(threat)(model, x, y, seed=0)).argmax(1) == y).double().mean()
    record_property("accuracies: ours, foolbox, noise", [float(v) for v in (ours, theirs, noise)])
    assert ours <= theirs + 0.01
    assert ours < noise - 0.1
