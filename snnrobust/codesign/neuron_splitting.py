"""Protect the most vulnerable neurons against bit errors: split in halves that are compared, or in triplicate with a vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.data import Data, batches
from snnrobust.draws import derive, draws, evaluating
from snnrobust.hardware import BitErrors, fleet
from snnrobust.neurons import Neuron

__all__ = [
    "Merge",
    "Overhead",
    "accuracy_under_bit_errors",
    "overhead",
    "split_neurons",
    "triplicate_neurons",
]

Correction = Literal["none", "min", "compare", "clip"]
Neurons = Mapping[str, Sequence[int]]
"""By name of a layer the indices of output features or channels, as ``Vulnerability.top`` gives them."""


def split_neurons(
    model: nn.Module,
    neurons: Neurons,
    correction: Correction = "min",
    *,
    threshold: float = 0.1,
    profile: Tensor | None = None,
) -> nn.Module:
    r"""A copy of ``model`` in which some neurons are two, of half the weights and bias each.

    In the place of a layer stands ``nn.Sequential(layer with more outputs, activation, Merge)``: all copies are on the chip.

    .. math:: a = b = \phi\!\left(\tfrac12 (w \cdot x + c)\right), \quad y = \phi(w \cdot x + c) = a + b
        \quad \text{for } \phi = \operatorname{ReLU}

    so that without faults nothing changes but rounding. Where the halves are not equal, something is broken, and a small unit
    next to the array makes one output of them:

    - ``"none"``: :math:`a + b`;
    - ``"min"``: :math:`2 \min(a, b)`, which throws away what is too large;
    - ``"compare"``: as ``"min"`` where :math:`|a - b| > \tau M`, else :math:`a + b`;
    - ``"clip"``: each half at most :math:`M / 2` (and at least :math:`m / 2`), then the sum.

    M and m are the largest and smallest y over ``profile``. With a quantization step for each channel (``BitErrors(...,
    per_channel=True)``) the halves store the same integers at half the step; with one step a layer their codes are rounded.

    Args:
        model: Ordinary, of ``nn.Sequential``, in which the protected layers (``nn.Linear``, ``nn.Conv*``) are followed by
            ``nn.ReLU`` or end the network.
        neurons: Which, by layer.
        correction: See above.
        threshold: :math:`\tau \ge 0`.
        profile: Images; needed for ``"compare"`` and ``"clip"``.

    Raises:
        TypeError: spiking networks; a layer followed by anything else, such as a normalisation.
        ValueError: unknown layers, indices out of range or given twice, or no ``profile``.

    Source: after Ahmadilivani et al. 2023, "Enhancing fault resilience of QNNs by selective neuron splitting"
    (arXiv:2306.09973). The correction of that paper could not be verified, so it is a choice here.
    """
    checks.choice("correction", correction, get_args(Correction))
    checks.number("threshold", threshold, 0.0)
    ranges: dict[str, tuple[Tensor, Tensor]] = {}
    if correction in ("compare", "clip"):
        if profile is None:
            raise ValueError(
                f"profile must be images [B, ...] for correction={correction!r}: it takes the range of each neuron"
            )
        ranges = _ranges(model, neurons, profile)
    return _protected(model, neurons, 2, correction, threshold, ranges)


def triplicate_neurons(model: nn.Module, neurons: Neurons) -> nn.Module:
    """A copy of ``model`` in which some neurons are three, and the output is their median: what two agree on wins.

    Selective triple modular redundancy (TMR). Arguments and errors as of :func:`split_neurons`.
    """
    return _protected(model, neurons, 3, "vote", 0.0, {})


class Merge(nn.Module):
    """One output of several copies: ``[B, out + (copies - 1) k, *]`` to ``[B, out, *]``, channels last for linear layers.

    The first copy of the k neurons ``index`` is among the neurons of the layer, the others follow after them.
    """

    index: Tensor
    lowest: Tensor
    largest: Tensor

    def __init__(
        self, index: Tensor, axis: int, copies: int, correction: str, threshold: float, bounds: tuple[Tensor, Tensor]
    ) -> None:
        super().__init__()
        self.axis, self.copies, self.correction, self.threshold = axis, copies, correction, threshold
        self.register_buffer("index", index)
        self.register_buffer("lowest", bounds[0])
        self.register_buffer("largest", bounds[1])

    def forward(self, y: Tensor) -> Tensor:
        y = y.movedim(self.axis, 0)
        out, k = y.shape[0] - (self.copies - 1) * len(self.index), len(self.index)
        several = [y[self.index], *y[out:].split(k)]
        merged: Tensor = y[:out].index_copy(0, self.index, self._one(several)).movedim(0, self.axis)
        return merged

    def _one(self, several: list[Tensor]) -> Tensor:
        """Of the copies, each ``[k, *]``."""
        if self.correction == "vote":
            return torch.stack(several).median(0).values
        a, b = several
        if self.correction == "none":
            return a + b
        low, high = (v.view(-1, *[1] * (a.dim() - 1)) for v in (self.lowest, self.largest))
        if self.correction == "clip":
            return a.clamp(low / 2, high / 2) + b.clamp(low / 2, high / 2)
        least = 2 * torch.minimum(a, b)
        if self.correction == "min":
            return least
        return torch.where((a - b).abs() > self.threshold * high, least, a + b)

    def extra_repr(self) -> str:
        return f"neurons={len(self.index)}, copies={self.copies}, correction={self.correction!r}"


@dataclass(frozen=True)
class Overhead:
    """What protection costs.

    Args:
        neurons: Added; for convolutions, channels.
        weights: Added, biases included.
        units: Neurons whose copies are compared or voted on.
        of_neurons, of_weights: The additions as shares of what the network had.
    """

    neurons: int
    weights: int
    units: int
    of_neurons: float
    of_weights: float


def overhead(protected: nn.Module) -> Overhead:
    """What the protection of a network costs."""
    neurons = weights = units = had_neurons = had_weights = 0
    inside = {
        id(block[0]): block[2]
        for block in checks.module("protected", protected).modules()
        if isinstance(block, nn.Sequential) and len(block) == 3 and isinstance(block[2], Merge)
    }
    for layer in protected.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            out, each = layer.weight.shape[0], layer.weight[0].numel() + (layer.bias is not None)
            guard = inside.get(id(layer))
            extra = 0 if guard is None else (guard.copies - 1) * len(guard.index)
            neurons, weights = neurons + extra, weights + extra * each
            units += 0 if guard is None else len(guard.index)
            had_neurons, had_weights = had_neurons + out - extra, had_weights + (out - extra) * each
    if not had_neurons:
        raise ValueError("the model has no nn.Linear or nn.Conv layer")
    return Overhead(neurons, weights, units, neurons / had_neurons, weights / had_weights)


def accuracy_under_bit_errors(
    model: nn.Module,
    data: Data,
    rate: float,
    *,
    chips: int = 10,
    seed: int = 0,
    bits: int = 8,
    per_channel: bool = True,
    batch_size: int = 500,
) -> Tensor:
    """Accuracy of ``model`` on each of ``chips`` chips whose weights lose ``rate`` of their bits, float64 ``[chips]``.

    Other chips for another rate or seed; see :class:`~snnrobust.hardware.BitErrors`.
    """
    checks.count("chips", chips)
    backend = BitErrors(rate, bits, per_channel=per_channel)
    found = []
    for chip in fleet(model, backend, chips, seed=derive(seed, "bit errors", rate) >> 1):
        right = count = 0
        with torch.no_grad(), evaluating(chip):
            for batch in batches(data, batch_size):
                with draws(chip, seed):
                    right += int((chip(batch.x).argmax(1) == batch.y).sum())
                count += len(batch.y)
        found.append(right / count)
    return torch.tensor(found, dtype=torch.float64)


def _protected(
    model: nn.Module,
    neurons: Neurons,
    copies: int,
    correction: str,
    threshold: float,
    ranges: dict[str, tuple[Tensor, Tensor]],
) -> nn.Module:
    places = _places(model, neurons)
    guarded = deepcopy(model)
    for name, (parent_name, child, following) in places.items():
        parent, layer = guarded.get_submodule(parent_name), guarded.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
        activation = nn.Identity() if following is None else parent._modules[following]
        assert activation is not None
        index = torch.tensor(list(neurons[name]), device=layer.weight.device)
        nothing = layer.weight.new_zeros(len(index))
        bounds = ranges.get(name, (nothing, nothing))
        merge = Merge(index, _axis(layer), copies, correction, threshold, bounds)
        parent._modules[child] = nn.Sequential(_with_copies(layer, index, copies), activation, merge)
        if following is not None:
            parent._modules[following] = nn.Identity()
    return guarded


def _places(model: nn.Module, neurons: Neurons) -> dict[str, tuple[str, str, str | None]]:
    """Of each layer: its parent, its name there, and the name of the ReLU that follows."""
    checks.module("model", model)
    if any(isinstance(m, Neuron) for m in model.modules()):
        raise TypeError("model must be an ordinary network: two halves of a spiking neuron do not add up to it")
    if any(isinstance(m, Merge) for m in model.modules()):
        raise TypeError("model has protected neurons already: protect the original model")
    known = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    if not isinstance(neurons, Mapping) or not neurons:
        raise TypeError(
            f"neurons must map names of layers to indices, as Vulnerability.top(k) does, got {neurons!r:.80}"
        )
    places = {}
    for name, indices in neurons.items():
        layer = known[checks.choice("neurons", name, known)]
        for j in indices:
            if not 0 <= checks.integer("neurons", j) < layer.weight.shape[0]:
                raise ValueError(f"neurons of {name} must be in 0..{layer.weight.shape[0] - 1}, got {j}")
        if not indices or len(set(indices)) < len(indices):
            raise ValueError(f"neurons of {name} must be some, each once, got {list(indices)}")
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1:
            raise TypeError(
                f"{name} has {layer.groups} groups: only convolutions with groups=1 can be given more channels"
            )
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if type(parent) is not nn.Sequential:
            raise TypeError(f"{name} must stand in an nn.Sequential, where it is known what follows")
        inside = list(parent._modules)
        following = inside[inside.index(child) + 1 :][:1]
        ends = not following and parent_name == ""
        if not ends and not (following and isinstance(parent._modules[following[0]], nn.ReLU)):
            what = type(parent._modules[following[0]]).__name__ if following else "the end of its block"
            raise TypeError(
                f"{name} must be followed by nn.ReLU or end the network, got {what}: put a normalisation into the weights first, "
                "as with torch.nn.utils.fusion.fuse_conv_bn_eval or fuse_linear_bn_eval"
            )
        places[name] = (parent_name, child, following[0] if following else None)
    return places


def _ranges(model: nn.Module, neurons: Neurons, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Smallest and largest output of the neurons over images, after the activation."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name, (parent_name, _, following) in _places(model, neurons).items():
        where = name if following is None else f"{parent_name}.{following}".lstrip(".")
        axis = _axis(model.get_submodule(name))

        def note(m: nn.Module, given: object, y: Tensor, name: str = name, axis: int = axis) -> None:
            rows = y.movedim(axis, 0)[list(neurons[name])].flatten(1)
            found[name] = (rows.amin(1), rows.amax(1))

        handles.append(model.get_submodule(where).register_forward_hook(note))
    try:
        with torch.no_grad(), evaluating(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _with_copies(
    layer: nn.Linear | nn.modules.conv._ConvNd, index: Tensor, copies: int
) -> nn.Linear | nn.modules.conv._ConvNd:
    """``layer`` with ``copies - 1`` more of the neurons ``index``; two copies have half the weights."""
    wide = deepcopy(layer)
    share = 0.5 if copies == 2 else 1.0
    for name in ("weight", "bias"):
        value = getattr(layer, name)
        if value is not None:
            own = value.detach().clone()
            own[index] *= share
            setattr(wide, name, nn.Parameter(torch.cat([own, *[own[index]] * (copies - 1)])))
    if isinstance(wide, nn.Linear):
        wide.out_features = len(wide.weight)
    else:
        wide.out_channels = len(wide.weight)
    return wide
