"""Resistive crossbars: weights as conductances on tiles, read through resistive wires."""

from snnrobust.hardware.crossbar.backend import Crossbar

__all__ = ["Crossbar"]
