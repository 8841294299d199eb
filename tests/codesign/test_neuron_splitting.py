from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.codesign import accuracy_under_bit_errors, overhead, split_neurons, triplicate_neurons
from snnrobust.codesign.neuron_splitting import Merge
from snnrobust.encoders import Direct
from snnrobust.hardware import BitErrors, deploy, neuron_vulnerability
from snnrobust.hardware.bits import store
from snnrobust.models import Conv, Dense, ordinary, spiking

CORRECTIONS = ["none", "min", "compare", "clip"]


@pytest.fixture(autouse=True)
def _the_same_numbers_each_time():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)).double()


def conv():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True)), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(3, 3),
    ).double()  # fmt: skip


MODELS = {
    "mlp": (mlp, (6,), {"0": [1, 4], "2": [0], "4": [2]}),
    "conv": (conv, (2, 4, 4), {"0.0": [0, 3], "2": [1], "5": [0]}),
}


def protected(model, neurons, scheme, x):
    return triplicate_neurons(model, neurons) if scheme == "tmr" else split_neurons(model, neurons, scheme, profile=x)


@pytest.mark.parametrize("scheme", [*CORRECTIONS, "tmr"])
@pytest.mark.parametrize("case", MODELS)
def test_the_function_is_kept(case, scheme):
    make, shape, neurons = MODELS[case]
    model, x = make(), torch.randn(20, *shape).double()
    before = deepcopy(model.state_dict())
    guarded = protected(model, neurons, scheme, x)
    torch.testing.assert_close(guarded(x), model(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(guarded.float()(x.float()), model.float()(x.float()), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(before[n].float(), v) for n, v in model.state_dict().items())
    assert len([m for m in guarded.modules() if isinstance(m, Merge)]) == 3


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_any_neurons_of_any_network(data, seed):
    torch.manual_seed(seed)
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=3))
    model = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.ReLU(), nn.Linear(sizes[1], sizes[2])).double()
    chosen = {
        name: data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True))
        for name, size in (("0", sizes[1]), ("2", sizes[2]))
    }
    x = torch.randn(7, sizes[0]).double()
    for scheme in (*CORRECTIONS, "tmr"):
        torch.testing.assert_close(protected(model, chosen, scheme, x)(x), model(x), rtol=1e-12, atol=1e-13)


def test_the_halves_store_the_same_integers_at_half_the_step():
    model = mlp()
    layer = split_neurons(model, {"0": [1, 4]})[0][0]
    assert layer.weight.shape == (7, 6)
    assert layer.out_features == 7
    whole, halves = store(model[0].weight, axis=0), store(layer.weight.detach(), axis=0)
    assert torch.equal(halves.words[[1, 4]], whole.words[[1, 4]])
    assert torch.equal(halves.words[5:], whole.words[[1, 4]])
    assert torch.equal(halves.step[[1, 4]] * 2, whole.step[[1, 4]])
    assert torch.equal(halves.step[5:] * 2, whole.step[[1, 4]])
    assert torch.equal(layer.bias[5:] * 2, model[0].bias[[1, 4]])


def damaged(guarded, copy, error):
    """An error in one copy of neuron 1 of the first layer."""
    row = {0: 1, 1: 5, 2: 6}[copy]
    guarded[0][0].bias.data[row] += error
    return guarded[0]


@pytest.mark.parametrize("error", [-2.0, -0.1, 0.1, 5.0])
@pytest.mark.parametrize("copy", [0, 1])
def test_what_each_correction_makes_of_an_error(copy, error):
    model, x = mlp(), torch.rand(9, 6).double()
    z = model[0](x)[:, 1]
    a, b = (z / 2 + error).relu(), (z / 2).relu()
    largest = model[1](model[0](x))[:, 1].max()
    expected = {
        "none": a + b,
        "min": 2 * torch.minimum(a, b),
        "compare": torch.where((a - b).abs() > 0.2 * largest, 2 * torch.minimum(a, b), a + b),
        "clip": a.clamp(0 if z.min() < 0 else z.min() / 2, largest / 2) + b,
    }
    for scheme, wanted in expected.items():
        layer = damaged(split_neurons(model, {"0": [1]}, scheme, threshold=0.2, profile=x), copy, error)
        torch.testing.assert_close(layer(x)[:, 1], wanted)
        others = [0, 2, 3, 4]
        torch.testing.assert_close(layer(x)[:, others], model[1](model[0](x))[:, others])


@pytest.mark.parametrize("copy", [0, 1, 2])
@pytest.mark.parametrize("error", [-3.0, 7.0])
def test_a_vote_outlives_one_broken_copy_and_not_two(copy, error):
    model, x = mlp(), torch.rand(9, 6).double()
    guarded = triplicate_neurons(model, {"0": [1]})
    layer = damaged(guarded, copy, error)
    torch.testing.assert_close(layer(x), model[1](model[0](x)))
    damaged(guarded, (copy + 1) % 3, error)
    assert not torch.allclose(layer(x), model[1](model[0](x)))


def test_channels_of_convolutions_are_compared_position_by_position():
    model, x = conv(), torch.randn(3, 2, 4, 4).double()
    guarded = split_neurons(model, {"0.0": [2]})
    layer = guarded[0][0]
    layer[0].weight.data[4, 0, 0, 0] += 10.0
    ideal = model[0](x)
    seen = layer(x)
    assert (seen <= ideal + 1e-12).all()
    assert (seen[:, 2] < ideal[:, 2]).any()
    torch.testing.assert_close(seen[:, [0, 1, 3]], ideal[:, [0, 1, 3]])


def test_splitting_costs_half_of_a_triplicate():
    model, neurons = mlp(), {"0": [1, 4], "4": [2]}
    split, tmr = overhead(split_neurons(model, neurons)), overhead(triplicate_neurons(model, neurons))
    assert (split.neurons, split.units) == (3, 3)
    assert split.weights == 2 * 7 + 5
    assert split.of_neurons == 3 / 12
    assert split.of_weights == 19 / (5 * 7 + 4 * 5 + 3 * 5)
    assert (tmr.neurons, tmr.weights, tmr.units) == (2 * split.neurons, 2 * split.weights, 3)
    assert overhead(model).neurons == 0
    with pytest.raises(ValueError, match="the model has no"):
        overhead(nn.Flatten())


def test_the_copies_are_on_the_chip_and_the_vulnerable_neurons_can_be_given():
    model, x = mlp().float(), torch.rand(9, 6)
    top = neuron_vulnerability(model, x).top(4)
    guarded = split_neurons(model, top)
    chip = deploy(guarded, BitErrors(0.05, per_channel=True), seed=0)
    (layer,) = {name.partition(".")[0] for name in top} & {"0"} or {next(iter(top))}
    stored = chip.get_submodule(layer)[0].layer.array.weight
    assert stored.shape == guarded.get_submodule(layer)[0].weight.shape
    half = len(top[layer])
    assert not torch.equal(stored[top[layer]], stored[-half:])  # each copy has errors of its own


def test_a_single_flip_in_a_triplicate_changes_nothing_and_vulnerability_knows():
    model, x = mlp(), torch.randn(10, 6).double()
    with torch.no_grad():
        model[4].bias -= model(x).mean(0)
    every = {"0": list(range(5)), "2": list(range(4)), "4": list(range(3))}
    before, tmr, split = (
        neuron_vulnerability(m, x, per_channel=True)
        for m in (model, triplicate_neurons(model, every), split_neurons(model, every, "none"))
    )
    assert list(tmr.nvf) == ["0.0", "2.0", "4.0"]
    assert all(nvf.max() > 0 for nvf in before.nvf.values())
    assert all(nvf.max() == 0 for nvf in tmr.nvf.values())
    for name, nvf in before.nvf.items():  # half the error, never more harm
        copies = split.nvf[f"{name}.0"].view(2, -1)
        assert torch.equal(copies[0], copies[1])
        assert (copies[0] <= nvf).all()
    assert split.critical() < 2 * before.critical()


def test_accuracy_under_errors():
    model, x = mlp().float(), torch.randn(40, 6)
    with torch.no_grad():
        model[4].bias -= model(x).mean(0)
    y = model(x).argmax(1)
    clean = accuracy_under_bit_errors(model, (x, y), 0.0, chips=2)
    assert clean.min() > 0.9
    some = accuracy_under_bit_errors(model, (x, y), 0.1, chips=6, seed=1)
    assert some.shape == (6,)
    assert len(some.unique()) > 1
    assert torch.equal(some, accuracy_under_bit_errors(model, (x, y), 0.1, chips=6, seed=1, batch_size=7))
    assert not torch.equal(some, accuracy_under_bit_errors(model, (x, y), 0.1, chips=6, seed=2))
    by_hand = accuracy_under_bit_errors(model, (x[:20], y[:20]), 0.1, chips=6, seed=1) + accuracy_under_bit_errors(
        model, (x[20:], y[20:]), 0.1, chips=6, seed=1
    )
    torch.testing.assert_close(by_hand / 2, some)


def test_errors_name_the_remedy():
    model = mlp()
    with pytest.raises(ValueError, match=r"correction must be one of .*did you mean 'min'"):
        split_neurons(model, {"0": [1]}, "minn")
    with pytest.raises(ValueError, match=r"profile must be images .* for correction='clip'"):
        split_neurons(model, {"0": [1]}, "clip")
    with pytest.raises(ValueError, match=r"neurons must be one of 0, 2, 4; got '1'"):
        split_neurons(model, {"1": [1]})
    with pytest.raises(ValueError, match=r"neurons of 0 must be in 0..4, got 5"):
        triplicate_neurons(model, {"0": [5]})
    with pytest.raises(ValueError, match=r"neurons of 0 must be some, each once, got \[1, 1\]"):
        split_neurons(model, {"0": [1, 1]})
    with pytest.raises(ValueError, match="must be some"):
        split_neurons(model, {"0": []})
    with pytest.raises(TypeError, match=r"neurons must map names .* Vulnerability.top"):
        split_neurons(model, [("0", 1)])
    with pytest.raises(TypeError, match=r"followed by nn.ReLU or end the network, got BatchNorm2d.*fuse_conv_bn_eval"):
        split_neurons(ordinary((Conv(4), Dense(3)), (1, 4, 4), 3), {"0": [1]})
    with pytest.raises(TypeError, match="model must be an ordinary network"):
        split_neurons(spiking((Dense(3),), (1, 4, 4), 3, Direct(2)), {"network.1": [1]})
    with pytest.raises(TypeError, match="protect the original model"):
        split_neurons(split_neurons(model, {"0": [1]}), {"2": [1]})
    with pytest.raises(TypeError, match="has 2 groups"):
        split_neurons(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.ReLU()), {"0": [1]})
    with pytest.raises(ValueError, match=r"threshold must be in \[0, inf\], got -1"):
        split_neurons(model, {"0": [1]}, "compare", threshold=-1)
