"""Batch normalisation that is followed by LIF neurons runs as one operation with them, where compiled kernels do."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from snnrobust.kernels.lif import GIVEN, compiled
from snnrobust.layers.bntt import BNTT
from snnrobust.layers.tdbn import TDBN
from snnrobust.neurons import LIF, PLIF, LearnableThresholdLIF
from snnrobust.neurons.lif import _rule
from snnrobust.neurons.norm_lif import Norm, norm_lif
from snnrobust.neurons.surrogate import in_kernel

__all__ = ["fuses", "hooked", "lif_constants", "run_fused"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches the calls of ``module``: then it is called as if nothing were left out."""
    return any(getattr(module, name) for name in _HOOKS)


def lif_constants(module: nn.Module) -> tuple[float | Tensor, float | Tensor] | None:
    """Leak and threshold of a module that is :func:`~snnrobust.neurons.lif` of its input and nothing more."""
    if type(module).forward is LIF.forward or (type(module) is PLIF and not module.decay_input):
        return module.decay, module.threshold  # type: ignore[return-value]
    return (module.decay, module.threshold) if type(module) is LearnableThresholdLIF else None


def fuses(norm: nn.Module, neuron: nn.Module, x: Tensor, steps: int) -> bool:
    """Whether both run as one for ``x`` ``[T, B, C, *]``, or ``[B, C, *]`` at each of ``steps``. Errors are the layers'."""
    axis = 1 if steps else 2
    if not compiled(x) or x.dim() <= axis or hooked(norm) or hooked(neuron) or lif_constants(neuron) is None:
        return False
    T, B, features = steps or x.shape[0], x.shape[axis - 1], x.shape[axis]
    if in_kernel(neuron.surrogate)[0] == GIVEN or x.numel() == 0:  # type: ignore[arg-type]
        return False
    if type(norm) is BNTT:
        alone, fits = B * prod(x.shape[axis + 1 :]), norm.time_steps >= T and features == norm.features
    elif type(norm) is TDBN or (type(norm) in _BATCH_NORMS and norm.track_running_stats and norm.momentum is not None):
        alone, fits = T * B * prod(x.shape[axis + 1 :]), features == norm.num_features
        fits = fits and (type(norm) is TDBN or x.dim() - axis in _AXES[type(norm)])
    else:
        return False
    return fits and norm.running_mean.dtype == torch.float32 and (alone > 1 or not norm.training)


_AXES: dict[type, tuple[int, ...]] = {nn.BatchNorm1d: (1, 2), nn.BatchNorm2d: (3,), nn.BatchNorm3d: (4,)}


def run_fused(norm: nn.Module, neuron: nn.Module, x: Tensor, steps: int) -> Tensor:
    """``neuron(norm(x))``, ``[T, B, *]``, with the running statistics brought up to date."""
    T = steps or x.shape[0]
    constants = lif_constants(neuron)
    assert constants is not None
    rule = _rule(*constants, neuron.reset, neuron.surrogate, neuron.detach_reset, neuron.refractory)  # type: ignore[arg-type]
    assert isinstance(norm, BNTT | nn.modules.batchnorm._BatchNorm)
    training, momentum = norm.training, norm.momentum
    if isinstance(norm, BNTT):
        gain, shift, mean, var = norm.weight[:T], None, norm.running_mean[:T], norm.running_var[:T]
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = torch.ones_like(norm.running_mean)[None] if norm.weight is None else norm.weight[None]
        shift = None if norm.bias is None else norm.bias[None]
        gain = gain * (norm.alpha * norm.threshold) if isinstance(norm, TDBN) else gain
        mean, var = norm.running_mean[None], norm.running_var[None]
    given = Norm(gain, shift, None if training else mean, None if training else var, norm.eps)
    s, batch_mean, batch_var = norm_lif(x, steps, given, *constants, rule)
    if training and momentum is not None:
        count = s.numel() // (s.shape[2] * len(gain))
        with torch.no_grad():
            mean.lerp_(batch_mean, momentum)
            var.lerp_(batch_var * (count / (count - 1)), momentum)
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
    return s
