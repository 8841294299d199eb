"""Ordinary networks that can be converted: what they may hold, QCFS in place of ReLU, batch normalisation folded into weights."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import nn

from snnrobust.layers import (
    QCFS,
    Concat,
    Normalise,
    OrdinaryConcat,
    OrdinaryDropout,
    OrdinaryResidual,
    Sequential,
)
from snnrobust.learning_rules.chain import SYNAPTIC
from snnrobust.neurons.neuron import Neuron
from snnrobust.temporal import Temporal

__all__ = ["ACTIVATIONS", "BATCH_NORMS", "DROPOUTS", "LINEAR", "check_ann", "flat", "folded", "quantised"]

ACTIVATIONS = (nn.ReLU, QCFS)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, OrdinaryDropout)
LINEAR = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity)
"""What acts on rates as it acts on activations, and keeps their scale."""


def flat(container: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of a (nested) ``Sequential`` in order, with their names; of another module itself."""
    if not isinstance(container, nn.Sequential | Sequential):
        yield prefix.removesuffix("."), container
        return
    for name, part in container._modules.items():
        if part is not None:
            yield from flat(part, f"{prefix}{name}.")


def check_ann(ann: nn.Module) -> None:
    """``ann`` can be converted.

    Raises:
        TypeError, ValueError: it cannot, and why.
    """
    if not isinstance(ann, nn.Sequential):
        raise TypeError(
            f"conversion takes an ordinary network as nn.Sequential, such as models.ordinary(...) gives, got {type(ann).__name__}"
        )
    parts = list(flat(ann))
    if not any(type(part) in SYNAPTIC for _, part in parts):
        raise ValueError("conversion found no nn.Linear or nn.Conv layer")
    _check(parts, first=True)
    _check_end("the network", parts)


def _check(parts: list[tuple[str, nn.Module]], first: bool) -> None:
    before: nn.Module | None = None
    for name, part in parts:
        kind = type(part)
        if kind in BATCH_NORMS:
            if type(before) not in (*SYNAPTIC, *BATCH_NORMS):
                raise ValueError(
                    f"{name} ({kind.__name__}) cannot be folded, as it does not follow an nn.Conv or nn.Linear directly: "
                    "put it right behind one (densenet40 has it before the activation: use a vgg or resnet)"
                )
            if part.running_var is None:
                raise ValueError(
                    f"{name} ({kind.__name__}) has no running statistics to fold: train with track_running_stats=True"
                )
        elif kind is Normalise:
            if not first or any(type(p) is not Normalise for _, p in parts[: [n for n, _ in parts].index(name)]):
                raise ValueError(f"{name} (Normalise) must come before all other layers, as it normalises the input")
        elif kind is OrdinaryResidual:
            for branch in ("body", "shortcut"):
                inner = getattr(part, branch)
                if inner is not None:
                    inside = list(flat(inner, f"{name}.{branch}."))
                    _check(inside, first=False)
                    _check_end(f"{name}.{branch}", inside)
        elif kind not in (*SYNAPTIC, *ACTIVATIONS, *LINEAR, *DROPOUTS):
            raise _refusal(name, part)
        before = part


def _check_end(what: str, parts: list[tuple[str, nn.Module]]) -> None:
    """After the last activation stand weights, which can be scaled."""
    for name, part in reversed(parts):
        if type(part) in SYNAPTIC:
            return
        if type(part) in (*ACTIVATIONS, OrdinaryResidual):
            raise ValueError(
                f"{what} ends in {name} ({type(part).__name__}), so there are no weights behind it that can be scaled to the "
                "units of what follows: end in an nn.Linear or nn.Conv"
            )


def _refusal(name: str, part: nn.Module) -> TypeError:
    kind = type(part).__name__
    if isinstance(part, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d | nn.AdaptiveMaxPool2d):
        remedy = "the largest of spikes is not the largest of rates: use average pooling (Pool(kind='average')) and train again"
    elif isinstance(part, nn.RNNBase):
        remedy = "a recurrent layer has no rate to stand for: train a spiking network by BPTT"
    elif isinstance(part, OrdinaryConcat | Concat):
        remedy = "dense connections join activations of several scales: use a vgg or resnet"
    elif isinstance(part, Neuron):
        remedy = "the network spikes already: give the ordinary one"
    elif isinstance(part, Temporal):
        remedy = "it acts over time: give an ordinary network"
    elif type(part).__module__.startswith("torch.nn.modules.activation"):
        remedy = "rates of integrate-and-fire neurons approximate a ReLU and nothing else: use nn.ReLU or QCFS and train again"
    else:
        remedy = "use layers such as nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d and OrdinaryResidual"
    return TypeError(f"{name} ({kind}) cannot be converted: {remedy}")


def quantised(ann: nn.Module, levels: int = 8, threshold: float = 4.0) -> nn.Module:
    """A copy of ``ann`` with :class:`~snnrobust.layers.QCFS` in place of each ReLU, to be trained and then converted.

    Raises:
        ValueError: it has no ReLU.
    """
    copy = deepcopy(ann)
    if isinstance(copy, nn.ReLU):
        return QCFS(levels, threshold)
    found = [(m, key) for m in copy.modules() for key, child in m._modules.items() if isinstance(child, nn.ReLU)]
    if not found:
        raise ValueError(f"{type(ann).__name__} has no nn.ReLU that QCFS could replace")
    device = next((p.device for p in copy.parameters()), None)
    for module, key in found:
        module._modules[key] = QCFS(levels, threshold).to(device)
    return copy.train(ann.training)


def folded(ann: nn.Module) -> nn.Sequential:
    r"""A copy of ``ann`` in eval mode without batch normalisation, equal up to rounding.

    .. math:: W' = g W, \quad b' = g (b - \mu) + \beta, \quad g = \gamma / \sqrt{\sigma^2 + \epsilon}

    Raises:
        TypeError, ValueError: as :func:`check_ann`.
    """
    check_ann(ann)
    return nn.Sequential(*_folded(ann)).eval()


def _folded(container: nn.Module) -> list[nn.Module]:
    made: list[nn.Module] = []
    for _, part in flat(container):
        if isinstance(part, BATCH_NORMS):
            _fold(made[-1], part)
        elif isinstance(part, OrdinaryResidual):
            branches = [None if b is None else nn.Sequential(*_folded(b)) for b in (part.body, part.shortcut)]
            assert branches[0] is not None
            made.append(OrdinaryResidual(*branches))  # type: ignore[arg-type]
        elif isinstance(part, nn.ReLU):
            made.append(nn.ReLU())  # never in place: what goes in is looked at too
        elif isinstance(part, DROPOUTS):
            made.append(OrdinaryDropout(part.p))
        else:
            made.append(deepcopy(part))
    return made


@torch.no_grad()
def _fold(synapse: nn.Module, norm: nn.Module) -> None:
    assert isinstance(synapse, SYNAPTIC)
    assert isinstance(norm, BATCH_NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = norm.running_mean.double(), norm.running_var.double()
    gain = (var + norm.eps).rsqrt() if norm.weight is None else norm.weight.double() * (var + norm.eps).rsqrt()
    shift = torch.zeros_like(gain) if norm.bias is None else norm.bias.double()
    weight, bias = synapse.weight, synapse.bias
    shifted = gain * ((0.0 if bias is None else bias.double()) - mean) + shift
    scaled = weight.double() * gain.view(-1, *[1] * (weight.dim() - 1))
    synapse.weight = nn.Parameter(scaled.to(weight.dtype))
    synapse.bias = nn.Parameter(shifted.to(weight.dtype))
