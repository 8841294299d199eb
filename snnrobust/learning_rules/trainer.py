"""What every trainer is, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import nn

from snnrobust.data import Data

__all__ = ["RULES", "History", "Trainer"]

RULES: dict[str, type[Trainer]] = {}
"""Trainers by name; each adds itself in its own file."""


@dataclass
class History:
    """One record an epoch: ``epoch``, ``loss``, ``accuracy``, ``validation_accuracy`` (or None), ``seconds``."""

    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any]:
        return self.records[-1]


class Trainer(Protocol):
    """A learning rule. It lends the model its backward pass inside ``fit`` only; afterwards the model is a plain model."""

    name: ClassVar[str]

    def fit(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None = None,
        *,
        epochs: int,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> History: ...
