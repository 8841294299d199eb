"""Put a model on a chip, or on many."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils import parametrize

from snnrobust import checks
from snnrobust.draws import derive, draws, one_key
from snnrobust.hardware.backend import Backend, effects
from snnrobust.hardware.recurrent import TorchSignature, Unrolled
from snnrobust.hardware.storage import Recipe
from snnrobust.hardware.synapses import (
    AfterNorm,
    DeployedLayer,
    WithoutTime,
    imprint,
    is_after,
    reads_after,
    reads_before,
)
from snnrobust.layers import BNTT, TDBN, TEBN, EventConv2d, EventLinear, Sequential
from snnrobust.neurons import Neuron, Recurrent
from snnrobust.temporal import Temporal

__all__ = ["deploy", "fleet", "key_of"]

SYNAPTIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
PLAIN_FORWARDS = frozenset(kind.forward for kind in (*SYNAPTIC, *RECURRENT, EventConv2d, EventLinear))
"""Of layers that are their product and nothing else."""
DIGITAL = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, BNTT, TDBN, TEBN)
"""Parametric, but computed beside the array."""


def deploy(model: nn.Module, backend: Backend, *, seed: int, layers: Collection[str] | None = None) -> nn.Module:
    """A deep copy of ``model`` on one chip; ``model`` is untouched. The copy is in eval mode.

    Args:
        model: Spiking or ordinary. Its ``nn.Linear``, ``nn.Conv*`` and ``nn.LSTM/GRU/RNN`` layers are put on the chip, and the
            products inside of :class:`~snnrobust.neurons.Recurrent`; normalisation stays digital. Its neurons go through
            ``backend.neuron``.
        backend: What the chip does; each layer gets a copy.
        seed: Identifies the chip: the same seed is the same chip.
        layers: Names of the layers (as in ``model.named_modules()``) to put on the chip, and of the neurons that a backend of
            neurons changes; default all.

    Raises:
        ValueError: ``layers`` names none of the model's synaptic layers, the model has none, its weights are not finite, or
            ``backend`` changes neurons and there is none.
        TypeError: the model has a parametric layer that cannot be put on a chip, or is on one already.
    """
    if not isinstance(backend, Backend):
        raise TypeError(
            f"backend must be a hardware Backend such as GaussianNoise(multiplicative=0.2), got {backend!r:.80}"
        )
    checks.module("model", model)
    checks.count("seed", seed, low=0)
    chip = deepcopy(model).eval()
    found = synaptic(chip)
    refuse(chip, found)
    if isinstance(layers, str) or (layers is not None and not layers):
        raise ValueError(f"layers must be a collection of names such as [{next(iter(found))!r}], got {layers!r}")
    changing = [type(part).__name__ for part in effects(backend) if type(part).neuron is not Backend.neuron]
    every = chip.named_modules(remove_duplicate=False) if changing else ()
    neurons = {name: m for name, m in every if isinstance(m, Neuron | nn.ReLU)}
    for name in layers or ():
        checks.choice("layers", name, [*found, *neurons])
    reached = [name for name in neurons if layers is None or name in layers]
    if changing and not reached:
        where = "the model has no nn.ReLU and no spiking neuron of ours" if not neurons else "layers names none of them"
        raise ValueError(f"{', '.join(changing)} changes neurons, but {where}: it would do nothing")
    late = reads_after(backend)
    norms = {name: None if late is None else norm_after(chip, name) for name in found}
    for name, layer in found.items():
        if layers is None or name in layers:
            norm = norms[name]
            own = deepcopy(backend) if norm is None else reads_before(backend)
            swap(chip, name, _placed(chip, name, layer, own, key_of(seed, name)))
            if norm is not None and late is not None and not is_after(chip.get_submodule(norm)):
                swap(chip, norm, _after(chip, norm, deepcopy(late), key_of(seed, norm)))
    for name in reached:
        swap(chip, name, _neuron(chip, name, neurons[name], deepcopy(backend), key_of(seed, name)))
    chip.register_forward_pre_hook(begin_forward)
    chip.register_forward_hook(end_forward, always_call=True)
    vars(chip)["_recipe"] = Recipe.of(model, backend, seed, None if layers is None else tuple(sorted(layers)))
    return chip


def fleet(
    model: nn.Module, backend: Backend, n: int, *, seed: int = 0, layers: Collection[str] | None = None
) -> Iterator[nn.Module]:
    """``n`` chips, one after the other: ``deploy(model, backend, seed=seed, layers=layers)`` to ``seed=seed + n - 1``.

    For statistics over chips; each is made when it is asked for, so that only those that are kept need memory.
    """
    checks.count("n", n)
    checks.count("seed", seed, low=0)
    return (deploy(model, backend, seed=seed + i, layers=layers) for i in range(n))


def synaptic(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``model`` that a chip takes over, by name."""
    every = model.named_modules(remove_duplicate=False)
    return {name: m for name, m in every if isinstance(m, SYNAPTIC + RECURRENT)}


def refuse(model: nn.Module, found: dict[str, nn.Module]) -> None:
    """Raise what :func:`deploy` raises of a model."""
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # what its layer computes its weight from
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, DeployedLayer):
            raise TypeError(f"{name or 'the model'} is on a chip already: deploy the original model")
        if name in found and type(module).forward not in PLAIN_FORWARDS:
            raise TypeError(f"{where} has a forward of its own, which a chip would replace")
        own = list(module.named_parameters(recurse=False))
        if any(p.dim() > 1 for _, p in own) and name not in found and not isinstance(module, DIGITAL):
            raise TypeError(
                f"{where} has weights that deploy cannot put on a chip: it knows nn.Linear, nn.Conv1d/2d/3d and nn.LSTM/GRU/RNN"
            )
        own += [("weight", module.weight)] if parametrize.is_parametrized(module, "weight") else []
        for part, weight in own if name in found else ():
            if not weight.is_meta and not bool(weight.isfinite().all()):
                raise ValueError(
                    f"{where}: {part} contains NaN or infinity, which no chip can store: repair it or train again"
                )
    if not found:
        raise ValueError("the model has no nn.Linear, nn.Conv or recurrent layer to put on a chip")
    if "" in found:
        raise TypeError("the model is a single layer: wrap it in nn.Sequential")


def key_of(seed: int, name: str) -> int:
    """Of the layer ``name`` on the chip ``seed``."""
    return derive(seed, "chip", name)


def begin_forward(chip: nn.Module, _: object) -> None:
    """Steps are counted from the start of each forward pass, and a pass that has no key gets one for all its layers."""
    for module in chip.modules():
        if isinstance(module, WithoutTime | TorchSignature):
            module.reset()
    passes = vars(chip).setdefault("_passes", [])
    context = ExitStack()
    passes.append(context)
    if not torch.compiler.is_compiling():
        context.enter_context(one_key(chip))


def end_forward(chip: nn.Module, *_: object) -> None:
    """Give back the key of :func:`begin_forward`."""
    passes = vars(chip).get("_passes")
    if passes:
        passes.pop().close()


def _placed(chip: nn.Module, name: str, layer: nn.Module, backend: Backend, key: int) -> nn.Module:
    if isinstance(layer, nn.RNNBase):

        def synapse(product: str, part: object) -> Temporal:
            return DeployedLayer(part, deepcopy(backend), derive(key, product))  # type: ignore[arg-type]

        unrolled = Unrolled(layer, synapse).eval()
        return unrolled if sees_time(chip, name) else TorchSignature(layer, unrolled)
    deployed = DeployedLayer(layer, backend, key)
    return deployed if sees_time(chip, name) else WithoutTime(deployed)


def _after(chip: nn.Module, name: str, backend: Backend, key: int) -> nn.Module:
    imprint(backend, key)
    seat = AfterNorm(chip.get_submodule(name), backend)
    return seat if sees_time(chip, name) else WithoutTime(seat)


def _neuron(chip: nn.Module, name: str, neuron: nn.Module, backend: Backend, key: int) -> nn.Module:
    imprint(backend, key)
    with draws(backend, key), torch.no_grad():
        made = backend.neuron(neuron)
    temporal = isinstance(made, Temporal) and not isinstance(neuron, Temporal)
    return WithoutTime(made) if temporal and not sees_time(chip, name) else made  # type: ignore[arg-type]


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of ``name``."""
    parent_name, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent_name), child, module)


def norm_after(model: nn.Module, name: str) -> str | None:
    """The normalisation that follows a layer in its container, by name.

    Raises:
        TypeError: the layer's parent runs its children in an order of its own, and some are normalisations.
    """
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    children = list(parent._modules)
    if not isinstance(parent, nn.Sequential | Sequential):
        if any(isinstance(m, DIGITAL) for m in parent.children()):
            raise TypeError(
                f"at='after_norm': which normalisation follows {name} is not known, since {type(parent).__name__} is no "
                "Sequential: set at='product', or build the block from Sequential"
            )
        return None
    following = children[children.index(child) + 1 :][:1]
    if following and isinstance(parent._modules[following[0]], DIGITAL):
        return f"{parent_name}.{following[0]}" if parent_name else following[0]
    return None


def sees_time(model: nn.Module, name: str) -> bool:
    """Whether a module sees ``[T, B, *]``: it stands in a :class:`Sequential`, perhaps inside ``nn.Sequential``."""
    above, direct = name, True
    while above:
        above = above.rpartition(".")[0]
        parent = model.get_submodule(above)
        if direct and isinstance(parent, Sequential | Recurrent):
            return True
        if isinstance(parent, Temporal):
            raise TypeError(f"{name} does not see time, the module around it hides it: put it directly in a Sequential")
        direct = direct and type(parent) is nn.Sequential
    return False
