"""Attacks on any classifier, spiking or not: threat models, gradient sources, attacks."""

from snnrobust.attacks.attack import ATTACKS, Attack, BluntGradientWarning, ProbabilitiesWarning
from snnrobust.attacks.external import External, from_foolbox, from_torchattacks
from snnrobust.attacks.fgsm import FGSM
from snnrobust.attacks.for_foolbox import foolbox_victim, to_foolbox
from snnrobust.attacks.gradient import (
    EOT,
    SOURCES,
    Backprop,
    GradientSource,
    StraightThrough,
    Surrogate,
    again,
    begin,
    cross_entropy,
    margin,
)
from snnrobust.attacks.gradient_adaptive import ASSG, PDSG
from snnrobust.attacks.gradient_bpda import BPDA
from snnrobust.attacks.gradient_free import SPSA, EvolutionStrategies
from snnrobust.attacks.gradient_rate import BPTR, HART, RGA
from snnrobust.attacks.gradient_transfer import FromModel
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.l1 import L1
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.pgd import PGD
from snnrobust.attacks.random_noise import RandomNoise, RandomSign
from snnrobust.attacks.threat import THREATS, Linf, ThreatModel
from snnrobust.attacks.transfer import Transfer

__all__ = [
    "ASSG", "ATTACKS", "BPDA", "BPTR", "EOT", "FGSM", "HART", "L0", "L1", "L2", "PDSG", "PGD", "RGA", "SOURCES", "SPSA",
    "THREATS", "Attack", "Backprop", "BluntGradientWarning", "EvolutionStrategies", "External", "FromModel",
    "GradientSource", "Linf", "ProbabilitiesWarning", "RandomNoise", "RandomSign", "StraightThrough", "Surrogate",
    "ThreatModel", "Transfer", "again", "begin", "cross_entropy", "foolbox_victim", "from_foolbox", "from_torchattacks",
    "margin", "to_foolbox",
]  # fmt: skip
