"""Resistive crossbars: weights as conductances on tiles of devices, read through wires that have resistance."""

from snnrobust.hardware.crossbar.backend import Crossbar
from snnrobust.hardware.crossbar.nodal import Wires, effective_conductance

__all__ = ["Crossbar", "Wires", "effective_conductance"]
