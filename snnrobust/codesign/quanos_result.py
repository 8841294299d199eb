"""What training with hybrid precision gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snnrobust.codesign.activations import plain_names
from snnrobust.draws import derive, draws
from snnrobust.energy import CMOS45, EnergyReport, count_operations, estimate
from snnrobust.energy.cost import Costs
from snnrobust.learning_rules.trainer import History
from snnrobust.models.checkpoint import write_bytes
from snnrobust.quantization import LayerPrecision, precision

__all__ = ["QuanosResult", "Round"]


@dataclass(frozen=True)
class Round:
    """One allocation.

    Attributes:
        measured: A number for each layer: ANS, or density.
        bits: Of all layers, after it.
        details: Of the measurement: intervals, number of samples.
    """

    measured: dict[str, float]
    bits: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class QuanosResult:
    """A model with bits for each layer, and how it came to them. Layers have the names of the model before quantization.

    Attributes:
        model: Quantized and trained, in eval mode.
        bits: Of weights and inputs of each layer.
        rounds: Each allocation.
        histories: Of each training; the last is that with the final bits.
        settings: Of the procedure.
    """

    model: nn.Module = field(repr=False)
    bits: dict[str, int]
    rounds: tuple[Round, ...] = field(repr=False)
    histories: tuple[History, ...] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> dict[str, LayerPrecision]:
        """Of the model, by plain names."""
        names = plain_names(self.model)
        return {names[name]: layer for name, layer in precision(self.model).items()}

    @property
    def compression(self) -> float:
        """Bytes of all weights in 32 bits over their bytes now, scales included."""
        layers = self.precision.values()
        return sum(4 * layer.count for layer in layers) / sum(layer.bytes for layer in layers)

    def energy(self, x: Tensor, costs: Costs = CMOS45(), *, seed: int = 0) -> EnergyReport:  # noqa: B008 (frozen)
        """Of one sample, mean over the batch ``x``, with the bits of each layer; see :func:`snnrobust.energy.estimate`."""
        with draws(self.model, derive(seed, "operations")):
            return estimate(count_operations(self.model, x), costs, bits=precision(self.model))

    def table(self) -> str:
        """A line for each layer: what was measured in each round, bits after it, and size."""
        heading = [
            "layer",
            *(c for i in range(len(self.rounds)) for c in (f"measured {i + 1}", f"bits {i + 1}")),
            "weights",
            "bytes",
        ]
        lines = [heading]
        for name, layer in self.precision.items():
            cells = [name]
            for r in self.rounds:
                cells += [f"{r.measured[name]:.4f}" if name in r.measured else "", str(r.bits[name])]
            lines.append([*cells, f"{layer.count:,}", f"{layer.bytes:,.0f}"])
        widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
        text = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        return "\n".join(
            [text[0], "-" * len(text[0]), *text[1:], f"{self.compression:.2f} times smaller than 32-bit weights"]
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights."""
        return {
            "bits": dict(self.bits), "compression": self.compression, "settings": dict(self.settings),
            "rounds": [{"measured": r.measured, "bits": r.bits, "details": r.details} for r in self.rounds],
            "histories": [h.records for h in self.histories],
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json`, atomically; ``models.save(result.model, ...)`` keeps the model."""
        content: Mapping[str, Any] = self.to_json()
        write_bytes(Path(path), json.dumps(content, indent=1).encode())
