import warnings

import pytest
import torch
from torch import nn

from snnrobust.codesign import ADMMWarning, Masked, compress, prune, put_on_levels
from snnrobust.encoders import Direct
from snnrobust.hardware import Crossbar, deploy
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool, Residual, load, ordinary, save, spiking
from snnrobust.quantization import Blocks, Filters, Keep, NearestLevel, compact, footprint, pair_levels

LAYERS = (Conv(4), Pool(), Dense(6))
NORMS = ("BNTT", "TDBN", "TEBN", "none")
LEVELS = pair_levels((0, 1, 2))


def toy(seed=0, n=32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 6, 6, generator=generator)
    return x, (x[:, 0, :3].mean((1, 2)) > x[:, 0, 3:].mean((1, 2))).long()


def network(kind="ordinary"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "ordinary":
            return ordinary(LAYERS, (1, 6, 6), 2)
        return spiking(LAYERS, (1, 6, 6), 2, Direct(3), norm=kind)


def layers(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("kind", ["ordinary", *NORMS])
def test_a_pruned_filter_is_silent(kind):
    model = network(kind)
    first = layers(model)[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pruned = prune(model, {first: Keep(Filters(), 0.5)})
    weight = pruned.model.get_submodule(first).weight
    alive = weight.flatten(1).any(1)
    assert int(alive.sum()) == 2
    norms = before[f"{first}.weight"].flatten(1).norm(dim=1)
    assert norms[alive].min() > norms[~alive].max()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert pruned.kept == 0.5
    changed = {n for n, p in pruned.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= set(pruned.masks)
    for name, mask in pruned.masks.items():
        assert (pruned.model.get_parameter(name)[~mask] == 0).all()
        assert torch.equal(pruned.model.get_parameter(name)[mask], before[name][mask])
    x, seen = toy()[0], []
    modules = list(pruned.model.modules())
    after = modules[modules.index(pruned.model.get_submodule(first)) + (1 if kind == "none" else 2)]
    after.register_forward_hook(lambda m, x, y: seen.append(y))
    pruned.model.eval()(x)
    channels = seen[0].movedim(-3, 0).flatten(1).abs().amax(1)  # ordinary: after the ReLU; spiking: after the neurons
    assert (channels[~alive] == 0).all()


def test_only_what_has_no_weight_left_loses_its_bias():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data = torch.arange(1.0, 13.0).view(3, 4)
    pruned = prune(model, {"0": Keep(Blocks(2, 1), 0.5)})  # the last half of all pairs of inputs of an output
    assert pruned.model[0].weight.tolist() == [[0, 0, 0, 0], [0, 0, 7, 8], [9, 10, 11, 12]]
    assert pruned.masks["0.bias"].tolist() == [False, True, True]
    assert pruned.model[0].bias[0] == 0
    assert torch.equal(pruned.model[0].bias[1:], model[0].bias[1:])


@pytest.mark.parametrize("kind", ["ordinary", "BNTT"])
def test_the_whole_procedure(kind, tmp_path):
    model, data = network(kind), toy()
    names = layers(model)
    keep = {name: Keep(Filters(), 0.5) for name in names[:-1]}
    levels = {name: NearestLevel(LEVELS) for name in names}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ADMMWarning)
        found = compress(
            model, BPTT(lr=1e-2, batch_size=8, schedule="cosine"), data, toy(1), keep=keep, levels=levels, epochs=3, retrain=2,
            rho=0.1, progress=False,
        )  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(found.histories) == ["prune", "retrain", "quantize", "retrain-levels"]
    assert len(found.pruning.rounds) == len(found.quantization.rounds) == 3
    assert not found.model.training
    for name in names:
        w, scale = found.model.get_submodule(name).weight.detach(), found.levels[name].scale
        assert (((w / scale)[..., None] - LEVELS.values()).abs().amin(-1) < 1e-6).all()
        assert not w[~found.masks[f"{name}.weight"]].any()
    for name in names[:-1]:
        assert (
            int(found.model.get_submodule(name).weight.flatten(1).any(1).sum())
            <= len(found.model.get_submodule(name).weight) // 2
        )
    second = found.model.get_submodule(names[1]).weight.detach()  # what the pruned filters fed
    dead = ~found.model.get_submodule(names[0]).weight.flatten(1).any(1)
    assert not second.unflatten(1, (4, -1))[:, dead].any()
    small = compact(found.model, data[0][:1])
    torch.testing.assert_close(small(data[0]), found.model(data[0]), rtol=1e-5, atol=1e-6)
    assert footprint(small).weights < footprint(model).weights / 2
    save(small, tmp_path / "m.safetensors")
    torch.testing.assert_close(load(tmp_path / "m.safetensors").eval()(data[0]), small(data[0]))
    deploy(small, Crossbar(16, 16, progress=False, cache=False), seed=0)(data[0][:2])


def test_one_shot_and_levels_alone():
    model, data = network(), toy()
    names = layers(model)
    rule = BPTT(lr=1e-2, batch_size=8)
    once = compress(model, rule, data, keep={names[0]: Keep(Filters(), 0.5)}, epochs=0, retrain=0, progress=False)
    assert once.histories == {}
    assert once.pruning is once.quantization is None
    assert torch.equal(
        once.model.get_submodule(names[0]).weight,
        prune(model, {names[0]: Keep(Filters(), 0.5)}).model.get_submodule(names[0]).weight,
    )
    assert once.purification.unfilled == {
        names[1]: (~once.model.get_submodule(names[0]).weight.flatten(1).any(1)).nonzero()[:, 0].tolist()
    }
    on = {names[1]: NearestLevel(LEVELS)}
    mapped = compress(model, rule, data, levels=on, epochs=0, retrain=0, progress=False)
    assert torch.equal(
        mapped.model.get_submodule(names[1]).weight, put_on_levels(model, on).get_submodule(names[1]).weight
    )
    assert mapped.purification is None
    kept = compress(once.model, rule, data, levels=on, masks=once.masks, epochs=0, retrain=1, progress=False)
    assert not kept.model.get_submodule(names[0]).weight[~once.masks[f"{names[0]}.weight"]].any()


def test_earlier_masks_are_kept_and_joined():
    model, data = network(), toy()
    first, second, last = layers(model)
    masks = {f"{n}.weight": torch.ones_like(model.get_submodule(n).weight, dtype=torch.bool) for n in (first, last)}
    masks[f"{last}.weight"][:, 1] = False
    found = compress(
        model, BPTT(lr=1e-2, batch_size=8), data, keep={first: Keep(Filters(), 0.5)}, epochs=0, retrain=1, purified=False,
        masks=masks, progress=False,
    )  # fmt: skip
    assert set(found.masks) >= {f"{first}.weight", f"{last}.weight"}
    assert not found.model.get_submodule(last).weight[:, 1].any()
    weight = found.model.get_submodule(first).weight
    assert torch.equal(found.masks[f"{first}.weight"], weight != 0)
    assert int(weight.flatten(1).any(1).sum()) == 2
    assert found.model.get_submodule(second).weight.all()


def test_in_a_block():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ordinary((Conv(4), Residual((Conv(6), Conv(4)))), (1, 6, 6), 2)
    inner = layers(model)[1]
    found = compress(
        model,
        BPTT(lr=1e-2, batch_size=8),
        toy(),
        keep={inner: Keep(Filters(), 0.5)},
        epochs=0,
        retrain=1,
        progress=False,
    )
    x = toy()[0]
    small = compact(found.model, x[:1])
    assert small.get_submodule(inner).out_channels == 3
    torch.testing.assert_close(small(x), found.model(x), rtol=1e-5, atol=1e-6)


def test_bad_input():
    model, rule, keep = network(), BPTT(), {"0": Keep(Filters(), 0.5)}
    with pytest.raises(ValueError, match="give keep"):
        compress(model, rule, toy(), progress=False)
    with pytest.raises(ValueError, match="epochs"):
        compress(model, rule, toy(), keep=keep, epochs=-1, progress=False)
    with pytest.raises(ValueError, match="a layer in projections"):
        compress(model, rule, toy(), keep={"99": Keep(Filters(), 0.5)}, epochs=0, retrain=0, progress=False)
    with pytest.raises(ValueError, match="a layer in levels"):
        put_on_levels(model, {"99": NearestLevel(LEVELS)})
    with pytest.raises(ValueError, match="must be one of"):
        prune(model, {"1": Keep(Filters(), 0.5)})  # a normalisation
    with pytest.raises(TypeError, match="plain rule"):
        compress(model, Masked(rule=rule, masks={}), toy(), keep=keep, progress=False)
