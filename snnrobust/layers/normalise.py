"""Input normalisation as a layer of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnrobust import checks

__all__ = ["Normalise"]


class Normalise(nn.Module):
    r"""Input normalisation with given statistics, :math:`y = (x - \mu) / \sigma`, one for all channels or one each.

    As a layer of the model it keeps inputs in [0, 1], so that ``eps`` always means pixel units. ``[B, C, *]`` to the same
    shape and dtype; the statistics are rounded to float32.

    Args:
        mean: :math:`\mu`, a number or one for each channel.
        std: :math:`\sigma` > 0, likewise.

    Raises:
        ValueError: ``std`` not positive, or another number of channels than ``mean`` and ``std`` have.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.mean = _checked("mean", mean)
        self.std = _checked("std", std)
        lengths = {len(values) for values in (self.mean, self.std) if isinstance(values, tuple)}
        if len(lengths) > 1:
            raise ValueError(f"mean and std must have one value a channel, got {mean!r} and {std!r}")
        self.features = next(iter(lengths), None)
        # a real device whatever the surrounding one: checkpoints are built on the meta device and hold no constants
        for name, values in (("_mean", self.mean), ("_std", self.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"Normalise expects a floating tensor [B, C, ...], got {given}")
        if x.dim() < 2 or self.features not in (None, x.shape[1]):
            channels = "" if self.features is None else f"{self.features} channels in "
            raise ValueError(f"Normalise expects {channels}[B, C, ...], got shape {tuple(x.shape)}")
        shape = (-1,) + (1,) * (x.dim() - 2)
        return (x - self._mean.to(x).view(shape)) / self._std.to(x).view(shape)

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


def _checked(name: str, value: float | Sequence[float]) -> float | tuple[float, ...]:
    low, hint = (1e-30, "a channel that never varies takes std=1.0") if name == "std" else (-1e30, "")
    if not isinstance(value, Sequence) or isinstance(value, str):
        return checks.number(name, value, low, 1e30, hint=hint)
    if not value:
        raise ValueError(f"{name} must be a number or one for each channel, got {value!r}")
    return tuple(checks.number(name, v, low, 1e30, hint=hint) for v in value)
