"""Temporal layers that are not neurons: containers, normalisation, readouts."""

from snnrobust.layers.bntt import BNTT
from snnrobust.layers.readout import READOUTS, MeanMembrane, MeanOutput, Readout, SpikeCount
from snnrobust.layers.sequential import Sequential

__all__ = ["BNTT", "READOUTS", "MeanMembrane", "MeanOutput", "Readout", "Sequential", "SpikeCount"]
