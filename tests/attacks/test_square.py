"""Square against closed forms, its published numbers, torchattacks, and a model that watches its queries."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.attacks import L0, L1, L2, PGD, Linf, Square
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.losses import margin
from snnrobust.attacks.square import pattern, share
from snnrobust.draws import Stream

NORMS = {"Linf": Linf, "L2": L2, "L1": L1}


class Watched(nn.Module):
    """Remembers every query and answers ``answer(x)``, or always the same."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer, self.queries = answer, []

    def forward(self, x):
        self.queries.append(x.clone())
        if self.answer is not None:
            return self.answer(x)
        return torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand(len(x), 2) + 0 * x.flatten(1)[:, :1]


class Line(nn.Module):
    """Two classes; class 1 wins where w x + b > 0."""

    def __init__(self, w, b=0.0):
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x):
        z = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(z), z], 1)


def after_the_probe(model):
    return model.queries[2:]  # is_stochastic asks twice


# --- the optimum of a linear model ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9,), (3, 3), (1, 3, 3), (2, 1, 2, 2)])
def test_linf_optimum_of_a_linear_model(shape):
    g = torch.Generator().manual_seed(1)
    x = 0.3 + 0.4 * torch.rand(3, *shape, generator=g, dtype=torch.float64)
    w = torch.randn(x[0].numel(), generator=g, dtype=torch.float64)
    model, y = Line(w, -50.0), torch.zeros(3, dtype=torch.int64)  # never reached: the search goes on to the end
    x_adv = Square(Linf(0.1), queries=300)(model, x, y, seed=0)
    assert torch.allclose(x_adv, x + 0.1 * w.sign().view(shape), atol=1e-12)


@pytest.mark.parametrize(("norm", "part"), [("L2", 0.7), ("L1", 0.4)])
def test_nearly_the_optimum_of_a_smooth_linear_model(norm, part):
    x = torch.full((2, 1, 6, 6), 0.5, dtype=torch.float64)
    rows = torch.linspace(-1, 1, 6, dtype=torch.float64)
    w = (rows[:, None].exp() * rows).flatten()
    model, y = Line(w, -50.0), torch.zeros(2, dtype=torch.int64)
    x_adv = Square(NORMS[norm](0.4), queries=400)(model, x, y, seed=0)
    best = 0.4 * (w.norm() if norm == "L2" else w.abs().max())
    gain = (x_adv - x).flatten(1) @ w
    assert (gain <= best * (1 + 1e-9)).all()
    assert (gain >= part * best).all()


def test_the_goal_is_a_target_when_one_is_given():
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, y = Watched(lambda x: x @ weight), torch.tensor([0])
    corners = x + 0.2 * (2 * torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4) - 1)
    for target in (1, 2):
        targets = torch.tensor([target])
        x_adv = Square(Linf(0.2), queries=200, early_stop=False)(model, x, y, targets=targets, seed=0)
        best = (-margin(corners @ weight, targets.expand(16))).max()
        assert torch.allclose(-margin(x_adv @ weight, targets), best)


# --- what it asks ------------------------------------------------------------------------------------------------


def test_schedule():
    moments = [(0, 1), (10, 1), (11, 2), (50, 2), (51, 4), (200, 4), (201, 8), (500, 8), (501, 16), (1000, 16), (1001, 32),
               (2000, 32), (2001, 64), (4000, 64), (4001, 128), (6000, 128), (6001, 256), (8000, 256), (8001, 512)]  # fmt: skip
    for i, parts in moments:
        assert share(0.8, (i + 0.5) / 10_000) == 0.8 / parts


def test_first_the_stripes_then_squares_of_the_published_size():
    x = 0.5 + 0 * torch.rand(4, 2, 10, 10, dtype=torch.float64)
    model = Watched()
    Square(Linf(0.1), queries=40, p_init=0.3)(model, x, torch.zeros(4, dtype=torch.int64), seed=0)
    first, *others = after_the_probe(model)
    change = first - x
    assert torch.allclose(change.abs(), torch.full_like(change, 0.1))
    assert torch.equal(change, change[:, :, :1].expand_as(change))  # columns of one sign
    assert len(change[:, :, 0].flatten(0, 1).unique(dim=0)) == 8  # not of the same ones
    before, places = first, set()
    for i, query in enumerate(others):  # all margins are equal, so each is held
        assert torch.allclose((query - x).abs(), torch.full_like(x, 0.1))
        side = max(round((share(0.3, i / 39) * 100) ** 0.5), 1)
        for sample in (query != before).any(1):
            rows, columns = sample.any(1).nonzero()[:, 0], sample.any(0).nonzero()[:, 0]
            assert 1 <= rows.max() - rows.min() + 1 <= side
            assert columns.max() - columns.min() + 1 <= side
            places.add((int(rows.min()), int(columns.min())))
        before = query
    assert max(row for row, _ in places) == 9  # the last row and column too
    assert max(column for _, column in places) == 9


def test_frames_change_at_one_step_or_at_all():
    x = torch.full((3, 4, 2, 6, 6), 0.5, dtype=torch.float64)
    model = Watched()
    Square(Linf(0.1), queries=100)(model, x, torch.zeros(3, dtype=torch.int64), seed=0)
    queries, counts = after_the_probe(model), []
    for before, after in pairwise(queries):
        counts += (before != after).flatten(2).any(2).sum(1).tolist()
    assert sum(count == 1 for count in counts) > 0.4 * len(counts)
    assert max(counts) == 4
    one = [int((a != b)[0].flatten(1).any(1).nonzero()[0]) for a, b in pairwise(queries)]
    assert set(one) == {0, 1, 2, 3}


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("shape", [(12,), (1, 8, 8), (3, 2, 7, 5)])
def test_every_query_spends_the_budget(norm, shape):
    x = torch.full((2, *shape), 0.5, dtype=torch.float64)
    model, threat = Watched(), NORMS[norm](0.3)
    Square(threat, queries=30)(model, x, torch.zeros(2, dtype=torch.int64), seed=0)
    for query in after_the_probe(model):
        assert torch.allclose(threat.distance(x, query), torch.full((2,), 0.3, dtype=torch.float64))
    assert len({tuple(query.flatten().tolist()) for query in after_the_probe(model)}) == 30


def test_a_window_takes_the_budget_of_another():
    x = torch.full((1, 1, 20, 20), 0.5, dtype=torch.float64)
    model = Watched()
    Square(L2(1.0), queries=60, p_init=0.05)(model, x, torch.zeros(1, dtype=torch.int64), seed=0)
    queries = [query - x for query in after_the_probe(model)]
    for before, after in pairwise(queries[20:]):
        moved = ~torch.isclose(before, after, atol=1e-9)
        assert moved.sum() <= 2 * 25  # two windows; the rest is as it was


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("kind", ["ann", "poisson"])
def test_queries_are_counted(kind, draws, victims):
    model, x, y = victims(kind)
    rows = []
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    Square(Linf(0.05), queries=13, draws=draws, early_stop=False)(model, x, y, seed=0)
    if kind == "ann":
        assert rows == [6] * (2 + 13)  # two passes find that it is not random
    else:
        assert rows == [6] * (13 // (2 * draws) * 2 * draws)


# --- early stop --------------------------------------------------------------------------------------------------


def test_stopped_samples_are_not_asked_again(digits_ann):
    model, x, y = digits_ann
    watched = Watched(model)
    x_adv = Square(Linf(0.1), queries=60)(watched, x, y, seed=0)
    rows = [len(query) for query in after_the_probe(watched)]
    assert rows[0] == 200
    assert rows == sorted(rows, reverse=True)
    broken = model(x_adv).argmax(1) != y
    assert rows[-1] >= int((~broken).sum())
    assert sum(rows) < 60 * 200
    alone = Square(Linf(0.1), queries=60, early_stop=False)(model, x, y, seed=0)
    assert torch.equal(model(alone).argmax(1) != y, broken)  # the same search, only longer
    still = ~broken
    assert (alone[still] - x_adv[still]).abs().max() < 1e-9
    assert margin(model(alone), y).mean() > margin(model(x_adv), y).mean()


class Coin(nn.Module):
    """Wrong with a probability that rises with x."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, x):
        self.asked += len(x)
        wrong = torch.rand(len(x), dtype=x.dtype) < x.mean(1)
        return torch.stack([1.0 - 2.0 * wrong, 0.0 * x[:, 0]], 1)


def test_a_lucky_draw_does_not_stop_a_search():
    x, y = torch.full((4, 3), 0.5, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    runs = []
    for n in (1, 64):
        model = Coin()
        Square(Linf(0.05), queries=40, early_stop=True, selection_draws=n)(model, x, y, seed=0)
        runs.append(model.asked)
    assert runs[0] < 100  # stopped by the first wrong answers
    assert runs[1] > 4 * 40


def test_averages_find_what_single_draws_do_not():
    x, y = torch.full((40, 4), 0.5, dtype=torch.float64), torch.zeros(40, dtype=torch.int64)
    gains = [float(Square(Linf(0.4), queries=400, draws=draws)(Coin(), x, y, seed=0).mean() - 0.5) for draws in (1, 10)]
    assert gains[1] > gains[0]
    assert gains[1] > 0.2


# --- others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.6)])
def test_is_not_weaker_than_torchattacks(norm, eps, digits_ann, record_property):
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = digits_ann
    x, y = x[:100], y[:100]
    ours, theirs = [], []
    for seed in range(3):
        with torch.random.fork_rng():
            rival = torchattacks.Square(model, norm=norm, eps=eps, n_queries=100, seed=seed)(x, y)
        ours.append(
            float((model(Square(NORMS[norm](eps), queries=100)(model, x, y, seed=seed)).argmax(1) == y).double().mean())
        )
        theirs.append(float((model.eval()(rival).argmax(1) == y).double().mean()))
    record_property("accuracies: ours, torchattacks", [ours, theirs])
    assert sum(ours) / 3 <= sum(theirs) / 3 + 0.01


def test_crosses_the_plains_of_spike_counts(digits_snn, record_property):
    model, x, y = digits_snn
    noise = Square(Linf(0.15), queries=1)(model, x, y, seed=0)
    x_adv = Square(Linf(0.15), queries=200)(model, x, y, seed=0)
    accuracies = [float((model(inputs).argmax(1) == y).double().mean()) for inputs in (noise, x_adv)]
    record_property("accuracies: stripes, Square", accuracies)
    assert accuracies[1] < accuracies[0] - 0.25


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(sorted(NORMS)), st.integers(0, 99), st.integers(1, 30))
def test_a_search_never_ends_below_its_start(norm, seed, queries):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.rand(3, 1, 4, 4, generator=g, dtype=torch.float64), torch.arange(3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    threat = NORMS[norm](0.1)
    start = PGD(threat, steps=3)(model, x, y, seed=seed)
    attack = Square(threat, queries=queries, early_stop=False)
    found = attack.search(model, x, start, Goal(y), Stream(seed, torch.arange(3)))
    threat.validate(x, found)
    assert (margin(model(found), y) >= margin(model(start), y) - 1e-12).all()
    if queries == 1:
        assert torch.equal(found, start)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 7), (2, 2), (3, 3), (5, 5), (4, 6), (9, 9), (6, 1)])
def test_pattern_by_loops(size, p):
    def bump(height, width):
        out = torch.zeros(height, width, dtype=torch.float64)
        for r in range(height):
            for s in range(width):
                k = max(abs(r - height // 2), abs(s - width // 2))
                out[r, s] = sum(1 / (j + 1) ** 2 for j in range(k, max(height, width) // 2 + 1))
        return out / out.square().sum().sqrt()

    height, width = size
    if size == (1, 1):
        expected = torch.ones(1, 1, dtype=torch.float64)
    elif height == 1:
        expected = torch.cat([bump(1, width // 2), -bump(1, width - width // 2)], 1)
    else:
        expected = torch.cat([bump(height // 2, width), -bump(height - height // 2, width)], 0)
    expected = expected / (expected.abs() ** p).sum() ** (1 / p)
    assert torch.allclose(pattern(height, width, p), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threat": L0(3)}, ValueError, "Linf, L2 and L1, got a threat in L0"),
        ({"queries": 0}, ValueError, "queries must be at least 1"),
        ({"queries": 5, "draws": 3}, ValueError, r"at least 2 \* draws = 6"),
        ({"draws": 0}, ValueError, "draws must be"),
        ({"p_init": 0.0}, ValueError, "p_init must be in"),
        ({"p_init": 1.5}, ValueError, "p_init must be in"),
        ({"early_stop": "yes"}, TypeError, "early_stop must be True or False"),
        ({"selection_draws": 0}, ValueError, "selection_draws must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Square(**({"threat": Linf(0.1)} | arguments))
