"""Learning rules: interchangeable trainers, ``rule.fit(model, train, validation, epochs=...)``."""

from snnrobust.learning_rules.alignment import alignment
from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.conversion import Conversion, convert
from snnrobust.learning_rules.conversion_ann import quantised
from snnrobust.learning_rules.conversion_report import CalibrationReport
from snnrobust.learning_rules.decolle import DECOLLE
from snnrobust.learning_rules.dfa import DFA
from snnrobust.learning_rules.elasticzo import ElasticZO
from snnrobust.learning_rules.eprop import EProp
from snnrobust.learning_rules.fa import FA
from snnrobust.learning_rules.le import LE
from snnrobust.learning_rules.ottt import OTTT
from snnrobust.learning_rules.stdb import STDB, scale_thresholds
from snnrobust.learning_rules.stdp import STDP
from snnrobust.learning_rules.supervised import Lent, Supervised
from snnrobust.learning_rules.trainer import RULES, History, Trainer, TrainingWarning, rule_name

__all__ = [
    "BPTT",
    "DECOLLE",
    "DFA",
    "FA",
    "LE",
    "OTTT",
    "RULES",
    "STDB",
    "STDP",
    "CalibrationReport",
    "Conversion",
    "EProp",
    "ElasticZO",
    "History",
    "Lent",
    "Supervised",
    "Trainer",
    "TrainingWarning",
    "alignment",
    "convert",
    "quantised",
    "rule_name",
    "scale_thresholds",
]  # fmt: skip
