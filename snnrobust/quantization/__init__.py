"""Quantizers. As hardware backends they act on any network's synaptic layers."""

from snnrobust.quantization.compaction import compact
from snnrobust.quantization.conductance import NearestLevel, fit_scale, nearest_level, pair_levels
from snnrobust.quantization.footprint import CrossbarCosts, Footprint, LayerFootprint, footprint
from snnrobust.quantization.purification import Purification, purify
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

__all__ = [
    "STRUCTURES",
    "Blocks",
    "Channels",
    "CrossbarCosts",
    "Elements",
    "Filters",
    "Footprint",
    "Keep",
    "LayerFootprint",
    "NearestLevel",
    "Purification",
    "Rows",
    "Structure",
    "Uniform",
    "compact",
    "fit_scale",
    "footprint",
    "keep_strongest",
    "nearest_level",
    "pair_levels",
    "purify",
    "uniform",
]
