from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from snnrobust import attacks
from snnrobust.defenses import PGDTraining
from snnrobust.draws import Stream, derive, draws
from snnrobust.experiments import parse
from snnrobust.learning_rules import BPTT


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def step(rule, model, x, y, ids, whole=None, key=5):
    """One backward pass as the loop asks for it; its loss."""
    model.train().zero_grad()
    with rule.lend(model, x[:1]) as lent:
        lent.before(Stream(key, ids), ids if whole is None else whole)
        with draws(model, key, ids):
            loss, logits = lent.backward(x, y, 1.0)
    return loss, logits, lent


@pytest.mark.parametrize("settings", [{}, {"steps": 3, "step_size": "1/20"}, {"random_start": False}, {"eot": 3}])
def test_what_is_learnt_is_the_gradient_at_the_examples_of_pgd_to_the_bit(settings, model, digits):
    (x, y), ids = (t[:12] for t in digits), torch.arange(40, 52)
    x, rule = x.contiguous(), PGDTraining(eps=0.1, **settings)
    reference = deepcopy(model)  # the step moves running statistics
    loss, logits, _ = step(rule, model, x, y, ids)

    size = 2.5 * 0.1 / settings.get("steps", 7) if "step_size" not in settings else 0.05
    source = attacks.EOT(3) if "eot" in settings else attacks.Backprop()
    start = settings.get("random_start", True)
    pgd = attacks.PGD(attacks.Linf(0.1), settings.get("steps", 7), size, random_start=start, gradient=source)
    x_adv = pgd(reference, x, y, seed=5, sample_ids=ids)
    with draws(reference.train(), 5, ids):
        expected = reference(x_adv)
        F.cross_entropy(expected, y).backward()
    assert torch.equal(logits, expected)
    assert loss == F.cross_entropy(expected, y)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(reference), strict=True))


@pytest.mark.parametrize(("size", "share", "attacked"), [
    (8, 0.5, 4), (7, 0.5, 4), (1, 0.5, 1), (2, 0.5, 1), (9, 1.0, 9), (10, 0.25, 3), (10, 0.04, 0), (100, 0.07, 7),
])  # fmt: skip
def test_so_many_of_a_batch_are_attacked(size, share, attacked, make, digits, monkeypatch):
    """Of an odd batch the larger half. They are the first; the rest is learnt as it is."""
    assert PGDTraining(share=share).attacked(size) == attacked
    x, y, learnt = digits[0][:size], digits[1][:size], []
    model = make("mlp")
    model[0].register_forward_hook(lambda m, _, z: learnt.append(z.detach().clone()) if m.training else None)
    _, logits, lent = step(PGDTraining(eps=0.1, share=share, steps=1), model, x, y, torch.arange(size))
    changed = (learnt[0] != x.flatten(1)).any(1)
    assert changed.tolist() == [True] * attacked + [False] * (size - attacked)
    right = (logits.argmax(1) == y)[:attacked]
    assert lent.tally["adversarial_accuracy"] == [float(right.sum()), attacked]


def test_the_attacked_are_those_of_the_whole_batch_also_in_a_part_of_it(make, digits):
    whole = torch.tensor([7, 3, 9, 1, 5, 0])  # 7, 3 and 9 are attacked
    x, y = digits[0][:3], digits[1][:3]
    _, _, lent = step(PGDTraining(eps=0.1, share=0.5), make("mlp"), x, y, torch.tensor([1, 9, 7]), whole)
    assert lent.tally["adversarial_accuracy"][1] == 2


def test_a_batch_without_an_attacked_sample_is_plain_backpropagation(make, digits):
    x, y, ids = digits[0][:5], digits[1][:5], torch.arange(5)
    model = make("poisson")
    step(PGDTraining(share=0.5), model, x, y, ids, whole=torch.arange(100, 200))
    found = gradients(model)
    model.zero_grad()
    with BPTT().lend(model, x[:1]) as lent, draws(model, 5, ids):
        lent.backward(x, y, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(model), strict=True))


def test_epochs_and_steps_have_draws_of_their_own(make, digits, monkeypatch):
    """A training that does not move: the examples of a sample differ between epochs by the random start alone."""
    found = []

    def note(threat, x, x_adv):
        found.append((x, x_adv))

    monkeypatch.setattr(attacks.Linf, "validate", note)
    rule = PGDTraining(eps=0.1, steps=1, step_size=1e-6, lr=1e-12, batch_size=50, seed=4)
    rule.fit(make("mlp"), digits, epochs=2, progress=False)
    starts = torch.cat([x_adv - x for x, x_adv in found]).flatten(1)
    inside = (starts.abs() > 1e-4) & (starts.abs() < 0.099)  # the rest is cut by the box
    assert inside.any(1).all()
    assert len(starts.unique(dim=0)) == 200
    keys = {derive(4, "train", epoch, index) for epoch in range(2) for index in range(2)}
    assert len(keys) == 4


def test_step_size_and_share_in_an_experiment_file():
    from snnrobust.experiments.build import build_rule

    text = """
name = "half"
[[models]]
name = "ann"
kind = "ordinary"
training.rule = { type = "PGDTraining", eps = "8/255", step_size = "2/255", share = 0.5 }
[[attacks]]
name = "pgd"
attack = { type = "PGD" }
"""
    rule = build_rule(parse(text, "here").models[0], 0)
    assert (rule.step_size, rule.share, rule.attack.step_size) == (2 / 255, 0.5, 2 / 255)
