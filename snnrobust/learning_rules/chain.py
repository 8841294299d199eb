"""A model as a chain of synaptic layers, for rules that treat each of them by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from snnrobust.encoders import Encoder
from snnrobust.layers import BNTT, TEBN, Readout, Sequential
from snnrobust.layers.flow import run
from snnrobust.models import SpikingClassifier

__all__ = ["SYNAPTIC", "Block", "Chain", "chain", "holds_matrix"]

SYNAPTIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISATIONS = (BNTT, TEBN, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Block:
    """One synaptic layer and all that follows it up to the next: normalisation, neurons, pooling, flattening.

    Attributes:
        name: Of the synaptic layer, as in ``model.named_modules()``.
        synapse: The layer.
        rest: What follows.
        names: Of what follows.
    """

    name: str
    synapse: nn.Linear | nn.modules.conv._ConvNd
    rest: tuple[nn.Module, ...]
    names: tuple[str, ...]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.synapse, *self.rest)


@dataclass(frozen=True)
class Chain:
    """``encoder -> head -> block -> ... -> block -> readout``; an ordinary network has no encoder and no readout.

    Attributes:
        head: What stands before the first synaptic layer.
    """

    encoder: Encoder | None
    head: tuple[nn.Module, ...]
    blocks: tuple[Block, ...]
    readout: Readout | None

    @property
    def spiking(self) -> bool:
        return self.encoder is not None

    def run(self, parts: Sequence[nn.Module], x: Tensor) -> Tensor:
        """``parts`` in order: over a sequence ``[T, B, *]`` in a spiking network, else over a batch ``[B, *]``."""
        if self.spiking:
            return run(parts, x)
        for part in parts:
            x = part(x)
        return x


def chain(model: nn.Module, rule: str, through: tuple[type[nn.Module], ...] = ()) -> Chain:
    """``model`` as a chain. Layers of the kinds in ``through`` may have weights of their own inside.

    Raises:
        TypeError: it is not one, for ``rule`` to train.
    """
    encoder = readout = None
    body: nn.Module = model
    prefix = ""
    if isinstance(model, SpikingClassifier):
        encoder, body, readout, prefix = model.encoder, model.network, model.readout, "network."
    if not isinstance(body, Sequential if encoder is not None else nn.Sequential):
        wanted = "a SpikingClassifier of a Sequential, or an nn.Sequential"
        raise TypeError(
            f"{rule} trains a chain of layers, {wanted}, and this is a {type(body).__name__}: use BPTT or FA"
        )
    head: list[nn.Module] = []
    blocks: list[tuple[str, nn.Module, list[nn.Module], list[str]]] = []
    for name, part in _flat(body, prefix, encoder is not None):
        if isinstance(part, SYNAPTIC):
            blocks.append((name, part, [], []))
            continue
        if any(isinstance(m, SYNAPTIC) or holds_matrix(m) for m in part.modules()) and not isinstance(part, through):
            raise TypeError(
                f"{rule} trains a chain of layers, and {name} ({type(part).__name__}) holds weights in branches, in time or of "
                "its own kind: use an architecture without residual, dense and recurrent blocks, or train this one by BPTT"
            )
        if blocks:
            blocks[-1][2].append(part)
            blocks[-1][3].append(name)
        else:
            head.append(part)
    if not blocks:
        raise TypeError(f"{rule} found no nn.Linear or nn.Conv layer to train")
    made = tuple(Block(name, synapse, tuple(rest), tuple(names)) for name, synapse, rest, names in blocks)  # type: ignore[arg-type]
    return Chain(encoder, tuple(head), made, readout)


def holds_matrix(module: nn.Module) -> bool:
    """Whether it mixes features by weights of its own: those of normalisations and neurons do not."""
    return not isinstance(module, _NORMALISATIONS) and any(
        p.dim() > 1 for p in module._parameters.values() if p is not None
    )


def _flat(container: nn.Module, prefix: str, spiking: bool) -> Iterator[tuple[str, nn.Module]]:
    """The layers in order; a Sequential over time within an ordinary network would take its batch for time."""
    for name, part in container._modules.items():
        if isinstance(part, nn.Sequential) or (spiking and type(part) is Sequential):
            yield from _flat(part, f"{prefix}{name}.", spiking)
        elif part is not None:
            yield f"{prefix}{name}", part
