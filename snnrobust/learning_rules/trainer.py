"""What every trainer is, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.data import Data

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["RULES", "History", "Trainer", "TrainingWarning", "rule_name"]

RULES: dict[str, type[Trainer]] = {}
"""Trainers by name; each adds itself in its own file."""


def rule_name(name: str) -> str:
    """The registered name of a rule, whatever case and punctuation it is given in: ``"dfa"``, ``"e-prop"``.

    Raises:
        ValueError: there is none.
    """
    found = {_bare(known): known for known in RULES}.get(_bare(name)) if isinstance(name, str) else None
    return checks.choice("learning rule", name, RULES) if found is None else found


def _bare(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


class TrainingWarning(UserWarning):
    """A training goes wrong: a layer does not fire any more, or fires at every step."""


@dataclass
class History:
    """What a training was.

    Attributes:
        records: One an epoch: ``epoch``, ``loss``, ``accuracy``, ``validation_accuracy`` (or None), ``spike_rate`` (of watched
            batches; None where nothing was seen to fire), ``rates`` (by layer), ``lr``, ``seconds``, and what the rule adds.
        learnt: What the rule learnt beside the model, such as the readouts of local errors, as a state dict.
        conversion: Where a conversion took place, its :class:`~snnrobust.learning_rules.CalibrationReport` as JSON.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    learnt: dict[str, Tensor] = field(default_factory=dict, repr=False)
    conversion: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def last(self) -> dict[str, Any]:
        return self.records[-1]


class Trainer(Protocol):
    """A learning rule. It lends the model its backward pass inside ``fit`` only; afterwards the model is a plain model."""

    name: ClassVar[str]
    needs: ClassVar[Mapping[str, Any]]
    """Keys of a model's section in an experiment file that a model for this rule must have, such as ``norm = "none"``."""

    def fit(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None = None,
        *,
        epochs: int,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        fabric: Fabric | None = None,
        log: str | Path | None = None,
    ) -> History: ...
