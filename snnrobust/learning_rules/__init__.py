"""Learning rules: interchangeable trainers, ``rule.fit(model, train, validation, epochs=...)``."""

from snnrobust.learning_rules.alignment import alignment
from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.dfa import DFA
from snnrobust.learning_rules.fa import FA
from snnrobust.learning_rules.le import LE
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES, History, Trainer, TrainingWarning, rule_name

__all__ = [
    "BPTT",
    "DFA",
    "FA",
    "LE",
    "RULES",
    "History",
    "Lent",
    "Supervised",
    "Trainer",
    "TrainingWarning",
    "alignment",
    "rule_name",
]  # fmt: skip
