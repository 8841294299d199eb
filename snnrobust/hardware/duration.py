"""Times as people write them: 3600, "1 h", "30 days"."""

from __future__ import annotations

import re

from snnrobust import checks

__all__ = ["seconds"]

UNITS = {
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "day": 86_400.0,
    "week": 604_800.0,
    "month": 2_592_000.0,
    "year": 31_536_000.0,
}
"""A month is 30 days, a year 365."""
ALIASES = {"sec": "s", "second": "s", "minute": "min", "hour": "h", "hr": "h", "d": "day", "w": "week", "y": "year"}
_WRITTEN = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]+)\s*", re.IGNORECASE)


def seconds(name: str, value: float | str) -> float:
    """A time of at least zero in seconds, from seconds or from a string such as ``"1 day"`` or ``"2.5 h"``.

    Args:
        name: Of the argument, for the error.
        value: A number, or a number and one of s, min, h, day, week, month (30 days), year (365 days).

    Raises:
        ValueError, TypeError: negative, not finite, or not understood.
    """
    if not isinstance(value, str):
        return checks.number(name, value, 0.0, hint='seconds, or a string such as "1 day"')
    found = _WRITTEN.fullmatch(value)
    if found is None:
        raise ValueError(f'{name} must be seconds or a number with a unit such as "1 day", got {value!r:.80}')
    unit = found[2].lower()
    if unit not in UNITS and unit not in ALIASES and unit.endswith("s"):
        unit = unit[:-1]
    unit = ALIASES.get(unit, unit)
    checks.choice(f"the unit of {name}", unit, UNITS)
    try:
        amount = float(found[1])
    except ValueError:  # "1.2.3 h"
        raise ValueError(f"{name} must start with a number, got {value!r:.80}") from None
    return checks.number(name, amount * UNITS[unit], 0.0)
