"""The ordinary twin of a spiking classifier, with the same weights: trained in its place, and converted back into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import (
    QCFS,
    Dropout,
    MeanMembrane,
    Normalise,
    OrdinaryDropout,
    OrdinaryResidual,
    Residual,
    Sequential,
)
from snnrobust.learning_rules.chain import SYNAPTIC
from snnrobust.learning_rules.conversion_ann import LINEAR, check_ann, flat
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF, LIF, PrechargedIF
from snnrobust.neurons.neuron import Neuron
from snnrobust.neurons.surrogate import Surrogate

__all__ = [
    "check_encoder",
    "check_model",
    "given_surrogate",
    "mark",
    "neurons_by_place",
    "put_neurons",
    "twin",
    "write",
]

_MARK = "surrogate_before_conversion"


def mark(neuron: Neuron, given: Surrogate) -> Neuron:
    """``neuron`` as one of a converted network, with the surrogate for a threshold of 1. Copies keep it, files do not."""
    vars(neuron)[_MARK] = given
    return neuron


def given_surrogate(neuron: Neuron) -> Surrogate | None:
    """What :func:`mark` was given; None of a neuron that no conversion made."""
    return vars(neuron).get(_MARK)


def check_encoder(encoder: nn.Module, first: nn.Module) -> None:
    """The mean input over time is the image, for a network whose first layer is ``first``."""
    if type(encoder) not in (Direct, Poisson):
        raise TypeError(
            f"rates stand for activations where the mean input over time is the image, and {type(encoder).__name__} gives "
            "another one: use Direct or Poisson"
        )
    if type(encoder) is Poisson and isinstance(first, Normalise):
        raise ValueError("Normalise would normalise the spikes of Poisson: leave it out, or use Direct")


def check_model(model: nn.Module, rule: str, converted: bool = False) -> None:
    """``model`` is a spiking classifier that ``rule`` can obtain from an ordinary network; on any device.

    Args:
        model: What is looked at.
        rule: Named in errors.
        converted: Whether it may be one that was converted already.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(model, SpikingClassifier):
        remedy = "learning_rules.convert(ann, data, time_steps=...) makes one of an ordinary network"
        raise TypeError(f"{rule} trains a SpikingClassifier, got {type(model).__name__}: {remedy}")
    if not isinstance(model.network, Sequential):
        raise TypeError(f"{rule} needs a Sequential network, got {type(model.network).__name__}")
    first = next((part for _, part in flat(model.network)), model.network)
    check_encoder(model.encoder, first)
    if not isinstance(model.readout, MeanMembrane) or model.readout.decay != 0.0:
        raise ValueError(
            f"the logits of a converted network are its mean output, and the readout is {model.readout}: use MeanOutput()"
        )
    parts = list(_places(model.network))
    synapses = [id(part) for _, _, part in parts if isinstance(part, SYNAPTIC)]
    if len(set(synapses)) < len(synapses):
        raise ValueError(
            "a layer with weights stands in two places, and each would need weights of its own: use two layers"
        )
    for parent, name, part in parts:
        if isinstance(part, Neuron):
            if not converted and (isinstance(part, PrechargedIF) or given_surrogate(part) is not None):
                raise ValueError(
                    "the network was converted already, and its weights are in units of its thresholds: start from a new one, "
                    "or train it on by BPTT or STDB(ann_epochs=0)"
                )
            if not isinstance(part, PrechargedIF):
                _check_neuron(part, rule)
        elif not isinstance(part, (*SYNAPTIC, *LINEAR, Normalise, Neuron, Dropout, Residual)):
            parent_name = next(n for n, m in model.named_modules() if m is parent)
            raise _refusal(f"{parent_name}.{name}", part, rule)


def _check_neuron(neuron: Neuron, rule: str) -> None:
    plain = type(neuron) in (IF, LIF) and isinstance(neuron.decay, float) and neuron.decay == 1.0
    if not plain or neuron.reset != "soft" or neuron.refractory:
        raise ValueError(
            f"{rule} needs neurons whose rate is a ReLU of their mean input, and {neuron} is not one: use IF(), which has no "
            "leak, soft reset and no refractory period"
        )


def _refusal(name: str, part: nn.Module, rule: str) -> TypeError:
    kind = type(part).__name__
    if "Norm" in kind or kind in ("BNTT", "TDBN", "TEBN"):
        remedy = (
            "build the network with norm='none'; its ordinary twin is normalised while it is trained (batch_norm=True)"
        )
    elif isinstance(part, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
        remedy = "the largest of spikes is not the largest of rates: use average pooling"
    else:
        remedy = "use convolutions, linear layers, average pooling, IF neurons and residual blocks, or train by BPTT"
    return TypeError(f"{rule} cannot convert {name} ({kind}): {remedy}")


def _places(container: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every place of a part in a network, with what holds it: in the order of the ordinary twin."""
    for name, part in container._modules.items():
        if isinstance(part, nn.Sequential | Sequential | Residual):
            yield from _places(part)
        elif part is not None:
            yield container, name, part


def twin(model: SpikingClassifier, batch_norm: bool, levels: int | None) -> nn.Sequential:
    """The ordinary network with the very same synaptic layers.

    Args:
        model: As :func:`check_model` wants it.
        batch_norm: Normalise behind each of them but the last.
        levels: QCFS of so many in place of each neuron; None: ReLU.

    Raises:
        ValueError: batch normalisation has to be folded into biases that are not there, or weights are frozen; as
            :func:`check_ann`.
    """
    frozen = [name for name, p in model.network.named_parameters(prefix="network") if not p.requires_grad]
    if frozen:
        raise ValueError(
            f"the conversion rewrites weights and biases, and {frozen[0]} is frozen: set requires_grad=True before, and freeze "
            "it afterwards"
        )
    last = [part for _, _, part in _places(model.network) if isinstance(part, SYNAPTIC)][-1:]

    def activate() -> nn.Module:
        return nn.ReLU() if levels is None else QCFS(levels)

    def norm(synapse: nn.Module) -> list[nn.Module]:
        if not batch_norm or synapse is last[0]:
            return []
        if synapse.bias is None:
            raise ValueError(
                f"batch normalisation is folded into weights and biases, and {synapse} has no bias: build it with bias=True, or "
                "use batch_norm=False"
            )
        assert isinstance(synapse.weight, torch.Tensor)
        return [_norm_for(synapse)(len(synapse.weight), device=synapse.weight.device, dtype=synapse.weight.dtype)]

    ann = nn.Sequential(*_ordinary(model.network, activate, norm))
    check_ann(ann)
    device = next(model.parameters()).device
    return ann.to(device)


def _norm_for(synapse: nn.Module) -> type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    if isinstance(synapse, nn.Conv2d):
        return nn.BatchNorm2d
    return nn.BatchNorm3d if isinstance(synapse, nn.Conv3d) else nn.BatchNorm1d


def _ordinary(
    container: nn.Module, activate: Callable[[], nn.Module], norm: Callable[[nn.Module], list[nn.Module]]
) -> list[nn.Module]:
    made: list[nn.Module] = []
    for _, part in flat(container):
        if isinstance(part, Neuron):
            made.append(activate())
        elif isinstance(part, Residual):
            branches = [
                None if b is None else nn.Sequential(*_ordinary(b, activate, norm)) for b in (part.body, part.shortcut)
            ]
            assert branches[0] is not None
            made.append(OrdinaryResidual(*branches))  # type: ignore[arg-type]
        elif isinstance(part, Dropout):
            made.append(OrdinaryDropout(part.p))
        else:
            made += [part, *(norm(part) if isinstance(part, SYNAPTIC) else [])]
    return made


def neurons_by_place(model: SpikingClassifier) -> list[Neuron]:
    """One that stands in several places is there several times."""
    return [part for _, _, part in _places(model.network) if isinstance(part, Neuron)]


def put_neurons(model: SpikingClassifier, new: Sequence[Neuron]) -> None:
    """In place of those of ``model``, by place."""
    places = [(parent, name) for parent, name, part in _places(model.network) if isinstance(part, Neuron)]
    for (parent, name), neuron in zip(places, new, strict=True):
        parent._modules[name] = neuron


@torch.no_grad()
def write(model: SpikingClassifier, converted: Sequential) -> None:
    """Weights, biases and neurons of ``converted`` into ``model``, which has the same structure, in place."""
    mine, theirs = list(_places(model.network)), list(_places(converted))
    for (parent, name, part), (_, _, new) in zip(mine, theirs, strict=True):
        if isinstance(part, SYNAPTIC):
            assert isinstance(new, SYNAPTIC)
            part.weight.copy_(new.weight)
            if part.bias is not None and new.bias is not None:
                part.bias.copy_(new.bias)
        elif isinstance(part, Neuron):
            parent._modules[name] = new
