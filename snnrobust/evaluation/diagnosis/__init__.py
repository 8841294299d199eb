"""The checks of :func:`snnrobust.evaluation.diagnose`, one concept a file."""

from snnrobust.evaluation.diagnosis.check import Check, MaskingReport

__all__ = ["Check", "MaskingReport"]
