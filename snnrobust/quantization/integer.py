"""Inference in integers: a quantized model whose products are of int8 numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.encoders import Poisson
from snnrobust.hardware.deploy import swap
from snnrobust.layers import Dropout, Residual, Sequential
from snnrobust.models.classifier import SpikingClassifier
from snnrobust.neurons import Neuron
from snnrobust.quantization.codes import WeightCodes, weight_codes
from snnrobust.quantization.int8 import InputCodes, IntegerConv2d, IntegerLayer, IntegerLinear, input_codes
from snnrobust.quantization.signals import QuantizedMembrane, SignalQuantizer
from snnrobust.quantization.weights import weight_quantizer

__all__ = ["integer_layers", "to_integer"]


def to_integer(model: nn.Module, *, codes: Mapping[str, WeightCodes] | None = None) -> nn.Module:
    """A deep copy of a quantized model for inference, whose layers multiply int8 by int8; ``model`` is untouched.

    A layer becomes integer if it is an ``nn.Linear`` or an ``nn.Conv2d`` with zero padding, its weight has int8 codes (integers
    of up to 8 bits, ternary, binary, powers of two of up to 4 bits) and its input has integer codes of up to 8 bits, or is known
    to be spikes: it comes from a spiking neuron or from ``Poisson``, perhaps through pooling. Others stay as they are;
    :func:`integer_layers` says why. Outputs differ from those of ``model`` by the rounding of float32 only, before neurons fire.

    Where torch reaches int8 instructions they are used, else floating point, with the same results to the bit.

    Args:
        model: From :func:`~snnrobust.quantization.quantize`, calibrated. In eval mode the copy computes what it computes.
        codes: Of layers with plain weights, by name, as :func:`~snnrobust.quantization.load_integers` reads them.

    Raises:
        ValueError: no layer of it can be integer, with the reasons.
        RuntimeError: the gradient of the result is asked for, later: it has none.
    """
    copy = deepcopy(checks.module("model", model))
    reasons = {}
    for name, layer, quantizer, grid in list(_layers(copy)):
        made = _integer(layer, quantizer, grid, (codes or {}).get(name))
        if isinstance(made, str):
            reasons[name] = made
        elif quantizer is None:
            swap(copy, name, made)
        else:  # nn.Sequential(quantizer, layer)
            swap(copy, name.rpartition(".")[0], nn.Sequential(nn.Identity(), made))
    if not any(isinstance(m, IntegerLayer) for m in copy.modules()):
        told = "; ".join(f"{name or 'the model'}: {why}" for name, why in reasons.items())
        raise ValueError(f"no layer can be integer ({told or 'there is no nn.Linear or nn.Conv2d'})")
    copy._integer_reasons = reasons  # type: ignore[assignment]
    return copy.eval()


def integer_layers(model: nn.Module) -> dict[str, str]:
    """Of a model from :func:`to_integer`: by name ``"int8"``, or why the layer is not integer."""
    reasons: dict[str, str] = getattr(model, "_integer_reasons", {})
    found = {name: "int8" for name, m in checks.module("model", model).named_modules() if isinstance(m, IntegerLayer)}
    return found | reasons


Grid = tuple[float, int]
"""Step and largest multiple of values that are known to be multiples."""


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, SignalQuantizer | None, Grid | None]]:
    """All layers of weights, with the quantizer before them, and the grid of their inputs where these are spikes."""
    grids = _grids(model)
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            parent = model.get_submodule(name.rpartition(".")[0]) if name else None
            quantizer = None
            if isinstance(parent, nn.Sequential) and len(parent) == 2 and isinstance(parent[0], SignalQuantizer):
                quantizer = parent[0]
            yield name, m, quantizer, grids.get(id(m))


def _integer(
    layer: nn.Module, quantizer: SignalQuantizer | None, grid: Grid | None, codes: WeightCodes | None
) -> IntegerLayer | str:
    """The layer in integers, or why not."""
    if codes is None:
        if weight_quantizer(layer) is None:
            return "its weight is not quantized"
        codes = weight_codes(layer)
    if codes.step.dtype != torch.float32:
        return f"its weight is {codes.step.dtype}: convert the model with .float()"
    if quantizer is not None:
        inputs = input_codes(quantizer)
        if isinstance(inputs, str):
            return inputs
    elif grid is not None:
        inputs = InputCodes(grid[0], 0, grid[1], strict=True)
    else:
        return "its inputs are not quantized, and not known to be spikes"
    if codes.step.numel() not in (1, codes.index.shape[0]) or (
        codes.step.dim() and codes.step.shape[0] != codes.step.numel()
    ):
        return "its scales are not one for each output"
    integers = codes.integers()
    if integers is None:
        return f"its weight has levels {codes.recipe.levels}, which have no int8 codes"
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)
    if isinstance(layer, nn.Linear):
        return IntegerLinear(*integers, bias, inputs)
    if not isinstance(layer, nn.Conv2d):
        return f"{type(layer).__name__} has no integer form here"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"its padding is {layer.padding_mode}, {layer.padding!r}: zeros and numbers are known"
    return IntegerConv2d(
        *integers, bias, inputs, _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation), layer.groups
    )


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _grids(model: nn.Module) -> dict[int, Grid]:
    """By id of a layer: the grid of its inputs, where they are spikes."""
    found: dict[int, Grid] = {}
    for m in model.modules():
        if isinstance(m, SpikingClassifier) and isinstance(m.network, Sequential):
            _walk(m.network, (1.0, 1) if type(m.encoder) is Poisson else None, found)
        elif isinstance(m, Sequential | nn.Sequential):
            _walk(m, None, found, keep=True)
    return found


def _walk(container: nn.Module, grid: Grid | None, found: dict[int, Grid], keep: bool = False) -> Grid | None:
    for m in container.children():
        if isinstance(m, nn.Linear | nn.Conv2d):
            if grid is not None and not (keep and id(m) in found):
                found[id(m)] = grid
            grid = None
        elif isinstance(m, Sequential | nn.Sequential):
            grid = _walk(m, grid, found, keep)
        elif isinstance(m, Residual):
            for branch in m.children():
                if isinstance(branch, Sequential | nn.Sequential):
                    _walk(branch, grid, found, keep)
            grid = None
        else:
            grid = _after(m, grid)
    return grid


def _after(m: nn.Module, grid: Grid | None) -> Grid | None:
    """The grid of what ``m`` gives for inputs of ``grid``."""
    if isinstance(m, Neuron | QuantizedMembrane):
        return (1.0, 1)
    if isinstance(m, nn.Flatten | nn.Identity | nn.MaxPool2d | nn.Dropout | nn.Dropout2d | Dropout):
        return grid
    if isinstance(m, nn.AvgPool2d) and grid is not None and m.divisor_override is None:
        window = _pair(m.kernel_size)
        cells = window[0] * window[1]
        # a mean is a multiple to the bit only if its divisor is a power of two; one at a ragged edge is another
        whole = not m.ceil_mode and (m.count_include_pad or _pair(m.padding) == (0, 0))
        if whole and not cells & (cells - 1) and grid[1] * cells <= 255:
            return grid[0] / cells, grid[1] * cells
    return None
