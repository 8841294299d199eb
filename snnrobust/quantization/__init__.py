"""Quantizers. As hardware backends they act on any network's synaptic layers."""

from snnrobust.quantization.uniform import Uniform, uniform

__all__ = ["Uniform", "uniform"]
