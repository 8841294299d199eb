"""SparseRS against exhaustive search and a model that watches its queries."""

from itertools import combinations, pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.attacks import L0, Linf, RandomNoise, SparseRS
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.losses import margin
from snnrobust.draws import Stream


class Watched(nn.Module):
    """Remembers every query; all margins are equal, so the search goes wherever it proposes."""

    def __init__(self):
        super().__init__()
        self.queries = []

    def forward(self, x):
        self.queries.append(x.clone())
        return torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand(len(x), 2) + 0 * x.flatten(1)[:, :1]


def network(inputs, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 3)).double()


@pytest.mark.parametrize("unit", ["pixel", "element"])
def test_the_best_of_all_corners(unit):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, 2, 2, generator=g, dtype=torch.float64)
    model, y = network(8), torch.tensor([0])
    groups = [[0, 4], [1, 5], [2, 6], [3, 7]] if unit == "pixel" else [[i] for i in range(8)]
    best = -torch.inf
    for chosen in combinations(groups, 2):
        places = [i for group in chosen for i in group]
        for corner in product([0.0, 1.0], repeat=len(places)):
            candidate = x.flatten(1).clone()
            candidate[0, places] = torch.tensor(corner, dtype=torch.float64)
            best = max(best, float(margin(model(candidate), y).detach()))
    x_adv = SparseRS(L0(2, unit=unit), queries=500, early_stop=False)(model, x, y, seed=0)
    assert float(margin(model(x_adv), y).detach()) == pytest.approx(best, abs=1e-12)


def test_what_it_asks():
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0].round_()  # corners already: the other one is taken
    model = Watched()
    SparseRS(L0(10), queries=60)(model, x, torch.zeros(3, dtype=torch.int64), seed=0)
    queries = model.queries[2:]  # is_stochastic asks twice
    assert len(queries) == 60
    for query in queries:
        changed = (query != x).any(1)
        assert (changed.flatten(1).sum(1) == 10).all()
        assert query[changed[:, None].expand_as(query)].unique().tolist() == [0.0, 1.0]
    jumps = []
    parts = {0: 1, 50: 2, 200: 4, 500: 5, 1000: 6, 2000: 8, 4000: 10, 6000: 12, 8000: 15, 10_000: 20}
    for i, (before, after) in enumerate(pairwise(queries)):
        part = next(part for end, part in parts.items() if int(10_000 * i / 59) <= end)
        moved = ((before != after).any(1) & (before != x).any(1)).flatten(1).sum(1)
        assert (moved <= 8).all()
        jumps += (moved > max(int(0.8 / part * 10), 1)).tolist()
    assert 0 < sum(jumps) < 0.2 * len(jumps)  # about one in ten, while the share has not fallen yet it does not show
    assert sum(bool((a != b).any()) for a, b in pairwise(queries)) > 50


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["pixel", "element"]), st.integers(0, 9), st.integers(0, 99), st.integers(1, 40))
def test_budget_and_start(unit, eps, seed, queries):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.rand(3, 2, 3, 3, generator=g).double(), torch.arange(3)
    threat = L0(torch.tensor([float(eps), 0.0, 9.0]), unit=unit)
    start = RandomNoise(threat)(network(18), x, y, seed=seed)
    attack, model = SparseRS(threat, queries=queries, early_stop=False), network(18, seed)
    found = attack.search(model, x, start, Goal(y), Stream(seed, torch.arange(3)))
    threat.validate(x, found)
    assert (margin(model(found), y) >= margin(model(start), y) - 1e-12).all()
    assert torch.equal(found[1], x[1])


def test_beats_noise_on_spikes(digits_snn, record_property):
    model, x, y = digits_snn
    noise, x_adv = (
        float((model(attack(model, x, y, seed=0)).argmax(1) == y).double().mean())
        for attack in (RandomNoise(L0(4)), SparseRS(L0(4), queries=150))
    )
    record_property("accuracies: noise, SparseRS", [noise, x_adv])
    assert x_adv < noise - 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threat": Linf(0.1)}, "works in L0, got a threat in Linf"),
        ({"alpha_init": 0.0}, "alpha_init must be"),
        ({"queries": 0}, "queries must be"),
        ({"queries": 3, "draws": 2}, "queries must be at least"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseRS(**({"threat": L0(2)} | arguments))
