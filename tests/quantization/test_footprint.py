import math

import pytest
import torch
from torch import nn

from snnrobust.hardware import Operation
from snnrobust.quantization import CrossbarCosts, Filters, Keep, footprint


def network():
    model = nn.Sequential(nn.Conv2d(1, 4, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    for p in model.parameters():
        p.data.fill_(1.0)
    return model


def test_by_hand():
    # conv: matrix 4 x 4; linear: 16 x 3. Tiles of 4 x 2: 1 x 2 and 4 x 2; both arrays of the pairs
    found = footprint(network(), bits=8, rows=4, columns=2, costs=CrossbarCosts(columns_per_adc=2))
    conv, linear = found.layers
    assert (conv.weights, conv.kept, conv.crossbars, conv.all_crossbars, conv.packed_crossbars, conv.adcs) == (
        16,
        16,
        4,
        4,
        4,
        4,
    )
    assert (linear.weights, linear.crossbars, linear.packed_crossbars, linear.adcs) == (48, 16, 16, 16)
    assert found.bits == 8 * 64
    assert found.compression() == 4.0
    assert found.area == found.power == 20 + 20


def test_by_hand_when_pruned():
    model = network()
    whole = footprint(model, rows=4, columns=2, costs=CrossbarCosts(columns_per_adc=1))
    model[0].weight.data[1:3] = 0  # filters 1 and 2: a column of each tile
    model[3].weight.data[:, 4:12] = 0  # what they feed: tiles 1 and 2 of the rows
    costs = CrossbarCosts(area_crossbar=2.0, area_adc=3.0, power_crossbar=0.5, power_adc=0.0, columns_per_adc=1)
    found = footprint(model, bits={"0": 4}, rows=4, columns=2, costs=costs)
    conv, linear = found.layers
    assert (conv.kept, conv.bits, conv.crossbars, conv.packed_crossbars, conv.adcs) == (8, 4, 4, 2, 4)
    assert (linear.kept, linear.bits, linear.crossbars, linear.packed_crossbars, linear.adcs) == (24, 32, 8, 8, 12)
    assert found.bits == 8 * 4 + 24 * 32
    assert found.compression() == found.compression(whole) == 32 * 64 / 800
    assert found.area == 2 * 12 + 3 * 16
    assert found.power == 0.5 * 12
    saved = found.reduction(footprint(network(), rows=4, columns=2, costs=costs))
    assert saved == {
        "crossbars": 1 - 12 / 20,
        "adcs": 1 - 16 / 32,
        "area": 1 - 72 / (2 * 20 + 3 * 32),
        "power": 1 - 6 / 10,
    }


def test_slices_and_groups():
    model = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2))
    one = footprint(model, bits=9, rows=6, columns=3, arrays=1)
    assert one.crossbars == 2  # one a group, 6 x 3
    assert footprint(model, bits=9, rows=6, columns=3, arrays=1, device_bits=4).crossbars == 4
    assert footprint(model, bits=9, rows=6, columns=3, arrays=1, device_bits=3).crossbars == 6
    assert footprint(model, bits=1, rows=6, columns=3, arrays=1, device_bits=3).crossbars == 2


def test_a_mask_says_what_is_stored():
    model = network()
    model[0].weight.data[0] = 0
    stored = torch.ones_like(model[0].weight, dtype=torch.bool)
    assert footprint(model).kept == 60
    assert footprint(model, masks={}).kept == 64
    assert footprint(model, masks={"0.weight": stored}).kept == 64
    stored[0] = False
    assert footprint(model, masks={"0.weight": stored}).kept == 60
    stored[1] = False
    with pytest.raises(ValueError, match="another model"):
        footprint(model, masks={"0.weight": stored})


def test_nothing_left():
    model = network()
    for layer in (model[0], model[3]):
        layer.weight.data.zero_()
    found = footprint(model)
    assert (found.kept, found.crossbars, found.packed_crossbars, found.adcs) == (0, 0, 0, 0)
    assert found.compression() == math.inf
    assert found.reduction(found) == dict.fromkeys(("crossbars", "adcs", "area", "power"), 0.0)


def test_table_and_json():
    model = network()
    keep = Keep(Filters(), 0.5)
    model[0].weight.data = keep(model[0].weight.data, Operation.of(model[0]))
    found = footprint(model, bits=4)
    assert "all layers" in found.table()
    assert f"{found.compression():.2f} times" in found.table()
    told = found.to_json()
    assert told["kept"] == sum(layer["kept"] for layer in told["layers"]) == 56


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"bits": 0}, "1..32"),
        ({"bits": 33}, "1..32"),
        ({"bits": {"7": 4}}, "a layer in bits"),
        ({"rows": 0}, "rows"),
        ({"columns": 0}, "columns"),
        ({"arrays": 0}, "arrays"),
        ({"device_bits": 0}, "device_bits"),
    ],
)
def test_bad_values(arguments, says):
    with pytest.raises(ValueError, match=says):
        footprint(network(), **arguments)


def test_bad_models_and_costs():
    with pytest.raises(ValueError, match="nothing to count"):
        footprint(nn.Sequential(nn.ReLU()))
    with pytest.raises(TypeError, match="CrossbarCosts"):
        footprint(network(), costs=3.0)
    with pytest.raises(ValueError, match="area_adc"):
        CrossbarCosts(area_adc=-1.0)
