"""What the tests of models share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from snnrobust.models import Architecture, Layer

WIDTHS = ("channels", "features", "growth")


@pytest.fixture
def slim() -> Callable[[Architecture, int], Architecture]:
    """An architecture with all widths divided, at least 4: the same layers, cheap."""

    def divided(architecture: Architecture, by: int = 16) -> Architecture:
        return tuple(_slim(layer, by) for layer in architecture)

    def _slim(layer: Layer, by: int) -> Layer:
        changed = {f.name: max(4, getattr(layer, f.name) // by) for f in fields(layer) if f.name in WIDTHS}
        inside = {"body": divided(layer.body, by)} if hasattr(layer, "body") else {}
        return replace(layer, **changed, **inside)

    return divided
