"""Learning rules: interchangeable trainers, ``rule.fit(model, train, validation, epochs=...)``."""

from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.elasticzo import ElasticZO
from snnrobust.learning_rules.stdp import STDP
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES, History, Trainer, TrainingWarning

__all__ = ["BPTT", "RULES", "STDP", "ElasticZO", "History", "Lent", "Supervised", "Trainer", "TrainingWarning"]
