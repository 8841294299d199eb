"""Phase-change memory: programming noise, drift and its compensation, read noise."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from snnrobust import checks
from snnrobust.hardware.backend import Array, Backend, Drawn, Gradient
from snnrobust.hardware.duration import seconds
from snnrobust.hardware.pairs import to_pair, weight_unit
from snnrobust.hardware.read_noise import NoisyArray, plain

__all__ = [
    "COMPENSATIONS",
    "PCM",
    "compensation_factor",
    "drift_exponent",
    "drifted",
    "programming_noise",
    "programming_sigma",
    "read_sigma",
]

G_MAX = 25.0
"""Microsiemens, of the devices that the formulas were fitted to."""
T_0 = 20.0
"""Seconds between the last pulse and the first read, where drift is counted from."""
T_READ = 250e-9
"""Seconds of a read pulse."""
COMPENSATIONS = ("none", "global", "column")


def programming_sigma(target: Tensor, g_max: float = G_MAX) -> Tensor:
    r"""Standard deviation of iterative programming, microsiemens; r is the target over the largest conductance.

    .. math:: \sigma_{prog} = \max(0.26348 + 1.9650 r - 1.1731 r^2, 0) \, g_{max} / 25
    """
    r = target / g_max
    return (0.26348 + r * (1.9650 - 1.1731 * r)).clamp(min=0.0) * (g_max / G_MAX)


def programming_noise(target: Tensor, noise: Tensor, g_max: float = G_MAX) -> Tensor:
    r"""What is programmed, :math:`\max(g_T + \sigma_{prog} \xi, 0)`, where ``noise`` are the standard normal :math:`\xi`."""
    return (target + programming_sigma(target, g_max) * noise).clamp(min=0.0)


def drift_exponent(target: Tensor, noise: Tensor, g_max: float = G_MAX) -> Tensor:
    r"""The exponent of each device, :math:`\nu = |\mu_\nu + \sigma_\nu \xi|`, with :math:`r = g_T / g_{max}`.

    .. math:: \mu_\nu = [-0.0155 \ln r + 0.0244]_{0.049}^{0.1}, \quad
        \sigma_\nu = [-0.0125 \ln r - 0.0059]_{0.008}^{0.045}
    """
    log_r = (target / g_max).log()  # -inf of an unprogrammed device: the bounds hold it
    mean = (-0.0155 * log_r + 0.0244).clamp(0.049, 0.1)
    spread = (-0.0125 * log_r - 0.0059).clamp(0.008, 0.045)
    return (mean + spread * noise).abs()


def drifted(programmed: Tensor, exponent: Tensor, time: float) -> Tensor:
    r""":math:`g(t) = g_{prog} ((t + t_0) / t_0)^{-\nu}`, :math:`t_0` = 20 s."""
    return programmed * ((time + T_0) / T_0) ** -exponent


def read_sigma(conductance: Tensor, target: Tensor, time: float, g_max: float = G_MAX) -> Tensor:
    r"""Standard deviation of 1/f noise in a read of ``conductance`` at ``time``, microsiemens.

    .. math:: \sigma(t) = g(t) \min(0.0088 \, r^{-0.65}, 0.2) \sqrt{\ln((t + t_r) / 2 t_r)}, \quad t_r = 250\,\text{ns}

    Zero before :math:`t = t_r`, where the formula has no value.
    """
    share = (0.0088 * (target / g_max) ** -0.65).clamp(max=0.2)
    ratio = torch.tensor((time + T_READ) / (2 * T_READ), dtype=torch.float64)
    return conductance * share * ratio.log().clamp(min=0.0).sqrt().to(conductance.dtype)


def compensation_factor(before: Tensor, after: Tensor, compensation: str = "global") -> Tensor:
    r"""Factor for the outputs, :math:`\sum_{jk} |w_{jk}(0)| / \sum_{jk} |w_{jk}(t)|`, from reads of one input line at a time.

    Args:
        before: What was read after programming, ``[out, *]``.
        after: What is read now.
        compensation: ``"global"`` (one factor, the sum over all), ``"column"`` (one for each output) or ``"none"``.

    Returns:
        ``[out, 1, ...]`` for ``"column"``, else a number. 1 where nothing is read.
    """
    checks.choice("compensation", compensation, COMPENSATIONS)
    if compensation == "none":
        return torch.ones((), dtype=before.dtype, device=before.device)
    axes = list(range(1 if compensation == "column" else 0, before.dim()))
    was, now = (read.abs().sum(axes, keepdim=compensation == "column") for read in (before, after))
    return torch.where((was > 0) & (now > 0), was / torch.where(now > 0, now, 1.0), 1.0)


class PCM(Backend):
    r"""Weights in phase-change memory at a time after programming, each as a pair of devices.

    .. math:: w = u\,(g^+ - g^-), \quad u = \max|w| / g_{max}, \quad g(t) = \max(g_T + \sigma_{prog}\,\xi, 0)
        \left(\frac{t + t_0}{t_0}\right)^{-\nu}, \quad y = c \, (W(t) + \delta) \, x + b

    Programming noise and drift exponents are drawn once a chip, for every device; the noise :math:`\delta` of a read has the
    variance :math:`u^2 (\sigma_+^2 + \sigma_-^2)`: see :class:`~snnrobust.hardware.read_noise.NoisyArray`. c is the
    digital drift compensation; biases are digital. The gradient with respect to the input is exact. The terms are the
    functions of this module.

    Args:
        time: Since programming: seconds, or a string such as ``"1 day"``.
        compensation: ``"global"`` (one factor a layer), ``"column"`` (one an output) or ``"none"``.
        read_noise: Whether reads, those of the calibration as well, have 1/f noise.
        g_max: Microsiemens, what the largest weight of a layer is programmed to.
        programming_noise, drift: Turn an effect off to see what it costs.
        drawn: When read noise is drawn: ``"step"`` (each read of each time step), ``"inference"`` (the same for all reads of a
            sample) or ``"chip"`` (once).

    Raises:
        ValueError: a negative time or conductance; an unknown choice; weights that are NaN.

    Source: Joshi et al. 2020, "Accurate deep neural network inference using computational phase-change memory";
    Nandakumar et al. 2019, "Phase-change memory models for deep learning training and inference". Constants as in aihwkit 1.2.
    """

    gradient: Gradient = "exact"

    def __init__(
        self,
        time: float | str = 0.0,
        compensation: str = "global",
        read_noise: bool = True,
        g_max: float = G_MAX,
        programming_noise: bool = True,
        drift: bool = True,
        drawn: Drawn = "step",
    ) -> None:
        super().__init__()
        self.time, self._seconds = time, seconds("time", time)
        self.compensation = checks.choice("compensation", compensation, COMPENSATIONS)
        self.read_noise = checks.boolean("read_noise", read_noise)
        self.g_max = checks.number("g_max", g_max, 0.0, exclusive_low=True, hint="microsiemens, such as 25.0")
        self.programming_noise = checks.boolean("programming_noise", programming_noise)
        self.drift = checks.boolean("drift", drift)
        self.drawn: Drawn = checks.choice("drawn", drawn, get_args(Drawn))  # type: ignore[assignment]

    @property
    def stochastic(self) -> bool:
        return self.read_noise and self._seconds > T_READ and self.drawn != "chip"

    def program(self, array: Array) -> Array:
        weight, g_max, t = plain(array, self).weight, self.g_max, self._seconds
        target = to_pair(weight, g_max)
        # one time step of draws for each use: [4, +/-, *weight.shape]
        xi = self.normal((4, 1, *target.shape), device=weight.device)[:, 0].double()
        programmed = programming_noise(target, xi[0], g_max) if self.programming_noise else target
        now = drifted(programmed, drift_exponent(target, xi[1], g_max), t) if self.drift else programmed
        sigma = read_sigma(now, target, t, g_max) if self.read_noise else torch.zeros_like(now)
        before = programmed  # read at the time zero, where there is no 1/f noise yet
        factor = compensation_factor(_weight(before), _weight(now + sigma * xi[2]), self.compensation)
        if self.drawn == "chip":
            now = now + sigma * xi[3]
        unit = factor * weight_unit(weight, g_max)
        effective = (unit * _weight(now)).to(weight.dtype)
        if not self.stochastic:
            return Array(effective, array.operation)
        variance = (unit**2 * sigma.square().sum(0)).to(weight.dtype)
        return NoisyArray(effective, array.operation, variance, self.drawn)

    def extra_repr(self) -> str:
        return f"time={self.time!r}, compensation={self.compensation!r}, g_max={self.g_max}, drawn={self.drawn!r}"


def _weight(pair: Tensor) -> Tensor:
    return pair[0] - pair[1]
