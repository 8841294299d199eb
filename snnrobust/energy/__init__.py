"""Operations that a network executes, dense and event-driven, the energy that they take, and NeuroBench's metrics."""

from snnrobust.energy.cost import CMOS45, Costs, PrecisionScalable
from snnrobust.energy.count import count_operations
from snnrobust.energy.estimate import Precision, estimate
from snnrobust.energy.neurobench import NeuroBenchMetrics, neurobench
from snnrobust.energy.operations import Elementwise, LayerOperations, NeuronUpdates, Operations
from snnrobust.energy.report import EnergyReport, Part

__all__ = [
    "CMOS45", "Costs", "Elementwise", "EnergyReport", "LayerOperations", "NeuroBenchMetrics", "NeuronUpdates", "Operations",
    "Part", "Precision", "PrecisionScalable", "count_operations", "estimate", "neurobench",
]  # fmt: skip
