"""How a tensor is quantized: the levels, their scale, and the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.quantization.levels import LEVELS, Integer, Levels, with_bits
from snnrobust.quantization.projection import least_squares_step
from snnrobust.quantization.straight import straight_through

__all__ = ["Quantizer", "Scale"]

Scale = Literal["minmax", "percentile", "constant", "learned", "least-squares"]
"""Where the step comes from: the largest magnitude, a percentile of the magnitudes, given limits, training (LSQ), or the least
squared error."""


@dataclass(frozen=True)
class Quantizer:
    r"""A recipe of plain values. Called, it quantizes a tensor by a scale taken from that tensor.

    .. math:: q(x) = s \, (L(x / s + z) - z)

    with levels L, step s and, of an affine one, the integer zero point z.

    Args:
        levels: :class:`~snnrobust.quantization.Integer`, ``Ternary``, ``Binary``, ``PowerOfTwo``, ``LevelSet``.
        scale: The step: ``"minmax"`` puts the largest magnitude on the largest level, ``"percentile"`` that percentile of the
            magnitudes (what is above saturates), ``"constant"`` the given limits, ``"least-squares"`` minimises
            :math:`\|x - q(x)\|_2`; ``"learned"`` is a parameter (LSQ), which begins at :math:`2 \overline{|x|} / \sqrt{u}`.
        axis: One step for each slice along it (0: for each output channel of a weight); default one for the tensor.
        affine: Codes :math:`0 \dots 2^k - 1` between the smallest and the largest value, 0 among them; for ``Integer`` only.
        limits: Of a constant scale: what the lowest and the highest level stand for.
        percentile: In (50, 100].
        gradient: Straight through: ``"clipped"`` is zero where the levels saturate, ``"identity"`` is 1 everywhere. None is
            identity for weights, which could never return from where they saturate, and clipped for signals, whose derivative
            it is; of a learned step, that of LSQ.

    Raises:
        ValueError, TypeError: settings that contradict each other.
    """

    levels: Levels = field(default_factory=lambda: Integer(8))
    scale: Scale = "minmax"
    axis: int | None = None
    affine: bool = False
    limits: tuple[float, float] | None = None
    percentile: float = 99.9
    gradient: Literal["clipped", "identity"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.levels, Levels):
            raise TypeError(f"levels must be Levels such as Integer(4), got {self.levels!r:.80}")
        checks.choice("scale", self.scale, get_args(Scale))
        if self.gradient is not None:
            checks.choice("gradient", self.gradient, ("clipped", "identity"))
        checks.boolean("affine", self.affine)
        checks.number("percentile", self.percentile, 50.0, 100.0, exclusive_low=True)
        if self.axis is not None:
            checks.integer("axis", self.axis)
        if self.affine:
            if not isinstance(self.levels, Integer):
                raise ValueError(f"affine needs Integer levels, got {self.levels}")
            if self.scale in ("learned", "least-squares"):
                raise ValueError(f"affine has no {self.scale} scale: use minmax, percentile or constant")
            object.__setattr__(self, "levels", Integer(self.levels.bits, signed=False))
        if (self.scale == "constant") != (self.limits is not None):
            raise ValueError("limits = (low, high) belong to scale = 'constant', which needs them")
        if self.limits is not None:
            if not isinstance(self.limits, tuple | list) or len(self.limits) != 2:
                raise TypeError(f"limits must be two numbers (low, high), got {self.limits!r:.80}")
            self._check_limits(*self.limits)
        if self.gradient == "identity" and self.scale == "learned":
            raise ValueError("a learned scale has the gradient of LSQ, which is clipped: remove gradient = 'identity'")

    def _check_limits(self, low: float, high: float) -> None:
        low, high = checks.number("limits[0]", low), checks.number("limits[1]", high)
        object.__setattr__(self, "limits", (low, high))
        if self.affine:
            if not low <= 0 <= high or low == high:
                raise ValueError(f"limits must hold 0 and differ, got {low:g} and {high:g}: 0 has to be a level")
        elif high <= 0 or not math.isclose(low * self.levels.high, high * self.levels.low, rel_tol=1e-6, abs_tol=1e-12):
            wanted = high * self.levels.low / self.levels.high
            raise ValueError(
                f"limits must be in the proportion of the levels ({self.levels.low:g} to {self.levels.high:g}), got {low:g} and "
                f"{high:g}: use ({wanted:g}, {high:g}), or affine = True"
            )

    @property
    def bits(self) -> int:
        """Of a stored code."""
        return self.levels.bits

    def with_bits(self, bits: int) -> Self:
        """The same with another number of bits."""
        return replace(self, levels=with_bits(self.levels, bits))

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` quantized, of the same shape and dtype, by a scale taken from ``x``; the gradient goes straight through."""
        step, zero = self.grid(x)
        return straight_through(x, step, zero, self.levels, self.gradient != "identity")

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The step and the zero point for ``x``, which broadcast over it; a step of 0 where all of ``x`` is 0."""
        x = _floating(x).detach()
        if self.scale == "minmax":
            low, high = self.ends(x)  # NaN and infinity would be among them: no pass over x of its own
            _finite(low)
            _finite(high)
            return self.of_range(low, high)
        _finite(x)
        if self.scale == "constant":
            assert self.limits is not None
            return self.of_range(x.new_tensor(self.limits[0]), x.new_tensor(self.limits[1]))
        if self.scale == "least-squares":
            return least_squares_step(x, self.levels, self.axis), None
        if self.scale == "learned":
            mean = x.abs().mean() if self.axis is None else x.abs().mean(self._others(x), keepdim=True)
            return _positive(2 * mean / math.sqrt(self.levels.high)), None
        low, high = self.ends(x)
        return self.of_range(low, high)

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range of ``x`` that the levels are to cover: its extremes, or percentiles."""
        if self.scale == "minmax":
            if self.axis is None:
                low, high = x.aminmax()
                return low, high
            return x.amin(self._others(x), keepdim=True), x.amax(self._others(x), keepdim=True)
        return (-self._percentile(-x), self._percentile(x)) if self.affine else self._both(self._percentile(x.abs()))

    def of_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
        """The step and the zero point of a range."""
        if self.affine:
            low, high = low.clamp(max=0.0), high.clamp(min=0.0)
            step = (high - low) / self.levels.high
            return step, torch.where(step > 0, (-low / _positive(step)).round(), 0.0)
        if self.levels.low >= 0:
            return high.clamp(min=0.0) / self.levels.high, None
        end = min(-self.levels.low, self.levels.high)
        return torch.maximum(-low, high).clamp(min=0.0) / end, None

    def _percentile(self, x: Tensor) -> Tensor:
        # kthvalue and not quantile, which refuses more than 16 million numbers
        def kth(rows: Tensor) -> Tensor:
            k = max(math.ceil(self.percentile / 100 * rows.shape[-1]), 1)
            return rows.kthvalue(k, dim=-1).values

        if self.axis is None:
            return kth(x.flatten())
        rows = x.movedim(self.axis, 0)
        shape = [1] * x.dim()
        shape[self.axis] = x.shape[self.axis]
        return kth(rows.flatten(1)).reshape(shape) if x.dim() > 1 else x

    @staticmethod
    def _both(high: Tensor) -> tuple[Tensor, Tensor]:
        return -high, high

    def _others(self, x: Tensor) -> list[int]:
        assert self.axis is not None
        if not -x.dim() <= self.axis < x.dim():
            raise ValueError(f"axis must be one of the {x.dim()} of the tensor, got {self.axis}")
        return [d for d in range(x.dim()) if d != self.axis % x.dim()]

    def describe(self) -> dict[str, Any]:
        """As JSON has it; :meth:`build` reads it."""
        return {
            "levels": self.levels.describe(), "scale": self.scale, "axis": self.axis, "affine": self.affine,
            "limits": None if self.limits is None else list(self.limits),
            "percentile": self.percentile, "gradient": self.gradient,
        }  # fmt: skip

    @classmethod
    def build(cls, description: Mapping[str, Any], where: str = "quantizer") -> Self:
        """The recipe of a mapping. Short: ``{bits = 4}`` for integers; ``levels`` by name, or by type and arguments.

        Raises:
            ValueError: an unknown key or level set, or a value that is refused.
        """
        if not isinstance(description, Mapping):
            raise ValueError(f"{where} must be a table such as {{ bits = 4 }}, got {description!r:.80}")
        arguments = {k: v for k, v in description.items() if v is not None}
        own = ("levels", "scale", "axis", "affine", "limits", "percentile", "gradient")
        short = {k: arguments.pop(k) for k in ("bits", "signed") if k in arguments}
        for key in arguments:
            checks.choice(f"{where} key", key, (*own, "bits", "signed"))
        levels = arguments.pop("levels", "Integer")
        levels = {"type": levels} if isinstance(levels, str) else levels
        if not isinstance(levels, Mapping) or not isinstance(levels.get("type"), str):
            raise ValueError(
                f"{where}.levels must be a name such as 'Ternary', or a table with a type, got {levels!r:.80}"
            )
        name = checks.choice(f"{where}.levels", levels["type"], LEVELS)
        if isinstance(arguments.get("limits"), list):
            arguments["limits"] = tuple(arguments["limits"])
        try:
            made = LEVELS[name](**{**{k: v for k, v in levels.items() if k != "type"}, **short})
            return cls(levels=made, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error


def _floating(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"what is quantized must be a floating tensor, got {given}: convert it with .float()")
    if x.numel() == 0:
        raise ValueError(f"what is quantized is empty, of shape {tuple(x.shape)}: give at least one element")
    return x


def _finite(x: Tensor) -> None:
    if not torch.compiler.is_compiling() and not x.is_meta and not bool(x.isfinite().all()):
        raise ValueError("what is quantized contains NaN or infinity: repair the weights or the input")


def _positive(step: Tensor) -> Tensor:
    """``step``, and 1 where it is 0."""
    return torch.where(step > 0, step, torch.ones_like(step))
