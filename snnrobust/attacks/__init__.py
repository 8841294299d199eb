"""Attacks on any classifier, spiking or not: threat models, gradient sources, attacks."""

from snnrobust.attacks.attack import ATTACKS, Attack, BluntGradientWarning
from snnrobust.attacks.fgsm import FGSM
from snnrobust.attacks.gradient import EOT, Backprop, GradientSource, Surrogate, cross_entropy, margin
from snnrobust.attacks.pgd import PGD
from snnrobust.attacks.random_sign import RandomSign
from snnrobust.attacks.threat import Linf, ThreatModel
from snnrobust.attacks.transfer import Transfer

__all__ = [
    "ATTACKS", "EOT", "FGSM", "PGD", "Attack", "Backprop", "BluntGradientWarning", "GradientSource", "Linf", "RandomSign",
    "Surrogate", "ThreatModel", "Transfer", "cross_entropy", "margin",
]  # fmt: skip
