from math import sqrt

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.attacks.goal import Goal
from snnrobust.attacks.selection import Measurement, better, measure
from snnrobust.draws import Stochastic, Stream


class Coin(Stochastic):
    """Two classes; class 0 wins where ``x + noise > 0``, so with probability Phi(x)."""

    def forward(self, x):
        z = x[:, 0] + self.normal((1, len(x)))[0]
        return torch.stack([z, torch.zeros_like(z)], 1)


def test_a_deterministic_model_is_measured_exactly(victims):
    model, x, y = victims("ann")
    with torch.no_grad():
        z = model(x)
    measured = measure(model, x, Goal(y), Stream(0, torch.arange(6)), 3)
    right = z.argmax(1) == y
    assert 0 < right.sum() < 6
    assert measured.correct.tolist() == (3 * right).tolist()
    assert torch.equal(measured.prediction, z.argmax(1))
    others = z.clone()
    others[torch.arange(6), y] = -torch.inf
    assert torch.allclose(measured.margin, others.amax(1) - z[torch.arange(6), y], atol=1e-12)


def test_a_random_model_is_right_as_often_as_its_probability():
    """400 samples at each of five probabilities, 32 draws: mean and variance of a binomial, significance 0.001 each."""
    n, draws, limit = 400, 32, stats.norm.isf(0.001 / 2 / 5)
    for p in (0.02, 0.3, 0.5, 0.9, 0.99):
        x = torch.full((n, 1), float(stats.norm.ppf(p)))
        measured = measure(Coin(), x, Goal(torch.zeros(n, dtype=torch.int64)), Stream(7, torch.arange(n)), draws)
        assert stats.binomtest(int(measured.correct.sum()), n * draws, p).pvalue > 0.001 / 5
        variance = draws * p * (1 - p)
        spread = ((measured.correct - draws * p) ** 2 / variance).mean()  # 1: samples and draws are independent
        assert abs(spread - 1) < limit * sqrt((2 + (1 - 6 * p * (1 - p)) / variance) / n)  # kurtosis of a binomial
        assert abs(measured.margin.mean() + x[0, 0]) < 4 / sqrt(n * draws)
        assert torch.equal(measured.prediction == 0, measured.correct >= draws / 2)


def test_the_draws_of_a_sample_do_not_depend_on_its_batch():
    x = torch.zeros(50, 1)
    y = torch.zeros(50, dtype=torch.int64)
    stream = Stream(3, torch.arange(50))
    whole = measure(Coin(), x, Goal(y), stream, 8)
    some = torch.tensor([3, 40])
    part = measure(Coin(), x[some], Goal(y[some]), stream.select(some), 8)
    assert torch.equal(part.correct, whole.correct[some])
    assert torch.equal(part.margin, whole.margin[some])
    assert not torch.equal(measure(Coin(), x, Goal(y), stream.fork("other"), 8).correct, whole.correct)


def test_nan_logits_are_an_error():
    with pytest.raises(ValueError, match="NaN logits"):
        measure(
            nn.Identity(),
            torch.full((2, 3), torch.nan),
            Goal(torch.zeros(2, dtype=torch.int64)),
            Stream(0, torch.arange(2)),
            1,
        )


def test_better_is_right_less_often_then_larger_margin():
    def standing(correct, margin):
        return Measurement(torch.tensor(correct), torch.tensor(margin), torch.zeros(4, dtype=torch.int64))

    challenger, holder = standing([1, 2, 2, 3], [-9.0, 0.5, 0.5, 9.0]), standing([2, 2, 2, 2], [9.0, 0.4, 0.5, 0.0])
    assert better(challenger, holder).tolist() == [True, True, False, False]


def test_choosing_among_attacks_that_do_nothing_does_not_lower_the_judged_accuracy():
    """The story of the protocol: 14 candidates equal to the clean input, on a random model of about 97 % accuracy."""
    n, candidates = 1000, 14
    generator = torch.Generator().manual_seed(0)
    x = 1.0 + 2.5 * torch.rand(n, 1, generator=generator)
    y = torch.zeros(n, dtype=torch.int64)
    stream, model = Stream(1, torch.arange(n)), Coin()
    exact = float(stats.norm.cdf(x[:, 0].numpy()).mean())

    single = [measure(model, x, Goal(y), stream.fork("once", c), 1) for c in range(candidates)]
    union = float(torch.stack([m.correct for m in single]).amin(0).double().mean())
    assert union < exact - 0.05  # any single wrong pass counts: nothing was attacked, and robustness is lost

    selected = [measure(model, x, Goal(y), stream.fork("select", c), 32) for c in range(candidates)]
    assert (
        float(torch.stack([m.correct for m in selected]).amin(0).double().mean()) / 32 < exact - 0.01
    )  # the minimum, too

    standing, chosen = selected[0], torch.zeros(n, dtype=torch.int64)
    for c, challenger in enumerate(selected[1:], start=1):
        wins = better(challenger, standing)
        chosen[wins] = c
        standing = Measurement(*(torch.where(wins, a, b) for a, b in zip(challenger, standing, strict=True)))
    assert len(chosen.unique()) == candidates
    judged = torch.stack([measure(model, x, Goal(y), stream.fork("judge", c), 128).correct for c in range(candidates)])
    accuracy = float(judged[chosen, torch.arange(n)].double().mean()) / 128
    p = stats.norm.cdf(x[:, 0].numpy())
    assert abs(accuracy - exact) < 4 * sqrt((p * (1 - p)).sum() / 128) / n
