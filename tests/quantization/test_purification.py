"""Purification and compaction leave the function what it was."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust.encoders import Direct
from snnrobust.hardware.deploy import SYNAPTIC
from snnrobust.layers import Normalise
from snnrobust.models import Conv, Dense, Pool, Residual, ordinary, spiking
from snnrobust.models.description import build, describe
from snnrobust.neurons import IF, LIF, PLIF
from snnrobust.quantization import compact, footprint, purify
from snnrobust.quantization.paths import paths

LAYERS = (Conv(6), Pool(kind="max"), Conv(5), Pool(), Dense(7))
NORMS = ("BNTT", "TDBN", "TEBN", "BatchNorm", "none")


def images(n=6, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(model, seed=0):
    """Parameters and statistics that are not those of the start, in float64."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if (
                value.is_floating_point() and value.dim() and not name.endswith(("_mean", "_std"))
            ) or "running" in name:
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.add_(0.3 * noise.abs() if "var" in name else 0.3 * noise)
    return model


def networks(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "ordinary":
            return shaken(ordinary(LAYERS, (1, 8, 8), 4))
        if name == "residual":
            return shaken(ordinary((Conv(4), Residual((Conv(6), Conv(4))), Pool(), Dense(5)), (1, 8, 8), 4))
        if name == "spiking residual":
            return shaken(spiking((Conv(4), Residual((Conv(6), Conv(4))), Pool(), Dense(5)), (1, 8, 8), 4, Direct(3)))
        return shaken(spiking(LAYERS, (1, 8, 8), 4, Direct(3), LIF(threshold=0.5), norm=name))


def synaptic(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, SYNAPTIC)}


def empty(model, share=0.5, seed=0):
    """Filters of all but the last layer, and some inputs of all but the first, become zero."""
    generator = torch.Generator().manual_seed(seed)
    layers = list(synaptic(model).values())
    with torch.no_grad():
        for layer in layers[:-1]:
            layer.weight[torch.rand(len(layer.weight), generator=generator) < share] = 0
        for layer in layers[1:]:
            layer.weight[:, torch.rand(layer.weight.shape[1], generator=generator) < share] = 0
    return model


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["ordinary", "residual", "spiking residual", *NORMS])
def test_the_function_is_the_same(name, fold, seed):
    model = empty(networks(name), seed=seed)
    before, x = deepcopy(model.state_dict()), images()
    found = purify(model, x[:1], fold=fold)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), model(x), rtol=1e-10, atol=1e-11)
        small = compact(found.model, x[:1])
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-11)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert found.removed > 0
    assert footprint(small).weights < footprint(model).weights
    if not fold:
        assert found.folded == {}
    again = purify(found.model, x[:1], fold=fold)  # a fixed point
    assert again.removed == 0
    assert again.passes == 1
    again_small = compact(small, x[:1])
    assert [p.shape for p in again_small.parameters()] == [p.shape for p in small.parameters()]
    for parameter, mask in found.masks.items():
        assert (found.model.get_parameter(parameter)[~mask] == 0).all()


def chain():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    for p in model.parameters():
        p.data.fill_(0.5)
    return model


def test_unread_filters_go_backwards_to_a_fixed_point():
    model = chain()
    model[4].weight.data[:, 1:] = 0  # only neuron 0 of the second layer is read
    model[2].weight.data[0, 2:] = 0  # which reads only neurons 0 and 1 of the first
    found = purify(model, torch.rand(1, 3).double())
    assert found.unread == {"2": [1, 2, 3], "0": [2, 3]}
    assert found.unfilled == found.folded == found.constant == {}
    assert not found.model[2].bias[1:].any()
    assert found.model[2].bias[0] == 0.5
    assert found.removed == 3 * 2 + 2 * 3 + 2 * 3
    small = compact(found.model, torch.rand(1, 3).double())
    assert [tuple(layer.weight.shape) for layer in synaptic(small).values()] == [(2, 3), (1, 2), (2, 1)]


def test_unfilled_inputs_go_forwards_and_constants_into_the_bias():
    model = chain()
    model[0].weight.data[0] = 0  # gives relu(0.5): a constant
    model[0].weight.data[1] = 0
    model[0].bias.data[1] = -1.0  # gives relu(-1) = 0
    found = purify(model, torch.rand(1, 3).double())
    assert (found.folded, found.unfilled) == ({"2": [0]}, {"2": [1]})
    assert (found.model[2].bias == 0.5 + 0.5 * 0.5).all()
    assert not found.model[2].weight[:, :2].any()
    kept = purify(model, torch.rand(1, 3).double(), fold=False)
    assert kept.constant == {"2": {0: "fold=False"}}
    assert kept.model[2].weight[:, 0].all()


@pytest.mark.parametrize(
    ("padding", "mode", "why"),
    [(1, "zeros", "pads with zeros"), (0, "zeros", ""), (1, "replicate", ""), (1, "circular", "")],
)
def test_a_constant_channel_in_front_of_a_convolution(padding, mode, why):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=padding, padding_mode=mode, bias=False), nn.Flatten(),
        nn.Linear(2 * (4 + 2 * padding) ** 2, 2),
    ).double()  # fmt: skip
    model[0].weight.data[1] = 0
    model[0].bias.data[1] = 0.7
    x = images()
    found = purify(model, x[:1])
    torch.testing.assert_close(found.model(x), model(x), rtol=1e-12, atol=1e-12)
    if why:
        assert why in found.constant["2"][1]
        assert found.model[2].bias is None
    else:
        assert found.folded == {"2": [1]}
        assert found.model[2].bias is not None


def test_a_neuron_that_fires_all_by_itself_stays_where_its_spikes_differ_in_time():
    model = spiking((Dense(4),), (3,), 2, Direct(4), IF(threshold=1.0), norm="none").double()
    name, last = synaptic(model)
    layer = model.get_submodule(name)
    layer.weight.data[:2] = 0
    layer.bias.data[0], layer.bias.data[1] = 0.4, 1.0  # fires at the third step; at all steps
    layer.bias.data[2:] = 0.1
    model.get_submodule(last).weight.data.fill_(0.5)
    x = torch.rand(5, 3).double()
    found = purify(model, x[:1])
    torch.testing.assert_close(found.model(x), model(x), rtol=1e-12, atol=1e-12)
    assert "time step" in found.constant[last][0]
    assert found.folded == {last: [1]}


def test_neurons_with_constants_of_each_channel_stay_whole():
    for neuron in (LIF(threshold=[0.5, 1.0, 1.5, 2.0]), PLIF(features=4)):
        model = spiking((Dense(4),), (3,), 2, Direct(2), neuron, norm="none")
        name, last = synaptic(model)
        model.get_submodule(last).weight.data[:, 1] = 0
        x = torch.rand(2, 3)
        found = purify(model, x[:1])
        assert found.unread == {name: [1]}
        assert compact(found.model, x[:1]).get_submodule(name).weight.shape == (4, 3)


def test_one_channel_stays():
    model = chain()
    model[2].weight.data.zero_()
    x = torch.rand(3, 3).double()
    small = compact(model, x[:1])
    assert small[0].weight.shape == (1, 3)
    torch.testing.assert_close(small(x), model(x))


def test_a_compact_model_can_be_described_and_trained():
    for name in ("ordinary", *NORMS):
        model = purify(empty(networks(name)), images(1)).model
        small = compact(model, images(1))
        again = build(describe(small)).double()
        again.load_state_dict(small.state_dict())
        torch.testing.assert_close(again.eval()(images()), small(images()))
        again.train()(images()).sum().backward()
        assert all(p.grad is not None for p in again.parameters())


def test_where_there_is_no_path():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, groups=2)
    shared = nn.Linear(4, 4)
    for between, last in (
        ([nn.Softmax(1)], nn.Conv2d(4, 2, 3)),  # mixes channels
        ([nn.LayerNorm((6, 6))], nn.Conv2d(4, 2, 3)),
        ([nn.GroupNorm(2, 4)], nn.Conv2d(4, 2, 3)),
        ([], conv),
        ([nn.Flatten(2)], nn.Linear(36, 2)),
        ([], nn.Linear(6, 2)),  # on the last axis
    ):
        assert paths(nn.Sequential(nn.Conv2d(1, 4, 3), *between, last), torch.rand(1, 1, 8, 8)) == []
    assert paths(nn.Sequential(shared, nn.ReLU(), shared), torch.rand(1, 4)) == []
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda m, x, y: y.roll(1, 1))
    assert paths(nn.Sequential(nn.Linear(4, 4), hooked, nn.Linear(4, 2)), torch.rand(1, 4)) == []
    last = nn.Linear(4, 2)
    last.register_forward_pre_hook(lambda m, x: (x[0].roll(1, 1),))
    assert paths(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), last), torch.rand(1, 4)) == []
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    assert paths(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), computed), torch.rand(1, 4)) == []


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.parts[2](self.parts[0](x).roll(1, 1))


def test_modules_of_others_are_not_looked_into():
    with pytest.raises(ValueError, match="no path"):
        purify(Own(), torch.rand(1, 4))


def test_an_activation_may_stand_in_several_places():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2)).double()
    model[2].weight.data[0] = 0
    model[2].bias.data[0] = -1.0  # a constant that the second use of the activation makes zero
    model[2].weight.data[1] = 0
    model[2].bias.data[1] = 2.0
    x = torch.rand(5, 3).double()
    found = purify(model, x[:1])
    assert (found.unfilled, found.folded) == ({"4": [0]}, {"4": [1]})
    torch.testing.assert_close(found.model(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_norm_in_two_places_is_left_alone():
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.ReLU(), nn.Linear(4, 4), norm, nn.ReLU(), nn.Linear(4, 2))
    assert paths(model, torch.rand(1, 3)) == []


def test_a_norm_behind_the_flattening():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(4 * 36), nn.Linear(4 * 36, 3))
    model = empty(shaken(model))
    model[4].weight.data.view(3, 4, 36)[:, 2] = 0
    x = images()
    small = compact(purify(model, x[:1]).model, x[:1])
    assert small[0].out_channels < 4
    assert small[3].num_features == small[0].out_channels * 36
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-11)


def test_residual_ends_stay_whole():
    model = networks("residual")
    found = {(p.first, p.last) for p in paths(model, images(1))}
    names = list(synaptic(model))
    assert (names[1], names[2]) in found  # inside of the body
    assert not any(first == names[2] for first, _ in found)  # its end is added
    assert not any(first == names[0] for first, _ in found)  # read by the body and by the shortcut


def test_bad_input():
    with pytest.raises(TypeError, match="model"):
        purify(3, torch.rand(1, 4))
    with pytest.raises(TypeError, match="example"):
        compact(chain(), "x")
    model = nn.Sequential(Normalise(0.5, 0.5), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="no path"):
        purify(model, torch.rand(1, 4))
