"""Spike encoders: from an image in [0, 1] to a sequence. Each declares its gradient."""

from snnrobust.encoders.direct import Direct
from snnrobust.encoders.encoder import ENCODERS, Encoder
from snnrobust.encoders.poisson import Poisson

__all__ = ["ENCODERS", "Direct", "Encoder", "Poisson"]
