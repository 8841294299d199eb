"""Attacks on any classifier, spiking or not: threat models, gradient sources, attacks."""

from snnrobust.attacks.attack import ATTACKS, Attack, BluntGradientWarning
from snnrobust.attacks.bit_flip import BitFlipAttack
from snnrobust.attacks.bit_flip_result import BitFlipResult
from snnrobust.attacks.fgsm import FGSM
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
from snnrobust.attacks.membership import ThresholdMIA
from snnrobust.attacks.membership_report import MembershipReport, membership_report
from snnrobust.attacks.membership_shadow import OfflineLiRA, ShadowMIA, Shadows, train_shadows
from snnrobust.attacks.pgd import PGD
from snnrobust.attacks.random_noise import RandomNoise, RandomSign
from snnrobust.attacks.threat import THREATS, Linf, ThreatModel
from snnrobust.attacks.transfer import Transfer

__all__ = [
    "ASSG", "ATTACKS", "BPDA", "BPTR", "EOT", "FGSM", "HART", "L0", "L1", "L2", "PDSG", "PGD", "RGA", "SOURCES", "SPSA",
    "THREATS", "Attack", "Backprop", "BitFlipAttack", "BitFlipResult", "BluntGradientWarning", "EvolutionStrategies",
    "FromModel", "GradientSource", "Linf", "MembershipReport", "OfflineLiRA", "RandomNoise", "RandomSign", "ShadowMIA",
    "Shadows", "StraightThrough", "Surrogate", "ThreatModel", "ThresholdMIA", "Transfer", "again", "begin",
    "cross_entropy", "margin", "membership_report", "train_shadows",
]  # fmt: skip
