"""Several attacks, per sample the worst."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from snnrobust import data, evaluation, learning_rules
from snnrobust.attacks import (
    ATTACKS,
    EOT,
    FGSM,
    L2,
    PGD,
    Attack,
    Backprop,
    Hybrid,
    LearningSignal,
    Linf,
    RandomSign,
    Square,
    Transfer,
    TrueTranspose,
)
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.hybrid import Refinement
from snnrobust.attacks.selection import measure
from snnrobust.draws import Stream, derive
from snnrobust.encoders import Direct
from snnrobust.evaluation.fingerprint import models_in
from snnrobust.models import Dense, ordinary, spiking
from snnrobust.neurons.surrogate import ATan

THREAT = Linf(0.1)


class Linear(nn.Module):
    """Logits that one pixel decides: of class k, weight k at that pixel, all others 0."""

    def __init__(self, pixel: int) -> None:
        super().__init__()
        self.pixel = pixel

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1)[:, self.pixel, None]
        return torch.cat([0.5 - value, value - 0.5], 1)


def test_for_each_sample_the_worst_and_who_found_it():
    """The victim looks at pixel 0 for samples that are bright at pixel 3, else at pixel 1: each source knows one of them."""

    class Victim(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.flatten(1)[:, 3:] > 0.5, Linear(0)(x), Linear(1)(x))

    x = torch.tensor([[0.45, 0.45, 0.2, 0.9], [0.45, 0.45, 0.2, 0.1], [0.2, 0.2, 0.2, 0.9]], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    hybrid = Hybrid(FGSM(THREAT), {"first": Linear(0), "second": Linear(1)})
    found = hybrid.components(Victim(), x, y, seed=1)
    assert found.winner.tolist() == [0, 1, 0]
    assert found.reached["first"].tolist() == [True, False, False]
    assert found.reached["second"].tolist() == [False, True, False]
    assert torch.equal(found.x_adv[0], found.candidates["first"][0])
    assert torch.equal(found.x_adv[1], found.candidates["second"][1])
    assert torch.equal(found.x_adv[2], found.candidates["first"][2])  # not reached, but nearer
    assert found.shares() == {"first": (1 / 3, 2 / 3), "second": (1 / 3, 1 / 3)}
    assert torch.equal(hybrid(Victim(), x, y, seed=1), found.x_adv)


@pytest.mark.parametrize("kind", ["ann", "poisson"])
@pytest.mark.parametrize(
    "base", [FGSM(THREAT), PGD(THREAT, steps=3, gradient=EOT(2))], ids=["single-step", "multi-step"]
)
def test_components_are_attacks_of_their_own(base, kind, victims):
    model, x, y = victims(kind)
    sources = {"twin": victims(kind, 1)[0], "ann": victims("ann", 2)[0]}
    gradients = {"true weights": EOT(2, TrueTranspose()), "own": LearningSignal(learning_rules.BPTT())}
    hybrid = Hybrid(base, sources, gradients, Square(THREAT, queries=20), selection_draws=4)
    assert list(hybrid.attacks) == ["twin", "ann", "true weights", "own", "refined"]
    found = hybrid.components(model, x, y, seed=7)
    for name, attack in hybrid.attacks.items():
        assert torch.equal(attack(model, x, y, seed=7), found.candidates[name]), name
    assert torch.equal(found.candidates["twin"], Transfer(base, sources["twin"])(model, x, y, seed=7))
    assert torch.equal(hybrid(model, x, y, seed=7), found.x_adv)
    names = list(found.candidates)
    for i in range(len(x)):
        assert torch.equal(found.x_adv[i], found.candidates[names[int(found.winner[i])]][i])
    targets = (y + 1) % 3
    aimed = hybrid.components(model, x, y, targets=targets, seed=7)
    assert torch.equal(aimed.x_adv, hybrid(model, x, y, targets=targets, seed=7))
    assert not torch.equal(aimed.x_adv, found.x_adv)


def test_it_is_never_better_for_the_victim_than_any_component(digits_snn):
    model, x, y = digits_snn
    torch.manual_seed(0)
    ann = ordinary((Dense(32),), (1, 8, 8), 10)
    learning_rules.BPTT(lr=1e-2).fit(ann, data.load("digits", "train"), epochs=2, progress=False)
    rule = learning_rules.DFA(seed=1)
    signals = LearningSignal(rule, "random"), LearningSignal(rule, "transpose")
    hybrid = Hybrid.white_box(
        PGD(THREAT, steps=4), {"ann": ann.double()}, *signals, surrogates={"ATan(8)": ATan(8.0)},
        refine=Square(THREAT, queries=20),
    )  # fmt: skip
    names = ["ann", "true weights", "true weights, ATan(8)", "own rule, random", "own rule, transpose", "refined"]
    assert list(hybrid.attacks) == names
    found = hybrid.components(model, x, y, seed=0)
    right = {name: model(candidate).argmax(1) == y for name, candidate in found.candidates.items()}
    least = torch.stack(list(right.values())).all(0)
    assert torch.equal(model(found.x_adv).argmax(1) == y, least)
    assert all(torch.equal(found.reached[name], ~right[name]) for name in names)
    assert (right["refined"] <= right["ann"]).all()
    assert least.sum() < right["own rule, random"].sum() - 10


class Counted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        assert not x.requires_grad, "a black box is asked for no gradient"
        self.asked += len(x)
        with torch.no_grad():
            return self.inner(x)


def test_a_black_box_asks_for_logits_only(victims):
    model, x, y = victims("ann")
    box = Counted(model)
    hybrid = Hybrid.black_box(FGSM(THREAT), {"twin": victims("ann", 1)[0]}, Square(THREAT, queries=15))
    assert list(hybrid.attacks) == ["twin", "refined"]
    THREAT.validate(x, hybrid(box, x, y, seed=0))
    assert 0 < box.asked <= (15 + 20) * len(x)


@dataclass(frozen=True)
class Seen:
    """A search that notes where it begins and ends at ``end``."""

    threat: Linf
    starts: list
    end: Tensor | None = None

    def search(self, model: nn.Module, x: Tensor, start: Tensor, goal: Goal, stream: Stream) -> Tensor:
        self.starts.append(start.clone())
        return start if self.end is None else self.end

    def at(self, eps):
        return Seen(self.threat.at(eps), self.starts, self.end)


def test_the_search_begins_at_the_best_transferred_point_and_cannot_harm(victims):
    model, x, y = victims("ann")
    sources = {"one": victims("ann", 1)[0], "two": victims("ann", 2)[0]}
    search = Seen(THREAT, [])
    assert isinstance(search, Refinement)
    hybrid = Hybrid(PGD(THREAT, steps=3), sources, {"true weights": TrueTranspose()}, search)
    found = hybrid.components(model, x, y, seed=5)
    transferred = Hybrid(PGD(THREAT, steps=3), sources)(model, x, y, seed=5)
    assert torch.equal(search.starts[0], transferred)
    assert torch.equal(found.candidates["refined"], transferred)
    useless = Hybrid(PGD(THREAT, steps=3), sources, refine=Seen(THREAT, [], x))  # gives back the clean input
    margins = [Goal(y).margin(model(z)) for z in (useless(model, x, y, seed=5), transferred, x)]
    assert torch.equal(margins[0], torch.maximum(margins[1], margins[2]))
    alone = Seen(THREAT, [])
    assert torch.equal(Hybrid(FGSM(THREAT), refine=alone)(model, x, y, seed=5), x)
    assert torch.equal(alone.starts[0], x)
    smaller = hybrid.at(0.02)
    assert smaller.refine.threat == smaller.attack.threat == smaller.threat == Linf(0.02)
    assert (smaller(model, x, y, seed=5) - x).abs().max() <= 0.02


def test_selection_draws_of_a_random_victim_are_its_own(victims):
    """The winner is the one that is worst on the draws of the fork "hybrid", neither of one draw nor of the crafting's."""
    model, x, y = victims("poisson")
    hybrid = Hybrid(FGSM(THREAT), {"a": victims("ann", 1)[0], "b": victims("ann", 2)[0]}, selection_draws=16)
    found = hybrid.components(model, x, y, seed=0)
    stream = Stream(derive(0, "attack"), torch.arange(len(x))).fork("hybrid")
    a, b = (measure(model, c, Goal(y), stream, 16) for c in found.candidates.values())
    worse = (b.correct < a.correct) | ((b.correct == a.correct) & (b.margin > a.margin))
    assert torch.equal(found.winner, worse.long())
    assert torch.equal(found.reached["a"], a.correct == 0)


@pytest.mark.parametrize("rule", ["FA", "DFA", "LE"])
def test_a_masked_victim(rule):
    """What the rule's own gradient by random weights leaves standing, the hybrid breaks."""
    train, (x, y) = data.load("digits", "train"), data.take(data.load("digits", "test"), 100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, twin = (spiking((Dense(48), Dense(48)), (1, 8, 8), 10, Direct(3), norm="none") for _ in range(2))
    trainer = learning_rules.RULES[rule](lr=5e-3, seed=1)
    trainer.fit(model, train, epochs=4, progress=False)
    learning_rules.BPTT(lr=5e-3, seed=2).fit(twin, train, epochs=3, progress=False)
    own = LearningSignal(trainer, "random")
    hybrid = Hybrid.white_box(PGD(Linf(0.15), steps=5), {"twin": twin}, own)
    attacks = {"random signs": RandomSign(Linf(0.15)), **hybrid.attacks, "hybrid": hybrid}
    report = evaluation.evaluate(model, (x, y), attacks, progress=False, seed=0)
    left = {row["attack"]: row["accuracy"] for row in report.rows}
    assert left["own rule, random"] > left["random signs"] - 0.1 > 0.6
    assert left["hybrid"] < left["own rule, random"] - 0.4
    assert left["hybrid"] <= min(left["twin"], left["true weights"]) + 0.06  # other random starts
    cost = {row["attack"]: row for row in report.rows}
    assert cost["twin"]["gradients"] == 500  # models inside a dict are counted too
    assert cost["hybrid"]["gradients"] == sum(cost[name]["gradients"] for name in hybrid.attacks)
    assert models_in(hybrid) == [twin]


NET = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attack": 3}, "attack must be an attack"),
        ({}, "a hybrid of nothing"),
        ({"sources": [NET]}, "sources must be a dict by name, got list"),
        ({"sources": {"a": 3}}, r"sources\['a'\] must be a torch\.nn\.Module"),
        ({"gradients": {"a": 3}}, r"gradients\['a'\] must be a function"),
        ({"attack": RandomSign(THREAT), "gradients": {"a": Backprop()}}, "RandomSign uses no gradient"),
        ({"sources": {"a": NET}, "gradients": {"a": Backprop()}}, "'a' is taken"),
        ({"sources": {"refined": NET}}, "'refined' is taken"),
        ({"refine": PGD(THREAT)}, "refine must be an attack with a method search"),
        ({"refine": Square(Linf(0.2))}, "must share one threat"),
        ({"refine": Square(L2(0.1))}, "must share one threat"),
        ({"sources": {"a": NET}, "selection_draws": 0}, "selection_draws must be"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Hybrid(**{"attack": PGD(THREAT), **arguments})


def test_bad_calls_are_named(victims):
    model, x, y = victims("ann")
    hybrid = Hybrid(FGSM(THREAT), {"twin": model})
    for words, call in {
        "model must be a": (3, x, y, {}),
        "x must": (model, x + 1, y, {}),
        "y must": (model, x, y[:2], {}),
        "targets must differ": (model, x, y, {"targets": y}),
        "seed must": (model, x, y, {"seed": -1}),
    }.items():
        *arguments, options = call
        with pytest.raises((TypeError, ValueError), match=words):
            hybrid.components(*arguments, **options)
    aimless = type("Aimless", (RandomSign,), {"targetable": False})
    try:
        with pytest.raises(TypeError, match="takes no targets"):
            Hybrid(aimless(THREAT), {"twin": model})(model, x, y, targets=(y + 1) % 3)
    finally:
        ATTACKS.pop("Aimless")
    assert isinstance(hybrid, Attack)
