"""Integrate-and-fire neurons that begin with a charge, as networks converted from ordinary ones have them."""

from __future__ import annotations

from torch import Tensor

from snnrobust import checks
from snnrobust.neurons.lif import _LIF, IF, _constants, _rule
from snnrobust.neurons.neuron import Constant, Membrane, Reset, along_channels
from snnrobust.neurons.surrogate import ATan, Surrogate

__all__ = ["PrechargedIF"]


class PrechargedIF(IF):
    r"""Integrate-and-fire neurons whose potential begins at a share of the threshold, :math:`v_0 = \iota \theta`.

    With :math:`\iota = 1/2`, a constant input :math:`x \le \theta` and soft reset, T steps give
    :math:`\max(0, \lfloor x T / \theta + 1/2 \rfloor)` spikes: rounded to the nearest, where a start at zero rounds down.

    Args:
        threshold: :math:`\theta` > 0, a number or one per channel.
        initial: :math:`\iota` in [0, 1].
        reset, surrogate, detach_reset, refractory: As in :func:`~snnrobust.neurons.lif`.

    Source: Bu et al. 2022, "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks".
    """

    def __init__(
        self,
        threshold: Constant = 1.0,
        initial: float = 0.5,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(threshold, reset, surrogate, detach_reset, refractory)
        self.initial = checks.number("initial", initial, 0.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self._charged(checks.sequence("x", x), 0)

    def shown(self, x: Tensor, steps: int) -> Tensor:
        checks.sequence("x", x[None])
        return self._charged(x, checks.count("steps", steps))

    def _charged(self, x: Tensor, steps: int) -> Tensor:
        first = x if steps else x[0]
        constants = self.decay, self.threshold
        rule = _rule(*constants, self.reset, self.surrogate, self.detach_reset, self.refractory)
        of_x = _constants(*constants, first[None])
        return _LIF.apply(x, steps, self._charge(first), None, *of_x, rule, False)[0]  # type: ignore[no-any-return, no-untyped-call]

    def _charge(self, x_t: Tensor) -> Tensor:
        rest = self._rest(x_t).v
        return rest + along_channels("threshold", self.threshold, x_t) * self.initial

    def initial_state(self, x_t: Tensor) -> Membrane:
        return self._rest(x_t)._replace(v=self._charge(x_t))

    def extra_repr(self) -> str:
        return self._described("threshold", "initial")
