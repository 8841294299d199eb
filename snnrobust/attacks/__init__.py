"""Attacks on any classifier, spiking or not: threat models, gradient sources, attacks."""

from snnrobust.attacks.attack import ATTACKS, Attack, BluntGradientWarning, ProbabilitiesWarning
from snnrobust.attacks.auto_pgd import APGD
from snnrobust.attacks.auto_pgd_targeted import APGDT
from snnrobust.attacks.bim import BIM
from snnrobust.attacks.bit_flip import BitFlipAttack
from snnrobust.attacks.bit_flip_result import BitFlipResult
from snnrobust.attacks.crafted import CRAFTS, EOT_DRAWS, Craft, asks_the_chip, crafted
from snnrobust.attacks.cw import CW
from snnrobust.attacks.deepfool import DeepFool
from snnrobust.attacks.external import External, from_foolbox, from_torchattacks
from snnrobust.attacks.fab import FAB
from snnrobust.attacks.fgsm import FGSM
from snnrobust.attacks.for_foolbox import foolbox_victim, to_foolbox
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
from snnrobust.attacks.gradient_frozen import Frozen
from snnrobust.attacks.gradient_learning import LearningSignal, TrueTranspose
from snnrobust.attacks.gradient_mixed import Mixed
from snnrobust.attacks.gradient_rate import BPTR, HART, RGA
from snnrobust.attacks.gradient_time_summed import TimeSummed
from snnrobust.attacks.gradient_transfer import FromModel
from snnrobust.attacks.hop_skip_jump import HopSkipJump
from snnrobust.attacks.hybrid import Components, Hybrid
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.l1 import L1
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.losses import LOSSES, Loss, Targeted, cross_entropy, dlr, dlr_targeted, margin
from snnrobust.attacks.membership import ThresholdMIA
from snnrobust.attacks.membership_report import MembershipReport, membership_report
from snnrobust.attacks.membership_shadow import OfflineLiRA, ShadowMIA, Shadows, train_shadows
from snnrobust.attacks.mi_fgsm import MIFGSM
from snnrobust.attacks.minimal_norm import MinimalNorm
from snnrobust.attacks.nes import NES, SPSAAttack
from snnrobust.attacks.pgd import PGD
from snnrobust.attacks.r_fgsm import RFGSM
from snnrobust.attacks.random_noise import RandomNoise, RandomSign
from snnrobust.attacks.sa_pgd import SAPGD
from snnrobust.attacks.sharmin import Sharmin
from snnrobust.attacks.sparse_rs import SparseRS
from snnrobust.attacks.square import Square
from snnrobust.attacks.sram import SRAMAttack, SRAMAttackResult
from snnrobust.attacks.standard import Stage, Standard, standard
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
    "CRAFTS",
    "CW",
    "EOT",
    "EOT_DRAWS",
    "FAB",
    "FGSM",
    "HART",
    "L0",
    "L1",
    "L2",
    "LOSSES",
    "MIFGSM",
    "NES",
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
    "BitFlipAttack",
    "BitFlipResult",
    "BluntGradientWarning",
    "Components",
    "Craft",
    "DeepFool",
    "EvolutionStrategies",
    "External",
    "FromModel",
    "Frozen",
    "Goal",
    "GradientSource",
    "HopSkipJump",
    "Hybrid",
    "LearningSignal",
    "Linf",
    "Loss",
    "MembershipReport",
    "MinimalNorm",
    "Mixed",
    "OfflineLiRA",
    "ProbabilitiesWarning",
    "RandomNoise",
    "RandomSign",
    "SPSAAttack",
    "SRAMAttack",
    "SRAMAttackResult",
    "ShadowMIA",
    "Shadows",
    "Sharmin",
    "SparseRS",
    "Square",
    "Stage",
    "Standard",
    "StraightThrough",
    "Surrogate",
    "Targeted",
    "ThreatModel",
    "ThresholdMIA",
    "TimeSummed",
    "Transfer",
    "TrueTranspose",
    "again",
    "asks_the_chip",
    "begin",
    "crafted",
    "cross_entropy",
    "dlr",
    "dlr_targeted",
    "foolbox_victim",
    "from_foolbox",
    "from_torchattacks",
    "margin",
    "membership_report",
    "standard",
    "to_foolbox",
    "train_shadows",
]
