"""Quantizers: levels, scales and gradients, for weights, signals and membranes. ``Uniform`` is a hardware backend."""

from snnrobust.quantization.levels import LEVELS, Binary, Integer, Levels, LevelSet, PowerOfTwo, Ternary
from snnrobust.quantization.projection import least_squares_step, project
from snnrobust.quantization.quantize import LayerPrecision, calibrate, frozen, precision, precision_table, quantize
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.signals import QuantizedMembrane, SignalQuantizer
from snnrobust.quantization.sparsity import LayerSparsity, Sparsity, sparsity
from snnrobust.quantization.uniform import Uniform, uniform
from snnrobust.quantization.weights import WeightQuantizer, weight_quantizer

__all__ = [
    "LEVELS",
    "Binary",
    "Integer",
    "LayerPrecision",
    "LayerSparsity",
    "LevelSet",
    "Levels",
    "PowerOfTwo",
    "QuantizedMembrane",
    "Quantizer",
    "SignalQuantizer",
    "Sparsity",
    "Ternary",
    "Uniform",
    "WeightQuantizer",
    "calibrate",
    "frozen",
    "least_squares_step",
    "precision",
    "precision_table",
    "project",
    "quantize",
    "sparsity",
    "uniform",
    "weight_quantizer",
]
