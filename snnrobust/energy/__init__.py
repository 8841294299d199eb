"""Operations that a network executes, dense and event-driven. Energy is not counted yet."""

from snnrobust.energy.count import count_operations
from snnrobust.energy.operations import LayerOperations, NeuronUpdates, Operations

__all__ = ["LayerOperations", "NeuronUpdates", "Operations", "count_operations"]
