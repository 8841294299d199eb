"""Evolution strategies and SPSA: their sums written out, their expectation on smooth models, their queries."""

import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.attacks import EOT, FGSM, PGD, SPSA, Backprop, EvolutionStrategies, Linf, cross_entropy, margin
from snnrobust.draws import Stream, draws, normal, uniform
from snnrobust.models import Dense, ordinary

ESTIMATES = [(EvolutionStrategies, "sigma"), (SPSA, "delta")]


class Quadratic(nn.Module):
    """Logits (0, a x + x Q x / 2)."""

    def __init__(self, d, curvature=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(d, generator=generator, dtype=torch.float64))
        Q = torch.randn(d, d, generator=generator, dtype=torch.float64)
        self.Q = nn.Parameter(curvature * (Q + Q.T) / 2)

    def forward(self, x):
        z = x @ self.a + ((x @ self.Q) * x).sum(1) / 2
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("kind", ["direct", "poisson", "events"])
@pytest.mark.parametrize(("make", "width"), ESTIMATES)
def test_is_the_sum_over_its_directions(make, width, kind, victims):
    model, x, y = victims(kind)
    stream = Stream(7, torch.arange(6) + 4)
    source = make(10, 0.2, batch_size=25)  # two pairs at once, and one
    found, logits = source(model, x, y, cross_entropy, stream)
    key = stream.fork("directions").key
    words, shape = torch.tensor([key & 0xFFFFFFFF, key >> 32]), (5, *x.shape)
    v = (
        normal(words, stream.sample_ids, shape)
        if make is EvolutionStrategies
        else uniform(words, stream.sample_ids, shape)
    )
    v = v.double() if make is EvolutionStrategies else torch.where(v < 0.5, 1.0, -1.0).double()
    expected = torch.zeros_like(x)

    def loss(at):
        with torch.no_grad(), draws(model, stream.key, stream.sample_ids):
            return cross_entropy(model(at.clamp(0, 1)), y)

    for direction in v:
        slope = (loss(x + 0.2 * direction) - loss(x - 0.2 * direction)) / 0.4
        expected += slope.view(-1, *[1] * (x.dim() - 1)) * direction / 5
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad(), draws(model, stream.key, stream.sample_ids):
        torch.testing.assert_close(logits, model(x), rtol=1e-12, atol=1e-12)
    assert expected.any()


@pytest.mark.parametrize(("make", "width"), ESTIMATES)
def test_is_unbiased_on_a_quadratic(make, width):
    """Of a quadratic the smoothed gradient is the gradient. 400 samples of 20 queries; one test at significance 0.001."""
    d, n = 5, 400
    model, x = Quadratic(d), torch.full((1, d), 0.4, dtype=torch.float64)
    truth = (model.a + x[0] @ model.Q).detach()
    y = torch.zeros(n, dtype=torch.int64)
    found, _ = make(20, 0.3, bounds=None)(model, x.expand(n, d), y, margin, Stream(1, torch.arange(n)))
    z = (found.mean(0) - truth) / (found.std(0) / n**0.5)
    assert z.abs().max() < stats.norm.isf(0.001 / 2 / d)


@pytest.mark.parametrize(("make", "width"), ESTIMATES)
def test_the_error_shrinks_with_the_square_root_of_the_queries(make, width):
    """Its square is (tr H + |g|^2)-like over the number of pairs: an F test of four times the queries at significance 0.001."""
    d, n = 8, 200
    model, x = Quadratic(d, curvature=0.0), torch.full((n, d), 0.5, dtype=torch.float64)
    y, spread = torch.zeros(n, dtype=torch.int64), []
    for queries in (20, 80):
        found, _ = make(queries, 0.1, bounds=None)(model, x, y, margin, Stream(queries, torch.arange(n)))
        spread.append((found - model.a.detach()).square().mean())
    low, high = (4 * stats.f.ppf(p, n, n) for p in (0.0005, 0.9995))
    assert low < spread[0] / spread[1] < high


@pytest.mark.parametrize(("make", "width"), ESTIMATES)
def test_the_cosine_to_the_gradient_grows_with_the_queries(make, width, digits_ann):
    model, x, y = digits_ann
    x, y, stream = x[:20], y[:20], Stream(0, torch.arange(20))
    truth, _ = Backprop()(model, x, y, margin, stream)
    cosines = []
    for queries in (8, 64, 512):
        found, _ = make(queries, 1e-3, bounds=None)(model, x, y, margin, stream)
        cosines.append(nn.functional.cosine_similarity(found.flatten(1), truth.flatten(1)).mean())
    assert cosines[0] + 0.2 < cosines[1] < cosines[2] - 0.2
    assert cosines[2] > 0.85


def test_pixels_on_the_edge_have_half_of_their_gradient():
    model, n = Quadratic(3, curvature=0.0), 4000
    x, y = torch.tensor([[0.0, 0.5, 1.0]]).double().expand(n, 3), torch.zeros(n, dtype=torch.int64)
    found, _ = SPSA(2, 0.1)(model, x, y, margin, Stream(0, torch.arange(n)))
    expected = model.a.detach() * torch.tensor([0.5, 1.0, 0.5])
    assert ((found.mean(0) - expected) / (found.std(0) / n**0.5 + 1e-12)).abs().max() < stats.norm.isf(0.001 / 2 / 3)


class Watched(nn.Linear):
    def forward(self, x):
        self.batches.append(len(x))
        self.inside &= bool(((x >= 0) & (x <= 1)).all())
        assert not torch.is_grad_enabled()
        return super().forward(x)


@pytest.mark.parametrize(
    ("batch_size", "batches"), [(1, [3] + [6] * 4), (12, [3, 12, 12]), (18, [3, 18, 6]), (99, [3, 24])]
)
@pytest.mark.parametrize(("make", "width"), ESTIMATES)
def test_queries_are_counted_batched_and_inside_the_box(make, width, batch_size, batches):
    model = Watched(4, 3)
    model.batches, model.inside = [], True
    x, y, stream = torch.rand(3, 4), torch.arange(3), Stream(0, torch.arange(3))
    make(8, 0.5, batch_size=batch_size)(model, x, y, cross_entropy, stream)
    assert model.batches == batches
    assert sum(model.batches) == 3 * (8 + 1)
    assert model.inside


@pytest.mark.parametrize("make", [EvolutionStrategies, SPSA])
def test_does_not_depend_on_the_batch_and_leaves_the_model_as_it_was(make, victims):
    model, x, y = victims("poisson")
    stream, source = Stream(5, torch.arange(6)), EOT(2, make(6, 0.1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    together, _ = source(model, x, y, cross_entropy, stream)
    for i in range(6):
        one = torch.tensor([i])
        alone, _ = source(model, x[one], y[one], cross_entropy, stream.select(one))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    other, _ = source(model, x, y, cross_entropy, Stream(6, torch.arange(6)))
    assert not torch.allclose(other, together)


@pytest.mark.parametrize("make", [EvolutionStrategies, SPSA])
def test_needs_no_gradient_of_the_model(make):
    class Steps(nn.Linear):
        def forward(self, x):
            return super().forward((8 * x.detach()).round() / 8)

    torch.manual_seed(0)
    model, x, y = Steps(6, 3), torch.rand(5, 6), torch.arange(5) % 3
    x_adv = PGD(Linf(0.2), steps=5, gradient=make(40, 0.2))(model, x, y, seed=0)
    assert (cross_entropy(model(x_adv), y) > cross_entropy(model(x), y)).all()


@pytest.mark.parametrize("make", [EvolutionStrategies, SPSA])
def test_nan_is_named(make):
    class Nan(nn.Linear):
        def forward(self, x):
            return torch.where(x[:, :1] > 0.5, torch.nan, super().forward(x))

    x, y = torch.full((2, 4), 0.45), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="NaN logits"):
        FGSM(Linf(0.1), gradient=make(8, 0.2))(Nan(4, 3), x, y)
    model = ordinary((Dense(4),), (4,), 3).eval()
    with pytest.raises(ValueError, match="the gradient of 2 of 2 samples has NaN"):
        FGSM(Linf(0.1), gradient=make(8, 0.2), loss=lambda z, y: torch.inf * z[:, 0])(model, x, y)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"queries": 3}, ValueError, "queries must be even"),
        ({"queries": 0}, ValueError, "queries"),
        ({"queries": 2.0}, TypeError, "queries"),
        ({"WIDTH": 0.0}, ValueError, "WIDTH must be above 0"),
        ({"WIDTH": -1.0}, ValueError, "WIDTH"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds must be"),
        ({"bounds": 3}, TypeError, "bounds must be a pair"),
    ],
)
@pytest.mark.parametrize(("make", "width"), ESTIMATES)
def test_bad_arguments_are_named(make, width, settings, error, words):
    given = {k.replace("WIDTH", width): v for k, v in settings.items()}
    with pytest.raises(error, match=words.replace("WIDTH", width)):
        make(**given)


def test_the_width_may_be_a_fraction():
    assert EvolutionStrategies(sigma="8/255") == EvolutionStrategies(sigma=8 / 255)
    assert SPSA(delta="8/255") == SPSA(delta=8 / 255)
