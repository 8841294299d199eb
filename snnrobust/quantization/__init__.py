"""Quantizers: levels, scales and gradients, for weights, signals and membranes. ``Uniform`` is a hardware backend."""

from snnrobust.quantization.codes import WeightCodes, weight_codes
from snnrobust.quantization.export import IntegerFile, export_integers, load_integers, read_integers
from snnrobust.quantization.integer import integer_layers, to_integer
from snnrobust.quantization.levels import LEVELS, Binary, Integer, Levels, LevelSet, PowerOfTwo, Ternary
from snnrobust.quantization.projection import least_squares_step, project
from snnrobust.quantization.quantize import LayerPrecision, calibrate, frozen, precision, precision_table, quantize
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.signals import QuantizedMembrane, SignalQuantizer
from snnrobust.quantization.uniform import Uniform, uniform
from snnrobust.quantization.weights import WeightQuantizer, weight_quantizer

__all__ = [
    "LEVELS",
    "Binary",
    "Integer",
    "IntegerFile",
    "LayerPrecision",
    "LevelSet",
    "Levels",
    "PowerOfTwo",
    "QuantizedMembrane",
    "Quantizer",
    "SignalQuantizer",
    "Ternary",
    "Uniform",
    "WeightCodes",
    "WeightQuantizer",
    "calibrate",
    "export_integers",
    "frozen",
    "integer_layers",
    "least_squares_step",
    "load_integers",
    "precision",
    "precision_table",
    "project",
    "quantize",
    "read_integers",
    "to_integer",
    "uniform",
    "weight_codes",
    "weight_quantizer",
]
