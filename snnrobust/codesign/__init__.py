"""Hardware and network chosen together."""

from snnrobust.codesign.neuron_splitting import (
    Overhead,
    accuracy_under_bit_errors,
    overhead,
    split_neurons,
    triplicate_neurons,
)

__all__ = ["Overhead", "accuracy_under_bit_errors", "overhead", "split_neurons", "triplicate_neurons"]
