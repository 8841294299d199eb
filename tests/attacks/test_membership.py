"""Membership inference on networks that remember, and on ones that cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from snnrobust import data
from snnrobust.attacks import OfflineLiRA, ShadowMIA, ThresholdMIA, membership_report, train_shadows
from snnrobust.attacks.membership import SIGNALS, from_logits, signals
from snnrobust.draws import Stream, draws
from snnrobust.encoders import Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF


def remember(pair, seed, steps=80):
    """A network that learns a few noisy labels by heart."""
    x, y = pair
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


@pytest.fixture(scope="module")
def split():
    """Noisy digits: members, non-members, pool."""
    x, y = data.take(data.load("digits", "train"))
    generator = torch.Generator().manual_seed(0)
    noisy = torch.rand(len(y), generator=generator) < 0.3
    y = torch.where(noisy, torch.randint(0, 10, y.shape, generator=generator), y)
    return (x[:150], y[:150]), (x[150:350], y[150:350]), (x[350:950], y[350:950])


@pytest.fixture(scope="module")
def victim(split):
    return remember(split[0], 7)


@pytest.fixture(scope="module")
def shadows(split):
    return train_shadows(remember, split[2], 6, share=0.25)


@pytest.mark.parametrize("signal", ["logit", "loss", "modified_entropy", "margin"])
def test_an_overfit_network_is_found_out(split, victim, signal):
    members, others, _ = split
    found = ThresholdMIA(signal=signal)(victim, members, others)
    assert found.auc.low > 0.6
    assert found.balanced_accuracy.low > 0.55
    assert found.attack == f"threshold on {signal}"
    assert len(found.members) == 150
    assert len(found.non_members) == 200


@pytest.mark.parametrize("signal", SIGNALS)
def test_samples_that_the_network_never_saw_are_not_told_apart(split, victim, signal):
    _, others, pool = split
    found = ThresholdMIA(signal=signal)(victim, (pool[0][:300], pool[1][:300]), others)
    assert found.auc.low < 0.5 < found.auc.high
    assert found.balanced_accuracy.low < 0.5


def test_shadows_find_it_out_with_a_threshold_of_their_own(split, victim, shadows):
    members, others, _ = split
    for attack in (ShadowMIA(shadows=shadows), ShadowMIA(shadows=shadows, signal="loss")):
        found = attack(victim, members, others)
        assert found.auc.low > 0.6
        assert found.calibrated.low > 0.6
    loss = ThresholdMIA(signal="loss")(victim, members, others)
    np.testing.assert_array_equal(found.members, loss.members)


def test_a_threshold_of_shadows_whose_members_look_worse_is_turned_round(split, victim, shadows):
    members, others, _ = split
    turned = replace(shadows, inside=~shadows.inside)
    found, usual = (ShadowMIA(shadows=s, signal="loss")(victim, members, others) for s in (turned, shadows))
    assert found.auc.value == pytest.approx(1 - usual.auc.value)
    assert found.calibrated.value == pytest.approx(1 - usual.calibrated.value)


@pytest.mark.parametrize("variance", ["global", "each"])
def test_lira_finds_it_out(split, victim, shadows, variance):
    members, others, _ = split
    found = OfflineLiRA(shadows=shadows, variance=variance)(victim, members, others)
    assert found.auc.low > 0.6
    assert found.attack == "offline LiRA, 6 shadows"


def test_lira_is_not_misled_by_easy_samples(shadows):
    """Confidence is mostly how easy a sample is; what membership adds is small, and only the shadows know the rest."""
    generator = torch.Generator().manual_seed(0)
    easy, inside = 10 * torch.randn(600, generator=generator), torch.arange(600) < 300
    observed = easy + 2.0 * inside + torch.randn(600, generator=generator)
    out = easy + torch.randn(16, 600, generator=generator)
    plain = membership_report("plain", observed[inside].numpy(), observed[~inside].numpy())
    assert plain.auc.value < 0.65
    for variance in ("global", "each"):
        score = OfflineLiRA(shadows=shadows, variance=variance).score(observed, out)
        found = membership_report("LiRA", score[inside].numpy(), score[~inside].numpy())
        assert found.auc.value > 0.85
        assert found.at_fpr[1].tpr.value > plain.at_fpr[1].tpr.value + 0.1


def test_lira_scores_are_the_formula(split, victim, shadows):
    members, others, _ = split
    observed, out = torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 4.0]])
    each = OfflineLiRA(shadows=shadows, variance="each").score(observed, out)
    torch.testing.assert_close(each, torch.tensor([0.0, 0.0]))
    common = OfflineLiRA(shadows=shadows).score(observed + 1, out)
    torch.testing.assert_close(common, torch.full((2,), 1 / 2.0**0.5))  # variances 1 and 3
    assert (
        OfflineLiRA(shadows=shadows, variance="each").score(observed, out * torch.tensor([0.0, 1.0])).isfinite()
    ).all()
    found = OfflineLiRA(shadows=shadows, variance="each")(victim, members, others)
    x, y = torch.cat([members[0], others[0]]), torch.cat([members[1], others[1]])
    with torch.no_grad():
        phi = []
        for model in (victim, *shadows.models):
            p = model(x).double().softmax(1).gather(1, y[:, None])[:, 0]
            phi.append(p.log() - (1 - p).log())
        out = torch.stack(phi[1:])
        expected = (phi[0] - out.mean(0)) / out.std(0)
    easy = phi[0] < 20  # beyond that 1 - p has few digits
    torch.testing.assert_close(
        torch.from_numpy(np.r_[found.members, found.non_members])[easy], expected[easy], rtol=1e-6, atol=1e-6
    )


def test_signals_are_the_formulas():
    z = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    y = torch.arange(50) % 5
    found = from_logits(z.float(), y)
    p = z.float().double().softmax(1).numpy()
    for i in range(50):
        t = p[i, y[i]]
        others = np.delete(p[i], y[i])
        expected = {
            "logit": np.log(t / (1 - t)),
            "loss": np.log(t),
            "confidence": p[i].max(),
            "entropy": (p[i] * np.log(p[i])).sum(),
            "modified_entropy": (1 - t) * np.log(t) + (others * np.log(1 - others)).sum(),
            "margin": np.log(t) - np.log(others.max()),
            "correct": float(t > others.max()),
        }
        assert {k: float(v[i]) for k, v in found.items()} == pytest.approx(expected, abs=1e-9)
    assert tuple(found) == SIGNALS


def test_signals_are_finite_and_told_apart_where_probabilities_round():
    z = torch.tensor([[60.0, 0.0, 0.0], [80.0, 0.0, 0.0], [0.0, 60.0, 0.0], [0.0, 800.0, 0.0]])
    found = from_logits(z, torch.zeros(4, dtype=torch.int64))
    assert all(v.isfinite().all() for v in found.values())
    log2 = float(np.log(2))
    assert found["logit"].tolist() == pytest.approx([60 - log2, 80 - log2, -60, -800], abs=1e-6)
    assert found["modified_entropy"].tolist() == pytest.approx([0, 0, -60 - 60 + log2, -800 - 800 + log2], abs=1e-6)
    assert found["modified_entropy"][0] < found["modified_entropy"][1] < 0


def test_random_models_are_averaged_over_keyed_draws():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Sequential(nn.Flatten(), nn.Linear(64, 8), LIF(threshold=0.3), nn.Linear(8, 10))
    model = SpikingClassifier(Poisson(3), network, MeanOutput()).double().train()
    x, y = data.take(data.load("digits", "test"), 20)
    state = torch.random.get_rng_state()
    found = signals(model, x.double(), y, seed=3, draws=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    batched = signals(model, x.double(), y, seed=3, draws=4, batch_size=7)
    for name in SIGNALS:
        torch.testing.assert_close(found[name], batched[name], rtol=1e-12, atol=1e-12)
    assert not torch.equal(found["loss"], signals(model, x.double(), y, seed=4, draws=4)["loss"])
    assert not torch.equal(found["loss"], signals(model, x.double(), y, seed=3, draws=4, first_id=5)["loss"])
    shares = found["correct"] * 4
    assert torch.equal(shares, shares.round())
    assert ((shares > 0) & (shares < 4)).any()
    one = signals(model, x.double(), y, seed=3, draws=1)["correct"]
    assert set(one.tolist()) <= {0.0, 1.0}
    report = ThresholdMIA(draws=4)(model, (x[:10].double(), y[:10]), (x[10:].double(), y[10:]), seed=3)
    # the draws of another sample are others, whichever set it is in
    np.testing.assert_allclose(np.r_[report.members, report.non_members], found["loss"], rtol=1e-12)


def test_shadows_are_reproducible_and_know_their_members(split):
    seen = []

    def train(pair, seed):
        seen.append((len(pair[1]), seed, float(torch.rand(()))))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    state = torch.random.get_rng_state()
    first = train_shadows(train, split[2], 3, seed=1, share=0.5)
    again = train_shadows(train, split[2], 3, seed=1, share=0.5)
    other = train_shadows(train, split[2], 3, seed=2, share=0.5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.inside, again.inside)
    assert not torch.equal(first.inside, other.inside)
    assert seen[:3] == seen[3:6] != seen[6:]
    assert len({s for _, s, _ in seen[:3]}) == 3
    assert first.inside.sum(1).tolist() == [300] * 3
    for a, b in zip(first.models, again.models, strict=True):
        assert torch.equal(a[1].weight, b[1].weight)
    assert not torch.equal(first.models[0][1].weight, first.models[1][1].weight)


def test_the_same_seed_gives_the_same_report(split, victim, shadows):
    members, others, _ = split
    first, again = (str(ShadowMIA(shadows=shadows)(victim, members, others, seed=4)) for _ in range(2))
    assert first == again


def test_bad_input_is_named(split, victim, shadows):
    members, others, pool = split
    x, y = members
    with pytest.raises(ValueError, match="150 of 150 members are among the non_members too"):
        ThresholdMIA()(victim, members, members)
    with pytest.raises(ValueError, match="10 of 210 non_members are among the shadows' pool too"):
        OfflineLiRA(shadows=shadows)(
            victim, members, (torch.cat([others[0], pool[0][:10]]), torch.cat([others[1], pool[1][:10]]))
        )
    with pytest.raises(ValueError, match="600 of 600 members are among the shadows' pool too"):
        ShadowMIA(shadows=shadows)(victim, pool, others)
    with pytest.raises(ValueError, match=r"inputs of one shape, got \(1, 8, 8\) and \(64,\)"):
        ThresholdMIA()(victim, members, (others[0].flatten(1), others[1]))
    with pytest.raises(ValueError, match=r"y must lie in 0\.\.9"):
        ThresholdMIA()(victim, (x, y + 5), others)
    with pytest.raises(ValueError, match="members contains NaN"):
        ThresholdMIA()(victim, (x * torch.nan, y), others)
    with pytest.raises(ValueError, match="signal must be one of logit, loss"):
        ThresholdMIA(signal="losses")
    with pytest.raises(ValueError, match="variance must be one of global, each"):
        OfflineLiRA(shadows=shadows, variance="one")
    with pytest.raises(TypeError, match="shadows must come from train_shadows"):
        ShadowMIA(shadows=[victim])
    single = train_shadows(lambda pair, seed: nn.Linear(64, 10), pool, 1)
    with pytest.raises(ValueError, match="shadows must be at least 2 models, got 1"):
        OfflineLiRA(shadows=single)
    with pytest.raises(ValueError, match="train returned the same model twice"):
        train_shadows(lambda pair, seed: victim, pool, 2)
    with pytest.raises(TypeError, match="what train returns must be"):
        train_shadows(lambda pair, seed: None, pool, 2)
    with pytest.raises(ValueError, match="share must leave samples inside and outside"):
        train_shadows(remember, pool, 2, share=1.0)
    constant = train_shadows(lambda pair, seed: nn.Sequential(nn.Flatten(), _Constant()), pool, 2)
    with pytest.raises(ValueError, match="all shadows agree on all samples"):
        OfflineLiRA(shadows=constant)(victim, members, others)
    with pytest.raises(ValueError, match="logits must be finite and of at least 2 classes"):
        from_logits(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


class _Constant(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 10)


def test_streams_of_the_attack_are_its_own():
    """A judge who measures the model under the same seed does not meet the attacker's draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Sequential(nn.Flatten(), nn.Linear(64, 8), LIF(threshold=0.3), nn.Linear(8, 10))
    model = SpikingClassifier(Poisson(2), network, MeanOutput()).eval()
    x, y = data.take(data.load("digits", "test"), 10)
    stream = Stream(3, torch.arange(10))
    with torch.no_grad(), draws(model, stream.key, stream.sample_ids):
        loss = from_logits(model(x), y)["loss"]
    assert not torch.equal(signals(model, x, y, seed=3, draws=1)["loss"], loss)
