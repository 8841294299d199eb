"""How many weights of a model are zero, and how many of its channels have no other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.hardware.deploy import SYNAPTIC

__all__ = ["LayerSparsity", "Sparsity", "sparsity"]


@dataclass(frozen=True)
class LayerSparsity:
    """Counts of one synaptic layer.

    Attributes:
        name: As in ``model.named_modules()``.
        weights, zeros: All, and those that are exactly 0.
        outputs, silent: Output channels (features), and those whose weights are all 0.
        inputs, unused: Input channels, and those that no output channel has a weight for.
    """

    name: str
    weights: int
    zeros: int
    outputs: int
    silent: int
    inputs: int
    unused: int

    @property
    def share(self) -> float:
        """Of zero weights."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class Sparsity:
    """Of all synaptic layers, in order."""

    layers: tuple[LayerSparsity, ...]

    @property
    def total(self) -> LayerSparsity:
        """All layers together; its shares are weighted by the number of weights and channels."""
        names = ("weights", "zeros", "outputs", "silent", "inputs", "unused")
        sums = {name: sum(getattr(layer, name) for layer in self.layers) for name in names}
        return LayerSparsity("all layers", **sums)

    def table(self) -> str:
        """A line for each layer, and one for all."""
        lines: list[tuple[str, ...]] = [("layer", "weights", "zero", "outputs", "all zero", "inputs", "all zero")]
        for layer in (*self.layers, self.total):
            shares = f"{layer.share:.1%}", f"{layer.silent / layer.outputs:.1%}", f"{layer.unused / layer.inputs:.1%}"
            counts = f"{layer.weights:,}", f"{layer.outputs:,}", f"{layer.inputs:,}"
            lines.append(
                (layer.name or "(model)", *(cell for pair in zip(counts, shares, strict=True) for cell in pair))
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [asdict(layer) | {"share": layer.share} for layer in self.layers],
            "total": asdict(self.total) | {"share": self.total.share},
        }


@torch.no_grad()
def sparsity(model: nn.Module) -> Sparsity:
    """Exact zeros among the weights that the layers of ``model`` multiply with: of quantized layers, the quantized ones.

    A silent output channel still gives its bias, and what a normalisation makes of zeros; an unused input channel can be left
    out at once. Of a grouped convolution the input channels are counted over all groups.

    Args:
        model: Its ``nn.Linear`` and ``nn.Conv*`` are counted.

    Raises:
        ValueError: it has none.
    """
    found = [
        _count(name, layer)
        for name, layer in checks.module("model", model).named_modules()
        if isinstance(layer, SYNAPTIC)
    ]
    if not found:
        raise ValueError("the model has no nn.Linear or nn.Conv layer whose weights could be counted")
    return Sparsity(tuple(found))


def _count(name: str, layer: nn.Module) -> LayerSparsity:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    groups = getattr(layer, "groups", 1)
    used = (weight != 0).view(groups, len(weight) // groups, weight.shape[1], -1)  # [groups, out, in, kernel]
    outputs, inputs = used.flatten(2).any(2), used.any(3).any(1)
    return LayerSparsity(
        name=name,
        weights=used.numel(),
        zeros=int((~used).sum()),
        outputs=outputs.numel(),
        silent=int((~outputs).sum()),
        inputs=inputs.numel(),
        unused=int((~inputs).sum()),
    )
