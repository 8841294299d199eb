"""Integrate-and-fire neurons, leaky (LIF) and not (IF)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnrobust import checks
from snnrobust.kernels.lif import GIVEN, lif_backward, lif_forward, plain, saves, state_dtype
from snnrobust.kernels.lif_fallback import steps_since_spike
from snnrobust.neurons.neuron import (
    Constant,
    Membrane,
    Neuron,
    Reset,
    along_channels,
    check_rule,
    continues,
    heard,
    silence,
    within,
)
from snnrobust.neurons.surrogate import ATan, Surrogate, in_kernel

__all__ = ["IF", "LIF", "lif", "lif_from", "lif_shown"]


def lif(
    x: Tensor,
    decay: float | Tensor,
    threshold: float | Tensor = 1.0,
    reset: Reset = "soft",
    surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
    detach_reset: bool = True,
    refractory: int = 0,
) -> Tensor:
    r"""Leaky integrate-and-fire neurons over a whole sequence, from the zero state.

    .. math:: h_t = \beta v_{t-1} + x_t, \quad s_t = [h_t \ge \theta], \quad v_t = h_t - \theta s_t

    (hard reset: :math:`v_t = h_t (1 - s_t)`). A neuron within its refractory period takes :math:`x_t = 0` and :math:`s_t = 0`.

    Args:
        x: Input current, ``[T, B, *]``.
        decay: Leak :math:`\beta` in [0, 1], a number or one per channel (``[C]`` for ``x`` ``[T, B, C, *]``); 1 is
            integrate-and-fire. A tensor gets its gradient.
        threshold: :math:`\theta` > 0, in units of the membrane; a number or one per channel.
        reset: ``"soft"`` subtracts the threshold, ``"hard"`` returns to zero.
        surrogate: Derivative used for :math:`\partial s / \partial h` in the backward pass.
        detach_reset: Whether :math:`s_t` in the reset counts as a constant in the backward pass (Zenke and Vogels 2021).
        refractory: Steps after a spike in which the neuron ignores its input and does not fire.

    Returns:
        Spikes in {0, 1}, shape and dtype of ``x``. A membrane that became NaN does not fire, and gives NaN at the last step.

    Raises:
        ValueError: ``decay`` outside [0, 1], ``threshold`` not positive, or ``x`` without a time axis.

    Source: Neftci, Mostafa and Zenke 2019.
    """
    checks.sequence("x", x)
    rule = _rule(decay, threshold, reset, surrogate, detach_reset, refractory)
    return _LIF.apply(x, 0, None, None, *_constants(decay, threshold, x), rule, False)[0]  # type: ignore[no-any-return, no-untyped-call]


def lif_shown(
    x: Tensor,
    steps: int,
    decay: float | Tensor,
    threshold: float | Tensor = 1.0,
    reset: Reset = "soft",
    surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
    detach_reset: bool = True,
    refractory: int = 0,
) -> Tensor:
    """:func:`lif` of the same current ``x`` ``[B, *]`` at each of ``steps`` time steps, which are never stored."""
    checks.sequence("x", x[None])
    checks.count("steps", steps)
    rule = _rule(decay, threshold, reset, surrogate, detach_reset, refractory)
    return _LIF.apply(x, steps, None, None, *_constants(decay, threshold, x[None]), rule, False)[0]  # type: ignore[no-any-return, no-untyped-call]


def lif_from(
    x: Tensor,
    state: Membrane,
    decay: float | Tensor,
    threshold: float | Tensor = 1.0,
    reset: Reset = "soft",
    surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
    detach_reset: bool = True,
    refractory: int = 0,
    steps: int = 0,
) -> tuple[Tensor, Membrane]:
    """:func:`lif` from ``state`` instead of rest, and the state after the last step. Gradients pass through both.

    With ``steps`` > 0, ``x`` is ``[B, *]`` and the same at so many steps.
    """
    whole = x[None] if steps else x
    checks.sequence("x", whole)
    continues(whole[0], state.v)
    rule = _rule(decay, threshold, reset, surrogate, detach_reset, refractory)
    if _timed(rule) and state.quiet is None:
        raise ValueError(f"{surrogate} needs the time since the last spike: start the stream under this surrogate")
    s, *after = _LIF.apply(x, steps, state.v, state.quiet, *_constants(decay, threshold, whole), rule, True)  # type: ignore[no-untyped-call]
    return s, Membrane(*after) if len(after) > 1 else Membrane(after[0], None)


class _Rule(NamedTuple):
    hard: bool
    surrogate: Surrogate
    detach_reset: bool
    refractory: int


def _timed(rule: _Rule) -> bool:
    return rule.refractory > 0 or rule.surrogate.timed


def _rule(
    decay: float | Tensor,
    threshold: float | Tensor,
    reset: Reset,
    surrogate: Surrogate,
    detach_reset: bool,
    refractory: int,
) -> _Rule:
    check_rule(reset, surrogate, detach_reset, refractory)
    within("decay", decay, 1.0)
    within("threshold", threshold, math.inf, positive=True)
    return _Rule(reset == "hard", surrogate, detach_reset, refractory)


def _constants(decay: float | Tensor, threshold: float | Tensor, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
    if isinstance(decay, Tensor):
        decay = along_channels("decay", decay, x[0])
    if isinstance(threshold, Tensor):
        threshold = along_channels("threshold", threshold, x[0])
    return decay, threshold


class _LIF(torch.autograd.Function):
    """The whole sequence in one node, which keeps ``x`` or the potentials (see :func:`snnrobust.kernels.saving`)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        steps: int,
        v0: Tensor | None,
        quiet0: Tensor | None,
        decay: float | Tensor,
        threshold: float | Tensor,
        rule: _Rule,
        keep_state: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        kind, _, _ = kernel = in_kernel(rule.surrogate)
        timed = _timed(rule) or quiet0 is not None
        (beta, betas), (theta, thetas) = _split(decay), _split(threshold)
        keep_h = any(ctx.needs_input_grad) and saves(x, steps, kind)
        if (
            _exporting() and not keep_state
        ):  # an exported program holds torch operations alone, and runs without this package
            whole = x.expand(steps, *x.shape) if steps else x
            return (_traced(whole, v0, decay, threshold, rule.hard, rule.refractory),)
        forward = lif_forward if plain(x) else torch.ops.snnrobust.lif_forward.default
        out = forward(
            x, steps, v0, quiet0, beta, theta, betas, thetas,
            rule.hard, rule.refractory, keep_h, keep_state, timed,
        )  # fmt: skip
        h = out.pop(1) if keep_h else None
        # with the potentials, x itself matters only where spikes have to be told apart from silence
        ctx.save_for_backward(x if h is None or timed else None, h, v0, quiet0, betas, thetas)
        ctx.numbers, ctx.rule, ctx.kernel, ctx.steps = (beta, theta), rule, kernel, steps
        ctx.shapes = [p.shape if isinstance(p, Tensor) else None for p in (decay, threshold)]
        if keep_state and timed:
            ctx.mark_non_differentiable(out[2])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *of_state: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h, v0, quiet0, decays, thresholds = ctx.saved_tensors
        (decay, threshold), rule, (kind, a, b), steps = ctx.numbers, ctx.rule, ctx.kernel, ctx.steps
        grad_v = of_state[0] if of_state else None
        if grad is None:
            like = h if h is not None else x.expand(steps, *x.shape) if steps else x
            grad = torch.zeros_like(like, dtype=x.dtype if x is not None else h.dtype)
        slope = None
        if kind == GIVEN:
            slope = _slope(h, quiet0, decay, threshold, thresholds, rule)
        of_v0, of_decay, of_threshold = (bool(ctx.needs_input_grad[i]) for i in (2, 4, 5))
        backward = lif_backward if plain(grad) else torch.ops.snnrobust.lif_backward.default
        timed = _timed(rule) or quiet0 is not None
        found = backward(
            grad, x, steps, h, slope, grad_v, v0, quiet0, decay, threshold, decays, thresholds,
            rule.hard, rule.refractory, timed, rule.detach_reset, kind, a, b, of_v0, of_decay, of_threshold,
        )  # fmt: skip
        if len(found) == 1:
            return found[0], None, None, None, None, None, None, None
        maps = iter(found[1:])
        of = [next(maps) if asked else None for asked in (of_v0, of_decay, of_threshold)]
        of[1:] = [None if m is None else m.sum_to_size(shape) for m, shape in zip(of[1:], ctx.shapes, strict=True)]
        return found[0], None, of[0], None, of[1], of[2], None, None


def _slope(
    h: Tensor, quiet0: Tensor | None, decay: float, threshold: float, thresholds: Tensor | None, rule: _Rule
) -> Tensor:
    """ds/dh by a surrogate that no kernel knows."""
    if rule.surrogate.timed:
        return rule.surrogate.derivative(
            steps_since_spike(h, quiet0, threshold, thresholds, rule.refractory).to(h.dtype)
        )
    if thresholds is not None and thresholds.numel() == 1:
        thresholds = thresholds.reshape(())
    theta = threshold if thresholds is None else along_channels("threshold", thresholds, h[0])
    return rule.surrogate.derivative(h - theta)


def _split(value: float | Tensor) -> tuple[float, Tensor | None]:
    return (0.0, value.detach().reshape(-1)) if isinstance(value, Tensor) else (value, None)


def _exporting() -> bool:
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.7 has it
    return bool(is_exporting())


def _traced(
    x: Tensor, v0: Tensor | None, decay: float | Tensor, threshold: float | Tensor, hard: bool, refractory: int
) -> Tensor:
    """The spikes, to the bit, without writing into anything."""
    dtype = state_dtype(x.dtype)
    v = torch.zeros_like(x[0], dtype=dtype) if v0 is None else v0
    quiet = silence(v) if refractory else None
    spikes = []
    for x_t in x.unbind(0):
        active = None if quiet is None else quiet > refractory
        h = v * decay + (x_t if active is None else x_t * active)
        s = (h >= threshold).to(dtype)
        if quiet is not None and active is not None:
            s = s * active
            quiet = torch.where(s > 0, 1.0, quiet + 1.0)
        v = h * (1.0 - s) if hard else h - s * threshold
        spikes.append(s)
    spikes[-1] = spikes[-1].masked_fill(v.isnan(), math.nan)
    return torch.stack(spikes).to(x.dtype)


class LIF(Neuron):
    """Leaky integrate-and-fire neurons, ``[T, B, *] -> [T, B, *]``; see :func:`lif` for the arguments.

    ``decay`` and ``threshold`` are constants, a number or a sequence of one per channel; :class:`~snnrobust.neurons.PLIF`
    and :class:`~snnrobust.neurons.LearnableThresholdLIF` learn theirs.
    """

    decay: float | Tensor

    def __init__(
        self,
        decay: Constant = 0.95,
        threshold: Constant = 1.0,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(reset, surrogate, detach_reset, refractory)
        self._constant("decay", decay, 0.0, 1.0, positive=False)
        self._constant("threshold", threshold, 0.0, math.inf, positive=True)

    def forward(self, x: Tensor) -> Tensor:
        return lif(
            x, self.decay, self.threshold, self.reset, self.surrogate, self.detach_reset, self.refractory
        )  # fmt: skip

    def shown(self, x: Tensor, steps: int) -> Tensor:
        rule = self.reset, self.surrogate, self.detach_reset, self.refractory
        return lif_shown(x, steps, self.decay, self.threshold, *rule)

    def initial_state(self, x_t: Tensor) -> Membrane:
        return self._rest(x_t)

    def advance(self, x: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        rule = self.reset, self.surrogate, self.detach_reset, self.refractory
        return lif_from(x, state, self.decay, self.threshold, *rule)

    def step(self, x_t: Tensor, state: Membrane) -> tuple[Tensor, Membrane]:
        x_t = heard(continues(x_t, state.v), state.quiet, self.refractory)
        h = state.v * along_channels("decay", self.decay, x_t) + x_t
        return self._fire(h, along_channels("threshold", self.threshold, x_t), state.quiet, x_t.dtype)

    def extra_repr(self) -> str:
        return self._described("decay", "threshold")


class IF(LIF):
    """Integrate-and-fire neurons: :class:`LIF` without leak."""

    def __init__(
        self,
        threshold: Constant = 1.0,
        reset: Reset = "soft",
        surrogate: Surrogate = ATan(2.0),  # noqa: B008 (frozen: safe to share)
        detach_reset: bool = True,
        refractory: int = 0,
    ) -> None:
        super().__init__(1.0, threshold, reset, surrogate, detach_reset, refractory)

    def extra_repr(self) -> str:
        return self._described("threshold")
