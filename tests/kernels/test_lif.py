"""The compiled LIF kernels: the bits of the torch operations, the gradients of float64, whatever the shape and the layout."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from snnrobust.kernels import lif as kernel
from snnrobust.kernels import native, saving
from snnrobust.kernels.lif_fallback import backward as torch_backward
from snnrobust.kernels.lif_fallback import forward as torch_forward
from snnrobust.neurons import LIF, PLIF, lif
from snnrobust.neurons.lif import lif_from, lif_shown
from snnrobust.neurons.neuron import Membrane
from snnrobust.neurons.surrogate import SURROGATES, ATan, SpikeTime, Surrogate, Triangle, in_kernel

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the compiled kernels")
properties = settings(max_examples=120, deadline=None, derandomize=True)
LAYOUTS = ("contiguous", "channels last", "transposed", "every other step", "off by one", "expanded batch")


def laid_out(x, layout):
    """The same values, elsewhere in memory."""
    if layout == "channels last" and x.dim() >= 3:
        return x.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every other step":
        return torch.stack([x, x + 1], 1).flatten(0, 1)[::2]
    if layout == "off by one":
        room = torch.empty(x.numel() + 1, dtype=x.dtype)[1:]
        return room.view(x.shape).copy_(x)
    if layout == "expanded batch":
        return x[:, :1].expand_as(x)
    return x


@dataclass
class Case:
    """A call of both implementations."""

    x: torch.Tensor
    steps: int
    constants: tuple  # decay, threshold, decays, thresholds
    state: tuple  # v0, quiet0
    hard: bool
    refractory: int
    timed: bool
    detach: bool
    kind: int
    a: float
    b: float

    def forward(self, run, keep_h=True, keep_state=True):
        rule = self.hard, self.refractory, keep_h, keep_state, self.timed
        return run(self.x, self.steps, *self.state, *self.constants, *rule)

    def backward(self, run, grad, h, slope=None, grad_v=None, asked=(True, True, True), x="own"):
        x = self.x if isinstance(x, str) else x
        rule = self.hard, self.refractory, self.timed, self.detach, self.kind, self.a, self.b
        return run(grad, x, self.steps, h, slope, grad_v, *self.state, *self.constants, *rule, *asked)

    @property
    def T(self):  # noqa: N802
        return self.steps or len(self.x)

    @property
    def one(self):
        return self.x if self.steps else self.x[0]


SHAPES = st.sampled_from([
    (1, 1), (2, 3), (3, 5), (1, 512), (1, 513), (7, 73), (2, 3, 5, 7), (1, 4, 16, 16), (3, 1, 9, 9), (2, 33, 4), (2, 8, 1, 1),
    (5,), (0, 3), (2, 6, 3, 2, 2),
])  # fmt: skip


@st.composite
def cases(draw):
    shape, T = draw(SHAPES), draw(st.sampled_from([1, 2, 3, 9]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    uniform = lambda *size, low=0.0, high=1.0: torch.empty(size).uniform_(low, high, generator=generator)  # noqa: E731
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x = uniform(T, *shape, low=-0.5, high=1.4)
    steps = T if draw(st.booleans()) else 0
    if draw(st.integers(0, 4)) == 0 and x.numel():  # what neurons should never be given
        places = torch.randint(0, x.numel(), (3,), generator=generator)
        x.view(-1)[places] = torch.tensor([math.nan, math.inf, -math.inf])
    layout = draw(st.sampled_from(LAYOUTS))
    x = laid_out(x.to(dtype), layout)
    x = x[0] if steps else x
    C = shape[1] if len(shape) > 1 else 1

    def constant(low, high):
        number = low + draw(st.floats(0, 1)) * (high - low)
        match draw(st.sampled_from(["number", "0-dim", "channels", "double"])):
            case "number":
                return number, None
            case "0-dim":
                return 0.0, torch.tensor([number])
            case "channels":
                return 0.0, uniform(C, low=low, high=high)
        return 0.0, uniform(C, low=low, high=high).double()

    decay, decays = constant(0.0, 1.0)
    threshold, thresholds = constant(0.4, 1.3)
    refractory = draw(st.sampled_from([0, 0, 1, 3]))
    surrogate = draw(st.sampled_from([kind() for name, kind in SURROGATES.items() if kind.derivative in _OURS]))
    timed = refractory > 0 or surrogate.timed
    one = x if steps else x[0]
    v0 = (
        (torch.empty_like(one, dtype=torch.float32).uniform_(-0.5, 1.0, generator=generator))
        if draw(st.booleans())
        else None
    )
    quiet0 = torch.randint(1, 6, one.shape, generator=generator).float() if timed and draw(st.booleans()) else None
    if v0 is not None and draw(st.booleans()):
        v0 = laid_out(v0[None], draw(st.sampled_from(LAYOUTS[:3])))[0]
    hard, detach = draw(st.booleans()), draw(st.booleans())
    constants = decay, threshold, decays, thresholds
    return Case(x, steps, constants, (v0, quiet0), hard, refractory, timed, detach, *in_kernel(surrogate))


_OURS = {kind.derivative for kind in SURROGATES.values() if kind.__module__.startswith("snnrobust")}


@given(cases(), st.booleans(), st.booleans())
@properties
def test_forward_is_the_torch_operations_to_the_bit(same_bits, case, keep_h, keep_state):
    ours, theirs = (case.forward(run, keep_h, keep_state) for run in (kernel.lif_forward, torch_forward))
    assert len(ours) == len(theirs) == 1 + keep_h + keep_state * (1 + case.timed)
    assert all(map(same_bits, ours, theirs))
    assert ours[0].dtype == case.x.dtype
    assert all(t.dtype == torch.float32 for t in ours[1:])


@given(cases(), st.data())
@properties
def test_backward_is_the_torch_operations_to_rounding(case, data):
    s, h, *_ = case.forward(torch_forward)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    grad = torch.empty(s.shape).normal_(generator=generator).to(s.dtype)
    grad = laid_out(grad, data.draw(st.sampled_from(LAYOUTS)))
    grad_v = torch.empty(s.shape[1:]).normal_(generator=generator) if data.draw(st.booleans()) else None
    slope = torch.rand(h.shape, generator=generator) if data.draw(st.booleans()) else None
    if slope is not None:
        case.kind = kernel.GIVEN
    asked = data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    expected = case.backward(torch_backward, grad, h, slope, grad_v, asked)
    wide = case.x.dtype == torch.bfloat16
    for saved in (None, h, laid_out(h, "transposed")):
        x = None if saved is not None and not case.timed else case.x
        found = case.backward(kernel.lif_backward, grad, saved, slope, grad_v, asked, x)
        assert len(found) == len(expected) == 1 + sum(asked)
        for a, b, low in zip(found, expected, (wide, False, False, False), strict=False):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            scale = float(b.double().nan_to_num(0, 0, 0).abs().max()) if b.numel() else 0.0
            torch.testing.assert_close(
                a, b, rtol=1e-2 if low else 1e-4, atol=(1e-2 if low else 1e-5) * (scale + 1e-3), equal_nan=True
            )


@pytest.mark.parametrize(
    "shape", [(2, 511), (1, 3, 512), (4, 16384), (3, 16385), (2, 16383), (200, 40), (9, 5, 7001), (2, 2, 20000)]
)
@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_around_blocks_and_tiles(same_bits, shape, steps, dtype):
    x = torch.empty(shape).uniform_(-0.5, 1.4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x[:, None] if len(shape) == 2 else x
    x = x[0] if steps else x
    for hard, refractory, decays in [(False, 0, None), (True, 2, torch.rand(x.shape[2 - (steps > 0)]))]:
        case = Case(
            x, steps, (0.9, 1.0, decays, None), (None, None), hard, refractory, refractory > 0, True, 0, 1.0, math.pi
        )
        ours, theirs = (case.forward(run) for run in (kernel.lif_forward, torch_forward))
        assert all(map(same_bits, ours, theirs))
        grad = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        expected = case.backward(torch_backward, grad, ours[1])
        for a, b in zip(case.backward(kernel.lif_backward, grad, None), expected, strict=True):
            tight = a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=1e-4 if tight else 1e-2, atol=2e-5 if tight else 2e-2)


def test_the_outputs_that_go_past_the_cache(same_bits, monkeypatch):
    """Large outputs are written with other instructions, which need their alignment."""
    x = torch.rand(3, 1, 5003)
    for layout in ("contiguous", "off by one"):
        case = Case(
            laid_out(x, layout), 0, (0.9, 1.0, None, None), (None, None), False, 0, False, True, 0, 1.0, math.pi
        )
        usual = case.forward(kernel.lif_forward)
        grads = case.backward(kernel.lif_backward, x, None)
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "STREAM_BYTES", 1)
            assert all(map(same_bits, usual, case.forward(kernel.lif_forward)))
            assert all(map(same_bits, grads, case.backward(kernel.lif_backward, x, None)))


# --- through the neurons ---------------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(name for name, kind in SURROGATES.items() if kind.derivative in _OURS)),
    st.sampled_from([(4, 2, 3), (6, 1, 2, 3, 2), (1, 2, 3), (40, 1, 2)]), st.integers(0, 99), st.sampled_from(["soft", "hard"]),
    st.booleans(), st.sampled_from([0, 0, 2]), st.sampled_from(["number", "0-dim", "channels"]),
)  # fmt: skip
@properties
def test_gradients_are_those_of_float64(reference, name, shape, seed, reset, detach, refractory, constants):
    surrogate, slope = reference.slopes[name]
    generator = torch.Generator().manual_seed(seed)
    x = torch.empty(shape).uniform_(-0.5, 1.2, generator=generator).requires_grad_()
    decay, threshold, leaves = 0.8, 0.9, [x]
    if constants != "number":
        size = (shape[2],) if constants == "channels" else ()
        decay = torch.empty(size).uniform_(0.5, 1.0, generator=generator).requires_grad_()
        threshold = torch.empty(size).uniform_(0.6, 1.2, generator=generator).requires_grad_()
        leaves += [decay, threshold]
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    slow_constants = doubles[1:] or [decay, threshold]
    s = lif(x, decay, threshold, reset, surrogate, detach, refractory)
    slow, _ = reference.run(doubles[0], slope, *slow_constants, reset, detach, refractory)
    if not torch.equal(s, slow.float()):  # a potential within rounding of its threshold
        return
    weights = torch.randn(shape, generator=generator)
    found = torch.autograd.grad((s * weights).sum(), leaves)
    expected = torch.autograd.grad((slow * weights).sum(), doubles, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        b = torch.zeros_like(a).double() if b is None else b
        torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=2e-5 * (1 + float(b.abs().max())))


@pytest.mark.parametrize("surrogate", [ATan(2.0), Triangle(0.5), SpikeTime()])
@pytest.mark.parametrize("refractory", [0, 2])
def test_what_is_saved_changes_no_bit(same_bits, surrogate, refractory):
    x = torch.rand(7, 2, 5)
    state = Membrane(torch.rand(2, 5), torch.full((2, 5), 2.0))
    grads = []
    for what in ("auto", "input", "potential"):
        leaves = [x.clone().requires_grad_(), state.v.clone().requires_grad_(), torch.tensor(0.9, requires_grad=True)]
        with saving(what):
            s, after = lif_from(
                leaves[0], Membrane(leaves[1], state.quiet), leaves[2], 1.0, "soft", surrogate, False, refractory
            )
        grads.append(torch.autograd.grad((s * x).sum() + after.v.square().sum(), leaves))
    assert all(map(same_bits, grads[0], grads[1]))
    assert all(map(same_bits, grads[1], grads[2]))


def test_saving_is_of_its_context_alone():
    kept = []
    hooks = partial(torch.autograd.graph.saved_tensors_hooks, lambda t: kept.append(t.nbytes) or t, lambda t: t)
    x = torch.rand(50, 2, 5, requires_grad=True)
    with hooks(), saving("potential"):
        lif(x.bfloat16(), 0.9)
    assert kept == [4 * x.numel()]
    kept.clear()
    with hooks(), pytest.raises(RuntimeError), saving("potential"):
        raise RuntimeError
    with hooks():
        lif(x, 0.9)
        with saving("input"):
            lif(x.double(), 0.9)
    assert kept == [4 * x.numel(), 8 * x.numel()]
    with pytest.raises(ValueError, match="what must be 'auto', 'input' or 'potential', got 'spikes'"), saving("spikes"):
        pass


def test_a_surrogate_of_its_own_gets_its_own_gradient():
    """A class derived from ATan is not taken for it where it has another derivative, and is where it has not."""

    class Steep(ATan):
        def derivative(self, u):
            return torch.full_like(u, 7.0)

    class Named(ATan):
        pass

    class Own(Surrogate):
        timed = True

        def derivative(self, u):
            return 1.0 / u

    try:
        x = torch.rand(1, 2, 3, requires_grad=True)
        grad = partial(torch.autograd.grad, inputs=x)
        assert in_kernel(Steep(2.0))[0] == kernel.GIVEN
        assert grad(lif(x, 0.9, surrogate=Steep(2.0)).sum())[0].unique().tolist() == [7.0]
        assert grad(lif_shown(x[0], 3, 0.0, surrogate=Steep(2.0)).sum())[0][0].unique().tolist() == [21.0]
        assert torch.equal(
            grad(lif(x, 0.9, surrogate=Named(2.0)).sum())[0], grad(lif(x, 0.9, surrogate=ATan(2.0)).sum())[0]
        )
        y = torch.full((3, 1, 1), 2.0, requires_grad=True)  # fires at each step: 1 / 1000, then 1 / 1
        (found,) = torch.autograd.grad(lif(y, 0.0, surrogate=Own()).sum(), y)
        torch.testing.assert_close(found.flatten(), torch.tensor([1e-3, 1.0, 1.0]))
    finally:
        for name in ("Steep", "Named", "Own"):
            SURROGATES.pop(name)


def test_a_state_may_come_from_another_rule():
    """Steps since the last spike go on being counted, as ``step`` does, where the surrogate does not need them now."""
    neuron = LIF(0.8, surrogate=SpikeTime())
    x = torch.rand(6, 2, 3) * 2
    _, state = neuron.advance(x[:2], neuron.initial_state(x[0]))
    neuron.surrogate = ATan(2.0)
    slow = state
    for x_t in x[2:]:
        _, slow = neuron.step(x_t, slow)
    _, fast = neuron.advance(x[2:], state)
    assert torch.equal(fast.quiet, slow.quiet)
    assert torch.equal(fast.v, slow.v)


@given(
    st.integers(1, 12), st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([0, 3]),
)  # fmt: skip
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_sequence_may_be_cut_anywhere(same_bits, features, cuts, dtype, refractory):
    x = torch.rand(sum(cuts), 2, features).mul(1.5).to(dtype)
    neuron = LIF(0.9, refractory=refractory)
    whole, last = neuron.advance(x, neuron.initial_state(x[0]))
    state, parts = neuron.initial_state(x[0]), []
    for part in x.split(cuts):
        s, state = neuron.advance(part, state)
        parts.append(s)
    assert same_bits(torch.cat(parts), whole)
    assert same_bits(whole, neuron(x))
    assert same_bits(state.v, last.v)
    assert state.v.dtype == torch.float32


def test_views_that_negate_are_read_as_they_are():
    """Parts of conjugates are views with a negation that has not happened in memory."""
    x = torch._neg_view(-torch.rand(4, 2, 3) * 2).requires_grad_()
    assert x.is_neg()
    assert torch.equal(lif(x, 0.9), lif(x.clone(), 0.9))
    assert lif(x, 0.9).sum() > 0
    (found,), (expected,) = (torch.autograd.grad(lif(y, 0.9)[1:].sum(), x) for y in (x, x.clone()))
    assert torch.equal(found, expected)
    grad = torch._neg_view(-torch.rand(4, 2, 3))
    found, expected = (torch.autograd.grad(lif(x, 0.9), x, g)[0] for g in (grad, grad.clone()))
    assert torch.equal(found, expected)


def test_arguments_are_not_written_into():
    x, v0 = torch.rand(5, 2, 3, requires_grad=True), torch.rand(2, 3)
    copies = x.detach().clone(), v0.clone()
    s, after = lif_from(x, Membrane(v0, None), 0.9)
    grad = torch.ones_like(s)
    torch.autograd.grad([s, after.v], x, [grad, torch.ones(2, 3)])
    assert torch.equal(x, copies[0])
    assert torch.equal(v0, copies[1])
    assert grad.eq(1).all()


def test_a_changed_input_is_noticed():
    x = torch.rand(5, 2, 3, requires_grad=True)
    y = x * 1
    with saving("input"):
        s = lif(y, 0.9)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        s.sum().backward()


def test_a_second_derivative_is_refused():
    x = torch.rand(5, 2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(lif(x, 0.9).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


# --- threads and instruction sets ------------------------------------------------------------------------------

_RUN = """
import hashlib, torch
from snnrobust.kernels import status
from snnrobust.neurons import lif
from snnrobust.neurons.surrogate import SURROGATES
torch.set_num_threads({threads})
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16):
    for shape in ((7, 3, 5, 11, 13), (3, 70001), (2, 5, 9, 700)):
        for name in ("ATan", "Sigmoid", "Gaussian", "Exponential", "Triangle", "FastSigmoid", "SpikeTime"):
            for reset, detach, refractory in (("soft", True, 0), ("hard", False, 2)):
                x = torch.empty(shape).uniform_(-1, 2, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
                s = lif(x, 0.9, 1.0, reset, SURROGATES[name](), detach, refractory)
                (g,) = torch.autograd.grad((s * x.detach()).sum(), x)
                digest.update(s.detach().float().numpy().tobytes() + g.float().numpy().tobytes())
print(status().split(" ")[1], digest.hexdigest())
"""


def _digest(isa="", threads=1):
    environment = {**os.environ, "SNNROBUST_KERNELS": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _RUN.format(threads=threads)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_threads_change_no_bit(same_bits):
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found = []
            for shape in ((7, 3, 5, 11, 13), (3, 70001), (2, 5, 9, 700), (40, 3)):
                x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
                s = lif(x, 0.9, 1.0, "hard", detach_reset=False)
                found += [s, *torch.autograd.grad((s * x.detach()).sum(), x)]
                s = lif(x, 0.9)
                found += [s, *torch.autograd.grad((s * x.detach()).sum(), x)]
            runs.append(found)
    finally:
        torch.set_num_threads(before)
    for found in runs[1:]:
        for a, b in zip(found, runs[0], strict=True):
            assert same_bits(a, b)


@pytest.mark.slow
def test_instruction_sets_agree_to_the_bit():
    best = native.ISAS.index(native.status().split(", ")[1].split(" ")[0])
    found = {isa: _digest(isa) for isa in native.ISAS[: best + 1]}
    assert [name.rstrip(",") for name, _ in found.values()] == list(found)
    assert len({digest for _, digest in found.values()}) == 1
    assert _digest("", threads=2)[1] == _digest("")[1]


# --- the operators ---------------------------------------------------------------------------------------------


class _Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operators(same_bits):
    x = torch.rand(5, 2, 3, requires_grad=True)
    plain = lif(x, 0.9)
    with _Seen() as seen:
        s = lif(x, 0.9)
        s.sum().backward()
    ours = [name for name in seen.names if "snnrobust" in name]
    assert ours == ["snnrobust.lif_forward.default", "snnrobust.lif_backward.default"]
    assert same_bits(s, plain)


@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("timed", [False, True])
def test_the_operators_keep_the_rules_of_torch(layout, steps, dtype, timed):
    x = laid_out(torch.rand(5, 2, 4, 3, 2).to(dtype), layout)
    x = x[0] if steps else x
    case = Case(
        x, steps, (0.9, 1.0, None, torch.rand(4) + 0.5), (None, None), False, 2 * timed, timed, True, 0, 1.0, math.pi
    )
    checks = "test_schema", "test_faketensor"
    arguments = []
    case.forward(lambda *given: arguments.append(given))
    torch.library.opcheck(torch.ops.snnrobust.lif_forward.default, arguments[0], test_utils=checks)
    s, h, *_ = case.forward(kernel.lif_forward)
    for saved, x in ((None, case.x), (h, case.x if timed else None)):
        arguments.clear()
        case.backward(lambda *given: arguments.append(given), s, saved, x=x)
        torch.library.opcheck(torch.ops.snnrobust.lif_backward.default, arguments[0], test_utils=checks)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[:3])
@pytest.mark.parametrize("neuron", [LIF(0.9), LIF(0.9, reset="hard", refractory=2), PLIF(0.9)])
def test_compiled_graphs_have_the_operator(same_bits, neuron, layout):
    x = laid_out(torch.rand(5, 2, 3, 4, 2), layout).requires_grad_()
    torch.compiler.reset()
    function = torch.compile(lambda x: neuron(x * 1.5).square().sum(), fullgraph=True, backend="aot_eager")
    leaves = [x, *neuron.parameters()]
    found = torch.autograd.grad(function(x), leaves)
    expected = torch.autograd.grad(neuron(x * 1.5).square().sum(), leaves)
    assert all(map(same_bits, found, expected))
