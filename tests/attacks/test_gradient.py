from contextlib import nullcontext
from itertools import product
from math import sqrt

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.attacks import EOT, FGSM, PGD, Backprop, BluntGradientWarning, Linf, Surrogate, cross_entropy, margin
from snnrobust.draws import Stream, draws
from snnrobust.encoders import Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Dense, SpikingClassifier, spiking
from snnrobust.neurons import surrogate
from snnrobust.neurons.surrogate import ATan, Triangle

THREAT = Linf("8/255")


def test_losses_on_numbers_computed_by_hand():
    z = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 5.0]])
    y = torch.tensor([0, 1])
    assert margin(z, y).tolist() == [-1.0, 2.0]
    e = torch.e
    expected = torch.tensor([1 + 1 / e + 1 / e**2, 1 + e**-3 + e**2]).log()
    assert torch.allclose(cross_entropy(z, y), expected)


@pytest.mark.parametrize("kind", ["ann", "direct", "chip", "poisson"])
def test_backprop_is_the_gradient_of_the_summed_loss_under_the_draws_of_the_stream(kind, victims):
    model, x, y = victims(kind)
    stream = Stream(5, torch.arange(6) + 3)
    gradient, logits = Backprop()(model, x, y, cross_entropy, stream)
    leaf = x.clone().requires_grad_()
    with draws(model, 5, stream.sample_ids):
        z = model(leaf)
    cross_entropy(z, y).sum().backward()
    assert torch.equal(logits, z.detach())
    assert torch.equal(gradient, leaf.grad)
    assert not logits.requires_grad


def test_backprop_of_an_ann_agrees_with_finite_differences(victims):
    model, x, y = victims("ann")
    stream = Stream(0, torch.arange(6))
    gradient, _ = Backprop()(model, x, y, cross_entropy, stream)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    with torch.no_grad():
        up, down = (cross_entropy(model(x + h * direction), y) for h in (1e-6, -1e-6))
    slope = (gradient * direction).flatten(1).sum(1)
    assert torch.allclose((up - down) / 2e-6, slope, rtol=1e-5, atol=1e-8)


class Recorder:
    """Backprop that remembers what it was asked and what it answered."""

    def __init__(self):
        self.streams, self.answers = [], []

    def __call__(self, model, x, y, loss, stream):
        self.streams.append(stream)
        self.answers.append(Backprop()(model, x, y, loss, stream))
        return self.answers[-1]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_eot_is_the_mean_of_single_draws(n, victims):
    model, x, y = victims("poisson")
    stream, source = Stream(5, torch.arange(6) + 3), Recorder()
    gradient, logits = EOT(n, source)(model, x, y, cross_entropy, stream)
    assert len({s.key for s in source.streams}) == n
    assert all(torch.equal(s.sample_ids, stream.sample_ids) for s in source.streams)
    for mean, single in ((gradient, 0), (logits, 1)):
        singles = torch.stack([answer[single] for answer in source.answers])
        assert torch.allclose(mean, singles.mean(0), rtol=0, atol=1e-15)
        assert n == 1 or singles.std(0).max() > 1e-3


def test_eot_is_unbiased_for_a_poisson_encoded_linear_model():
    """Four pixels and one step: the 16 spike patterns are summed. One test of all components at significance 0.001."""
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(4, 3, bias=False).double()
    linear.weight.data = 2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    model = SpikingClassifier(Poisson(1), Sequential(linear), MeanOutput())
    x = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    y = torch.tensor(1)

    mean, square = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for pattern in product([0.0, 1.0], repeat=4):
        s = torch.tensor(pattern, dtype=torch.float64)
        probability = torch.where(s == 1, x, 1 - x).prod()
        with torch.no_grad():
            error = linear(s).softmax(0) - nn.functional.one_hot(y, 3)
            single = error @ linear.weight
        mean += probability * single
        square += probability * single**2
    deviation = (square - mean**2).sqrt()

    n, k = 500, 8  # 500 samples with draws of their own, EOT(8)
    stream = Stream(2, torch.arange(n))
    estimate, _ = EOT(k)(model, x.expand(n, 4), y.expand(n), cross_entropy, stream)
    z = (estimate.mean(0) - mean) / (deviation / sqrt(n * k))
    assert z.abs().max() < stats.norm.isf(0.001 / 2 / 4)  # Bonferroni over the four components
    spread = estimate.std(0) / (deviation / sqrt(k))
    assert (spread - 1).abs().max() < stats.norm.isf(0.001 / 2 / 4) * sqrt(2 / n)  # and n draws average as n do


@pytest.mark.parametrize("kind", ["poisson", "direct", "events"])
def test_a_surrogate_source_differentiates_through_that_surrogate(kind, victims):
    model, x, y = victims(kind)
    stream = Stream(5, torch.arange(6))
    source, plain = Surrogate(Triangle(0.7, 2.0)), Backprop()
    before = [m.surrogate for m in model.modules() if hasattr(m, "surrogate")]
    gradient, logits = source(model, x, y, cross_entropy, stream)
    assert [m.surrogate for m in model.modules() if hasattr(m, "surrogate")] == before
    with surrogate.override(model, Triangle(0.7, 2.0)):
        expected = plain(model, x, y, cross_entropy, stream)
    assert torch.equal(gradient, expected[0])
    own = plain(model, x, y, cross_entropy, stream)
    assert torch.equal(logits, own[1])  # the forward pass never depends on it
    assert not torch.allclose(gradient, own[0])
    nested = EOT(2, Surrogate(Triangle(0.7, 2.0)))(model, x, y, cross_entropy, stream)
    assert torch.allclose(nested[0], Surrogate(Triangle(0.7, 2.0), EOT(2))(model, x, y, cross_entropy, stream)[0])


def test_a_surrogate_for_an_ann_is_an_error(victims):
    with pytest.raises(ValueError, match="no surrogate to override"):
        PGD(THREAT, gradient=Surrogate(ATan(10.0)))(*victims("ann"))


def test_an_encoder_without_gradient_is_said_aloud_and_the_attack_stays_at_its_start():
    model = spiking((Dense(8),), (5,), 3, Poisson(4, gradient="none"))
    x, y = torch.rand(6, 5), torch.arange(6) % 3
    with pytest.warns(BluntGradientWarning, match="FGSM: the gradient is exactly zero for all 6 samples"):
        assert torch.equal(FGSM(THREAT)(model, x, y), x)
    with pytest.warns(BluntGradientWarning, match="PGD"):
        assert torch.equal(PGD(THREAT, random_start=False)(model, x, y), x)
    attacks = PGD(THREAT, steps=1), PGD(THREAT, steps=20, gradient=EOT(4))
    with pytest.warns(BluntGradientWarning):
        starts = [attack(model, x, y, seed=0) for attack in attacks]
    assert torch.equal(*starts)
    assert not torch.equal(starts[0], x)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(4, 3)

    def forward(self, x):
        return self.function(x, self.linear)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, linear: linear(x.detach()), "do not depend on x"),
        (lambda x, linear: linear(x).detach(), "do not depend on x"),
        (lambda x, linear: linear((x > 0.5).float()), "do not depend on x"),
        (lambda x, linear: linear(x) * torch.nan, "NaN logits"),
        (lambda x, linear: linear(torch.where(x > 0.5, (x - 0.5).sqrt(), 0.0)), "gradient of 5 of 6 samples has NaN"),
        (lambda x, linear: linear(x)[None], r"logits \[B, K\]"),
        (lambda x, linear: linear(x)[:3], r"logits \[B, K\]"),
    ],
)
@pytest.mark.parametrize("attack", [FGSM(THREAT), PGD(THREAT, random_start=False), FGSM(THREAT, gradient=EOT(2))])
def test_a_model_that_gives_no_usable_gradient_is_an_error(function, words, attack):
    x = torch.full((6, 4), 0.25)
    x[0] = 0.75
    with pytest.raises(ValueError, match=words):
        attack(Function(function), x, torch.arange(6) % 3)


@pytest.mark.parametrize(("samples", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_numbers_of_samples_are_named(samples, error):
    with pytest.raises(error, match="samples"):
        EOT(samples)


def test_inference_mode_is_named():
    model, x, y = nn.Sequential(nn.Linear(3, 2)), torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        FGSM(Linf(0.1))(model, x, y)


@pytest.mark.parametrize("fails", [False, True])
def test_no_gradient_of_a_parameter_is_computed(fails):
    class Watched(nn.Linear):
        def forward(self, x):
            seen.append([p.requires_grad for p in self.parameters()])
            if fails:
                raise RuntimeError("on purpose")
            return super().forward(x)

    seen = []
    model = Watched(4, 3)
    model.bias.requires_grad_(False)
    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="on purpose") if fails else nullcontext():
        Backprop()(model, x, y, cross_entropy, Stream(0, torch.arange(2)))
    assert seen == [[False, False]]
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)


def test_bfloat16_gradients_are_near_and_logits_are_float32():
    torch.manual_seed(0)
    model, x, y = (
        nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)),
        torch.rand(4, 8),
        torch.tensor([0, 1, 2, 0]),
    )
    found = [Backprop(p)(model, x, y, cross_entropy, Stream(0, torch.arange(4))) for p in ("float32", "bfloat16")]
    assert found[1][1].dtype == found[1][0].dtype == torch.float32
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0.05, atol=0.01)
    assert not torch.equal(found[1][0], found[0][0])
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16"):
        Backprop("half")
