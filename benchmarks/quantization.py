"""What quantization costs: training a 4-bit layer, storing a membrane in 8 bits, and inference in int8."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Case, DisagreementError, Run
from benchmarks.targets import Target
from snnrobust.quantization import Integer, Quantizer, SignalQuantizer, calibrate, quantize, to_integer
from snnrobust.quantization.int8 import int8_instructions

__all__ = ["cases"]

BREVITAS, SNNTORCH = "Brevitas", "snnTorch, state_quant"


def cases(tiny: bool = False) -> Iterator[Case]:
    yield _training(*((16, 4) if tiny else (512, 128)))
    yield _membrane(2000 if tiny else 1_000_000)
    yield _inference_linear(*((16, 4) if tiny else (512, 128)))
    yield _inference_network(*((2, 4, 8) if tiny else (16, 32, 28)))


# --- training ---------------------------------------------------------------------------------------------------


def _training(features: int, batch: int) -> Case:
    plain = nn.Sequential(nn.Linear(features, features))
    x = torch.randn(batch, features, generator=torch.Generator().manual_seed(0))

    def made(scale: str, axis: int | None = None, affine: bool = False) -> Run:
        weights = Quantizer(Integer(4), scale, axis=axis)  # type: ignore[arg-type]
        inputs = Quantizer(Integer(8), scale, affine=affine)  # type: ignore[arg-type]
        return partial(_step, calibrate(quantize(plain, weights=weights, inputs=inputs), x).train(), x)

    contenders: dict[str, Run | str | None] = {
        "nn.Linear": partial(_step, plain, x),
        OURS: made("minmax"),
        f"{OURS}, a step an output, affine inputs": made("minmax", axis=0, affine=True),
        f"{OURS}, learned steps": made("learned"),
        BREVITAS: _brevitas(features, x),
    }
    return Case(
        f"w4a8 training of a Linear {features}x{features}, batch {batch}, forward and backward",
        contenders,
        reference="nn.Linear",
        targets=(Target("quantization-aware training, w4a8", OURS, "nn.Linear", 2.0, most=True),),
        remarks=("The gradient of the input is computed too, as inside a network.",),
    )


def _step(model: nn.Module, x: Tensor) -> None:
    model(x.detach().requires_grad_()).sum().backward()
    model.zero_grad()


def _brevitas(features: int, x: Tensor) -> Run | str:
    if importlib.util.find_spec("brevitas") is None:
        return "not installed"
    from brevitas.nn import QuantIdentity, QuantLinear

    layer = QuantLinear(features, features, bias=True, weight_bit_width=4)
    return partial(_step, nn.Sequential(QuantIdentity(bit_width=8), layer), x)


# --- membranes --------------------------------------------------------------------------------------------------


def _membrane(n: int) -> Case:
    """snnTorch's levels are 2^8 equidistant ones between both limits; affine integers have the same."""
    v = 1.4 * torch.rand(n, generator=torch.Generator().manual_seed(0)) - 0.1
    ours = SignalQuantizer(Quantizer(Integer(8), "constant", affine=True, limits=(0.0, 1.275))).eval()

    def run() -> Tensor:
        with torch.no_grad():
            q: Tensor = ours(v)
        return q

    theirs = _state_quant(v)
    if not isinstance(theirs, str):
        q, reference = run(), theirs()
        assert isinstance(reference, Tensor)
        apart = (q - reference).abs()
        tied = ((v / 0.005 - (v / 0.005).floor()) - 0.5).abs() < 1e-3  # in the middle of two levels, or next to it
        if bool((apart[~tied] > 1e-5).any()) or bool((apart > 0.0051).any()):
            raise DisagreementError("membranes differ by more than ties")
    return Case(
        f"8-bit membranes, {n:,} states",
        {OURS: run, SNNTORCH: theirs},
        reference=SNNTORCH,
        targets=(Target("8-bit membranes", OURS, SNNTORCH, 1000.0),),
        remarks=(f"{SNNTORCH} compares each state with all 256 levels. Results are equal but for ties.",),
    )


def _state_quant(v: Tensor) -> Run | str:
    if importlib.util.find_spec("snntorch") is None:
        return "not installed"
    from snntorch.functional.quant import state_quant

    quantizer = state_quant(num_bits=8, uniform=True, threshold=1.275, lower_limit=-1.0, upper_limit=0.0)

    def run() -> Tensor:
        with torch.no_grad():
            q: Tensor = quantizer(v)
        return q

    return run


# --- inference --------------------------------------------------------------------------------------------------

W8, A8 = Quantizer(Integer(8), axis=0), Quantizer(Integer(8), affine=True)


def _no_gradient(model: nn.Module, x: Tensor) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            y: Tensor = model(x)
        return y

    return run


def _compared(title: str, model: nn.Module, x: Tensor) -> Case:
    quantized = calibrate(quantize(model.eval(), weights=W8, inputs=A8), x).eval()
    whole = to_integer(quantized)
    with torch.no_grad():
        y, z = quantized(x), whole(x)
    # rounding moves some inputs of later layers to the next code
    if float((y - z).abs().mean()) > 1e-3 * float(y.abs().mean()):
        raise DisagreementError("integer and quantized model differ")
    contenders: dict[str, Run | str | None] = {
        "float32": _no_gradient(model, x),
        OURS: _no_gradient(whole, x),
        f"{OURS}, quantized in float": _no_gradient(quantized, x),
    }
    reached = "with" if int8_instructions() else "without"
    return Case(
        title,
        contenders,
        reference="float32",
        targets=(Target("int8 inference", OURS, "float32", 1.0),),
        remarks=(f"{OURS}: to_integer, {reached} int8 instructions, quantizing its inputs at each layer.",),
    )


def _inference_linear(features: int, batch: int) -> Case:
    x = torch.rand(batch, features, generator=torch.Generator().manual_seed(0))
    return _compared(
        f"int8 inference, Linear {features}x{features}, batch {batch}", nn.Sequential(nn.Linear(features, features)), x
    )


def _inference_network(channels: int, batch: int, size: int) -> Case:
    wide = 2 * channels
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(wide * (size // 2) ** 2, 10),
    )  # fmt: skip
    x = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
    return _compared(f"int8 inference, three convolutions and a Linear, {size}x{size}, batch {batch}", model, x)
