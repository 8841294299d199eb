"""Quantizers: levels, scales and gradients, for weights, signals and membranes. ``Uniform`` is a hardware backend."""

from snnrobust.quantization.codes import WeightCodes, weight_codes
from snnrobust.quantization.compaction import compact
from snnrobust.quantization.conductance import NearestLevel, pair_levels
from snnrobust.quantization.export import IntegerFile, export_integers, load_integers, read_integers
from snnrobust.quantization.footprint import CrossbarCosts, Footprint, LayerFootprint, footprint
from snnrobust.quantization.integer import integer_layers, to_integer
from snnrobust.quantization.levels import LEVELS, Binary, Integer, Levels, LevelSet, PowerOfTwo, Ternary
from snnrobust.quantization.projection import least_squares_step, project
from snnrobust.quantization.purification import Purification, purify
from snnrobust.quantization.quantize import LayerPrecision, calibrate, frozen, precision, precision_table, quantize
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.signals import QuantizedMembrane, SignalQuantizer
from snnrobust.quantization.sparsity import LayerSparsity, Sparsity, sparsity
from snnrobust.quantization.structured import (
    STRUCTURES,
    Blocks,
    Channels,
    Elements,
    Filters,
    Keep,
    Rows,
    Structure,
    keep_strongest,
)
from snnrobust.quantization.uniform import Uniform, uniform
from snnrobust.quantization.weights import WeightQuantizer, weight_quantizer

__all__ = [
    "LEVELS",
    "STRUCTURES",
    "Binary",
    "Blocks",
    "Channels",
    "CrossbarCosts",
    "Elements",
    "Filters",
    "Footprint",
    "Integer",
    "IntegerFile",
    "Keep",
    "LayerFootprint",
    "LayerPrecision",
    "LayerSparsity",
    "LevelSet",
    "Levels",
    "NearestLevel",
    "PowerOfTwo",
    "Purification",
    "QuantizedMembrane",
    "Quantizer",
    "Rows",
    "SignalQuantizer",
    "Sparsity",
    "Structure",
    "Ternary",
    "Uniform",
    "WeightCodes",
    "WeightQuantizer",
    "calibrate",
    "compact",
    "export_integers",
    "footprint",
    "frozen",
    "integer_layers",
    "keep_strongest",
    "least_squares_step",
    "load_integers",
    "pair_levels",
    "precision",
    "precision_table",
    "project",
    "purify",
    "quantize",
    "read_integers",
    "sparsity",
    "to_integer",
    "uniform",
    "weight_codes",
    "weight_quantizer",
]
