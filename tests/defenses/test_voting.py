from collections import Counter
from itertools import pairwise
from math import comb, log

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from snnrobust import attacks, models
from snnrobust.defenses import Voting
from snnrobust.defenses.voting import mean_logits, mean_probabilities, mode
from snnrobust.draws import Stochastic, derive, draws, fresh_key, is_stochastic
from snnrobust.encoders import Poisson
from snnrobust.hardware import GaussianNoise, deploy


class Lottery(Stochastic):
    """Class k wins with probability ``p[k]``, whatever the input: logits 0 and ``sharp``."""

    def __init__(self, p, sharp=30.0):
        super().__init__()
        self.edges, self.sharp, self.calls = torch.tensor(p).cumsum(0)[:-1], sharp, 0

    def forward(self, x):
        self.calls += 1
        winner = (self.uniform((1, len(x)))[0][:, None] >= self.edges).sum(1)
        return self.sharp * F.one_hot(winner, len(self.edges) + 1).to(x.dtype)


class Jitter(Stochastic):
    """Logits (x + noise, -x), elementwise, so that they do not depend on the batch to the bit."""

    def forward(self, x):
        z = x[:, 0] + self.normal((1, len(x)))[0].to(x.dtype)
        return torch.stack([z, -x[:, 0]], 1)


def noisy(seed=0, sigma=0.7):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return deploy(model, GaussianNoise(multiplicative=sigma), seed=seed)


def inputs(n=5, seed=0):
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("p", "votes"), [(0.7, 1), (0.6, 5), (0.55, 21), (0.3, 7)])
def test_the_mode_of_two_classes_is_right_as_often_as_the_binomial_says(p, votes):
    """Chi-square over 5,000 samples, significance 0.001."""
    n = 5000
    with torch.no_grad(), draws(voting := Voting(Lottery([p, 1 - p]), votes), 3):
        won = int((voting(torch.zeros(n, 1)).argmax(1) == 0).sum())
    right = sum(comb(votes, k) * p**k * (1 - p) ** (votes - k) for k in range(votes // 2 + 1, votes + 1))
    assert stats.chisquare([won, n - won], [n * right, n * (1 - right)]).pvalue > 0.001


def test_votes_of_three_classes_are_multinomial():
    """All 15 outcomes of 4 votes, chi-square over 20,000 samples, significance 0.001: votes are independent."""
    n, votes, p = 20_000, 4, [0.5, 0.3, 0.2]
    with torch.no_grad(), draws(voting := Voting(Lottery(p), votes), 5):
        winners = voting.ballots(torch.zeros(n, 1)).argmax(2)
    seen = Counter(tuple(torch.bincount(w, minlength=3).tolist()) for w in winners.T)
    outcomes = [(a, b, votes - a - b) for a in range(votes + 1) for b in range(votes + 1 - a)]
    expected = [n * stats.multinomial.pmf(o, votes, p) for o in outcomes]
    assert stats.chisquare([seen[o] for o in outcomes], expected).pvalue > 0.001


ballots = st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(2, 4), st.integers(0, 10_000)).map(
    lambda a: torch.randn(*a[:3], generator=torch.Generator().manual_seed(a[3]), dtype=torch.float64).mul(3)
)


@given(ballots)
def test_the_mode_is_the_commonest_class_and_ties_go_to_the_mean_probability(logits):
    out = mode(logits)
    assert torch.allclose(out.exp().sum(1), torch.ones(len(out), dtype=out.dtype))
    for b in range(logits.shape[1]):
        counts = Counter(logits[:, b].argmax(1).tolist())
        p = logits[:, b].softmax(1).mean(0)
        tied = [k for k, c in counts.items() if c == max(counts.values())]
        assert int(out[b].argmax()) == max(tied, key=lambda k: float(p[k]))
        for k in range(logits.shape[2]):
            assert float(out[b, k]) == pytest.approx(log((counts[k] + float(p[k]) / 2) / (len(logits) + 0.5)))


@given(ballots)
def test_means_are_means(logits):
    assert torch.allclose(mean_logits(logits), sum(logits) / len(logits))
    assert torch.allclose(mean_probabilities(logits).exp(), sum(z.softmax(1) for z in logits) / len(logits))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_certain_votes_have_finite_logits(size):
    logits = torch.tensor([[[size, 0.0, -size]], [[size, 0.0, -size]]], requires_grad=True)
    for rule in (mode, mean_probabilities):
        assert rule(logits).isfinite().all()
        assert int(rule(logits).argmax()) == 0
    (gradient,) = torch.autograd.grad(mode(logits)[0, 1], logits)
    assert gradient.isfinite().all()


def test_each_vote_is_a_prediction_under_a_key_of_its_own():
    model, x, ids = noisy(), inputs(), torch.arange(5) + 40
    voting = Voting(model, 4)
    outer = nn.Sequential(nn.Identity(), voting)
    with torch.no_grad(), draws(outer, 9, ids):
        found, key = voting.ballots(x), voting.key
        assert key == derive(9, "1")  # all bits of it
        assert torch.equal(voting.ballots(x), found)
    for i, ballot in enumerate(found):
        with torch.no_grad(), draws(model, Voting.vote_key(key, i), ids):
            assert torch.equal(model(x), ballot)
    assert all(not torch.allclose(a, b) for a, b in pairwise(found))
    with torch.no_grad(), draws(outer, 10, ids):
        assert not torch.allclose(voting.ballots(x), found)
    with torch.no_grad(), draws(outer, 9, ids + 1):
        assert not torch.allclose(voting.ballots(x), found)


@pytest.mark.parametrize("rule", ["mode", "mean_logits", "mean_probabilities"])
def test_a_sample_has_its_votes_in_any_batch(rule):
    x, ids, voting = torch.linspace(-1, 1, 9)[:, None], torch.arange(9) * 7, Voting(Jitter(), 6, rule)
    with draws(voting, 1, ids):
        whole = voting(x)
    order = torch.tensor([8, 3, 4, 0, 2, 1, 7, 6, 5])
    parts = []
    for index in order.split(4):
        with draws(voting, 1, ids[index]):
            parts.append(voting(x[index]))
    assert torch.equal(torch.cat(parts), whole[order])


def test_votes_are_nested():
    """The first votes of many are the votes of few."""
    with draws(few := Voting(Jitter(), 3), 1):
        three = few.ballots(torch.zeros(4, 1))
    with draws(many := Voting(Jitter(), 8), 1):
        assert torch.equal(many.ballots(torch.zeros(4, 1))[:3], three)


def test_keys_and_generators_are_left_as_they_were():
    model = noisy()
    voting, x = Voting(model, 3), inputs()
    torch.manual_seed(0)
    first, second = voting(x), voting(x)
    assert not torch.equal(first, second)  # without a key each prediction is drawn anew
    torch.manual_seed(0)
    assert torch.equal(voting(x), first)
    state = torch.get_rng_state()
    with draws(voting, 2):
        before = [m._key for m in voting.modules() if isinstance(m, Stochastic)]
        voting(x)
        assert [m._key for m in voting.modules() if isinstance(m, Stochastic)] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert fresh_key(voting) is not None


def test_it_costs_what_it_says():
    model = Lottery([0.5, 0.5])
    voting = Voting(model, 7)
    voting(torch.zeros(2, 1))
    assert model.calls == voting.cost == 7
    assert "votes=7, rule='mode'" in repr(voting)


def test_randomness_is_that_of_the_model():
    assert is_stochastic(Voting(noisy(), 2))
    still = Voting(noisy(sigma=0.0), 3, "mean_logits")
    assert not is_stochastic(still)
    x = inputs()
    assert torch.allclose(still(x), still.model(x))
    snn = models.spiking((models.Dense(5),), (6,), 3, Poisson(4))
    assert is_stochastic(voting := Voting(snn.eval(), 3))
    with torch.no_grad():
        assert voting(inputs().float()).shape == (5, 3)


def test_modes_of_modules_are_kept():
    assert not Voting(noisy().eval()).training
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout())
    assert Voting(model).training
    assert Voting(model, 2).eval()(inputs().float()).shape == (5, 3)
    assert not model.training


@pytest.mark.parametrize("rule", ["mean_logits", "mean_probabilities"])
def test_gradients_of_means_are_exact(rule):
    voting, x = Voting(noisy(), 3, rule), inputs(2).requires_grad_()

    def out(x):
        with draws(voting, 4):
            return voting(x)

    assert torch.autograd.gradcheck(out, (x,))


def test_the_gradient_of_the_mode_is_that_of_the_mean_probability():
    gradients = []
    for rule in ("mode", "mean_probabilities"):
        voting, x = Voting(noisy(), 5, rule), inputs().requires_grad_()
        with draws(voting, 4):
            gradients.append(torch.autograd.grad(voting(x)[:, 1].sum(), x)[0])
    assert gradients[0].abs().min() > 0
    assert torch.allclose(*gradients, rtol=0, atol=1e-14)


@pytest.mark.parametrize("gradient", [attacks.Backprop(), attacks.EOT(2)])
def test_attacks_are_not_blunted(gradient):
    """A linear model whose votes are all but sure: PGD turns them, random signs of the same size do not."""
    weight = torch.tensor([[1.0, -1.0] * 20, [-1.0, 1.0] * 20])
    model = nn.Sequential(nn.Linear(40, 2, bias=False))
    model[0].weight.data = weight
    x = 0.5 + 0.05 * torch.tensor([1.0, -1.0] * 20).expand(30, 40)
    y, threat = torch.zeros(30, dtype=torch.int64), attacks.Linf(0.1)
    voting = Voting(deploy(model, GaussianNoise(multiplicative=0.5), seed=0), 5)

    def accuracy(inputs):
        with torch.no_grad(), draws(voting, 77):
            return float((voting(inputs).argmax(1) == y).double().mean())

    assert accuracy(x) > 0.9
    assert accuracy(attacks.RandomSign(threat)(voting, x, y, seed=0)) > 0.8
    assert accuracy(attacks.PGD(threat, steps=3, gradient=gradient)(voting, x, y, seed=0)) < 0.1


def test_it_is_saved_with_its_model(tmp_path):
    voting = Voting(models.spiking((models.Dense(5),), (6,), 3, Poisson(4)), 3, "mean_logits").eval()
    models.save(voting, tmp_path / "voting.safetensors")
    again = models.load(tmp_path / "voting.safetensors")
    assert (type(again), again.votes, again.rule) == (Voting, 3, "mean_logits")
    with torch.no_grad(), draws(voting, 1):
        expected = voting(inputs().float())
    with torch.no_grad(), draws(again, 1):
        assert torch.equal(again(inputs().float()), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((lambda x: x,), TypeError, r"model must be a torch\.nn\.Module"),
        ((noisy(), 0), ValueError, "votes must be at least 1, got 0"),
        ((noisy(), 2.0), TypeError, "votes must be an integer"),
        ((noisy(), 2, "modes"), ValueError, r"rule must be one of .* \(did you mean 'mode'\?\)"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        Voting(*arguments)


def test_a_model_without_logits_is_named():
    with pytest.raises(ValueError, match=r"must return logits \[B, K\], got shape \(5,\)"):
        Voting(nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)))(inputs().float())
