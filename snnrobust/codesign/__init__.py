"""Procedures that train or attack in order to choose hardware, or to repair it."""

from snnrobust.codesign.accuracy_predictor import AccuracyPredictor, accuracy_predictor
from snnrobust.codesign.admm import ADMM, ADMMWarning, Convergence
from snnrobust.codesign.chip_tuning import ChipTuner, chip_accuracy, fit_knobs, fit_tuner, tune
from snnrobust.codesign.constrained import Masked, OnLevels
from snnrobust.codesign.knobs import with_knobs
from snnrobust.codesign.neuron_splitting import (
    Overhead,
    accuracy_under_bit_errors,
    overhead,
    split_neurons,
    triplicate_neurons,
)
from snnrobust.codesign.pruning import Compressed, Pruned, compress, prune, put_on_levels
from snnrobust.codesign.signature import compact_images, signature, signatures
from snnrobust.codesign.surgical_noise import SurgicalNoise
from snnrobust.codesign.surgical_result import Judgement, Score, SurgicalResult, Trial
from snnrobust.codesign.tuning_report import TuningReport, Yield, chip_yield, judge_tuning

__all__ = [
    "ADMM",
    "ADMMWarning",
    "AccuracyPredictor",
    "ChipTuner",
    "Compressed",
    "Convergence",
    "Judgement",
    "Masked",
    "OnLevels",
    "Overhead",
    "Pruned",
    "Score",
    "SurgicalNoise",
    "SurgicalResult",
    "Trial",
    "TuningReport",
    "Yield",
    "accuracy_predictor",
    "accuracy_under_bit_errors",
    "chip_accuracy",
    "chip_yield",
    "compact_images",
    "compress",
    "fit_knobs",
    "fit_tuner",
    "judge_tuning",
    "overhead",
    "prune",
    "put_on_levels",
    "signature",
    "signatures",
    "split_neurons",
    "triplicate_neurons",
    "tune",
    "with_knobs",
]
