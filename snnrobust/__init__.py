"""Train, attack and harden spiking neural networks, on ideal, noisy and quantized hardware."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnrobust import (
        attacks,
        codesign,
        data,
        defenses,
        encoders,
        energy,
        evaluation,
        hardware,
        layers,
        learning_rules,
        models,
        monitors,
        neurons,
        quantization,
    )
    from snnrobust.models import SpikingClassifier

__version__ = "0.1.0"

__all__ = [
    "SpikingClassifier", "attacks", "codesign", "data", "defenses", "encoders", "energy", "evaluation", "hardware", "layers",
    "learning_rules", "models", "monitors", "neurons", "quantization",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Parts are imported when they are first asked for, so that ``import snnrobust`` costs nothing."""
    if name == "SpikingClassifier":
        return import_module("snnrobust.models").SpikingClassifier
    if name in __all__:
        return import_module(f"snnrobust.{name}")
    raise AttributeError(f"module 'snnrobust' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
