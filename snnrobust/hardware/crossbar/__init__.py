"""Resistive crossbars: what flows in a tile of devices whose wires have resistance."""

from snnrobust.hardware.crossbar.nodal import Wires, effective_conductance

__all__ = ["Wires", "effective_conductance"]
