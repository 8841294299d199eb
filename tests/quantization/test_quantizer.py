import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from snnrobust.quantization import Binary, Integer, LevelSet, PowerOfTwo, Quantizer, Ternary, uniform
from snnrobust.quantization.straight import lsq, straight_through

W = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(1))
RECIPES = [
    Quantizer(), Quantizer(Integer(4), axis=0), Quantizer(Integer(4), axis=-1), Quantizer(Integer(3), affine=True),
    Quantizer(Integer(3), affine=True, axis=1), Quantizer(Integer(4), "percentile", percentile=90.0),
    Quantizer(Integer(4), "percentile", affine=True, percentile=90.0),
    Quantizer(Integer(4), "percentile", axis=0, percentile=80.0),
    Quantizer(Integer(4), "constant", limits=(-2.0, 2.0)), Quantizer(Integer(4), "constant", affine=True, limits=(-1.0, 3.0)),
    Quantizer(Ternary(), "least-squares"), Quantizer(Binary(), "least-squares", axis=0), Quantizer(Integer(3), "least-squares"),
    Quantizer(PowerOfTwo(4)), Quantizer(LevelSet([-1.0, 0.0, 0.5, 1.0])), Quantizer(Integer(4), "learned"),
    Quantizer(Integer(4, signed=False)), Quantizer(Integer(4), "learned", axis=0), Quantizer(gradient="identity"),
]  # fmt: skip
EACH = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.levels}-{r.scale}-{r.axis}-{r.affine}")


@EACH
def test_what_comes_out_are_levels(recipe):
    step, zero = recipe.grid(W)
    q = recipe(W)
    codes = q / step + (0.0 if zero is None else zero)
    near = recipe.levels.nearest(codes.double())
    torch.testing.assert_close(codes.double(), near, rtol=0, atol=1e-4)
    assert q.shape == W.shape
    assert q.dtype == W.dtype


@EACH
def test_idempotent_on_its_grid(recipe):
    step, zero = recipe.grid(W)
    q = straight_through(W, step, zero, recipe.levels, True)
    assert torch.equal(straight_through(q, step, zero, recipe.levels, True), q)


@EACH
def test_descriptions(recipe):
    assert Quantizer.build(json.loads(json.dumps(recipe.describe()))) == recipe


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_equals_torch_fake_quantize(bits, axis):
    """A power of two as the step makes division and torch's multiplication by the reciprocal the same number."""
    levels = Integer(bits)
    step = torch.full((), 0.25) if axis is None else 2.0 ** -torch.arange(1.0, W.shape[axis] + 1)
    x = W * 3
    if axis is None:
        expected = torch.fake_quantize_per_tensor_affine(x, 0.25, 0, int(levels.low), int(levels.high))
        shaped = step
    else:
        zeros = torch.zeros(len(step), dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(x, step, zeros, axis, int(levels.low), int(levels.high))
        shaped = step.view([-1 if d == axis else 1 for d in range(x.dim())])
    assert torch.equal(straight_through(x, shaped, None, levels, True), expected)


def test_affine_equals_torch_fake_quantize():
    x = (W * 2).requires_grad_()
    ours = straight_through(x, torch.tensor(0.125), torch.tensor(5.0), Integer(4, signed=False), True)
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.125, 5, 0, 15)
    assert torch.equal(ours, theirs)
    a, b = (torch.autograd.grad(q.square().sum(), x, retain_graph=True)[0] for q in (ours, theirs))
    assert torch.equal(a, b)
    assert 0 < int((a == 0).sum()) < a.numel()


def test_minmax_by_hand():
    x = torch.tensor([-1.0, 0.2, 0.5, 3.5])
    assert Quantizer(Integer(4))(x).tolist() == [-1.0, 0.0, 0.5, 3.5]  # steps of 0.5, and 0.2 is nearer to 0
    q = Quantizer(Integer(2), affine=True)(torch.tensor([-1.0, 0.0, 0.4, 2.0]))
    assert q.tolist() == [-1.0, 0.0, 0.0, 2.0]


@given(x=arrays("float32", 12, elements=st.floats(-1e3, 1e3, width=32)), bits=st.integers(2, 10))
def test_error_is_at_most_half_a_step(x, bits):
    x = torch.from_numpy(x)
    for recipe in (Quantizer(Integer(bits)), Quantizer(Integer(bits), affine=True)):
        step, _ = recipe.grid(x)
        # an affine range is moved by up to half a step so that 0 is a level
        most = (1.01 if recipe.affine else 0.501) * step + 1e-6
        assert ((recipe(x) - x).abs() <= most).all()


def test_close_to_the_hardware_backend():
    torch.testing.assert_close(Quantizer(Integer(4))(W), uniform(W, 4), rtol=1e-6, atol=1e-7)


def test_axis_gives_each_slice_its_own_step():
    q = Quantizer(Integer(3), axis=0)(W)
    for i in range(len(W)):
        assert torch.equal(q[i], Quantizer(Integer(3))(W[i]))


def test_percentile_by_brute_force():
    step, _ = Quantizer(Integer(4), "percentile", percentile=90.0).grid(W)
    magnitudes = W.abs().flatten().sort().values
    assert step == magnitudes[math.ceil(0.9 * W.numel()) - 1] / 7
    per_slice, _ = Quantizer(Integer(4), "percentile", percentile=75.0, axis=1).grid(W)
    assert per_slice.shape == (1, 4, 1)
    for j in range(4):
        slices = W[:, j].abs().flatten().sort().values
        assert per_slice[0, j, 0] == slices[math.ceil(0.75 * slices.numel()) - 1] / 7


def test_gradients_go_straight_through():
    x = torch.tensor([-3.0, -0.2, 0.4, 5.0], requires_grad=True)
    limits = (-1.0, 1.0)
    for gradient, expected in ((None, [0, 1, 1, 0]), ("clipped", [0, 1, 1, 0]), ("identity", [1, 1, 1, 1])):
        q = Quantizer(Integer(4), "constant", limits=limits, gradient=gradient)(x)
        assert torch.autograd.grad(q.sum(), x)[0].tolist() == expected


@pytest.mark.parametrize("levels", [Integer(3), Integer(3, signed=False), Ternary()], ids=repr)
def test_lsq_gradient_of_the_published_rule(levels):
    """Against finite differences of the rule's own function, in which rounding is a constant: s (u + [L(u) - u])."""
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    step = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    of_x, of_step = torch.autograd.grad((lsq(x, step, levels, 0.7) * g).sum(), (x, step))
    u = (x / step).detach()
    inside = (u > levels.low) & (u < levels.high)
    rounding = (levels.nearest(u) - u) * inside

    def rule(x, s):
        return ((s * ((x / s).clamp(levels.low, levels.high) + rounding)) * g).sum()

    h = 1e-6
    with torch.no_grad():
        difference = (rule(x, step + h) - rule(x, step - h)) / (2 * h)
        torch.testing.assert_close(of_step, 0.7 * difference, rtol=1e-6, atol=1e-8)
        for i in range(len(x)):
            e = torch.zeros_like(x)
            e[i] = h
            expected = (rule(x + e, step) - rule(x - e, step)) / (2 * h)
            torch.testing.assert_close(of_x[i], expected, rtol=1e-5, atol=1e-7)


def test_lsq_steps_of_slices():
    step = torch.tensor([[[0.3]], [[0.5]], [[0.2]], [[0.4]], [[0.6]], [[0.1]]], requires_grad=True)
    (whole,) = torch.autograd.grad(lsq(W, step, Integer(3), 1.0).square().sum(), step)
    for i in range(6):
        one = step[i].detach().requires_grad_()
        (part,) = torch.autograd.grad(lsq(W[i], one, Integer(3), 1.0).square().sum(), one)
        torch.testing.assert_close(whole[i], part)


@EACH
def test_zeros_stay_zeros_unless_there_is_no_zero(recipe):
    q = recipe(torch.zeros_like(W))
    assert q.isfinite().all()
    if 0.0 in recipe.levels.values().tolist():
        assert (q == 0).all()


def test_tiny_numbers_are_no_nan():
    for x in (torch.tensor([1e-45, 0.0]), torch.tensor([1e-38, -1e-40])):
        assert Quantizer(Integer(8))(x).isfinite().all()
        assert Quantizer(Integer(8), affine=True)(x).isfinite().all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Quantizer(4), TypeError, r"Levels such as Integer\(4\)"),
        (lambda: Quantizer(scale="maxmin"), ValueError, "did you mean 'minmax'"),
        (lambda: Quantizer(scale="constant"), ValueError, "limits"),
        (lambda: Quantizer(limits=(-1.0, 1.0)), ValueError, "limits"),
        (lambda: Quantizer(Integer(4), "constant", limits=0.5), TypeError, "limits must be two numbers"),
        (lambda: Quantizer(Integer(4), "constant", limits=(1, 2, 3)), TypeError, "limits must be two numbers"),
        (lambda: Quantizer(Integer(4), "constant", limits=(-1.0, 2.0)), ValueError, r"use \(-2, 2\), or affine"),
        (lambda: Quantizer(Integer(4), "constant", affine=True, limits=(1.0, 2.0)), ValueError, "must hold 0"),
        (lambda: Quantizer(Ternary(), affine=True), ValueError, "affine needs Integer"),
        (lambda: Quantizer(Integer(4), "learned", affine=True), ValueError, "no learned scale"),
        (lambda: Quantizer(Integer(4), "learned", gradient="identity"), ValueError, "LSQ"),
        (lambda: Quantizer(percentile=40.0), ValueError, "percentile"),
        (lambda: Quantizer(axis=3)(W), ValueError, "axis must be one of the 3"),
        (lambda: Quantizer()(torch.tensor([1.0, math.nan])), ValueError, "NaN or infinity"),
        (lambda: Quantizer()(torch.zeros(0)), ValueError, "at least one element"),
        (lambda: Quantizer()(torch.zeros(2, dtype=torch.int64)), TypeError, "got torch.int64: convert"),
        (lambda: Quantizer()(torch.arange(3)), TypeError, "floating"),
        (lambda: Quantizer.build({"bit": 4}), ValueError, "did you mean 'bits'"),
        (lambda: Quantizer.build({"levels": "Ternay"}), ValueError, "did you mean 'Ternary'"),
        (lambda: Quantizer.build({"bits": 17}), ValueError, "2..16"),
        (lambda: Quantizer.build({"levels": "Ternary", "bits": 2}), ValueError, "quantizer"),
        (lambda: Quantizer.build(4), ValueError, r"\{ bits = 4 \}"),
    ],
)  # fmt: skip
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("gradient", ["clipped", "identity"])
@pytest.mark.parametrize("affine", [False, True])
def test_what_is_zero_passes_its_gradient(gradient, affine):
    """A signal that is 0 so far has a step of 0: a gradient of 0 would keep the layer before it silent for ever."""
    x = torch.zeros(3, requires_grad=True)
    q = Quantizer(Integer(4), affine=affine, gradient=gradient)(x)
    (q * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    assert q.tolist() == [0, 0, 0]
    assert x.grad.tolist() == [1, -2, 3]
    rows = torch.tensor([[0.0, 0.0], [1.0, -0.5]], requires_grad=True)
    if not affine:
        Quantizer(Integer(4), axis=0, gradient=gradient)(rows).sum().backward()
        assert rows.grad.tolist() == [[1, 1], [1, 1]]


def test_short_descriptions():
    assert Quantizer.build({"bits": 4}) == Quantizer(Integer(4))
    assert Quantizer.build({"bits": 4, "signed": False, "scale": "learned"}) == Quantizer(
        Integer(4, signed=False), "learned"
    )
    assert Quantizer.build({"levels": "Ternary", "scale": "least-squares"}) == Quantizer(Ternary(), "least-squares")
    levels = {"type": "LevelSet", "levels": [0.0, 1.0]}
    assert Quantizer.build({"levels": levels}) == Quantizer(LevelSet([0.0, 1.0]))
