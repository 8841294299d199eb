"""Robust training (adversarial, and through noise) as trainers on the shared loop, and voting over noisy predictions."""

from snnrobust.defenses.fast_at import FastAT
from snnrobust.defenses.noise_strength import NoiseStrength
from snnrobust.defenses.noise_training import NoiseTraining
from snnrobust.defenses.pgd_training import PGDTraining
from snnrobust.defenses.rat import RAT, retract
from snnrobust.defenses.trade_off import TradeOff
from snnrobust.defenses.trades import TRADES
from snnrobust.defenses.voting import Voting

__all__ = [
    "RAT", "TRADES", "FastAT", "NoiseStrength", "NoiseTraining", "PGDTraining", "TradeOff", "Voting", "retract",
]  # fmt: skip
