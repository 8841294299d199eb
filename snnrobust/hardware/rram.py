"""Resistive memory: programming and relaxation noise, retention, read noise."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import log, log10
from typing import get_args

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.hardware.backend import Array, Backend, Drawn, Gradient
from snnrobust.hardware.duration import seconds
from snnrobust.hardware.pairs import to_pair, weight_unit
from snnrobust.hardware.read_noise import NoisyArray, plain

__all__ = ["RRAM", "VARIATIONS", "WAN_2022", "polynomial_sigma", "retained", "varied"]

DAY = 86_400.0
WAN_2022: tuple[tuple[float, ...], ...] = (
    (1.0, 0.348, 16.030, -43.853, 45.393, -16.815),
    (DAY, 0.701, 22.086, -50.773, 47.095, -16.458),
    (2 * DAY, 0.782, 20.274, -43.507, 37.062, -11.934),
)
"""Seconds, then the coefficients of 1, r, r^2, ... in microsiemens for a largest conductance of 40.

aihwkit's fit to the figures of Wan et al. 2022, "A compute-in-memory chip based on resistive random-access memory".
"""
WAN_G_MAX = 40.0
VARIATIONS = ("wan2022", "gaussian", "lognormal")


def polynomial_sigma(target: Tensor, time: float, g_max: float, points: Sequence[Sequence[float]]) -> Tensor:
    r"""Standard deviation :math:`\max(\sum_i c_i(t) r^i, 0)` of a conductance at ``time``, :math:`r = g_T / g_{max}`.

    Args:
        target: Microsiemens.
        time: Seconds, within those of ``points``; between two of them the deviation is interpolated in :math:`\ln t`.
        g_max: Microsiemens.
        points: For each time, ascending, ``(seconds, c_0, c_1, ...)`` in the units that the result shall have.
    """
    r, times = target / g_max, [point[0] for point in points]
    if not times[0] <= time <= times[-1]:
        raise ValueError(
            f"time must be within the data, {times[0]:g} s to {times[-1]:g} s, got {time:g} s: give coefficients of your own "
            "for other times"
        )

    def at(point: Sequence[float]) -> Tensor:
        value = torch.zeros_like(r)
        for coefficient in reversed(point[1:]):
            value = value * r + coefficient
        return value.clamp(min=0.0)

    above = bisect_right(times, time)
    if above == len(times):
        return at(points[-1])
    share = log(time / times[above - 1]) / log(times[above] / times[above - 1])
    return (1 - share) * at(points[above - 1]) + share * at(points[above])


def varied(target: Tensor, noise: Tensor, spread: float, g_max: float, variation: str) -> Tensor:
    r"""Plain variation of devices: :math:`\max(g + s g_{max} \xi, 0)` if ``"gaussian"``, :math:`g e^{s \xi}` if ``"lognormal"``.

    The median is the target; the mean of the lognormal is :math:`g e^{s^2 / 2}`.
    """
    if variation == "lognormal":
        return target * (spread * noise).exp()
    return (target + spread * g_max * noise).clamp(min=0.0)


def retained(conductance: Tensor, time: float, loss: float) -> Tensor:
    r"""Retention: :math:`g(t) = g \max(1 - \ell \log_{10}(t / 1\,s), 0)` after the first second."""
    return conductance * max(0.0, 1.0 - loss * log10(max(time, 1.0)))


class RRAM(Backend):
    r"""Weights in resistive memory at a time after programming, each as a pair of devices.

    .. math:: w = u\,(g^+ - g^-), \quad u = \max|w| / g_{max}, \quad g = \max(g_T + \sigma(r, t)\,\xi, 0) \; \rho(t), \quad
        y = (W + \delta)\,x + b, \quad \delta \sim N(0, (\epsilon \max|w|)^2)

    Devices are drawn once a chip; the same chip at two times has the same :math:`\xi`. Read noise is that of
    :class:`~snnrobust.hardware.read_noise.NoisyArray`. The gradient with respect to the input is exact.

    Args:
        time: Since programming: seconds, or a string such as ``"1 day"``. The data of ``"wan2022"`` are from 1 s, 1 day and 2
            days; between them the deviation is interpolated in log t (our choice), beyond them there is an error.
        variation: ``"wan2022"`` (a polynomial in the target), ``"gaussian"`` or ``"lognormal"`` (see :func:`varied`).
        spread: Of the plain variations: relative to g_max if Gaussian, of the logarithm if lognormal.
        coefficients: For ``"wan2022"``, measured values instead: ``[[seconds, c_0, c_1, ...], ...]``, microsiemens at this g_max.
        retention: Share of the conductance lost in each decade of seconds. **No published number**: 0 unless you have one.
        read_noise: :math:`\epsilon`, a weight's noise relative to the largest. About 1 % according to aihwkit's documentation.
        g_max: Microsiemens, what the largest weight of a layer is programmed to. The built-in deviations scale with g_max / 40.
        drawn: When read noise is drawn: ``"step"``, ``"inference"`` or ``"chip"``.

    Raises:
        ValueError: a time outside the data, a negative spread, unsorted coefficients; weights that are NaN.

    Source: data of Wan et al. 2022, "A compute-in-memory chip based on resistive random-access memory", as fitted by aihwkit.
    """

    gradient: Gradient = "exact"

    def __init__(
        self,
        time: float | str = 1.0,
        variation: str = "wan2022",
        spread: float = 0.1,
        coefficients: Sequence[Sequence[float]] | None = None,
        retention: float = 0.0,
        read_noise: float = 0.01,
        g_max: float = WAN_G_MAX,
        drawn: Drawn = "step",
    ) -> None:
        super().__init__()
        self.time, self._seconds = time, seconds("time", time)
        self.variation = checks.choice("variation", variation, VARIATIONS)
        self.spread = checks.number("spread", spread, 0.0)
        self.coefficients = coefficients
        self.retention = checks.number("retention", retention, 0.0, 1.0)
        self.read_noise = checks.number("read_noise", read_noise, 0.0)
        self.g_max = checks.number("g_max", g_max, 0.0, exclusive_low=True, hint="microsiemens, such as 40.0")
        self.drawn: Drawn = checks.choice("drawn", drawn, get_args(Drawn))  # type: ignore[assignment]
        if coefficients is None:
            scale = self.g_max / WAN_G_MAX
            self._points = [(point[0], *(scale * c for c in point[1:])) for point in WAN_2022]
        else:
            self._points = _checked(coefficients)
        if variation == "wan2022":
            polynomial_sigma(torch.zeros(1), self._seconds, self.g_max, self._points)

    @property
    def stochastic(self) -> bool:
        return self.read_noise > 0 and self.drawn != "chip"

    def program(self, array: Array) -> Array:
        weight, g_max = plain(array, self).weight, self.g_max
        target = to_pair(weight, g_max)
        xi = self.normal((2, 1, *target.shape), device=weight.device)[:, 0].double()
        if self.variation == "wan2022":
            sigma = polynomial_sigma(target, self._seconds, g_max, self._points)
            g = (target + sigma * xi[0]).clamp(min=0.0)
        else:
            g = varied(target, xi[0], self.spread, g_max, self.variation)
        g = retained(g, self._seconds, self.retention)
        unit = weight_unit(weight, g_max)
        effective, read = unit * (g[0] - g[1]), unit * g_max * self.read_noise
        if self.drawn == "chip":
            effective = effective + read * xi[1, 0]
        effective = effective.to(weight.dtype)
        if not self.stochastic:
            return Array(effective, array.operation)
        variance = read.square().expand(weight.shape).to(weight.dtype)
        return NoisyArray(effective, array.operation, variance, self.drawn)

    def extra_repr(self) -> str:
        return f"time={self.time!r}, variation={self.variation!r}, g_max={self.g_max}, drawn={self.drawn!r}"


def _checked(coefficients: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    remedy = "coefficients must be [[seconds, c_0, c_1, ...], ...] with ascending, positive seconds"
    if isinstance(coefficients, str) or not isinstance(coefficients, Sequence) or not coefficients:
        raise TypeError(f"{remedy}, got {coefficients!r:.80}")
    for point in coefficients:
        if isinstance(point, str) or not isinstance(point, Sequence) or len(point) < 2:
            raise TypeError(f"{remedy}, got {point!r:.80}")
    points = [tuple(checks.number("coefficients", c) for c in point) for point in coefficients]
    times = [point[0] for point in points]
    if times[0] <= 0 or any(a >= b for a, b in pairwise(times)):
        raise ValueError(f"{remedy}, got the seconds {times}")
    return points
