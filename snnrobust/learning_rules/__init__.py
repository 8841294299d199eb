"""Learning rules: interchangeable trainers, ``rule.fit(model, train, validation, epochs=...)``."""

from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.trainer import RULES, History, Trainer

__all__ = ["BPTT", "RULES", "History", "Trainer"]
