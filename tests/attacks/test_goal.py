import pytest
import torch
from torch import nn

from snnrobust.attacks import FGSM, PGD, Backprop, Goal, Linf, RandomNoise, Transfer, cross_entropy, dlr, dlr_targeted
from snnrobust.attacks.selection import measure
from snnrobust.draws import Stream

Z = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [2.0, 2.0, 0.0]])
Y = torch.tensor([0, 0, 1])


def test_any_other_class():
    goal = Goal(Y)
    assert goal.reached(Z).tolist() == [False, True, True]  # the third is a tie, which the first class wins
    assert goal.margin(Z).tolist() == [-1.0, 5.0, 0.0]
    assert goal.labels is Y
    assert goal.loss(dlr) is dlr
    assert goal.next_classes(Z, 2).tolist() == [[2, 1], [1, 2], [0, 2]]


def test_one_class():
    goal = Goal(Y, torch.tensor([2, 1, 0]))
    assert goal.reached(Z).tolist() == [False, True, True]
    assert goal.margin(Z).tolist() == [-1.0, 4.0, 0.0]
    assert goal.loss(dlr) is dlr_targeted
    some = goal.select(torch.tensor([2, 0]))
    assert some.y.tolist() == [1, 0]
    assert some.labels.tolist() == [0, 2]
    assert len(some) == 2


def test_the_gradient_leads_towards_the_target(victims):
    model, x, y = victims("ann")
    targets, stream = (y + 1) % 3, Stream(0, torch.arange(len(x)))
    g, logits = Goal(y, targets).gradient(Backprop(), model, x, cross_entropy, stream)
    plain, same = Backprop()(model, x, targets, cross_entropy, stream)
    assert torch.equal(g, -plain)
    assert torch.equal(logits, same)


@pytest.mark.parametrize(
    "attack", [FGSM(Linf(0.2)), PGD(Linf(0.2), steps=10), PGD(Linf(0.2), restarts=3, early_stop=True)]
)
@pytest.mark.parametrize("kind", ["ann", "chip"])
def test_targets_are_approached(attack, kind, victims):
    model, x, y = victims(kind)
    targets = (y + 1) % 3
    x_adv = attack(model, x, y, targets=targets, seed=0)
    with torch.no_grad():
        before, after = (Goal(y, targets).margin(model(inputs)) for inputs in (x, x_adv))
    assert after.mean() > before.mean()
    assert not torch.equal(x_adv, attack(model, x, y, seed=0))


def test_a_transfer_goes_to_the_targets_too(victims):
    model, x, y = victims("ann")
    targets, inner = (y + 1) % 3, PGD(Linf(0.3), steps=5)
    found = Transfer(inner, model)(model, x, y, targets=targets, seed=0)
    with torch.no_grad():
        assert Goal(y, targets).margin(model(found)).mean() > Goal(y, targets).margin(model(x)).mean()
    with pytest.raises(ValueError, match="targets must differ"):
        Transfer(inner, model)(model, x, y, targets=y)
    with pytest.raises(TypeError, match="RandomNoise takes no targets"):
        Transfer(RandomNoise(Linf(0.1)), model)(model, x, y, targets=targets)


def test_early_stop_and_selection_mean_the_target():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0], [-1.0]]))
    x, y, targets = torch.full((1, 1), 0.5), torch.tensor([0]), torch.tensor([2])
    attack = PGD(Linf(0.4), steps=6, random_start=False, early_stop=True)
    # class 1 is predicted at the start, which is wrong but not the target: an untargeted attack stays
    assert torch.equal(attack(model, x, y, seed=0), x)
    assert float(attack(model, x, y, targets=targets, seed=0)) < 0.2
    measured = measure(model, x, Goal(y, targets), Stream(0, torch.arange(1)), 1)
    assert measured.correct.tolist() == [1]
    assert measured.margin.tolist() == [-1.0]


@pytest.mark.parametrize(
    ("targets", "error", "match"),
    [
        (torch.tensor([1, 1]), ValueError, "one label a sample"),
        (torch.tensor([1.0] * 6), TypeError, "targets must be int64"),
        (None, ValueError, "targets must differ from the labels, but 6 of 6 are the label itself"),
        (torch.tensor([9] * 6), ValueError, r"must lie in 0\.\.2"),
    ],
)
def test_bad_targets_are_named(targets, error, match, victims):
    model, x, y = victims("ann")
    with pytest.raises(error, match=match):
        FGSM(Linf(0.1))(model, x, y, targets=y if targets is None else targets)
