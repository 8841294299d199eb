"""Temporal layers that are not neurons: containers, normalisation, readouts."""

from snnrobust.layers.activation_noise import ActivationNoise, OrdinaryActivationNoise
from snnrobust.layers.bntt import BNTT
from snnrobust.layers.chunked import Chunked
from snnrobust.layers.dropout import Dropout, OrdinaryDropout
from snnrobust.layers.event_driven import EventConv2d, EventLinear, EventReport, LayerChoice, event_driven
from snnrobust.layers.normalise import Normalise
from snnrobust.layers.qcfs import QCFS
from snnrobust.layers.readout import READOUTS, LastOutput, MeanMembrane, MeanOutput, Readout, SpikeCount
from snnrobust.layers.residual import Concat, OrdinaryConcat, OrdinaryResidual, Residual
from snnrobust.layers.sequential import Sequential
from snnrobust.layers.synchronised import synchronised
from snnrobust.layers.tdbn import TDBN
from snnrobust.layers.tebn import TEBN

__all__ = [
    "BNTT", "QCFS", "READOUTS", "TDBN", "TEBN", "ActivationNoise", "Chunked", "Concat", "Dropout", "EventConv2d", "EventLinear",
    "EventReport", "LastOutput", "LayerChoice", "MeanMembrane", "MeanOutput", "Normalise", "OrdinaryActivationNoise",
    "OrdinaryConcat", "OrdinaryDropout", "OrdinaryResidual", "Readout", "Residual", "Sequential", "SpikeCount", "event_driven",
    "synchronised",
]  # fmt: skip
