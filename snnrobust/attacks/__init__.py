"""Attacks on any classifier, spiking or not: threat models, gradient sources, attacks."""

from snnrobust.attacks.attack import ATTACKS, Attack, BluntGradientWarning
from snnrobust.attacks.fgsm import FGSM
from snnrobust.attacks.gradient import EOT, Backprop, GradientSource, Surrogate, cross_entropy, margin
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.l1 import L1
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.pgd import PGD
from snnrobust.attacks.random_noise import RandomNoise, RandomSign
from snnrobust.attacks.threat import THREATS, Linf, ThreatModel
from snnrobust.attacks.transfer import Transfer

__all__ = [
    "ATTACKS", "EOT", "FGSM", "L0", "L1", "L2", "PGD", "THREATS", "Attack", "Backprop", "BluntGradientWarning",
    "GradientSource", "Linf", "RandomNoise", "RandomSign", "Surrogate", "ThreatModel", "Transfer", "cross_entropy", "margin",
]  # fmt: skip
