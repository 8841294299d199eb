"""Running sums over all that a layer has put out: their size does not depend on how much that was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "Tally"]


@dataclass
class Moments:
    """Number, mean, sum of squared deviations, minimum and maximum at each step, float64 ``[T]``."""

    count: Tensor
    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, v: Tensor) -> Moments:
        """Those of ``[T, B, *]``."""
        rows = v.detach().flatten(1).double().cpu()
        mean = rows.mean(1)
        low, high = torch.aminmax(rows, dim=1)
        return cls(torch.full_like(mean, rows.shape[1]), mean, (rows - mean[:, None]).square().sum(1), low, high)

    def merged(self, other: Moments) -> Moments:
        """Of both sets of values (Chan, Golub and LeVeque 1979)."""
        steps = max(len(self.count), len(other.count))
        a, b = self._padded(steps), other._padded(steps)
        count = a.count + b.count
        weight = b.count / count
        gap = torch.where((a.count > 0) & (b.count > 0), b.mean - a.mean, 0.0)
        mean = torch.where(a.count > 0, a.mean + gap * weight, b.mean)
        deviation = a.deviation + b.deviation + gap.square() * a.count * weight
        return Moments(count, mean, deviation, torch.minimum(a.low, b.low), torch.maximum(a.high, b.high))

    def _padded(self, steps: int) -> Moments:
        values = (self.count, self.mean, self.deviation, self.low, self.high)
        empty = (0.0, 0.0, 0.0, torch.inf, -torch.inf)
        return Moments(*(grown(v, steps, e) for v, e in zip(values, empty, strict=True)))


class Tally:
    """Sums for one layer. A sequence may come whole or in parts: ``add`` its parts, then ``close`` it."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.shape: tuple[int, ...] | None = None
        self.samples = 0
        self.observed, self.active, self.total = torch.zeros(3, 0, dtype=torch.float64).unbind(0)
        self.fired = torch.zeros(0, dtype=torch.bool)
        self.always = self.pairs = 0
        self.membrane: Moments | None = None
        self._open: Tensor | None = None

    def add(self, y: Tensor, start: int = 0) -> None:
        """Outputs ``[t, B, *]`` of the steps from ``start`` on."""
        shape = tuple(y.shape[2:])
        if self.shape is None:
            self.shape, self.fired = shape, torch.zeros(shape, dtype=torch.bool)
        if shape != self.shape:
            raise ValueError(
                f"{self.name} ({self.kind}) put out {shape} after {self.shape}: use one monitor for each size of input"
            )
        y = y.detach()
        on = y != 0
        end = start + len(y)
        steps = max(end, len(self.observed))
        self.observed, self.active, self.total = (grown(v, steps) for v in (self.observed, self.active, self.total))
        self.observed[start:end] += on[0].numel()
        self.active[start:end] += on.flatten(1).sum(1).double().cpu()
        self.total[start:end] += y.flatten(1).sum(1, dtype=torch.float64).cpu()
        self.fired |= on.flatten(0, 1).any(0).cpu()
        every = on.all(0)
        self._open = every if self._open is None else self._open & every

    def add_membrane(self, v: Tensor) -> None:
        """Potentials ``[T, B, *]``."""
        moments = Moments.of(v)
        self.membrane = moments if self.membrane is None else self.membrane.merged(moments)

    def close(self) -> None:
        """The sequence is complete."""
        if self._open is not None:
            self.samples += len(self._open)
            self.pairs += self._open.numel()
            self.always += int(self._open.sum())
            self._open = None


def grown(v: Tensor, steps: int, value: float = 0.0) -> Tensor:
    """``v`` ``[T]``, with ``value`` appended until it has ``steps`` entries."""
    return v if len(v) >= steps else torch.cat([v, v.new_full((steps - len(v),), value)])
