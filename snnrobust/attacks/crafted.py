"""What an attacker of a chip knows, one flag apart: the same attack crafted on the ideal model, or on the chip."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

from torch import nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.gradient import EOT
from snnrobust.attacks.gradient_frozen import Frozen
from snnrobust.attacks.gradient_mixed import Mixed
from snnrobust.attacks.gradient_transfer import FromModel
from snnrobust.attacks.random_noise import RandomNoise, RandomSign
from snnrobust.attacks.transfer import Transfer

__all__ = ["CRAFTS", "EOT_DRAWS", "Craft", "asks_the_chip", "crafted"]

Craft = Literal["software", "frozen", "eot", "ideal-gradient"]
"""How an attack on a chip is crafted; see :func:`crafted`."""

CRAFTS: Sequence[str] = get_args(Craft)
EOT_DRAWS = 8


def crafted(attack: Attack, craft: Craft, ideal: nn.Module | None = None, draws: int = EOT_DRAWS) -> Attack:
    """``attack`` on a chip as an attacker of some knowledge makes it.

    - ``"software"``: on the ideal model, then shown to the chip. The chip is never asked.
    - ``"ideal-gradient"``: at each step the gradient of the ideal model and the predictions of the chip.
    - ``"frozen"``: the gradient of the chip, under the same draws of its noise at all steps.
    - ``"eot"``: the gradient of the chip, averaged over ``draws`` fresh draws at each step.

    The first two say nothing about the chip's robustness when they fail: ``evaluate`` notes it where nothing else was tried.

    Args:
        attack: With a ``gradient``, where the chip or its gradient is asked.
        craft: One of those.
        ideal: The model that was deployed; for ``"software"`` and ``"ideal-gradient"``.
        draws: For ``"eot"``.
    """
    checks.choice("craft", craft, CRAFTS)
    if not isinstance(attack, Attack):
        raise TypeError(f"attack must be an attack such as PGD(Linf('8/255')), got {attack!r:.80}")
    if craft in ("software", "ideal-gradient"):
        if ideal is None:
            raise ValueError(f"craft={craft!r} needs ideal, the model that was deployed")
        checks.module("ideal", ideal)
    if craft == "software":
        return Transfer(attack, cast(nn.Module, ideal))
    made: Any = attack
    if "gradient" not in {f.name for f in dataclasses.fields(made)}:
        raise TypeError(f"{type(attack).__name__} uses no gradient that craft={craft!r} could change")
    inner = made.gradient
    if craft == "frozen":
        source: Any = Frozen(inner)
    elif craft == "eot":
        source = EOT(draws, inner)
    else:
        source = FromModel(cast(nn.Module, ideal), inner)
    return cast(Attack, dataclasses.replace(made, gradient=source))


def asks_the_chip(attack: Attack) -> bool:
    """Whether ``attack`` uses the gradient or the answers of its victim to choose where to go: a transfer does not, nor one
    that takes its gradient elsewhere."""
    if isinstance(attack, Transfer | RandomNoise | RandomSign):
        return False
    inner = getattr(attack, "attack", None)
    if isinstance(inner, Attack):  # of MinimalNorm
        return asks_the_chip(inner)
    return _asks(getattr(attack, "gradient", None))


def _asks(source: object) -> bool:
    if isinstance(source, FromModel):
        return False
    if isinstance(source, Mixed):
        return any(map(_asks, source.sources))
    inner = getattr(source, "source", None)
    return inner is None or _asks(inner)
