"""Learning rules: interchangeable trainers, ``rule.fit(model, train, validation, epochs=...)``."""

from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.decolle import DECOLLE
from snnrobust.learning_rules.eprop import EProp
from snnrobust.learning_rules.ottt import OTTT
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES, History, Trainer, TrainingWarning

__all__ = ["BPTT", "DECOLLE", "OTTT", "RULES", "EProp", "History", "Lent", "Supervised", "Trainer", "TrainingWarning"]
