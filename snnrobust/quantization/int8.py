r"""Layers that multiply in integers: 8-bit inputs by 8-bit weights, summed in 32 bits.

.. math:: y = \text{float32}\Big(\sum_i (a_i - z)\, c_i\Big) \cdot s_x s_w + b

The sum is exact, so whatever computes it (the processor's int8 instructions, or floating point wide enough) gives the same bits.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust.quantization.levels import Integer
from snnrobust.quantization.signals import SignalQuantizer

__all__ = ["InputCodes", "IntegerConv2d", "IntegerLayer", "IntegerLinear", "int8_instructions"]

EXACT_FLOAT = 2**24
"""Integers up to it are float32."""
EXACT_SUM = 2**31
"""Sums below it are int32."""


@dataclass(frozen=True)
class InputCodes:
    r"""How inputs become ``uint8``.

    .. math:: a = \operatorname{clip}(\operatorname{round}(x / s + z), l, u) + o, \quad x \approx s \, (a - z - o)

    Args:
        step: s > 0, a float32.
        low, high: l and u.
        zero: z.
        shift: o: codes with a sign are stored above 128.
        strict: Refuse inputs that are not exactly on the grid: spikes.
    """

    step: float
    low: int
    high: int
    zero: int = 0
    shift: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        stored = self.low + self.shift, self.high + self.shift, self.offset
        if min(stored) < 0 or max(stored) > 255:
            raise ValueError(f"codes and zero point must fit a uint8, got {self}")

    @property
    def offset(self) -> int:
        """The code of 0."""
        return self.zero + self.shift

    @property
    def largest(self) -> int:
        """Of ``|a - offset|``."""
        return max(self.high - self.zero, self.zero - self.low)

    def __call__(self, x: Tensor) -> Tensor:
        """``uint8``, shape of ``x``."""
        u = x.float() / torch.tensor(self.step, device=x.device)
        if self.zero:
            u += self.zero
        a = u.round()
        if self.strict:
            if not bool(((a == u) & (a >= self.low) & (a <= self.high)).all()):
                raise ValueError(
                    f"this layer takes spikes, multiples of {self.step:g} up to {self.step * self.high:g}, and got other "
                    "values: quantize its inputs (inputs=Quantizer(Integer(8), affine=True)) before to_integer"
                )
        elif bool(x.isnan().any()):
            raise ValueError("the input of an integer layer contains NaN: an integer cannot say so")
        a.clamp_(self.low, self.high)
        if self.shift:
            a += self.shift
        return a.to(torch.uint8)


@functools.cache
def int8_instructions() -> bool:
    """Whether torch multiplies int8 on this processor, with exact sums: tried once, on products that overflow 16 bits."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        a = torch.full((2, 67), 255, dtype=torch.uint8)
        w = torch.full((3, 67), -127, dtype=torch.int8)
        linear = _linear(a, _packed_linear(w), 3, 3)
        geometry = (1, 1), (1, 1), (1, 1), 1
        convolved = _convolved(a.view(2, 67, 1, 1), _packed_conv(w.view(3, 67, 1, 1), 3, *geometry), 3, 3, *geometry)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    exact = torch.full((2, 3), float(67 * (255 - 3) * -127))
    return torch.equal(linear, exact) and torch.equal(convolved[:, :, 1, 1], exact)


# torch documents none of these operators; torch.compile's x86 back end of quantized models is built on them.


def _packed_linear(w: Tensor) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(w, None)  # type: ignore[no-any-return]


def _linear(a: Tensor, packed: Tensor, outputs: int, zero: int) -> Tensor:
    """Sums as float32, ``[N, outputs]``."""
    unit = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(  # type: ignore[no-any-return]
        a, 1.0, zero, packed, *unit, None, 1.0, 0, torch.float32, "none", [], ""
    )


Pair = tuple[int, int]


def _packed_conv(w: Tensor, zero: int, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    return torch.ops.onednn.qconv_prepack(  # type: ignore[no-any-return]
        w, torch.ones(len(w)), 1.0, zero, stride, padding, dilation, groups, None
    )


def _convolved(
    a: Tensor, packed: Tensor, outputs: int, zero: int, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    unit = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    return torch.ops.onednn.qconv2d_pointwise(  # type: ignore[no-any-return]
        a, 1.0, zero, packed, *unit, None, stride, padding, dilation, groups, 1.0, 0, torch.float32, "none", [], ""
    )


class IntegerLayer(nn.Module, ABC):
    """What the integer layers share. Inference only: the gradient of the input is an error, and there are no parameters.

    Args:
        codes: int8 weights, ``[out, ...]``.
        scale: float32, of the weights: one, or one for each output.
        bias: ``[out]`` or None.
        inputs: How inputs become integers.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    channel: tuple[int, ...]
    """Shape of what belongs to the outputs."""

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None, inputs: InputCodes) -> None:
        super().__init__()
        if codes.dtype != torch.int8 or scale.numel() not in (1, len(codes)):
            raise ValueError(
                f"needs int8 codes with one scale or one for each output, got {codes.dtype} {tuple(codes.shape)} and scales "
                f"{tuple(scale.shape)}"
            )
        self.inputs = inputs
        self.register_buffer("codes", codes)
        self.register_buffer("scale", (scale.flatten().double() * inputs.step).float())
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        # The largest sum there can be, of this weight and any input.
        magnitudes = codes.flatten(1).to(torch.int64).abs().sum(1).amax()
        self._largest = int(magnitudes) * inputs.largest
        self._ready: tuple[object, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Refuses.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]
        return self._run(x)

    @torch.no_grad()
    def sums(self, x: Tensor) -> Tensor:
        """The integer sums, rounded to float32."""
        a = self.inputs(x)
        if x.is_cpu and a.numel() and self._largest < EXACT_SUM and int8_instructions():
            return self._by_instructions(a)
        # float32 adds integers exactly as long as no partial sum passes 2^24; float64 always does here
        wide = torch.float32 if self._largest <= EXACT_FLOAT else torch.float64
        return self._by_floats(a.to(wide) - self.inputs.offset, wide).float()

    def _run(self, x: Tensor) -> Tensor:
        y = self.sums(x).mul_(self.scale.view(self.channel if self.scale.numel() > 1 else ()))
        if self.bias is not None:
            y += self.bias.view(self.channel)
        return y.to(x.dtype)

    def _cached(self, how: object) -> Tensor:
        """The weight made ready, once."""
        key = (how, id(self.codes), self.codes._version)
        if self._ready is None or self._ready[0] != key:
            self._ready = key, self._make(how)
        return self._ready[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": None}  # packed weights cannot be copied

    def _make(self, how: object) -> Tensor:
        return self._pack() if how == "int8" else self.codes.to(how)  # type: ignore[call-overload]

    @abstractmethod
    def _pack(self) -> Tensor: ...

    @abstractmethod
    def _by_instructions(self, a: Tensor) -> Tensor: ...

    @abstractmethod
    def _by_floats(self, a: Tensor, dtype: torch.dtype) -> Tensor: ...


class _Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: IntegerLayer) -> Tensor:
        return layer._run(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "an integer model has no gradient: attack or train the quantized model that quantization.to_integer was given, which "
            "computes the same"
        )


class IntegerLinear(IntegerLayer):
    """``nn.Linear`` in integers, ``[*, in] -> [*, out]``."""

    channel = (-1,)

    def _pack(self) -> Tensor:
        return _packed_linear(self.codes)

    def _by_instructions(self, a: Tensor) -> Tensor:
        y = _linear(a.reshape(-1, a.shape[-1]), self._cached("int8"), len(self.codes), self.inputs.offset)
        return y.view(*a.shape[:-1], -1)

    def _by_floats(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(a, self._cached(dtype))

    def extra_repr(self) -> str:
        return f"in_features={self.codes.shape[1]}, out_features={len(self.codes)}, {self.inputs}"


class IntegerConv2d(IntegerLayer):
    """``nn.Conv2d`` with zero padding in integers, ``[B, C, H, W] -> [B, out, H', W']``."""

    channel = (-1, 1, 1)

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        inputs: InputCodes,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__(codes, scale, bias, inputs)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    @property
    def _geometry(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def _padded(self) -> tuple[Pair, Pair]:
        """What is padded beforehand, and what by the operator, which makes garbage of windows that lie in padding alone."""
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.codes.shape[2:], strict=True)]
        beyond = any(p > r for p, r in zip(self.padding, reach, strict=True))
        return (self.padding, (0, 0)) if beyond else ((0, 0), self.padding)

    def _pack(self) -> Tensor:
        return _packed_conv(self.codes, self.inputs.offset, self.stride, self._padded[1], self.dilation, self.groups)

    def _by_instructions(self, a: Tensor) -> Tensor:
        (top, left), padding = self._padded
        if top or left:
            a = F.pad(a, (left, left, top, top), value=self.inputs.offset)
        a = a.contiguous(memory_format=torch.channels_last)
        geometry = self.stride, padding, self.dilation, self.groups
        return _convolved(a, self._cached("int8"), len(self.codes), self.inputs.offset, *geometry)

    def _by_floats(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        return F.conv2d(a, self._cached(dtype), None, *self._geometry)

    def extra_repr(self) -> str:
        shape = self.codes.shape
        return f"{shape[1] * self.groups}, {len(self.codes)}, kernel_size={tuple(shape[2:])}, {self.inputs}"


def input_codes(signal: SignalQuantizer) -> InputCodes | str:
    """Those of a quantizer of inputs; or why there are none in 8 bits."""
    if not bool(signal.seen):
        return "the range of its inputs is not known: call quantization.calibrate first"
    levels = signal.recipe.levels
    if not isinstance(levels, Integer):
        return f"its inputs have levels {levels}, which are no integers"
    if levels.bits > 8:
        return f"its inputs have {levels.bits} bits, more than 8"
    with torch.no_grad():
        step, zero = signal.grid()
    if not float(step) > 0:
        return "the range of its inputs is 0"
    zero_point = 0 if zero is None else int(zero)
    return InputCodes(float(step), int(levels.low), int(levels.high), zero_point, 128 if levels.signed else 0)
