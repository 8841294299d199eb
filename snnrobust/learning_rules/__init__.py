"""Learning rules: interchangeable trainers, ``rule.fit(model, train, validation, epochs=...)``."""

from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES, History, Trainer, TrainingWarning, rule_name

__all__ = ["BPTT", "RULES", "History", "Lent", "Supervised", "Trainer", "TrainingWarning", "rule_name"]
