"""Resistive crossbars: what flows in a tile of devices whose wires have resistance."""

from snnrobust.hardware.crossbar.nodal import (
    Wires,
    device_voltages,
    effective_conductance,
    effective_conductance_update,
)
from snnrobust.hardware.crossbar.nodal_iv import nodal_currents

__all__ = ["Wires", "device_voltages", "effective_conductance", "effective_conductance_update", "nodal_currents"]
