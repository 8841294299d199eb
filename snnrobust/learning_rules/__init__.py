"""Learning rules: interchangeable trainers, ``rule.fit(model, train, validation, epochs=...)``."""

from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.conversion import Conversion, convert
from snnrobust.learning_rules.conversion_ann import quantised
from snnrobust.learning_rules.conversion_report import CalibrationReport
from snnrobust.learning_rules.stdb import STDB
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES, History, Trainer, TrainingWarning, rule_name

__all__ = [
    "BPTT", "RULES", "STDB", "CalibrationReport", "Conversion", "History", "Lent", "Supervised", "Trainer", "TrainingWarning",
    "convert", "quantised", "rule_name",
]  # fmt: skip
