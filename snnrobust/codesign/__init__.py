"""Procedures that train or attack in order to choose hardware, or to repair it."""

from snnrobust.codesign.accuracy_predictor import AccuracyPredictor, accuracy_predictor
from snnrobust.codesign.admm import ADMM, ADMMWarning, Convergence
from snnrobust.codesign.allocation import density_bits, sensitivity_bits
from snnrobust.codesign.binary_relax import BinaryRelax, relaxed, theta_of
from snnrobust.codesign.chip_tuning import ChipTuner, chip_accuracy, fit_knobs, fit_tuner, tune
from snnrobust.codesign.constrained import Masked, OnLevels
from snnrobust.codesign.knobs import with_knobs
from snnrobust.codesign.membership_leakage import Leakage, Verdicts, over_victims
from snnrobust.codesign.midpoint import Midpoint, fit_midpoint, plot_midpoints
from snnrobust.codesign.neuron_splitting import (
    Overhead,
    accuracy_under_bit_errors,
    overhead,
    split_neurons,
    triplicate_neurons,
)
from snnrobust.codesign.noise_curve import NoiseCurve, accuracy_over_noise
from snnrobust.codesign.pruning import Compressed, Pruned, compress, prune, put_on_levels
from snnrobust.codesign.quanos import ByDensity, BySensitivity, HybridPrecision, quanos, unquantized
from snnrobust.codesign.quanos_result import QuanosResult, Round
from snnrobust.codesign.quantized_membership import (
    FittedQuantizer,
    MembershipExperiment,
    early_stops,
    membership_experiment,
)
from snnrobust.codesign.sensitivity import Sensitivity, activation_density, adversarial_noise_sensitivity
from snnrobust.codesign.signature import compact_images, signature, signatures
from snnrobust.codesign.surgical_noise import SurgicalNoise
from snnrobust.codesign.surgical_result import Judgement, Score, SurgicalResult, Trial
from snnrobust.codesign.tuning_report import TuningReport, Yield, chip_yield, judge_tuning

__all__ = [
    "ADMM",
    "ADMMWarning",
    "AccuracyPredictor",
    "BinaryRelax",
    "ByDensity",
    "BySensitivity",
    "ChipTuner",
    "Compressed",
    "Convergence",
    "FittedQuantizer",
    "HybridPrecision",
    "Judgement",
    "Leakage",
    "Masked",
    "MembershipExperiment",
    "Midpoint",
    "NoiseCurve",
    "OnLevels",
    "Overhead",
    "Pruned",
    "QuanosResult",
    "Round",
    "Score",
    "Sensitivity",
    "SurgicalNoise",
    "SurgicalResult",
    "Trial",
    "TuningReport",
    "Verdicts",
    "Yield",
    "accuracy_over_noise",
    "accuracy_predictor",
    "accuracy_under_bit_errors",
    "activation_density",
    "adversarial_noise_sensitivity",
    "chip_accuracy",
    "chip_yield",
    "compact_images",
    "compress",
    "density_bits",
    "early_stops",
    "fit_knobs",
    "fit_midpoint",
    "fit_tuner",
    "judge_tuning",
    "membership_experiment",
    "over_victims",
    "overhead",
    "plot_midpoints",
    "prune",
    "put_on_levels",
    "quanos",
    "relaxed",
    "sensitivity_bits",
    "signature",
    "signatures",
    "split_neurons",
    "theta_of",
    "triplicate_neurons",
    "tune",
    "unquantized",
    "with_knobs",
]
