"""Every attack on every kind of victim."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust import attacks
from snnrobust.attacks import EOT, FGSM, PGD, Linf, RandomSign, Surrogate, Transfer
from snnrobust.draws import is_stochastic
from snnrobust.neurons.surrogate import Triangle

THREAT = Linf("8/255")


def source():
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).double()


STEP = {"step_size": "2/255", "selection_draws": 3}  # short steps: the random start stays visible
ATTACKS = {
    "random sign": lambda: RandomSign(THREAT),
    "fgsm": lambda: FGSM(THREAT),
    "fgsm eot": lambda: FGSM(THREAT, gradient=EOT(2)),
    "pgd": lambda: PGD(THREAT, steps=3, **STEP),
    "pgd from x": lambda: PGD(THREAT, steps=3, random_start=False),
    "pgd restarts": lambda: PGD(THREAT, steps=2, restarts=2, **STEP),
    "pgd eot": lambda: PGD(THREAT, steps=2, gradient=EOT(2), **STEP),
    "pgd early stop": lambda: PGD(THREAT, steps=4, early_stop=True, **STEP),
    "pgd early stop restarts": lambda: PGD(THREAT, steps=3, early_stop=True, restarts=2, **STEP),
    "pgd surrogate": lambda: PGD(THREAT, steps=2, gradient=Surrogate(Triangle(), EOT(2)), **STEP),
    "transfer": lambda: Transfer(PGD(THREAT, steps=2, **STEP), source()),
}
STARTS_AT_RANDOM = {"random sign", "transfer"} | {
    name for name in ATTACKS if name.startswith("pgd") and name != "pgd from x"
}


KINDS = ["ann", "poisson", "direct", "chip", "events"]
CASES = [(name, kind) for name in ATTACKS for kind in KINDS if (name, kind) != ("pgd surrogate", "ann")]


@pytest.fixture(params=CASES, ids="-".join)
def case(request, victims):
    name, kind = request.param
    return name, ATTACKS[name](), *victims(kind)


def test_the_budget_and_the_box_hold(case):
    _, attack, model, x, y = case
    x_adv = attack(model, x, y, seed=0)
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= THREAT.eps
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (x_adv != x).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("pgd surrogate", "transfer")])
def test_the_budget_holds_in_lower_precision(name, dtype, victims):
    model, x, y = victims("ann")
    x = x.to(dtype)
    x_adv = ATTACKS[name]()(model.to(dtype), x, y, seed=0)
    assert x_adv.dtype == dtype
    assert (x_adv.double() - x.double()).abs().max() <= THREAT.eps
    assert x_adv.double().min() >= 0
    assert x_adv.double().max() <= 1


def everything(model):
    """All that an attack could leave changed, by value."""
    return deepcopy(
        {
            "state": model.state_dict(),
            "gradients": {name: p.grad for name, p in model.named_parameters()},
            "flags": {name: p.requires_grad for name, p in model.named_parameters()},
            "modes": {name: m.training for name, m in model.named_modules()},
            "attributes": {
                name: {k: v for k, v in vars(m).items() if not k.startswith("_") or k in ("_key", "_sample_ids")}
                for name, m in model.named_modules()
            },
            "hooks": {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()},
        }
    )


def changes(a, b, path=""):
    """The paths at which two nested dictionaries differ."""
    if isinstance(a, dict):
        return [found for k in a.keys() | b.keys() for found in changes(a.get(k), b.get(k), f"{path}/{k}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if a == b or callable(a) else [path]


@pytest.mark.parametrize("mode", ["eval", "train", "frozen"])
def test_nothing_is_disturbed(case, mode):
    name, attack, model, x, y = case
    parties = [model, attack.source] if name == "transfer" else [model]
    for party in parties:
        party(x)  # a lazy layer gets its shape
        party.train(mode != "eval")
        leaves = [m for m in party.modules() if not list(m.children())]
        norms = [m for m in leaves if "B" in type(m).__name__]
        if mode == "frozen":  # one BatchNorm, or else one layer, in eval mode inside a training model
            (norms or leaves)[0].eval()
        for p in list(party.parameters())[:1]:  # one gradient that is there, the others None
            p.grad = torch.ones_like(p)
    before = [everything(party) for party in parties]
    x_before, y_before, generator = x.clone(), y.clone(), torch.get_rng_state()
    for seed in (0, None):
        attack(model, x, y, seed=seed)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [changes(a, everything(party)) for a, party in zip(before, parties, strict=True)] == [[]] * len(parties)


def test_the_model_is_restored_after_an_error(victims):
    model, x, y = victims("poisson")
    model.train()
    model.network[1].eval()
    before = everything(model)
    with pytest.raises(ValueError, match="y must lie in"):
        PGD(THREAT)(model, x, y + 1)
    assert changes(before, everything(model)) == []


def test_the_seed_decides(case):
    name, attack, model, x, y = case
    first, again, other = (attack(model, x, y, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    random = name in STARTS_AT_RANDOM or is_stochastic(model)
    assert torch.equal(first, other) != random


@pytest.mark.parametrize("size", [1, 4])
def test_a_sample_does_not_depend_on_its_batch(case, size):
    _, attack, model, x, y = case
    ids = torch.arange(len(x)) + 1000
    whole = attack(model, x, y, seed=0, sample_ids=ids)
    parts = zip(x.split(size), y.split(size), ids.split(size), strict=True)
    assert torch.equal(torch.cat([attack(model, a, b, seed=0, sample_ids=i) for a, b, i in parts]), whole)


@pytest.mark.parametrize("name", sorted(STARTS_AT_RANDOM - {"pgd surrogate"}))
def test_without_a_seed_other_batches_see_other_noise_and_torch_seeds_decide(name, victims):
    model, x, y = victims("ann")

    def noise(x, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            attack = Transfer(RandomSign(THREAT), model) if name == "transfer" else ATTACKS[name]()
            return attack(model, x, y) - x

    flat = torch.full_like(x, 0.5)
    assert torch.equal(noise(flat, 5), noise(flat, 5))
    assert not torch.equal(noise(flat, 5), noise(flat, 6))
    assert not torch.allclose(noise(flat, 5), noise(flat + 1e-6, 5), atol=1e-3)


def test_gradients_are_asked_for_even_where_they_are_switched_off(victims):
    model, x, y = victims("direct")
    expected = FGSM(THREAT)(model, x, y)
    with torch.no_grad():
        assert torch.equal(FGSM(THREAT)(model, x, y), expected)
    leaf = x.clone().requires_grad_()
    assert torch.equal(FGSM(THREAT)(model, leaf, y), expected)
    assert leaf.grad is None


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x, y: (x + 1, y), ValueError, r"x must lie in \[0, 1\]"),
        (lambda x, y: (x - 1e-6, y), ValueError, r"x must lie in \[0, 1\]"),
        (lambda x, y: (x * torch.nan, y), ValueError, "x contains NaN"),
        (lambda x, y: ((x * 255).byte(), y), TypeError, "x must be floating"),
        (lambda x, y: (x[:0], y[:0]), ValueError, "x must be a batch"),
        (lambda x, y: (x.flatten(), y), ValueError, "x must be a batch"),
        (lambda x, y: (x.tolist(), y), TypeError, "x must be a tensor"),
        (lambda x, y: (x, y[:-1]), ValueError, "y must have one label"),
        (lambda x, y: (x, y.double()), TypeError, "y must be int64"),
        (lambda x, y: (x, y + 1), ValueError, r"y must lie in 0\.\.2"),
        (lambda x, y: (x, y - 1), ValueError, r"y must lie in 0\.\.2"),
        (lambda x, y: (x, y.tolist()), TypeError, "y must be int64"),
    ],
)
def test_bad_input_is_named(change, error, words, victims):
    model, x, y = victims("ann")
    with pytest.raises(error, match=words):
        FGSM(THREAT)(model, *change(x, y))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"sample_ids": torch.arange(2)}, TypeError, "sample_ids"),
        ({"sample_ids": [0, 1, 2, 3, 4, 5]}, TypeError, "sample_ids"),
        ({"sample_ids": torch.arange(6.0)}, TypeError, "sample_ids"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
    ],
)
def test_bad_keys_are_named(arguments, error, words, victims):
    with pytest.raises(error, match=words):
        RandomSign(THREAT)(*victims("ann"), **arguments)


@pytest.mark.parametrize("threat", ["8/255", 8 / 255, Linf])
@pytest.mark.parametrize("attack", [RandomSign, FGSM, PGD])
def test_a_threat_that_is_none_is_named(attack, threat, victims):
    with pytest.raises(TypeError, match=r'threat must be a threat model such as Linf\("8/255"\)'):
        attack(threat)(*victims("ann"))


def test_another_budget_is_the_same_attack_at_it(case):
    _, attack, model, x, y = case
    if isinstance(attack, Transfer):
        attack.source(x)
    small = attack.at("1/255")
    assert small.threat == Linf("1/255")
    assert type(small) is type(attack)
    assert (small(model, x, y, seed=0) - x).abs().max() <= 1 / 255
    assert torch.equal(attack.at(0)(model, x, y, seed=0), x)


def test_attacks_are_registered_by_name():
    assert {"RandomSign", "FGSM", "PGD", "Transfer"} <= attacks.ATTACKS.keys()
    assert attacks.ATTACKS["PGD"] is PGD
