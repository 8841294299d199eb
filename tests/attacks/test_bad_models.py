"""Models that make an attack's number wrong: named, and what to do."""

import warnings

import pytest
import torch
from torch import nn

from snnrobust import evaluation
from snnrobust.attacks import FGSM, PGD, EvolutionStrategies, Linf, ProbabilitiesWarning, RandomNoise, Transfer
from snnrobust.attacks.attack import _are_probabilities

THREAT = Linf("8/255")


class Through(nn.Module):
    def __init__(self, model, function):
        super().__init__()
        self.model, self.function, self.calls = model, function, 0

    def forward(self, x):
        self.calls += 1
        return self.function(self.model, x)


@pytest.mark.parametrize("restarts", [1, 2])
def test_probabilities_are_named_once_a_call(restarts, victims):
    model, x, y = victims("direct")
    soft = Through(model, lambda model, x: model(x).softmax(1)).eval()
    with pytest.warns(ProbabilitiesWarning, match="PGD: the model returns probabilities .* return logits") as caught:
        x_adv = PGD(THREAT, steps=3, restarts=restarts, selection_draws=2)(soft, x, y, seed=0)
    assert len(caught) == 1
    THREAT.validate(x, x_adv)
    assert not soft._forward_hooks
    log = Through(model, lambda model, x: model(x).log_softmax(1)).eval()
    FGSM(THREAT)(log, x, y)  # logarithms of probabilities are logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbabilitiesWarning)
        RandomNoise(THREAT)(soft, x, y)


def test_in_evaluate_and_transfer(victims):
    model, x, y = victims("ann")
    soft = Through(model, lambda model, x: model(x).softmax(1)).eval()
    with pytest.warns(ProbabilitiesWarning):
        evaluation.evaluate(soft, (x, y), {"fgsm": FGSM(THREAT)}, progress=False)
    Transfer(FGSM(THREAT), model)(soft, x, y)  # the victim is never asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_taken_for_probabilities(dtype):
    logits = 3 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    assert _are_probabilities(logits.to(dtype).softmax(1))
    assert not _are_probabilities(logits.to(dtype))
    assert not _are_probabilities(logits.to(dtype).sigmoid())
    one_spike = nn.functional.one_hot(torch.arange(10), 10).to(dtype)
    assert not _are_probabilities(one_spike)
    assert not _are_probabilities(torch.ones(4, 1, dtype=dtype))
    if dtype != torch.bfloat16:
        assert _are_probabilities(logits.to(dtype)[:1, :2].softmax(1))
        for steps in (3, 4, 10, 100, 255):  # rates of spikes of which each step has one
            spikes = torch.randint(0, 3, (2, steps), generator=torch.Generator().manual_seed(steps))
            assert not _are_probabilities(nn.functional.one_hot(spikes, 3).to(dtype).mean(1))
    assert not _are_probabilities(torch.full((4, 10), torch.nan, dtype=dtype))


@pytest.mark.parametrize("change", [lambda x: x.mul_(0.5), lambda x: x.clamp_(0.1, 0.9)], ids=["mul", "clamp"])
@pytest.mark.parametrize(
    "attack",
    [FGSM(THREAT), PGD(THREAT, steps=2), PGD(THREAT, steps=2, gradient=EvolutionStrategies(4))],
    ids=["FGSM", "PGD", "ES"],
)
def test_a_model_that_changes_its_input(attack, change, victims):
    model, x, y = victims("ann")
    greedy = Through(model, lambda model, x: model(change(x))).eval()
    with pytest.raises(ValueError, match="the model changes its input in place"):
        attack(greedy, x, y, seed=0)
    with pytest.raises(ValueError, match="the model changes its input in place"):
        evaluation.evaluate(greedy, (x.clone(), y), {"noise": RandomNoise(THREAT)}, progress=False)


def test_a_change_behind_torch_s_back(victims):
    model, x, y = victims("ann")
    greedy = Through(model, lambda model, x: (x.data.mul_(0.5), model(x))[1]).eval()
    with pytest.raises(
        RuntimeError, match=r"x was changed in place under FGSM: perturb\(\) and the model must work on a copy"
    ):
        FGSM(THREAT)(greedy, x, y)


def test_a_model_in_training_mode_is_attacked_in_eval_mode(victims):
    model, x, y = victims("direct")
    expected = FGSM(THREAT)(model.eval(), x, y)
    assert torch.equal(FGSM(THREAT)(model.train(), x, y), expected)
    assert model.training
