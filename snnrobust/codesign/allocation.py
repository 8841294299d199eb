"""From a number for each layer to its bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from snnrobust import checks
from snnrobust.quantization.levels import MOST_BITS

__all__ = ["Direction", "Shape", "density_bits", "sensitivity_bits"]

Direction = Literal["more", "fewer"]
"""Whether sensitive layers get more or fewer bits than others."""

Shape = Literal["linear", "sqrt", "log"] | Callable[[float], float]
Reference = Literal["extreme", "mean"]

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda r: r,
    "sqrt": math.sqrt,
    "log": lambda r: math.log2(1 + r),
}


def sensitivity_bits(
    ans: Mapping[str, float],
    *,
    start: int = 16,
    least: int = 2,
    direction: Direction = "more",
    shape: Shape = "linear",
    reference: Reference = "extreme",
) -> dict[str, int]:
    r"""Bits of each layer from its sensitivity.

    .. math:: k_l = \operatorname{clip}(\operatorname{round}(k_0 f(r_l)), k_{least}, k_0), \qquad
        r_l = \mathrm{ANS}_l / \mathrm{ANS}_{ref} \;\text{or}\; \mathrm{ANS}_{ref} / \mathrm{ANS}_l

    the second where sensitive layers get fewer bits. Bits do not change if all sensitivities are multiplied by a number. Ties
    round to even.

    **The published rule of assignment is not verified, and neither is its direction**: this is a family that holds a plausible
    one, and no claim that QUANOS does it so. Compare both directions.

    Args:
        ans: ANS by layer, as :class:`~snnrobust.codesign.Sensitivity` has it.
        start: :math:`k_0`, the bits of the training so far.
        least: No layer gets fewer.
        direction: ``"more"`` bits for sensitive layers, or ``"fewer"``.
        shape: f: ``"linear"`` r, ``"sqrt"``, ``"log"`` (:math:`\log_2(1 + r)`), or a function.
        reference: Which sensitivity stands for r = 1: ``"extreme"``, that of the layer which gets most bits (the largest, or the
            smallest if the direction is ``"fewer"``), or the ``"mean"``, above which layers get all :math:`k_0`.

    Raises:
        ValueError: no layer, sensitivities that are negative, infinite or all 0, or bits that integers do not have.
    """
    _check(ans, "ans", math.inf)
    _check_bits(start, least)
    checks.choice("direction", direction, get_args(Direction))
    checks.choice("reference", reference, get_args(Reference))
    if not callable(shape):
        shape = SHAPES[checks.choice("shape", shape, SHAPES)]
    if not any(ans.values()):
        raise ValueError("ans is 0 in every layer: the attack changed nothing, so there is nothing to allocate by")
    more = direction == "more"
    extreme = max if more else min
    one = sum(ans.values()) / len(ans) if reference == "mean" else extreme(ans.values())
    bits = {}
    for name, value in ans.items():
        if value == one:  # also 0 / 0
            ratio = 1.0
        elif more:
            ratio = value / one
        else:
            ratio = one / value if value else math.inf
        wanted = math.inf if math.isinf(ratio) else start * float(shape(ratio))
        if math.isnan(wanted):
            raise ValueError(f"shape is not a number at {ratio:g}: give a function of the positive numbers")
        bits[name] = _clip(wanted, least, start)
    return bits


def density_bits(density: Mapping[str, float], bits: Mapping[str, int] | int = 16, *, least: int = 2) -> dict[str, int]:
    r"""Bits of each layer from the share of its activations that are not zero.

    .. math:: k_l \leftarrow \max(\operatorname{round}(k_l \, \mathrm{AD}_l), k_{least})

    May be applied again after more training. Ties round to even.

    Args:
        density: By layer, in [0, 1], as :func:`~snnrobust.codesign.activation_density` has it.
        bits: Those that the layers have now, or one number for all.
        least: No layer gets fewer, unless it has fewer already.

    Source: Vasquez et al. 2021 (arXiv:2101.04354); the rule is from memory, only the abstract was verified.
    """
    _check(density, "density", 1.0)
    now = dict.fromkeys(density, bits) if isinstance(bits, int) else dict(bits)
    found = {}
    for name, share in density.items():
        if name not in now:
            raise ValueError(f"bits has no {name!r}: give the bits that each layer has now, or one number for all")
        _check_bits(now[name], min(checks.count("least", least), now[name]))
        found[name] = _clip(now[name] * share, min(least, now[name]), now[name])
    return found


def _check(values: Mapping[str, float], name: str, high: float) -> None:
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"{name} must map names of layers to numbers, got {values!r:.80}")
    for layer, value in values.items():
        checks.number(f"{name}[{layer!r}]", value, 0.0, high)


def _check_bits(start: int, least: int) -> None:
    if checks.count("start", start) > MOST_BITS:
        raise ValueError(f"start must be at most {MOST_BITS} bits, got {start}")
    if checks.count("least", least) > start:
        raise ValueError(f"least must be at most start = {start}, got {least}")


def _clip(wanted: float, least: int, most: int) -> int:
    return least if wanted <= least else most if wanted >= most else round(wanted)
