"""Inference in integers: sums against int64, agreement with the quantized model, and no silent gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust import attacks
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import Sequential
from snnrobust.models import Conv, Dense, Pool, Residual, ordinary, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import (
    Binary,
    Integer,
    LevelSet,
    PowerOfTwo,
    Quantizer,
    Ternary,
    calibrate,
    integer_layers,
    quantize,
    to_integer,
    weight_codes,
    weight_quantizer,
)
from snnrobust.quantization.int8 import InputCodes, IntegerConv2d, IntegerLinear, int8_instructions

ARCHITECTURE = (Conv(4), Pool(), Conv(5), Pool(), Dense(6))
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
W8, A8 = Quantizer(Integer(8), axis=0), Quantizer(Integer(8), affine=True)
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 8, 8), 3),
    "direct": lambda: spiking(ARCHITECTURE, (1, 8, 8), 3, Direct(4), LIF(threshold=0.1)),
    "poisson": lambda: spiking(ARCHITECTURE, (1, 8, 8), 3, Poisson(4), LIF(threshold=0.1), norm="none"),
}
PATHS = ["int8", "float"]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Sums by int8 instructions, where there are some, and by floating point."""
    if request.param == "float":
        monkeypatch.setattr("snnrobust.quantization.int8.int8_instructions", lambda: False)
    elif not int8_instructions():
        pytest.skip("torch reaches no int8 instructions on this processor")


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().eval()


def run(model, x=X, key=3):
    with draws(model, key, torch.arange(len(x))), torch.no_grad():
        return model(x)


def codes(shape, seed=0, low=-128, high=127):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


# --- the layers -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 6), st.integers(0, 255), st.booleans(), st.integers(0, 99))
def test_sums_of_linear_are_those_of_int64(batch, inputs, outputs, zero, instructions, seed):
    w = codes((outputs, inputs), seed)
    layer = IntegerLinear(w, torch.tensor(1.0), None, InputCodes(1.0, 0, 255, zero))
    a = torch.randint(0, 256, (batch, inputs), generator=torch.Generator().manual_seed(seed + 1))
    exact = (a - zero) @ w.long().T
    found = layer._by_instructions if instructions and int8_instructions() else None
    y = found(a.to(torch.uint8)) if found else layer._by_floats(a.double() - zero, torch.float64).float()
    assert torch.equal(y, exact.float())
    assert torch.equal(layer((a - zero).float()), exact.float())


@settings(max_examples=60, deadline=None)
@example((1, 1), 2, 1, 2, 1, 181, 0)  # windows that lie in the padding alone
@example((1, 1), 1, 1, 1, 1, 7, 0)
@given(
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 4)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.integers(0, 255),
    st.integers(0, 99),
)
def test_sums_of_convolutions_are_those_of_int64(channels, kernel, stride, padding, dilation, zero, seed):
    """Padding is zero, which is the code ``zero``."""
    (c, groups), out = channels, 4
    w = codes((out, c // groups, kernel, kernel), seed)
    geometry = (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups
    layer = IntegerConv2d(w, torch.tensor(1.0), None, InputCodes(1.0, 0, 255, zero), *geometry)
    x = (torch.randint(0, 256, (2, c, 7, 6), generator=torch.Generator().manual_seed(seed + 1)) - zero).double()
    exact = F.conv2d(x, w.double(), None, *geometry)  # below 2^53
    assert torch.equal(layer(x.float()), exact.float())


@pytest.mark.parametrize("inputs", [600, 40_000, 70_000])
def test_long_sums_are_exact(inputs, path):
    """Beyond 2^24, where float32 stops counting, and beyond 2^31, where int32 does."""
    layer = IntegerLinear(codes((3, inputs), low=126), torch.tensor(1.0), None, InputCodes(1.0, 0, 255))
    x = torch.full((2, inputs), 255.0)
    x[1, ::3] = 254
    assert torch.equal(layer(x), (x.long() @ layer.codes.long().T).float())


def test_both_paths_give_the_same_bits(monkeypatch):
    layer = IntegerConv2d(codes((6, 40, 3, 3)), torch.rand(6), torch.randn(6), InputCodes(0.01, -127, 127, 0, 128))
    x = torch.randn(3, 40, 8, 8)
    first = layer(x)
    monkeypatch.setattr("snnrobust.quantization.int8.int8_instructions", lambda: False)
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize(
    "recipe",
    [
        A8, Quantizer(Integer(8)), Quantizer(Integer(3)), Quantizer(Integer(5, signed=False)),
        Quantizer(Integer(8), "constant", affine=True, limits=(-1.0, 0.0)), Quantizer(Integer(8), "learned"),
        Quantizer(Integer(4), "constant", affine=True, limits=(-0.2, 1.0)),
    ],
    ids=str,
)  # fmt: skip
def test_input_codes_are_those_of_the_quantizer(recipe):
    """On its values, on ties between them, and far outside."""
    from snnrobust.quantization import SignalQuantizer
    from snnrobust.quantization.int8 import input_codes

    signal = SignalQuantizer(recipe)
    if recipe.scale != "constant":
        signal(torch.linspace(-1.3, 1.7, 50))
    signal.eval()
    found = input_codes(signal)
    step = torch.tensor(found.step)
    x = torch.cat([torch.arange(-600, 600) * step / 2, torch.tensor([1e30, -1e30, torch.inf, -torch.inf, 0.0, -0.0])])
    a = found(x)
    assert a.dtype == torch.uint8
    assert torch.equal((a.float() - found.offset) * step, signal(x) + 0.0)


def test_codes_that_do_not_fit_a_byte_are_refused():
    with pytest.raises(ValueError, match="must fit a uint8"):
        InputCodes(1.0, -127, 127)
    with pytest.raises(ValueError, match="one scale or one for each output"):
        IntegerLinear(codes((3, 2)), torch.ones(2), None, InputCodes(1.0, 0, 255))
    with pytest.raises(ValueError, match="needs int8 codes"):
        IntegerLinear(torch.ones(3, 2), torch.ones(3), None, InputCodes(1.0, 0, 255))


def test_nan_is_an_error():
    layer = IntegerLinear(codes((3, 2)), torch.ones(3), None, InputCodes(1.0, 0, 255))
    with pytest.raises(ValueError, match="NaN"):
        layer(torch.tensor([[1.0, torch.nan]]))


def test_leading_axes_empty_batches_and_dtypes(path):
    layer = IntegerLinear(codes((3, 2)), torch.ones(3), torch.ones(3), InputCodes(1.0, 0, 255))
    assert layer(torch.ones(4, 5, 2)).shape == (4, 5, 3)
    assert layer(torch.ones(0, 2)).shape == (0, 3)
    assert layer(torch.ones(2)).shape == (3,)
    assert layer(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    conv = IntegerConv2d(codes((3, 2, 1, 1)), torch.ones(3), None, InputCodes(1.0, 0, 255))
    assert conv(torch.ones(0, 2, 4, 4)).shape == (0, 3, 4, 4)


def test_weights_that_change_are_packed_again():
    layer = IntegerLinear(codes((3, 2)), torch.tensor(1.0), None, InputCodes(1.0, 0, 255))
    x = torch.ones(1, 2)
    layer(x)
    layer.load_state_dict({"codes": codes((3, 2), 5), "scale": torch.ones(1)})
    assert torch.equal(layer(x), layer.codes.float().sum(1)[None])
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


# --- models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_integers_agrees_with_the_quantized_one(name, path):
    model = calibrate(quantize(made(name), weights=W8, inputs=A8), X).eval()
    integer = to_integer(model)
    assert set(integer_layers(integer).values()) == {"int8"}
    torch.testing.assert_close(run(integer), run(model), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, nn.Linear | nn.Conv2d) for m in integer.modules())
    assert weight_quantizer(model[0][1] if name == "ann" else model.network[0][1]) is not None  # untouched


@pytest.mark.parametrize("name", MODELS)
def test_layers_compute_the_same_sums_as_the_quantized_ones(name):
    """Integer for integer: what a layer gets is the same, since the layers before it agree here."""
    model = calibrate(quantize(made(name), weights=W8, inputs=A8), X).eval()
    integer = to_integer(model)
    seen = {}
    for n, m in model.named_modules():
        if weight_quantizer(m):
            m.register_forward_hook(lambda m, args, out, n=n: seen.update({n: (args[0], out)}))
    run(model)
    for n, (q, y) in seen.items():
        layer, found = integer.get_submodule(n), weight_codes(model.get_submodule(n))
        step = torch.tensor(layer.inputs.step)
        a = torch.round(q / step).to(torch.int64)  # q is on the grid
        torch.testing.assert_close(a * step, q, rtol=0, atol=0)
        c = found.integers()[0].long()
        plain = model.get_submodule(n)
        exact = F.linear(a, c) if isinstance(plain, nn.Linear) else F.conv2d(a, c, None, plain.stride, plain.padding)
        assert torch.equal(layer.sums(q), exact.float())
        torch.testing.assert_close(layer(q), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["direct", "poisson"])
def test_spikes_need_no_quantizer(name):
    model = quantize(made(name), weights=W8)
    integer = to_integer(model)
    found = integer_layers(integer)
    assert [v for n, v in found.items() if v != "int8"] == (
        ["its inputs are not quantized, and not known to be spikes"] if name == "direct" else []
    )
    assert torch.equal(run(integer).argmax(1), run(model).argmax(1))
    torch.testing.assert_close(run(integer), run(model), rtol=1e-5, atol=1e-5)


def test_a_network_with_branches():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking((Conv(4), Residual((Conv(4),)), Dense(6)), (1, 8, 8), 3, Poisson(4), LIF(threshold=0.1))
    model = quantize(model.eval(), weights=W8)
    integer = to_integer(model)
    assert set(integer_layers(integer).values()) == {"int8"}
    torch.testing.assert_close(run(integer), run(model), rtol=1e-5, atol=1e-5)


def test_what_is_taken_for_spikes_has_to_be_spikes():
    layer = to_integer(quantize(Sequential(LIF(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2)), weights=W8))[3]
    assert layer.inputs == InputCodes(0.25, 0, 4, strict=True)
    assert layer(torch.tensor([0.0, 0.25, 1.0, 0.5])).shape == (2,)
    for wrong in (0.3, -0.25, 1.25, torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"takes spikes, multiples of 0.25 up to 1, and got other values"):
            layer(torch.tensor([0.0, 0.25, 1.0, wrong]))


@pytest.mark.parametrize(
    "between",
    [
        nn.AvgPool2d(3), nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.AvgPool2d(32),
        nn.Tanh(),
    ],
    ids=str,
)  # fmt: skip
def test_means_that_are_no_exact_multiples_are_not_taken_for_spikes(between):
    model = quantize(Sequential(LIF(), between, nn.Conv2d(1, 2, 1)), weights=W8)
    with pytest.raises(ValueError, match="2: its inputs are not quantized, and not known to be spikes"):
        to_integer(model)


@pytest.mark.parametrize(
    "levels", [Integer(8), Integer(2), Ternary(), Binary(), PowerOfTwo(4), LevelSet((-1.0, -0.25, 0.0, 0.5))]
)
def test_levels_with_int8_codes(levels):
    layer = quantize(nn.Sequential(nn.Linear(9, 4)), weights=Quantizer(levels), inputs=A8)[0][1]
    c, scale = weight_codes(layer).integers()
    assert c.dtype == torch.int8
    assert torch.equal(c * scale, layer.weight)


def test_a_slice_of_zeros_has_codes_of_zero():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    c, scale = weight_codes(quantize(nn.Sequential(layer), weights=W8, inputs=A8)[0][1]).integers()
    assert torch.equal(c[0], torch.zeros(3, dtype=torch.int8))
    assert scale[0] == 0


# --- no silent gradient -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_asking_for_a_gradient_is_an_error(name):
    integer = to_integer(calibrate(quantize(made(name), weights=W8, inputs=A8), X))
    x = X.clone().requires_grad_()
    with draws(integer, 3, torch.arange(len(x))):
        y = integer(x)
    assert y.requires_grad
    with pytest.raises(RuntimeError, match="an integer model has no gradient: attack or train the quantized model"):
        y.sum().backward()
    assert x.grad is None


def test_an_attack_on_it_is_an_error():
    integer = to_integer(calibrate(quantize(made("ann"), weights=W8, inputs=A8), X))
    with pytest.raises(RuntimeError, match="an integer model has no gradient"):
        attacks.FGSM(attacks.Linf(0.1))(integer, X, torch.zeros(5, dtype=torch.long))


# --- bad input --------------------------------------------------------------------------------------------------


def test_why_a_layer_stays_as_it_is():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding_mode="reflect", padding=1), nn.Flatten(),
        nn.Linear(32, 8), nn.Linear(8, 8), nn.Linear(8, 2),
    )  # fmt: skip
    bits = {"3": 9, "4": 8}
    x = torch.rand(2, 1, 4, 4)
    model = calibrate(
        quantize(model, weights=W8, inputs=Quantizer(Integer(8)), layers=["0", "1", "3", "4"], bits=bits), x
    )
    found = integer_layers(to_integer(model))
    assert found["0.1"] == "its padding is zeros, 'same': zeros and numbers are known"
    assert found["1.1"].startswith("its padding is reflect")
    assert found["3.1"] == "its inputs have 9 bits, more than 8"
    assert found["4.1"] == "int8"
    assert found["5"] == "its weight is not quantized"


def test_models_without_integers_are_refused():
    with pytest.raises(ValueError, match=r"no layer can be integer .*0: its weight is not quantized"):
        to_integer(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"there is no nn.Linear or nn.Conv2d"):
        to_integer(nn.Sequential(nn.ReLU()))
    model = quantize(nn.Sequential(nn.Linear(2, 2)), weights=W8, inputs=A8)
    with pytest.raises(ValueError, match=r"call quantization.calibrate first"):
        to_integer(model)
    calibrate(model, torch.rand(3, 2))
    with pytest.raises(ValueError, match=r"convert the model with .float\(\)"):
        to_integer(copy.deepcopy(model).double())
    weight_quantizer(model[0][1]).relax(0.5)
    with pytest.raises(ValueError, match=r"relaxed \(theta = 0.5\)"):
        to_integer(model)
    with pytest.raises(TypeError, match="has no quantized weight"):
        weight_codes(nn.Linear(2, 2))
