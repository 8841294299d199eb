"""Quantized models as files of integers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.quantization.codes import WeightCodes, weight_codes
from snnrobust.quantization.integer import to_integer
from snnrobust.quantization.levels import Integer, Levels
from snnrobust.quantization.quantize import frozen
from snnrobust.quantization.quantizer import Quantizer
from snnrobust.quantization.weights import weight_quantizer

__all__ = ["IntegerFile", "export_integers", "load_integers", "read_integers"]

_KIND = "integer model"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class IntegerFile:
    """What :func:`export_integers` wrote.

    Args:
        description: Of the model with plain weights, as :func:`snnrobust.models.describe` gives it.
        layers: The integers of each quantized layer, by name.
        rest: All other tensors: biases, normalisation, ranges of quantized signals.
    """

    description: dict[str, Any]
    layers: dict[str, WeightCodes]
    rest: dict[str, Tensor]


def export_integers(model: nn.Module, path: str | Path) -> None:
    """Write a quantized model to one safetensors file, atomically: integers, their scales, and JSON in its header.

    For a layer ``a`` the file has the tensors ``a.weight.codes``, ``a.weight.step`` and, of an affine quantizer,
    ``a.weight.zero``. Codes are int8 of the weight's shape for signed integers of 8 bits, uint8 for unsigned ones, int16 for
    signed integers of 9 to 16 bits; of all other levels the indices, 0 the lowest, k bits each, lowest bit first, densely packed
    into ``uint8``. The header says for each layer its recipe, shape, dtype and whether it is packed. Quantizers of signals are in
    the description of the model and their ranges among the tensors.

    Raises:
        TypeError: no layer has a quantized weight, or the model cannot be described.
        ValueError: a weight is still relaxed.
    """
    from snnrobust.models.checkpoint import write_tensors
    from snnrobust.models.description import describe

    found = {name: weight_codes(m) for name, m in checks.module("model", model).named_modules() if weight_quantizer(m)}
    if not found:
        raise TypeError(
            "no layer of the model has a quantized weight: use quantization.quantize(model, weights=...), or models.save"
        )
    plain = frozen(model)
    tensors = plain.state_dict()
    about = {}
    for name, codes in found.items():
        key = _join(name, "weight")
        packed, stored = _stored(codes)
        shape, dtype = list(codes.index.shape), str(codes.step.dtype).removeprefix("torch.")
        about[name] = {"weights": codes.recipe.describe(), "shape": shape, "dtype": dtype, "packed": packed}
        del tensors[key]
        tensors |= {f"{key}.codes": stored, f"{key}.step": codes.step}
        if codes.zero is not None:
            tensors[f"{key}.zero"] = codes.zero
    write_tensors(Path(path), _KIND, tensors, {"model": describe(plain), "layers": about})


def read_integers(path: str | Path) -> IntegerFile:
    """The integers of a file of :func:`export_integers`. No code of the file's author is run and no pickle is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is truncated, damaged or of another kind.
    """
    from snnrobust.models.checkpoint import read_tensors

    path = Path(path)
    tensors, content = read_tensors(path, _KIND)
    try:
        description, about = content["model"], content["layers"]
        layers = {name: _codes(name, entry, tensors) for name, entry in about.items()}
    except (TypeError, KeyError, AttributeError, ValueError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return IntegerFile(description, layers, tensors)


def load_integers(path: str | Path, *, integer: bool = False) -> nn.Module:
    """The model of a file of :func:`export_integers`, in eval mode.

    Its weights are plain tensors of the quantized values; its outputs are, to the bit, those of the model that was exported.

    Args:
        path: The file.
        integer: Multiply in integers: :func:`~snnrobust.quantization.to_integer` of that model.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_integers`, or the integers do not fit the description.
    """
    from snnrobust.models.description import build

    file = read_integers(path)
    with torch.device("meta"):  # a hostile description allocates nothing
        model = build(file.description)
    expected = model.state_dict()
    shapes = {_join(name, "weight"): codes.index.shape for name, codes in file.layers.items()}
    if both := shapes.keys() & file.rest.keys():
        raise ValueError(f"{path} is damaged: {min(both)} is there twice")
    for name in sorted(expected.keys() | file.rest.keys() | shapes.keys()):
        have = shapes.get(name, file.rest[name].shape if name in file.rest else None)
        if name not in expected or have != expected[name].shape:
            wanted = list(expected[name].shape) if name in expected else "absent"
            raise ValueError(
                f"{path} is damaged: {name} is {'absent' if have is None else list(have)} in the file and {wanted} in its model"
            )
    for name, tensor in file.rest.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{path} is damaged: {name} is {tensor.dtype} and should be {expected[name].dtype}")
    weights = {_join(name, "weight"): codes.values() for name, codes in file.layers.items()}
    model.load_state_dict(file.rest | weights, assign=True)
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_meta:
            raise ValueError(f"{path} lacks {name}, a constant that its module does not save")
    return to_integer(model, codes=file.layers) if integer else model.eval()


def _join(name: str, last: str) -> str:
    return f"{name}.{last}" if name else last


def _plain_dtype(levels: Levels) -> torch.dtype | None:
    """Of codes that are stored as they are; None for packed indices."""
    if not isinstance(levels, Integer) or levels.bits < 8:
        return None
    if levels.bits == 8:
        return torch.int8 if levels.signed else torch.uint8
    return torch.int16 if levels.signed else None


def _stored(codes: WeightCodes) -> tuple[bool, Tensor]:
    levels = codes.recipe.levels
    dtype = _plain_dtype(levels)
    if dtype is not None:
        return False, (codes.index + int(levels.low)).to(dtype)
    return True, _pack(codes.index, levels.bits)


def _pack(index: Tensor, bits: int) -> Tensor:
    words = index.flatten().cpu().numpy().astype("<u2")[:, None].view(np.uint8)
    each = np.unpackbits(words, axis=1, bitorder="little")[:, :bits]
    return torch.from_numpy(np.packbits(each.flatten(), bitorder="little"))


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    each = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    words = np.packbits(np.pad(each, ((0, 0), (0, 16 - bits))), axis=1, bitorder="little")
    return torch.from_numpy(words.view("<u2").astype(np.int32).flatten())


def _codes(name: str, about: Any, tensors: dict[str, Tensor]) -> WeightCodes:
    """Those of a layer, taken out of ``tensors``."""
    key = _join(name, "weight")
    if about.keys() != {"weights", "shape", "dtype", "packed"}:
        raise ValueError(f"layer {name!r} needs weights, shape, dtype and packed, got {json.dumps(about):.80}")
    recipe = Quantizer.build(about["weights"], f"weights of {name!r}")
    shape = [checks.count(f"shape of {key}", n) for n in about["shape"]]
    dtype = _DTYPES[checks.choice(f"dtype of {key}", str(about["dtype"]), _DTYPES)]
    stored, step, zero = (tensors.pop(f"{key}.{part}", None) for part in ("codes", "step", "zero"))
    if stored is None or step is None or (zero is not None) != recipe.affine:
        raise ValueError(f"{key} lacks its codes, step or zero")
    levels, plain = recipe.levels, _plain_dtype(recipe.levels)
    if about["packed"] is not (plain is None):
        raise ValueError(f"{key}: codes of {levels} are {'packed' if plain is None else plain}")
    size = [-(-prod(shape) * levels.bits // 8)] if plain is None else shape
    if stored.dtype != (plain or torch.uint8) or list(stored.shape) != size:
        raise ValueError(
            f"{key}.codes is {stored.dtype} {list(stored.shape)} and should be {plain or torch.uint8} {size}"
        )
    packed = plain is None
    index = (
        _unpack(stored, levels.bits, prod(shape)).view(shape) if packed else stored.to(torch.int32) - int(levels.low)
    )
    most = len(levels.values()) - 1
    if not (int(index.min()) >= 0 and int(index.max()) <= most):
        raise ValueError(f"{key}.codes has codes that {levels} does not have")
    for part, t in (("step", step), *((("zero", zero),) if zero is not None else ())):
        fits = t.dim() == 0 or (t.dim() == len(shape) and all(n in (1, m) for n, m in zip(t.shape, shape, strict=True)))
        if t.dtype != dtype or not fits or not bool(t.isfinite().all()) or (part == "step" and bool((t < 0).any())):
            raise ValueError(
                f"{key}.{part} must be {dtype}, finite, of a shape that fits {shape}, got {t.dtype} {list(t.shape)}"
            )
    return WeightCodes(recipe, index, step, zero)
