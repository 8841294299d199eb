from dataclasses import replace

import pytest
import torch
from torch import nn

from snnrobust.codesign import Masked, OnLevels
from snnrobust.defenses import RAT, PGDTraining
from snnrobust.encoders import Direct
from snnrobust.learning_rules import BPTT, DFA, STDB
from snnrobust.models import Dense, ordinary, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import NearestLevel, pair_levels

LEVELS = pair_levels((0, 1, 2))
RULES = {
    "adam": BPTT(lr=1e-2, weight_decay=0.1, batch_size=8),
    "momentum": BPTT(lr=0.1, optimizer="sgd", momentum=0.9, weight_decay=0.01, batch_size=8, clip=1.0),
    "parts": BPTT(lr=1e-2, batch_size=16, accumulate=3),
    "adversarial": PGDTraining(lr=1e-2, batch_size=16, eps=0.05, steps=2),
    "dfa": DFA(lr=1e-2, batch_size=16),
}


def toy(seed=0, n=48):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 4, 4, generator=generator)
    return x, (x.flatten(1)[:, :8].sum(1) > x.flatten(1)[:, 8:].sum(1)).long()


def network(kind="ordinary", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "ordinary":
            return ordinary((Dense(12),), (1, 4, 4), 2)
        return spiking((Dense(12),), (1, 4, 4), 2, Direct(3), LIF(threshold=0.3), norm="none")


def hidden(model):
    return next(name for name, m in model.named_modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["ordinary", "spiking"])
def test_masked_weights_stay_zero_and_others_learn(kind, rule):
    model = network(kind)
    name = f"{hidden(model)}.weight"
    before = model.get_parameter(name).detach().clone()
    mask = torch.rand(before.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    seen = []
    own = RULES[rule]
    layer = model.get_submodule(hidden(model))
    handle = layer.register_forward_hook(lambda m, x, y: seen.append(bool(m.weight[~mask].any())))
    Masked(rule=own, masks={name: mask}).fit(model, toy(), epochs=2, progress=False)
    handle.remove()
    after = model.get_parameter(name).detach()
    assert len(seen) > 4 or rule == "dfa"  # which runs the layers itself
    assert not any(seen[2:])  # before, rehearsals
    assert (after[~mask] == 0).all()
    assert (after[mask] != before[mask]).any()


def test_without_masks_it_is_the_rule():
    one, other = network(), network()
    rule = BPTT(lr=1e-2, seed=3, schedule="cosine", batch_size=8)
    mine = Masked(rule=rule, masks={}).fit(one, toy(), toy(1), epochs=2, progress=False)
    its = rule.fit(other, toy(), toy(1), epochs=2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert [r["loss"] for r in mine.records] == [r["loss"] for r in its.records]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["ordinary", "spiking"])
def test_weights_are_on_levels_in_every_pass_and_at_the_end(kind, rule):
    model = network(kind)
    name = hidden(model)
    levels = NearestLevel(LEVELS).fitted(model.get_submodule(name).weight)
    grid = (LEVELS.values() * levels.scale).float()
    seen = []

    def note(module, x, y):
        w = module.weight.detach()
        seen.append(float((w[..., None] - grid).abs().amin(-1).max()))

    handle = model.get_submodule(name).register_forward_hook(note)
    before = model.get_submodule(name).weight.detach().clone()
    OnLevels(rule=RULES[rule], levels={name: levels}).fit(model, toy(), toy(1), epochs=2, progress=False)
    handle.remove()
    assert len(seen) > 4 or rule == "dfa"  # which runs the layers itself
    assert max(seen[3:]) < 1e-6  # before, rehearsals
    after = model.get_submodule(name).weight.detach()
    assert len(after.unique()) <= 5
    assert not torch.equal(after, levels(before))


def test_one_step_by_hand():
    model = network().double()
    name = hidden(model)
    layer = model.get_submodule(name)
    x, y = (toy()[0].double(), toy()[1])
    levels = NearestLevel(LEVELS, 0.15)
    latent = layer.weight.detach().clone()
    layer.weight.data = levels(latent)
    model.train()
    nn.functional.cross_entropy(model(x), y).backward()
    stepped = (latent - 0.5 * layer.weight.grad).clamp(-0.15, 0.15)
    model = network().double()
    rule = BPTT(lr=0.5, optimizer="sgd", momentum=0.0, batch_size=len(x))
    OnLevels(rule=rule, levels={name: levels}).fit(model, (x, y), epochs=1, progress=False)
    torch.testing.assert_close(model.get_submodule(name).weight.detach(), levels(stepped))
    assert not torch.equal(levels(stepped), levels(latent))


def test_latent_weights_do_not_leave_the_levels():
    """Several steps by hand: a latent weight beyond the last level would take steps to come back."""
    x, y = (toy()[0].double(), toy()[1])
    levels = NearestLevel(LEVELS, 0.15)
    model = network().double()
    layer = model.get_submodule(hidden(model))
    latent = layer.weight.detach().clone()
    others = [p for p in model.parameters() if p is not layer.weight]
    plain = latent.clone()
    for _ in range(12):
        layer.weight.data = levels(latent)
        model.zero_grad()
        model.train()
        nn.functional.cross_entropy(model(x), y).backward()
        latent = (latent - 5.0 * layer.weight.grad).clamp(-0.15, 0.15)
        plain = plain - 5.0 * layer.weight.grad
        for p in others:
            p.data -= 5.0 * p.grad
    assert plain.abs().max() > 0.2
    other = network().double()
    rule = BPTT(lr=5.0, optimizer="sgd", momentum=0.0, batch_size=len(x))
    OnLevels(rule=rule, levels={hidden(other): levels}).fit(other, (x, y), epochs=12, progress=False)
    assert torch.equal(other.get_submodule(hidden(other)).weight.detach(), levels(latent))


def test_masked_gradients_do_not_count_where_the_norm_is_limited():
    x, y = (toy()[0].double(), toy()[1])
    model = network().double()
    name = f"{hidden(model)}.weight"
    mask = torch.rand(12, 16, generator=torch.Generator().manual_seed(1)) < 0.2
    start = model.get_parameter(name).data.mul_(mask).clone()
    model.train()
    nn.functional.cross_entropy(model(x), y).backward()
    gradients = {n: p.grad * (mask if n == name else 1.0) for n, p in model.named_parameters()}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    expected = start - 1.0 * gradients[name] * (1e-3 / (norm + 1e-6))
    model = network().double()
    rule = BPTT(lr=1.0, optimizer="sgd", momentum=0.0, batch_size=len(x), clip=1e-3)
    Masked(rule=rule, masks={name: mask}).fit(model, (x, y), epochs=1, progress=False)
    torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=1e-9, atol=1e-12)


def test_a_rule_that_changes_weights_after_the_step_brings_none_back():
    model = network()
    name = f"{hidden(model)}.weight"
    mask = torch.rand(12, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    Masked(rule=RAT(lr=1e-2, batch_size=16, beta=0.5, rows=1.0), masks={name: mask}).fit(
        model, toy(), epochs=1, progress=False
    )
    assert not model.get_parameter(name)[~mask].any()
    assert model.get_parameter(name)[mask].all()


def test_zeros_stay_zeros_on_levels():
    model = network()
    name = hidden(model)
    mask = torch.rand(model.get_submodule(name).weight.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    rule = Masked(rule=RULES["adam"], masks={f"{name}.weight": mask})
    OnLevels(rule=rule, levels={name: NearestLevel(LEVELS)}).fit(model, toy(), epochs=3, progress=False)
    w = model.get_submodule(name).weight.detach()
    assert (w[~mask] == 0).all()
    assert (w[mask] != 0).any()


def test_a_training_goes_on_where_it_stopped(tmp_path):
    whole, parts = network(), network()
    name = hidden(whole)
    mask = torch.ones(12, 16, dtype=torch.bool)
    mask[:3] = False
    rule = OnLevels(
        rule=Masked(rule=RULES["adam"], masks={f"{name}.weight": mask}), levels={name: NearestLevel(LEVELS)}
    )
    history = rule.fit(whole, toy(), epochs=4, progress=False)
    path = tmp_path / "state"
    rule.fit(parts, toy(), epochs=2, progress=False, checkpoint=path)
    resumed = rule.fit(network(), toy(), epochs=4, progress=False, checkpoint=path)
    again = network()
    rule.fit(again, toy(), epochs=4, progress=False, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert resumed.learnt == history.learnt == {}
    other = replace(rule, levels={name: NearestLevel(pair_levels((0, 1)))})
    with pytest.raises(ValueError, match="another"):
        other.fit(network(), toy(), epochs=4, progress=False, checkpoint=path)
    with pytest.raises(ValueError, match="another"):
        replace(rule, rule=Masked(rule=RULES["adam"], masks={f"{name}.weight": ~mask})).fit(
            network(), toy(), epochs=4, progress=False, checkpoint=path
        )


def test_the_best_epoch_is_on_levels():
    model = network()
    name = hidden(model)
    rule = replace(RULES["adam"], keep="best")
    history = OnLevels(rule=rule, levels={name: NearestLevel(LEVELS, 0.2)}).fit(
        model, toy(), toy(1), epochs=3, progress=False
    )
    x, y = toy(1)
    assert set(model.get_submodule(name).weight.detach().div(0.2).mul(2).round().unique().tolist()) <= {-2, -1, 0, 1, 2}
    accuracy = float((model(x).argmax(1) == y).double().mean())
    assert accuracy == pytest.approx(max(r["validation_accuracy"] for r in history.records))


def test_bad_input():
    model, mask = network(), torch.ones(12, 16, dtype=torch.bool)
    name = hidden(model)
    fit = {"epochs": 1, "progress": False}
    with pytest.raises(TypeError, match="rule must be"):
        Masked(rule=3, masks={})
    with pytest.raises(TypeError, match="rule must be"):
        Masked(rule=STDB(), masks={})
    with pytest.raises(ValueError, match="lr is the rule's"):
        Masked(rule=BPTT(), masks={}, lr=0.3)
    with pytest.raises(TypeError, match="masks must map"):
        Masked(rule=BPTT(), masks=[mask])
    with pytest.raises(TypeError, match="bool"):
        Masked(rule=BPTT(), masks={f"{name}.weight": mask.float()})
    with pytest.raises(ValueError, match="masks must be one of"):
        Masked(rule=BPTT(), masks={"9.weight": mask}).fit(model, toy(), **fit)
    with pytest.raises(ValueError, match="shape"):
        Masked(rule=BPTT(), masks={f"{name}.weight": mask[:2]}).fit(model, toy(), **fit)
    with pytest.raises(TypeError, match="levels must map"):
        OnLevels(rule=BPTT(), levels={})
    with pytest.raises(TypeError, match="NearestLevel"):
        OnLevels(rule=BPTT(), levels={name: LEVELS})
    with pytest.raises(ValueError, match="a layer in levels"):
        OnLevels(rule=BPTT(), levels={"9": NearestLevel(LEVELS)}).fit(model, toy(), **fit)
