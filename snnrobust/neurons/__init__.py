"""Spiking neurons and the surrogate gradients that train and attack them."""

from snnrobust.neurons import surrogate
from snnrobust.neurons.alif import ALIF, alif
from snnrobust.neurons.cuba import CuBaLIF, leaky_integral
from snnrobust.neurons.lif import IF, LIF, lif
from snnrobust.neurons.neuron import NEURONS, Neuron, Reset
from snnrobust.neurons.parametric import PLIF, LearnableThresholdLIF
from snnrobust.neurons.precharged import PrechargedIF
from snnrobust.neurons.recurrent import Recurrent

__all__ = [
    "ALIF", "IF", "LIF", "NEURONS", "PLIF", "CuBaLIF", "LearnableThresholdLIF", "Neuron", "PrechargedIF", "Recurrent", "Reset",
    "alif", "leaky_integral", "lif", "surrogate",
]  # fmt: skip
