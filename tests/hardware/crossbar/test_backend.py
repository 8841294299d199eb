import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.draws import draws
from snnrobust.hardware import BACKENDS, Array, Chain, Crossbar, GaussianNoise, Operation, deploy, fleet, on_chips
from snnrobust.hardware.crossbar import backend as crossbar_backend
from snnrobust.hardware.crossbar.nodal import effective_conductance
from snnrobust.quantization import Uniform, uniform


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return nn.Sequential(layer).to(weight.dtype)


def stored(model, backend, seed=3, layer=0):
    """The effective weight of a layer on a chip."""
    return deploy(model, backend, seed=seed).get_submodule(f"{layer}.layer").array.weight


def some_weight(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(weight, crossbar):
    """[out, in] cell by cell: pairs, tiles with padding, each solved by itself."""
    low, high = 1 / crossbar.r_off, 1 / crossbar.r_on
    largest = max(abs(w) for row in weight.tolist() for w in row)
    scale = largest / (high - low)
    outputs, inputs = weight.shape
    result = torch.zeros_like(weight)
    for top in range(0, inputs, crossbar.rows):
        for left in range(0, outputs, crossbar.columns):
            for sign in (1, -1):
                tile = torch.full((crossbar.rows, crossbar.columns), low, dtype=torch.float64)
                for i in range(top, min(top + crossbar.rows, inputs)):
                    for j in range(left, min(left + crossbar.columns, outputs)):
                        part = max(sign * float(weight[j, i]), 0.0)
                        tile[i - top, j - left] = low + part / scale if scale else low
                if crossbar.ir_drop:
                    tile = effective_conductance(tile, crossbar.wires)
                for i in range(top, min(top + crossbar.rows, inputs)):
                    for j in range(left, min(left + crossbar.columns, outputs)):
                        result[j, i] += sign * scale * tile[i - top, j - left]
    return result


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.booleans())
@settings(deadline=None, max_examples=40)
def test_weights_cell_by_cell(inputs, outputs, rows, columns, ir_drop):
    weight = some_weight(outputs, inputs)
    crossbar = Crossbar(rows, columns, r_row=30.0, r_column=20.0, r_driver=500.0, r_sense=300.0, ir_drop=ir_drop)
    torch.testing.assert_close(stored(linear(weight), crossbar), by_hand(weight, crossbar), rtol=1e-9, atol=1e-12)


def test_two_by_two_by_hand():
    """One column: Kirchhoff's law solved on paper. Rows have drivers of 1 kOhm, the bit line 500 Ohm to the sense.

    With the segment of the bit line tiny both devices meet in one node: a weighted mean of the sources over the sense.
    """
    weight = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    crossbar = Crossbar(
        2, 1, r_on=10e3, r_off=100e3, r_driver=1e3, r_row=1.0, r_column=1e-6, r_sense=500.0, variation=0.0
    )
    scale = 1 / 9e-5

    def currents(g):  # each row is a resistor of 1 kOhm in series with its device
        arms = [1 / (1e3 + 1 / x) for x in g]
        return [arm * (1 / 500) / (sum(arms) + 1 / 500) for arm in arms]

    plus, minus = currents([1e-4, 5.5e-5]), currents([1e-5, 1e-5])
    expected = [[scale * (p - m) for p, m in zip(plus, minus, strict=True)]]
    got = stored(linear(weight), crossbar)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=0)


def test_without_imperfections_it_is_the_model(model, x):
    ideal = deploy(model, Crossbar(5, 3, ir_drop=False), seed=1)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            deployed = next(m for n, m in ideal.named_modules() if n.startswith(name) and hasattr(m, "array"))
            torch.testing.assert_close(deployed.array.weight, layer.weight.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ideal(x), model(x), rtol=1e-4, atol=1e-5)


KINDS = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), padding=1, dilation=(1, 2)), (2, 3, 6, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 3, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding_mode="circular", padding=1), (2, 4, 5, 5)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 2, 5, 5)),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_all_kinds_of_layers(kind):
    make, shape = KINDS[kind]
    layer = make().double()
    net = nn.Sequential(layer)
    x = torch.rand(shape, dtype=torch.float64)
    bias, layer.bias.data = layer.bias.detach().clone(), torch.zeros_like(layer.bias)
    for crossbar in (Crossbar(4, 3, r_row=50.0), Crossbar(4, 3, r_row=50.0, padding="open")):
        chip = deploy(net, crossbar, seed=0)
        operation = Operation.of(layer)
        matrix = operation.matrix(chip[0].layer.array.weight)
        tiles = [
            by_hand_group(m, crossbar, float(layer.weight.detach().abs().max()))
            for m in operation.matrix(layer.weight.detach())
        ]
        torch.testing.assert_close(matrix, torch.stack(tiles), rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(chip(x), operation(x, chip[0].layer.array.weight, None))
    layer.bias.data = bias
    torch.testing.assert_close(deploy(net, Crossbar(4, 3, ir_drop=False), seed=0)(x), net(x))
    fine = Crossbar(4, 3, ir_drop=False, adc_bits=16, dac_bits=16)
    torch.testing.assert_close(deploy(net, fine, seed=0)(x), net(x), rtol=0, atol=2e-3)


def by_hand_group(matrix, crossbar, largest):
    """[K, N] of one group, tile by tile; cells without weight at ``r_off``, or all but cut off."""
    low, high = 1 / crossbar.r_off, 1 / crossbar.r_on
    scale, result = largest / (high - low), torch.zeros_like(matrix)
    fill = low if crossbar.padding == "off" else 1e-25
    for top in range(0, matrix.shape[0], crossbar.rows):
        for left in range(0, matrix.shape[1], crossbar.columns):
            w = matrix[top : top + crossbar.rows, left : left + crossbar.columns]
            for sign in (1, -1):
                g = torch.full((crossbar.rows, crossbar.columns), fill, dtype=torch.float64)
                g[: w.shape[0], : w.shape[1]] = low + (sign * w).clamp(min=0) / scale
                solved = effective_conductance(g, crossbar.wires)[: w.shape[0], : w.shape[1]]
                result[top : top + crossbar.rows, left : left + crossbar.columns] += sign * scale * solved
    return result


def test_a_recurrent_layer():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0][:, -1]

    net, x = Last().eval(), torch.rand(2, 5, 3)
    torch.testing.assert_close(deploy(net, Crossbar(4, 4, ir_drop=False), seed=0)(x), net(x))
    assert not torch.allclose(deploy(net, Crossbar(4, 4, variation=0.3), seed=0)(x), net(x), atol=1e-3)


# --- output gain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", ["tile", "column"])
def test_output_gains_are_least_squares(gain):
    weight = some_weight(7, 9)
    wires = {"r_driver": 1e3, "r_sense": 1e3, "r_row": 20.0}
    raw = stored(linear(weight), Crossbar(4, 3, **wires))
    fitted = stored(linear(weight), Crossbar(4, 3, output_gain=gain, **wires))
    for top in range(0, 9, 4):
        for left in range(0, 7, 3):
            columns = (
                [slice(left, left + 3)] if gain == "tile" else [slice(j, j + 1) for j in range(left, min(left + 3, 7))]
            )
            for column in columns:
                a, w = raw[column, top : top + 4].flatten(), weight[column, top : top + 4].flatten()
                best = torch.linalg.lstsq(a[:, None], w[:, None]).solution[0, 0]
                torch.testing.assert_close(fitted[column, top : top + 4].flatten(), best * a)
                assert best > 1


def test_gains_of_tiles_without_weights():
    weight = torch.zeros(4, 4, dtype=torch.float64)
    weight[:2, :2] = 1.0
    fitted = stored(linear(weight), Crossbar(2, 2, output_gain="tile", r_driver=1e3))
    torch.testing.assert_close(fitted, weight, rtol=0.1, atol=1e-12)


# --- gradients ------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_input_is_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()
    chip = deploy(net, Crossbar(4, 3, r_driver=1e3, r_row=10.0, variation=0.2), seed=2)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(chip, (x,))
    ideal = torch.autograd.grad(net(x).sum(), x)[0]
    assert not torch.allclose(torch.autograd.grad(chip(x).sum(), x)[0], ideal, rtol=0.05)


def test_the_gradient_through_converters_is_that_without_them_inside_their_range():
    weight = some_weight(3, 6)
    x = some_weight(2, 6, seed=1).requires_grad_()
    chip = deploy(linear(weight), Crossbar(4, 4, ir_drop=False, adc_bits=6, dac_bits=6), seed=0)
    (gradient,) = torch.autograd.grad(chip(x).sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).expand(2, 6))
    low = deploy(linear(weight), Crossbar(4, 4, ir_drop=False, adc_bits=6, adc_range=1e-6), seed=0)
    assert torch.autograd.grad(low(x).sum(), x)[0].eq(0).all()
    assert Crossbar().gradient == "exact"
    assert Crossbar(adc_bits=4).gradient == Crossbar(dac_bits=4).gradient == "straight-through"


# --- with others ----------------------------------------------------------------------------------------------


def test_in_a_chain(model, x):
    chain = Chain(Uniform(bits=4), Crossbar(5, 4, ir_drop=False), GaussianNoise(multiplicative=0.1))
    chip = deploy(model, chain, seed=1)
    layer = next(m for m in chip.modules() if hasattr(m, "array"))
    weight = next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(layer.array.weight, uniform(weight.detach(), 4), rtol=1e-6, atol=1e-9)
    with draws(chip, 3):
        first = chip(x)
    with draws(chip, 4):
        assert not torch.equal(chip(x), first)


def test_a_backend_behind_it_changes_what_it_converts():
    weight = some_weight(3, 6)

    class Halved(Uniform):
        def program(self, array):
            array.weight = array.weight / 2
            return array

    try:
        converted = Crossbar(4, 4, ir_drop=False, adc_bits=12)
        one, both = (deploy(linear(weight), b, seed=0) for b in (converted, Chain(converted, Halved(bits=4))))
    finally:
        BACKENDS.pop("Halved")
    x = some_weight(2, 6, seed=1)
    torch.testing.assert_close(both(x), one(x) / 2, rtol=0, atol=0.02)


def test_an_array_of_another_kind_is_refused():
    class Odd(Array):
        def product(self, x, bias, start):
            return x

    with pytest.raises(TypeError, match=r"has made a Odd of the layer: put Crossbar first"):
        Crossbar(4, 4).program(Odd(torch.ones(2, 2), Operation()))


def test_training_through_crossbars():
    net, x = nn.Sequential(nn.Linear(6, 3)), torch.rand(4, 6)
    before = deepcopy(net.state_dict())
    chip = deploy(net, Crossbar(4, 4, variation=0.1, r_driver=1e3, cache=False), seed=3)
    with on_chips(net, Crossbar(4, 4, variation=0.1, r_driver=1e3, cache=False)) as make:
        make(3)
        net.train()
        torch.testing.assert_close(net(x), chip(x))
        net(x).sum().backward()
    torch.testing.assert_close(net[0].weight.grad, x.sum(0).expand(3, 6))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_fleet(model, x):
    outputs = [chip(x) for chip in fleet(model, Crossbar(5, 4, variation=0.2), 3, seed=4)]
    assert torch.equal(outputs[1], deploy(model, Crossbar(5, 4, variation=0.2), seed=5)(x))
    assert not torch.equal(outputs[0], outputs[1])


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r_on": 2e5, "r_off": 2e4}, "r_on must be below r_off, got r_on=200000 and r_off=20000 ohm"),
        ({"r_on": 2e4, "r_off": 2e4}, "r_on must be below r_off"),
        ({"r_row": 0.0}, r"r_row must be .*got 0\.0: in ohm; a part that is ideal takes a small one such as 1e-3"),
        ({"r_driver": -5.0}, "r_driver must be"),
        ({"r_column": float("nan")}, "r_column must be"),
        ({"r_sense": float("inf")}, "r_sense must be"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"columns": -3}, "columns must be at least 1"),
        ({"rows": 10**6, "columns": 10**6}, "solving one tile of 1000000 x 1000000 takes about .* use smaller tiles"),
        ({"variation": -0.1}, "variation must be"),
        ({"distribution": "normal"}, "distribution must be one of lognormal, gaussian.*did you mean 'lognormal'"),
        ({"stuck_on": 1.5}, "stuck_on must be"),
        ({"stuck_on": 0.6, "stuck_off": 0.6}, r"stuck_on \+ stuck_off must be at most 1, got 0\.6 \+ 0\.6"),
        ({"adc_bits": 1}, r"adc_bits must be in 2\.\.16 or None for an ideal converter, got 1"),
        ({"dac_bits": 17}, r"dac_bits must be in 2\.\.16"),
        ({"dac_range": 0.0}, "dac_range must be .* or 'sample'"),
        ({"adc_range": 1.5}, "adc_range must be .* a share of full scale"),
        ({"output_gain": "columns"}, "output_gain must be one of none, tile, column.*did you mean 'column'"),
        ({"padding": "on"}, "padding must be one of off, open"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Crossbar(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"rows": 2.0}, {"r_on": "20k"}, {"ir_drop": 1}, {"cache": "yes"}, {"dac_range": "batch"}]
)
def test_arguments_of_another_type(arguments):
    with pytest.raises(TypeError, match=next(iter(arguments))):
        Crossbar(**arguments)


def test_large_tiles_are_fine_where_nothing_is_solved_or_cells_are_open():
    Crossbar(10**6, 10**6, ir_drop=False)
    weight = some_weight(3, 5)
    got = stored(linear(weight), Crossbar(512, 512, padding="open", r_column=1e-3))
    torch.testing.assert_close(got, weight, rtol=0.05, atol=0.01)
    with pytest.raises(ValueError, match=r"tiles of 100000 x 100000 take about .* use tiles that fit the layer"):
        deploy(linear(weight), Crossbar(10**5, 10**5, padding="open"), seed=0)


def test_weights_that_are_not_finite():
    weight = some_weight(3, 4)
    weight[1, 2] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        deploy(linear(weight), Crossbar(4, 4), seed=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        Crossbar(4, 4).program(Array(weight, Operation()))


def test_a_layer_of_zeros(x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    net[1].weight.data.zero_()
    for crossbar in (Crossbar(4, 4), Crossbar(4, 4, adc_bits=4, dac_bits=4, output_gain="column", variation=0.1)):
        assert torch.equal(deploy(net, crossbar, seed=0)(x), net[1].bias.detach().expand(5, 3))


def test_a_layer_of_zeros_is_not_solved(monkeypatch):
    """Chips are rebuilt from files with such weights first."""
    monkeypatch.setattr(crossbar_backend, "solve", None)
    deploy(linear(torch.zeros(9, 9)), Crossbar(4, 4, variation=0.1), seed=0)


def test_variation_without_a_chip():
    with pytest.raises(RuntimeError, match=r"Crossbar is on no chip yet: use hardware\.deploy"):
        Crossbar(4, 4, variation=0.1).program(Array(torch.ones(2, 2), Operation()))


def test_what_it_says_of_itself():
    assert repr(Crossbar(32, 16, variation=0.1)) == "Crossbar(rows=32, columns=16, variation=0.1)"
    assert BACKENDS["Crossbar"] is Crossbar
