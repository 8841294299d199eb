"""Our attacks where foolbox expects one of its own, and on its models."""

import pytest
import torch
from torch import nn

from snnrobust import evaluation
from snnrobust.attacks import EOT, L2, PGD, Linf, Surrogate, foolbox_victim, to_foolbox
from snnrobust.neurons.surrogate import ATan

foolbox = pytest.importorskip("foolbox")
MISSED = foolbox.criteria.Misclassification


def boxed(model, **settings):
    return foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu", **settings)


@pytest.mark.parametrize("kind", ["ann", "direct", "poisson"])
def test_a_call_as_foolbox_s(kind, victims):
    model, x, y = victims(kind)
    theirs = boxed(model)
    attack = PGD(Linf(0.1), steps=4)
    ours = to_foolbox(attack, seed=3)
    raw, clipped, success = ours(theirs, x, MISSED(y), epsilons=[0.02, 0.1])
    assert [type(raw), len(raw), len(clipped), success.shape] == [list, 2, 2, (2, 6)]
    for eps, a, b in zip((0.02, 0.1), raw, clipped, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, attack.at(eps)(model, x, y, seed=3)) or kind == "poisson"  # draws are keyed by path
    one, _, solved = ours(theirs, x, y, epsilons=0.1)
    assert torch.equal(one, raw[1])
    assert solved.shape == (6,)
    if kind == "ann":
        assert torch.equal(solved, model(one).argmax(1) != y)


def test_preprocessing_counts(victims):
    model, x, y = victims("ann")
    theirs = boxed(model, preprocessing={"mean": 0.3, "std": 0.5})

    class By(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner((x - 0.3) / 0.5)

    attack = PGD(Linf(0.1), steps=4)
    torch.testing.assert_close(attack(foolbox_victim(theirs), x, y, seed=0), attack(By().eval(), x, y, seed=0))


def test_on_foolbox_models(victims):
    """Modes, draws and surrogates reach what is inside."""
    model, x, y = victims("poisson")
    victim = foolbox_victim(boxed(model).transform_bounds((0, 1)))
    assert any(m is model for m in victim.modules())
    attack = PGD(Linf(0.1), steps=2, gradient=Surrogate(ATan(5.0), EOT(2)))
    assert torch.equal(attack(victim, x, y, seed=0), attack(victim, x, y, seed=0))
    wrapped = foolbox_victim(boxed(model).transform_bounds((-1, 1), wrapper=True))
    assert any(m is model for m in wrapped.modules())
    report = evaluation.evaluate(victim, (x, y), {"pgd": PGD(Linf(0.1), steps=2)}, progress=False, judge_draws=4)
    assert report.rows[1]["gradients"] == 2 * 6


def test_bad_input_is_named(victims):
    model, x, y = victims("ann")
    ours = to_foolbox(PGD(Linf(0.1)))
    with pytest.raises(ValueError, match=r"the foolbox model has bounds \(-1.0, 1.0\), the threat \(0.0, 1.0\)"):
        ours(boxed(model).transform_bounds((-1, 1)), x, y, epsilons=0.1)
    with pytest.raises(TypeError, match="criterion must be labels"):
        ours(boxed(model), x, foolbox.criteria.TargetedMisclassification(y), epsilons=0.1)
    with pytest.raises(TypeError, match="attack must be an attack such as"):
        to_foolbox(L2(0.1))
    with pytest.raises(TypeError, match=r"model must be a foolbox.PyTorchModel, got function"):
        foolbox_victim(lambda x: x)
    with pytest.raises(TypeError, match="model must be a function"):
        foolbox_victim(3)
