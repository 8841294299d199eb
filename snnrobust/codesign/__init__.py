"""Procedures that train or attack in order to choose hardware, or to repair it."""

from snnrobust.codesign.accuracy_predictor import AccuracyPredictor, accuracy_predictor
from snnrobust.codesign.chip_tuning import ChipTuner, chip_accuracy, fit_knobs, fit_tuner, tune
from snnrobust.codesign.knobs import with_knobs
from snnrobust.codesign.signature import compact_images, signature, signatures
from snnrobust.codesign.tuning_report import TuningReport, Yield, chip_yield, judge_tuning

__all__ = [
    "AccuracyPredictor", "ChipTuner", "TuningReport", "Yield", "accuracy_predictor", "chip_accuracy", "chip_yield",
    "compact_images", "fit_knobs", "fit_tuner", "judge_tuning", "signature", "signatures", "tune", "with_knobs",
]  # fmt: skip
