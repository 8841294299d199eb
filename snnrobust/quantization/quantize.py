"""Quantize a model: its weights, the inputs of its layers, the potentials of its neurons."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnrobust import checks
from snnrobust.draws import evaluating
from snnrobust.hardware.deploy import PLAIN_FORWARDS, SYNAPTIC, swap
from snnrobust.hardware.synapses import DeployedLayer
from snnrobust.neurons import Neuron, Recurrent
from snnrobust.quantization.levels import MOST_BITS
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.signals import QuantizedMembrane, SignalQuantizer
from snnrobust.quantization.weights import quantize_weight, weight_quantizer

__all__ = ["LayerPrecision", "calibrate", "frozen", "precision", "precision_table", "quantize"]

FLOAT = 32


def quantize(
    model: nn.Module,
    *,
    weights: Quantizer | None = None,
    inputs: Quantizer | None = None,
    membranes: Quantizer | None = None,
    layers: Collection[str] | None = None,
    bits: Mapping[str, int] | None = None,
) -> nn.Module:
    """A deep copy of ``model`` that computes with quantized numbers; ``model`` is untouched.

    :func:`calibrate` it if it quantizes inputs or membranes by an observed range or a learned step. That is post-training
    quantization; for quantization-aware training, train the copy then by a rule that steps parameters (BPTT, PGD training).
    Attacks, chips, operation counts and checkpoints take it as any model.

    A layer ``"0"`` with quantized inputs becomes ``nn.Sequential(quantizer, layer)``, so its name is ``"0.1"``. Biases and
    normalisation stay in floating point.

    Args:
        model: Spiking or ordinary. Quantized are its ``nn.Linear`` and ``nn.Conv*``, and the product inside of ``Recurrent``
            (weights only, its inputs are spikes).
        weights, inputs, membranes: How; None leaves them as they are.
        layers: Names of the layers and neurons to quantize, as in ``model.named_modules()``; default all.
        bits: Layers with a number of bits of their own, for weights and inputs: hybrid precision.

    Raises:
        ValueError: nothing to quantize, an unknown layer, or bits that its levels do not have.
        TypeError: the model is quantized or on a chip already, or has a recurrent torch layer that is to be quantized.
    """
    checks.module("model", model)
    for name, recipe in (("weights", weights), ("inputs", inputs), ("membranes", membranes)):
        if recipe is not None and not isinstance(recipe, Quantizer):
            raise TypeError(f"{name} must be a Quantizer such as Quantizer(Integer(4)), got {recipe!r:.80}")
    if weights is None and inputs is None and membranes is None:
        raise ValueError("nothing to quantize: give weights, inputs or membranes")
    if membranes is None and layers is None and bits and weights is None and inputs is None:
        raise ValueError("bits are those of weights and inputs: give one of them")
    copy = deepcopy(model)
    found = {name: m for name, m in copy.named_modules() if isinstance(m, SYNAPTIC)}
    neurons = {name: m for name, m in copy.named_modules() if isinstance(m, Neuron) and not isinstance(m, Recurrent)}
    _refuse(copy, found)
    if isinstance(layers, str) or (layers is not None and not layers):
        raise ValueError(f"layers must be a collection of names such as [{next(iter(found), '0')!r}], got {layers!r}")
    rnns = [
        name for name, m in copy.named_modules() if isinstance(m, nn.RNNBase) and (layers is None or name in layers)
    ]
    if rnns and (weights is not None or inputs is not None):
        raise TypeError(
            f"{rnns[0]} is a recurrent torch layer, which is not quantized: name the other layers, or use neurons.Recurrent"
        )
    for name in layers or ():
        checks.choice("layers", name, [*found, *neurons])
    if bits is not None and not isinstance(bits, Mapping):
        raise TypeError(f"bits must map names of layers to numbers, such as {{'0': 8}}, got {bits!r:.80}")
    own = dict(bits or {})
    for name, k in own.items():
        checks.choice("bits", name, found)
        if layers is not None and name not in layers:
            raise ValueError(f"bits names {name!r}, which is not one of the layers to quantize")
        if checks.count(f"bits[{name!r}]", k) > MOST_BITS:
            raise ValueError(f"bits[{name!r}] must be in 1..{MOST_BITS}, got {k}")

    reached = [name for name in found if layers is None or name in layers] if weights or inputs else []
    cells = [name for name in neurons if layers is None or name in layers] if membranes else []
    if not reached and not cells:
        kinds = (("layer (nn.Linear, nn.Conv)", weights or inputs), ("neuron of ours with a potential", membranes))
        missing = " or ".join(kind for kind, asked in kinds if asked)
        where = "layers" if layers else "the model"
        raise ValueError(
            f"{where} has no {missing} that could be quantized: name other layers, or quantize something else"
        )
    if membranes and not cells:
        raise ValueError("membranes are to be quantized, but there is no spiking neuron of ours among the layers")
    inside = {f"{name}." for name, m in copy.named_modules() if isinstance(m, Recurrent)}
    held = [name for name in cells if name.startswith(tuple(inside))]
    if held:
        raise ValueError(
            f"{held[0]} is inside of a Recurrent layer, whose potential is not quantized: name the other layers in layers"
        )
    every = [id(m) for _, m in copy.named_modules(remove_duplicate=False)]
    for name in (*(reached if inputs else ()), *cells):
        if every.count(id(copy.get_submodule(name))) > 1:
            raise ValueError(
                f"{name} stands at several places of the model, which need quantizers of their own: make it several modules"
            )
    for name in reached:
        layer = found[name]
        recipes = [q if q is None or name not in own else q.with_bits(own[name]) for q in (weights, inputs)]
        if recipes[0] is not None:
            _try(name, layer, recipes[0])
        if recipes[1] is not None and not name.startswith(tuple(inside)):
            if not name:
                raise TypeError("the model is a single layer: wrap it in nn.Sequential to quantize its inputs")
            signal = SignalQuantizer(recipes[1]).to(next(layer.parameters()).device)
            swap(copy, name, nn.Sequential(signal, layer).train(layer.training))
    for name in cells:
        assert membranes is not None
        neuron = neurons[name]
        device = next((p.device for p in copy.parameters()), torch.device("cpu"))
        swap(copy, name, QuantizedMembrane(neuron, SignalQuantizer(membranes).to(device)).train(neuron.training))
    return copy


def _try(name: str, layer: nn.Module, recipe: Quantizer) -> None:
    try:
        quantize_weight(layer, recipe)
    except ValueError as error:
        raise ValueError(f"{name or 'the model'} ({type(layer).__name__}): {error}") from error


def _refuse(model: nn.Module, found: Mapping[str, nn.Module]) -> None:
    for name, m in model.named_modules():
        if isinstance(m, DeployedLayer):
            raise TypeError(f"{name or 'the model'} is on a chip already: quantize the original model, then deploy it")
        if isinstance(m, SignalQuantizer):
            raise TypeError("the model is quantized already: quantize the original model")
    for name, layer in found.items():
        if parametrize.is_parametrized(layer) or type(layer).forward not in PLAIN_FORWARDS:
            raise TypeError(
                f"{name or 'the model'} ({type(layer).__name__}) computes its weight or its output in a way of its own: quantize "
                "the original layer"
            )


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor | Iterable[Tensor], *, allow_silent: bool = False) -> nn.Module:
    """Observe the ranges of quantized inputs and membranes on ``x``; returns ``model``, which is changed in place.

    Args:
        model: From :func:`quantize`.
        x: A batch ``[B, *]`` of training data, or several.
        allow_silent: Accept signals that are zero on all of it, as behind neurons that do not spike before they are trained: the
            first batch of training that is not gives their range.

    Raises:
        ValueError: no data, nothing that observes, or a signal that is zero on all of it.
    """
    signals = {n: m for n, m in checks.module("model", model).named_modules() if isinstance(m, SignalQuantizer)}
    observing = {n: m for n, m in signals.items() if m.recipe.scale != "constant"}
    if not observing:
        raise ValueError(
            "the model has no quantized inputs or membranes with a range to observe: calibrate has nothing to do"
        )
    if not isinstance(x, Iterable):  # a tensor is one too
        raise TypeError(
            f"x must be a batch of training data or several, got {type(x).__name__}: give data.take(train, 256)[0]"
        )
    batches = 0
    try:
        for signal in observing.values():
            signal.observing, signal.batches = True, 0
            signal.seen.fill_(False)
        with evaluating(model):
            for batch in [x] if isinstance(x, Tensor) else x:
                checks.pixels("x", batch, bounds=(-math.inf, math.inf))
                model(batch)
                batches += 1
    finally:
        for signal in observing.values():
            signal.observing = False
    if not batches:
        raise ValueError("x holds no batch: calibration needs some of the training data")
    for name, signal in observing.items():
        if not bool(signal.seen):
            raise ValueError(f"{name} saw nothing: its layer did not run")
        silent = signal.batches == 0 if signal.step is not None else not bool(signal.grid()[0] > 0)
        if silent and not allow_silent:
            raise ValueError(
                f"{name}: its signal is 0 on all of the data, so it has no range: calibrate with other data, leave its "
                "layer out of layers, or allow_silent = True before training"
            )
    return model


@dataclass(frozen=True)
class LayerPrecision:
    """Of one synaptic layer: bits of weights and inputs, and of the membrane of the neuron behind it; 32 is not quantized.

    Attributes:
        count: Number of weights.
        steps: Number of scales (and zero points), 32 bits each.
    """

    weights: int
    inputs: int
    membranes: int
    count: int
    steps: int

    @property
    def bytes(self) -> float:
        """Of the stored weights with their scales."""
        return (self.count * self.weights + 32 * self.steps) / 8


def precision(model: nn.Module) -> dict[str, LayerPrecision]:
    """The bits of every synaptic layer, by name as in ``model.named_modules()``."""
    found: dict[str, LayerPrecision] = {}
    before: int | None = None
    last: str | None = None
    for name, m in checks.module("model", model).named_modules():
        if isinstance(m, nn.Sequential) and len(m) == 2 and isinstance(m[0], SignalQuantizer):
            before = m[0].recipe.bits
        elif isinstance(m, QuantizedMembrane) and last is not None:
            layer = found[last]
            found[last] = LayerPrecision(layer.weights, layer.inputs, m.quantizer.recipe.bits, layer.count, layer.steps)
        elif isinstance(m, SYNAPTIC):
            quantizer = weight_quantizer(m)
            weight = m.weight
            steps = 0
            if quantizer is not None:
                step, zero = quantizer.grid(m.parametrizations["weight"].original.detach())  # type: ignore[union-attr, index]
                steps = step.numel() * (1 if zero is None else 2)
            width = FLOAT if quantizer is None else quantizer.recipe.bits
            found[name] = LayerPrecision(width, before or FLOAT, FLOAT, weight.numel(), steps)
            before, last = None, name
    return found


def precision_table(model: nn.Module) -> str:
    """A line for each synaptic layer: bits and size, and the totals beside those of 32 bits."""
    heading = ("layer", "weights", "inputs", "membranes", "number", "bytes")
    found = precision(model)
    lines = [heading] + [
        (name or "(model)", str(p.weights), str(p.inputs), str(p.membranes), f"{p.count:,}", f"{p.bytes:,.0f}")
        for name, p in found.items()
    ]
    count, size = sum(p.count for p in found.values()), sum(p.bytes for p in found.values())
    lines.append(("all layers", f"{8 * size / max(count, 1):.2f}", "", "", f"{count:,}", f"{size:,.0f}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    text = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    ratio = 4 * count / size if size else math.nan
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], f"{ratio:.2f} times smaller than 32-bit weights"])


def frozen(model: nn.Module) -> nn.Module:
    """A deep copy whose weights are plain tensors of the quantized values; quantizers of signals stay."""
    copy = deepcopy(checks.module("model", model))
    for layer in list(copy.modules()):
        if weight_quantizer(layer) is not None:
            weight, kind = layer.weight, parametrize.type_before_parametrizations(layer)
            assert isinstance(weight, Tensor)
            # parametrize.remove_parametrizations changes the class, which the copy shares with the original
            del layer.parametrizations
            layer.__class__ = kind
            layer.register_parameter("weight", nn.Parameter(weight.detach().clone()))
    return copy
