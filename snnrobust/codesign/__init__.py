"""Procedures that train or attack in order to choose hardware, or fit a network to it."""

from snnrobust.codesign.neuron_splitting import (
    Overhead,
    accuracy_under_bit_errors,
    overhead,
    split_neurons,
    triplicate_neurons,
)
from snnrobust.codesign.surgical_noise import SurgicalNoise
from snnrobust.codesign.surgical_result import Judgement, Score, SurgicalResult, Trial

__all__ = [
    "Judgement",
    "Overhead",
    "Score",
    "SurgicalNoise",
    "SurgicalResult",
    "Trial",
    "accuracy_under_bit_errors",
    "overhead",
    "split_neurons",
    "triplicate_neurons",
]
