import pytest
import torch
from torch import nn

from snnrobust.hardware import BACKENDS, Chain, Crossbar, calibrate_adc, conductances, deploy, load, save
from snnrobust.hardware.crossbar import nodal_currents, nonlinear
from snnrobust.models import Conv, Dense, Pool, ordinary
from snnrobust.quantization import Uniform

WIRES = {"r_driver": 500.0, "r_row": 20.0, "r_column": 30.0, "r_sense": 400.0}
B, VOLTS = 6.0, 0.3


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNROBUST_CACHE", str(tmp_path))


def some(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(outputs, inputs):
    net = nn.Sequential(nn.Linear(inputs, outputs).double())
    net[0].weight.data = some(outputs, inputs)
    return net


def test_a_layer_tile_by_tile():
    """By hand: the cells of the chip, one input and one tile at a time."""
    net, x = linear(5, 6), some(3, 6, seed=1)
    chip = deploy(net, Crossbar(4, 3, nonlinearity=B, read_voltage=VOLTS, variation=0.1, **WIRES), seed=2)
    layer = conductances(chip).layers["0"]
    expected = net[0].bias.detach().expand(3, 5).clone()
    for n in range(3):
        full = x[n].abs().max()
        volts = torch.zeros(8, dtype=torch.float64)
        volts[:6] = x[n] / full * VOLTS
        for r in range(2):
            for c in range(2):
                both = [
                    nodal_currents(layer.g[sign, 0, r, c], layer.crossbar.wires, volts[None, 4 * r : 4 * r + 4], B)[0]
                    for sign in (0, 1)
                ]
                for j in range(3 * c, min(3 * c + 3, 5)):
                    expected[n, j] += (both[0] - both[1])[j - 3 * c] * layer.scale * full / VOLTS
    torch.testing.assert_close(chip(x), expected, rtol=1e-8, atol=1e-10)


def test_small_voltages_are_linear():
    net, x = linear(5, 6), some(3, 6, seed=1)
    plain = deploy(net, Crossbar(4, 3, **WIRES), seed=2)
    small = deploy(net, Crossbar(4, 3, nonlinearity=B, read_voltage=1e-5, **WIRES), seed=2)
    large = deploy(net, Crossbar(4, 3, nonlinearity=B, read_voltage=VOLTS, **WIRES), seed=2)
    torch.testing.assert_close(small(x), plain(x), rtol=1e-7, atol=1e-7)
    assert not torch.allclose(large(x), plain(x), rtol=1e-2)


def test_without_wires_it_is_the_law_of_the_device():
    net, x = linear(5, 6), some(3, 6, seed=1)
    chip = deploy(net, Crossbar(4, 3, nonlinearity=B, read_voltage=VOLTS, ir_drop=False, dac_range=3.0), seed=2)
    bent = torch.sinh(B * VOLTS * x / 3.0) / (B * VOLTS) * 3.0
    torch.testing.assert_close(chip(x), net(bent))


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 2, stride=2, bias=False), nn.Conv2d(4, 4, 3, groups=2, padding=1)])
def test_convolutions(layer):
    layer = layer.double()
    x = some(2, layer.in_channels, 5, 5)
    crossbar = Crossbar(4, 2, nonlinearity=B, read_voltage=VOLTS, ir_drop=False, dac_range=3.0)
    bent = torch.sinh(B * VOLTS * x / 3.0) / (B * VOLTS) * 3.0
    net = nn.Sequential(layer)
    torch.testing.assert_close(deploy(net, crossbar, seed=2)(x), net(bent))
    small = Crossbar(4, 2, nonlinearity=B, read_voltage=1e-5, **WIRES)
    torch.testing.assert_close(
        deploy(net, small, seed=2)(x), deploy(net, Crossbar(4, 2, **WIRES), seed=2)(x), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("dac_range", ["sample", 4.0])
@pytest.mark.parametrize("ir_drop", [True, False])
def test_the_gradient_is_exact(dac_range, ir_drop):
    crossbar = Crossbar(
        4, 3, nonlinearity=B, read_voltage=VOLTS, dac_range=dac_range, ir_drop=ir_drop, variation=0.1, **WIRES
    )
    assert crossbar.gradient == "exact"
    chip = deploy(linear(3, 5), crossbar, seed=2)
    assert torch.autograd.gradcheck(chip, (some(2, 5, seed=1).requires_grad_(),), rtol=1e-4)


def test_chunks_change_nothing(monkeypatch):
    net, x = linear(5, 6), some(7, 6, seed=1)
    chip = deploy(net, Crossbar(4, 3, nonlinearity=B, read_voltage=VOLTS, **WIRES), seed=2)
    whole = chip(x)
    monkeypatch.setattr(nonlinear, "CHUNK_BYTES", 2 * 8 * 2 * 4 * 12)
    torch.testing.assert_close(chip(x), whole, rtol=1e-9, atol=1e-11)


def test_with_converters():
    net, x = linear(5, 6), some(3, 6, seed=1)
    ideal = deploy(net, Crossbar(4, 3, nonlinearity=B, read_voltage=VOLTS, **WIRES), seed=2)
    errors = []
    for bits in (12, 4):
        converted = Crossbar(4, 3, nonlinearity=B, read_voltage=VOLTS, adc_bits=bits, dac_bits=bits, **WIRES)
        chip = calibrate_adc(deploy(net, converted, seed=2), x)
        errors.append(float((chip(x) - ideal(x)).abs().max()))
    assert 0 < errors[0] < 0.01 < errors[1]


def test_a_network_in_float32_is_saved(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ordinary((Conv(2), Pool(), Dense(3)), (1, 4, 4), 2).eval()
    chip = deploy(net, Crossbar(8, 8, nonlinearity=B, read_voltage=VOLTS, variation=0.1, **WIRES), seed=2)
    x = torch.rand(2, 1, 4, 4)
    assert chip(x).dtype == torch.float32
    save(chip, tmp_path / "chip")
    assert torch.equal(load(tmp_path / "chip")(x), chip(x))


def test_zeros():
    net = linear(3, 5)
    crossbar = Crossbar(4, 3, nonlinearity=B, read_voltage=VOLTS, **WIRES)
    assert torch.equal(deploy(net, crossbar, seed=0)(torch.zeros(2, 5).double()), net[0].bias.detach().expand(2, 3))
    net[0].weight.data.zero_()
    assert torch.equal(deploy(net, crossbar, seed=0)(torch.ones(2, 5).double()), net[0].bias.detach().expand(2, 3))


def test_work_that_would_not_end_is_refused():
    net = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1))
    chip = deploy(net, Crossbar(64, 64, nonlinearity=B, cache=False), seed=0)
    with pytest.raises(ValueError, match=r"12288 problems of 64 x 64 take about 18 minutes .* use a smaller batch"):
        chip(torch.zeros(2, 16, 32, 32))


def test_a_backend_behind_it_is_refused():
    class Doubled(Uniform):
        def program(self, array):
            array.weight = array.weight * 2
            return array

    BACKENDS.pop("Doubled")
    chip = deploy(linear(3, 5), Chain(Crossbar(4, 3, nonlinearity=B), Doubled(bits=4)), seed=0)
    with pytest.raises(RuntimeError, match="a backend after Crossbar has changed the weight"):
        chip(some(2, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nonlinearity": 0.0}, "nonlinearity must be .* None for linear devices"),
        ({"nonlinearity": -1.0}, "nonlinearity must be"),
        ({"nonlinearity": 1.0, "output_gain": "tile"}, "output_gain must be 'none' with nonlinearity, got 'tile'"),
        ({"read_voltage": 0.0}, "read_voltage must be .* in volts"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Crossbar(**arguments)
