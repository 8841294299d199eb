"""The verdict: robust accuracy and the diagnosis that stands beside it."""

from snnrobust.evaluation.diagnose import CHECKS, Check, MaskingReport, diagnose
from snnrobust.evaluation.evaluate import evaluate
from snnrobust.evaluation.report import RobustnessReport

__all__ = ["CHECKS", "Check", "MaskingReport", "RobustnessReport", "diagnose", "evaluate"]
