"""Procedures that train or attack in order to choose hardware."""

from snnrobust.codesign.surgical_noise import SurgicalNoise
from snnrobust.codesign.surgical_result import Judgement, Score, SurgicalResult, Trial

__all__ = [
    "Judgement",
    "Score",
    "SurgicalNoise",
    "SurgicalResult",
    "Trial",
]
