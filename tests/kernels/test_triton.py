"""Triton kernels against the CPU: on a GPU where there is one, else under Triton's interpreter, in a process of its own.

Triton decides at import whether it interprets: ``test_under_the_interpreter`` runs this file again, with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnrobust import draws
from snnrobust.encoders import Poisson
from snnrobust.kernels import triton_lif, triton_philox
from snnrobust.kernels.layout import channel_layout
from snnrobust.neurons import lif, surrogate
from snnrobust.neurons.lif import lif_from, lif_shown
from snnrobust.neurons.neuron import Membrane
from snnrobust.neurons.surrogate import in_kernel

ROOT = Path(__file__).parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
TRITON = importlib.util.find_spec("triton") is not None

needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed")
kernel_test = pytest.mark.skipif(
    not TRITON or not (INTERPRETED or DEVICE.type == "cuda"), reason="no GPU: see test_under_the_interpreter"
)

SURROGATES = [
    surrogate.ATan(2.0), surrogate.Triangle(0.3, 0.8), surrogate.FastSigmoid(3.0), surrogate.Sigmoid(4.0),
    surrogate.Rectangle(0.7), surrogate.Gaussian(0.5), surrogate.Exponential(1.2, 2.0), surrogate.StraightThrough(),
    surrogate.SpikeTime(0.3, 0.1),
]  # fmt: skip
SHAPES = [(5, 3, 7), (1, 2, 600), (4, 2, 3, 9, 11), (33, 2, 5), (3, 1, 1, 1), (2, 1, 3, 21, 25)]


@pytest.fixture(autouse=True)
def _quiet_numpy() -> Iterator[None]:
    """The interpreter computes in numpy, which warns of NaN and infinity."""
    with np.errstate(all="ignore"):
        yield


def _random(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(0.8).to(dtype)


def _forward(
    x: Tensor, decay: float | Tensor, threshold: float | Tensor, hard: bool, refractory: int, **more: object
) -> list[Tensor]:
    given = {
        "steps": 0,
        "v0": None,
        "quiet0": None,
        "keep_h": False,
        "keep_state": False,
        "timed": refractory > 0,
        **more,
    }
    numbers = [0.0 if isinstance(p, Tensor) else p for p in (decay, threshold)]
    tensors = [p if isinstance(p, Tensor) else None for p in (decay, threshold)]
    arguments = given["steps"], given["v0"], given["quiet0"], *numbers, *tensors, hard, refractory
    moved = [a.to(DEVICE) if isinstance(a, Tensor) else a for a in (x, *arguments)]
    out = triton_lif.forward(*moved, given["keep_h"], given["keep_state"], given["timed"])  # type: ignore[arg-type]
    return [tensor.cpu() for tensor in out]


def _backward(
    grad: Tensor, x: Tensor | None, h: Tensor | None, decay: float | Tensor, threshold: float | Tensor, hard: bool, detach: bool,
    refractory: int, by: surrogate.Surrogate, asked: tuple[bool, bool, bool] = (False, False, False), slope: Tensor | None = None,
    steps: int = 0, grad_v: Tensor | None = None, v0: Tensor | None = None, quiet0: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    kind, a, b = (9, 0.0, 0.0) if slope is not None else in_kernel(by)
    numbers = [0.0 if isinstance(p, Tensor) else p for p in (decay, threshold)]
    tensors = [p.detach() if isinstance(p, Tensor) else None for p in (decay, threshold)]
    timed = refractory > 0 or by.timed
    arguments = (
        grad,
        x,
        steps,
        h,
        slope,
        grad_v,
        v0,
        quiet0,
        *numbers,
        *tensors,
        hard,
        refractory,
        timed,
        detach,
        kind,
        a,
        b,
    )
    moved = [a.to(DEVICE) if isinstance(a, Tensor) else a for a in arguments]
    return [tensor.cpu() for tensor in triton_lif.backward(*moved, *asked)]  # type: ignore[arg-type]


def _close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def _laid(x: Tensor, layout: str) -> Tensor:
    if layout == "channels last" and x.dim() > 3:
        order = (0, 1, *range(3, x.dim()), 2)
        return x.permute(order).contiguous().permute(0, 1, x.dim() - 1, *range(2, x.dim() - 1))
    if layout == "strided":
        return torch.stack([x, -x], -1)[..., 0]
    if layout == "offset":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x


# --- LIF ------------------------------------------------------------------------------------------------------


@kernel_test
@settings(deadline=None, max_examples=12)
@given(
    shape=st.sampled_from(SHAPES),
    hard=st.booleans(),
    refractory=st.sampled_from([0, 0, 1, 3]),
    channels=st.tuples(st.booleans(), st.booleans()),
    layout=st.sampled_from(["contiguous", "channels last", "strided", "offset"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_forward_is_that_of_the_cpu_to_the_bit(
    shape: tuple[int, ...],
    hard: bool,
    refractory: int,
    channels: tuple[bool, bool],
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    x = _laid((4 * _random(shape, seed, dtype)).round() / 4, layout)  # on a grid, so that some hit the threshold
    C = shape[2]
    generator = torch.Generator().manual_seed(seed)
    decay = torch.rand(C, generator=generator) if channels[0] else 0.5
    threshold = 0.2 + torch.rand(C, generator=generator) if channels[1] else 0.5
    s, h = _forward(x, decay, threshold, hard, refractory, keep_h=True)
    expected = lif(x, decay, threshold, "hard" if hard else "soft", refractory=refractory)
    assert torch.equal(s, expected)
    assert (s.dtype, s.stride(), h.dtype) == (dtype, expected.stride(), torch.float32)
    timed = refractory > 0
    potentials = torch.ops.snnrobust.lif_forward(
        x, 0, None, None, *([0.0 if isinstance(p, Tensor) else p for p in (decay, threshold)]),
        *([p if isinstance(p, Tensor) else None for p in (decay, threshold)]), hard, refractory, True, False, timed,
    )[1]  # fmt: skip
    assert torch.equal(h, potentials)


@kernel_test
@settings(deadline=None, max_examples=16)
@given(
    shape=st.sampled_from(SHAPES),
    by=st.sampled_from(SURROGATES),
    hard=st.booleans(),
    detach=st.booleans(),
    refractory=st.sampled_from([0, 0, 2]),
    channels=st.tuples(st.booleans(), st.booleans()),
    layout=st.sampled_from(["contiguous", "channels last", "strided"]),
    kept=st.sampled_from(["input", "potential", "slope"]),
    seed=st.integers(0, 1000),
)
def test_gradients_are_those_of_the_cpu(
    shape: tuple[int, ...], by: surrogate.Surrogate, hard: bool, detach: bool, refractory: int, channels: tuple[bool, bool],
    layout: str, kept: str, seed: int,
) -> None:  # fmt: skip
    x = _laid(_random(shape, seed), layout).requires_grad_()
    grad = _random(shape, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    count = shape[2] if any(channels) else 1
    decay = torch.rand(count if channels[0] else 1, generator=generator).squeeze().requires_grad_()
    threshold = (0.2 + torch.rand(count if channels[1] else 1, generator=generator)).squeeze().requires_grad_()
    reset = "hard" if hard else "soft"
    expected = torch.autograd.grad(lif(x, decay, threshold, reset, by, detach, refractory), (x, decay, threshold), grad)
    timed = refractory > 0 or by.timed
    h = slope = None
    if kept != "input":
        h = _forward(x.detach(), decay.detach(), threshold.detach(), hard, refractory, keep_h=True, timed=timed)[1]
    if kept == "slope" and not by.timed:
        slope = by.derivative(h - _along(threshold.detach(), x))
    found = _backward(
        grad, x.detach() if h is None or timed else None, h, decay, threshold, hard, detach, refractory, by,
        (False, True, True), slope,
    )  # fmt: skip
    _close(found[0], expected[0])
    for map_, p, of in zip(found[1:], (decay, threshold), expected[1:], strict=True):
        _close(map_.sum_to_size(_along(p, x).shape).reshape(p.shape), of, 2e-5)  # a sum over the batch


def _along(p: Tensor, x: Tensor) -> Tensor:
    return p if p.dim() == 0 else p.view(-1, *[1] * (x.dim() - 3))


@kernel_test
@pytest.mark.parametrize("by", SURROGATES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kept", ["input", "potential"])
def test_every_surrogate(by: surrogate.Surrogate, kept: str) -> None:
    x, grad = _random((6, 2, 530)).requires_grad_(), _random((6, 2, 530), 1)
    expected = torch.autograd.grad(lif(x, 0.8, 0.5, "soft", by), x, grad)[0]
    h = _forward(x.detach(), 0.8, 0.5, False, 0, keep_h=True)[1] if kept == "potential" else None
    _close(_backward(grad, x.detach(), h, 0.8, 0.5, False, True, 0, by)[0], expected)


@kernel_test
@pytest.mark.parametrize("T", [1, triton_lif.UNROLLED, triton_lif.UNROLLED + 1])
@pytest.mark.parametrize("refractory", [0, 2])
def test_recomputing_in_registers_and_in_scratch(T: int, refractory: int) -> None:
    x, grad = _random((T, 2, 9)).requires_grad_(), _random((T, 2, 9), 1)
    expected = torch.autograd.grad(lif(x, 0.8, 0.5, "hard", detach_reset=False, refractory=refractory), x, grad)[0]
    found = _backward(grad, x.detach(), None, 0.8, 0.5, True, False, refractory, surrogate.ATan(2.0))[0]
    _close(found, expected, 1e-5 if T > 10 else 1e-6)  # an undetached reset multiplies the roundings of all steps


@kernel_test
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_short_floats(dtype: torch.dtype) -> None:
    x, grad = _random((5, 2, 3, 40), 0, dtype).requires_grad_(), _random((5, 2, 3, 40), 1, dtype)
    expected = torch.autograd.grad(lif(x, 0.8, 0.5), x, grad)[0]
    found = _backward(grad, x.detach(), None, 0.8, 0.5, False, True, 0, surrogate.ATan(2.0))[0]
    assert found.dtype == dtype
    _close(found.float(), expected.float(), 2 * torch.finfo(dtype).eps)  # the interpreter cuts off where a GPU rounds


@kernel_test
@pytest.mark.parametrize("refractory", [0, 2])
@pytest.mark.parametrize("kept", ["input", "potential"])
def test_state_before_and_after(refractory: int, kept: str) -> None:
    x, v0 = _random((6, 2, 3, 50)), _random((2, 3, 50), 1)
    quiet0 = torch.randint(1, 4, (2, 3, 50), generator=torch.Generator().manual_seed(0)).float() if refractory else None
    grad, grad_v = _random((6, 2, 3, 50), 2), _random((2, 3, 50), 3)
    decay = torch.tensor([0.3, 0.8, 0.9], requires_grad=True)
    x.requires_grad_()
    v0.requires_grad_()
    s, after = lif_from(x, Membrane(v0, quiet0), decay, 0.5, refractory=refractory)
    expected = torch.autograd.grad((s, after.v), (x, v0, decay), (grad, grad_v))
    state = {"v0": v0.detach(), "quiet0": quiet0}
    found = _forward(x.detach(), decay.detach(), 0.5, False, refractory, keep_h=True, keep_state=True, **state)
    assert torch.equal(found[0], s)
    assert torch.equal(found[2], after.v)
    if refractory:
        assert after.quiet is not None
        assert torch.equal(found[3], after.quiet)
    gradients = _backward(
        grad, x.detach(), found[1] if kept == "potential" else None, decay, 0.5, False, True, refractory, surrogate.ATan(2.0),
        (True, True, False), grad_v=grad_v, **state,
    )  # fmt: skip
    _close(gradients[0], expected[0])
    _close(gradients[1], expected[1])
    _close(gradients[2].sum_to_size(3, 1).flatten(), expected[2], 2e-5)


@kernel_test
@pytest.mark.parametrize("kept", ["input", "potential"])
@pytest.mark.parametrize("T", [5, triton_lif.UNROLLED + 2])
def test_the_same_input_at_every_step(T: int, kept: str) -> None:
    x, grad = _random((2, 3, 9, 11)).requires_grad_(), _random((T, 2, 3, 9, 11), 1)
    expected = lif_shown(x, T, 0.8, 0.5)
    of_x = torch.autograd.grad(expected, x, grad)[0]
    s, h = _forward(x.detach(), 0.8, 0.5, False, 0, steps=T, keep_h=True)
    assert torch.equal(s, expected)
    h_kept = h if kept == "potential" else None
    found = _backward(grad, x.detach(), h_kept, 0.8, 0.5, False, True, 0, surrogate.ATan(2.0), steps=T)[0]
    _close(found, of_x, 1e-5)  # a sum over time


@kernel_test
@pytest.mark.parametrize("hard", [False, True])
def test_nan_never_fires_and_the_last_step_tells(hard: bool) -> None:
    x = _random((4, 1, 6))
    x[1, 0, 2], x[2, 0, 3], x[3, 0, 4] = math.nan, math.inf, -math.inf
    s = _forward(x, 0.8, 0.5, hard, 0)[0]
    expected = lif(x, 0.8, 0.5, "hard" if hard else "soft")
    assert s[-1, 0, 2].isnan()
    torch.testing.assert_close(s, expected, rtol=0, atol=0, equal_nan=True)


@kernel_test
def test_nothing_to_do() -> None:
    x = torch.zeros(3, 0, 4)
    assert _forward(x, 0.8, 0.5, False, 0)[0].shape == x.shape
    assert _backward(x, x, None, 0.8, 0.5, False, True, 0, surrogate.ATan(2.0))[0].shape == x.shape


def test_takes_what_it_computes_in_float32() -> None:
    assert not triton_lif.takes(torch.zeros(1, dtype=torch.float64))
    assert triton_lif.takes(torch.zeros(1)) == TRITON


def test_channels_last_is_not_copied() -> None:
    x = _laid(_random((2, 2, 3, 4, 5)), "channels last")
    assert channel_layout(x, 2)[0] is x


# --- Philox ---------------------------------------------------------------------------------------------------


@kernel_test
@settings(deadline=None, max_examples=10)
@given(
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    inner=st.sampled_from([(), (1,), (3,), (4,), (2, 5), (7, 11, 3), (1030,)]),
    steps=st.integers(1, 3),
    start=st.sampled_from([0, 5, 2**31 - 4]),
)
def test_draws_are_those_of_the_cpu(
    key: tuple[int, int], ids: list[int], inner: tuple[int, ...], steps: int, start: int
) -> None:
    words, samples, shape = torch.tensor(key), torch.tensor(ids), (steps, len(ids), *inner)
    expected = draws.uniform(words, samples, shape, start)
    assert torch.equal(triton_philox.uniform(words.to(DEVICE), samples.to(DEVICE), shape, start).cpu(), expected)
    x = torch.rand(shape[1:], generator=torch.Generator().manual_seed(steps))
    spikes = triton_philox.bernoulli(words.to(DEVICE), samples.to(DEVICE), x.to(DEVICE), steps, start)
    assert torch.equal(spikes.cpu(), (expected < x).float())


@kernel_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_poisson_spikes_are_those_of_the_encoder(dtype: torch.dtype) -> None:
    encoder, x, ids = Poisson(6), torch.rand(3, 2, 9, 9).to(dtype), torch.tensor([4, 1 << 40, 7])
    with draws.draws(encoder, 11, ids):
        expected = encoder(x)
        key = encoder._key
    assert key is not None
    spikes = triton_philox.bernoulli(key.to(DEVICE), ids.to(DEVICE), x.to(DEVICE), 6)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.cpu(), expected)


# --- Triton itself --------------------------------------------------------------------------------------------


@pytest.mark.skipif(INTERPRETED, reason="runs outside")
def test_importing_the_launchers_does_not_import_triton() -> None:
    code = "import sys; from snnrobust.kernels import triton_lif, triton_philox; print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@needs_triton
@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="the tests run as they are")
def test_under_the_interpreter() -> None:
    found = _run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__, TRITON_INTERPRET="1")
    assert found.returncode == 0, found.stdout + found.stderr
    counts = re.search(r"(\d+) passed", found.stdout)
    assert counts is not None
    assert int(counts.group(1)) > 40, found.stdout


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="compiles")
def test_compiles_for_a_gpu_and_keeps_multiply_and_add_apart(tmp_path: Path) -> None:
    """No GPU is needed to compile for one; that of PTX to machine code is left out."""
    script = tmp_path / "compile.py"
    script.write_text(_COMPILE)
    found = _run(str(script), TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert found.returncode == 0, found.stderr
    fused = dict(line.split() for line in found.stdout.splitlines())
    assert fused == {"apart": "0", "together": "8"}


_COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from snnrobust.kernels import triton_lif
program = triton_lif.code().lif_forward
types = {"x": "*fp32", "s": "*fp32", **{n: "fp32" for n in ("decay", "threshold", "refractory")},
         **{n: "i32" for n in ("T", "M", "x_step", "C", "inner")}}
values = {"HARD": False, "REFRACTORY": False, "SHOWN": False, "BLOCK": 512}
names = [p.name for p in program.params]
signature = {n: types.get(n, "constexpr") for n in names}
constants = {(i,): values.get(n) for i, n in enumerate(names) if n not in types}
for name, options in (("apart", triton_lif._APART), ("together", {})):
    source = ASTSource(program, signature, constants)
    print(name, compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"].count("fma.rn.f32"))
"""


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
