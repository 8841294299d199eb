"""The verdict: robust accuracy and the diagnosis that stands beside it."""

from snnrobust.evaluation.accuracy_curve import AccuracyCurve, accuracy_curve
from snnrobust.evaluation.diagnose import CHECKS, Check, MaskingReport, diagnose
from snnrobust.evaluation.evaluate import evaluate
from snnrobust.evaluation.paragraph import paragraph
from snnrobust.evaluation.report import RobustnessReport

__all__ = [
    "CHECKS", "AccuracyCurve", "Check", "MaskingReport", "RobustnessReport", "accuracy_curve", "diagnose", "evaluate",
    "paragraph",
]  # fmt: skip
