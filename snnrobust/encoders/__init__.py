"""Spike encoders: from a batch to a sequence. Each declares its gradient."""

from snnrobust.encoders.delta import Delta
from snnrobust.encoders.direct import Direct
from snnrobust.encoders.encoder import ENCODERS, Encoder
from snnrobust.encoders.frames import Frames
from snnrobust.encoders.latency import Latency
from snnrobust.encoders.level_crossing import LevelCrossing
from snnrobust.encoders.phase import Phase
from snnrobust.encoders.poisson import Poisson
from snnrobust.encoders.population import Population
from snnrobust.encoders.rows import Rows
from snnrobust.encoders.signed_poisson import SignedPoisson

__all__ = [
    "ENCODERS",
    "Delta",
    "Direct",
    "Encoder",
    "Frames",
    "Latency",
    "LevelCrossing",
    "Phase",
    "Poisson",
    "Population",
    "Rows",
    "SignedPoisson",
]
