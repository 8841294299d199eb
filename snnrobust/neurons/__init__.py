"""Spiking neurons and the surrogate gradients that train and attack them."""

from snnrobust.neurons import surrogate
from snnrobust.neurons.lif import IF, LIF, Reset, lif

NEURONS: dict[str, type[LIF]] = {"IF": IF, "LIF": LIF}

__all__ = ["IF", "LIF", "NEURONS", "Reset", "lif", "surrogate"]
