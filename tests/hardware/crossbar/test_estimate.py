import pytest
import torch
from torch import nn

from snnrobust.hardware import Crossbar, GaussianNoise, conductances, deploy
from snnrobust.hardware.crossbar import estimate

NET = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


@pytest.mark.parametrize("padding", ["off", "open"])
def test_it_counts_what_is_then_deployed(padding):
    crossbar = Crossbar(7, 2, padding=padding)
    told = estimate(NET, crossbar)
    assert told.layers == {"0": 2 * 2 * 3 * 2, "3": 2 * 4 * 3}
    real = conductances(deploy(NET, crossbar, seed=0)).layers
    assert told.layers == {name: layer.g.flatten(0, 3).shape[0] for name, layer in real.items()}
    assert told.tiles == 48
    assert told.cells == 48 * 14 == sum(layer.g.numel() for layer in real.values())
    assert told.used == pytest.approx(2 * (6 * 18 + 24 * 5) / (48 * 14))
    assert 0 < told.seconds < 60
    assert "48 tiles for 2 layers, 68 % of 672 devices used: about" in str(told)


def test_without_wires_nothing_is_solved():
    assert estimate(NET, Crossbar(7, 2, ir_drop=False)).seconds == 0


def test_products_of_recurrent_layers():
    told = estimate(nn.Sequential(nn.GRU(3, 4)), Crossbar(4, 4))
    assert told.layers == {"0.input_l0": 2 * 3, "0.state_l0": 2 * 3}


def test_large_tiles_are_estimated_without_being_solved():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4096, 4096))
    told = estimate(net, Crossbar(1024, 1024))
    assert told.tiles == 32
    assert told.seconds > 5
    assert told.megabytes > 4 * 8 * 32 * 1024**2 / 1e6


def test_bad_input():
    with pytest.raises(TypeError, match="crossbar must be a Crossbar, got GaussianNoise"):
        estimate(NET, GaussianNoise(additive=0.1))
    with pytest.raises(ValueError, match=r"no nn\.Linear, nn\.Conv or recurrent layer"):
        estimate(nn.Sequential(nn.ReLU()), Crossbar())
