"""Resistive crossbars: weights as conductances on tiles of devices, read through wires that have resistance."""

from snnrobust.hardware.crossbar.backend import Crossbar
from snnrobust.hardware.crossbar.estimate import Estimate, estimate
from snnrobust.hardware.crossbar.nodal import (
    Wires,
    device_voltages,
    effective_conductance,
    effective_conductance_update,
)
from snnrobust.hardware.crossbar.nodal_iv import nodal_currents

__all__ = [
    "Crossbar",
    "Estimate",
    "Wires",
    "device_voltages",
    "effective_conductance",
    "effective_conductance_update",
    "estimate",
    "nodal_currents",
]
