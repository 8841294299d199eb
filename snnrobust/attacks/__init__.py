"""Attacks on any classifier, spiking or not: threat models, gradient sources, attacks."""

from snnrobust.attacks.attack import ATTACKS, Attack, BluntGradientWarning
from snnrobust.attacks.auto_pgd import APGD
from snnrobust.attacks.auto_pgd_targeted import APGDT
from snnrobust.attacks.bim import BIM
from snnrobust.attacks.fgsm import FGSM
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import (
    EOT,
    SOURCES,
    Backprop,
    GradientSource,
    StraightThrough,
    Surrogate,
    again,
    begin,
)
from snnrobust.attacks.gradient_adaptive import ASSG, PDSG
from snnrobust.attacks.gradient_bpda import BPDA
from snnrobust.attacks.gradient_free import SPSA, EvolutionStrategies
from snnrobust.attacks.gradient_mixed import Mixed
from snnrobust.attacks.gradient_rate import BPTR, HART, RGA
from snnrobust.attacks.gradient_transfer import FromModel
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.l1 import L1
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.losses import LOSSES, Loss, Targeted, cross_entropy, dlr, dlr_targeted, margin
from snnrobust.attacks.mi_fgsm import MIFGSM
from snnrobust.attacks.pgd import PGD
from snnrobust.attacks.r_fgsm import RFGSM
from snnrobust.attacks.random_noise import RandomNoise, RandomSign
from snnrobust.attacks.sa_pgd import SAPGD
from snnrobust.attacks.threat import THREATS, Linf, ThreatModel
from snnrobust.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "APGDT",
    "ASSG",
    "ATTACKS",
    "BIM",
    "BPDA",
    "BPTR",
    "EOT",
    "FGSM",
    "HART",
    "L0",
    "L1",
    "L2",
    "LOSSES",
    "MIFGSM",
    "PDSG",
    "PGD",
    "RFGSM",
    "RGA",
    "SAPGD",
    "SOURCES",
    "SPSA",
    "THREATS",
    "Attack",
    "Backprop",
    "BluntGradientWarning",
    "EvolutionStrategies",
    "FromModel",
    "Goal",
    "GradientSource",
    "Linf",
    "Loss",
    "Mixed",
    "RandomNoise",
    "RandomSign",
    "StraightThrough",
    "Surrogate",
    "Targeted",
    "ThreatModel",
    "Transfer",
    "again",
    "begin",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "margin",
]
