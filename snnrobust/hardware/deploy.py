"""Put a model on a chip."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import derive, draws
from snnrobust.hardware.backend import Array, Backend
from snnrobust.kernels.layout import for_convolution
from snnrobust.layers import BNTT, TEBN, EventConv2d, EventLinear, Sequential
from snnrobust.temporal import Temporal

__all__ = ["DeployedLayer", "deploy"]

SYNAPTIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PLAIN_FORWARDS = frozenset(kind.forward for kind in (*SYNAPTIC, EventConv2d, EventLinear))
"""Of layers that are their product and nothing else."""
DIGITAL = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, BNTT, TEBN)
"""Parametric, but computed beside the array."""


def folded(x: Tensor, planar: bool) -> Tensor:
    """Time folded into the batch; images as in a Sequential, so that an ideal chip has the bits of the model."""
    x = x.flatten(0, 1)
    return for_convolution(x) if planar and not torch.compiler.is_compiling() else x


class DeployedLayer(Temporal):
    """A synaptic layer on a chip, ``[T, B, *] -> [T, B, *]``: drive, product, read."""

    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.modules.conv._ConvNd, backend: Backend) -> None:
        super().__init__()
        operation = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        self.backend, self.planar = backend, isinstance(layer, nn.Conv2d)
        self.array = backend.program(Array(layer.weight, operation))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def initial_state(self, x_t: Tensor) -> int:
        return 0

    def step(self, x_t: Tensor, state: int) -> tuple[Tensor, int]:
        return self._run(x_t[None], state)[0], state + 1

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, 0, whole=True)

    def _run(self, x: Tensor, start: int, whole: bool = False) -> Tensor:
        x = self.backend.drive(x)
        y = self.array.product(folded(x, whole and self.planar), self.bias)
        return self.backend.read(y.unflatten(0, (x.shape[0], -1)), start)


class _WithoutTime(nn.Module):
    """A layer on a chip where there is no time axis: in an ordinary network, ``[B, *] -> [B, *]``.

    Each call in a forward pass of the chip counts as a step, so that a layer called twice meets fresh noise.
    """

    def __init__(self, layer: Temporal) -> None:
        super().__init__()
        self.layer = layer
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y, self._calls = self.layer.step(x, self._calls)
        return y

    def reset(self) -> None:
        """Before another forward pass; interop calls it."""
        self._calls = 0


def _begin_forward(chip: nn.Module, _: object) -> None:
    for module in chip.modules():
        if isinstance(module, _WithoutTime):
            module.reset()


def deploy(model: nn.Module, backend: Backend, *, seed: int, layers: Collection[str] | None = None) -> nn.Module:
    """A deep copy of ``model`` on one chip; ``model`` is untouched. The copy is in eval mode.

    Args:
        model: Spiking or ordinary. Its ``nn.Linear`` and ``nn.Conv*`` layers are put on the chip; normalisation stays digital.
        backend: What the chip does; each layer gets a copy.
        seed: Identifies the chip: the same seed is the same chip.
        layers: Names of the layers (as in ``model.named_modules()``) to put on the chip; default all.

    Raises:
        ValueError: ``layers`` names none of the model's synaptic layers, or the model has none.
        TypeError: the model has a parametric layer that cannot be put on a chip yet, or is on one already.
    """
    if not isinstance(backend, Backend):
        raise TypeError(
            f"backend must be a hardware Backend such as GaussianNoise(multiplicative=0.2), got {backend!r}"
        )
    checks.module("model", model)
    checks.count("seed", seed, low=0)
    chip = deepcopy(model).eval()
    found: dict[str, nn.Module] = {
        name: m for name, m in chip.named_modules(remove_duplicate=False) if isinstance(m, SYNAPTIC)
    }
    _refuse(chip, found)
    if isinstance(layers, str) or (layers is not None and not layers):
        raise ValueError(f"layers must be a collection of names such as [{next(iter(found))!r}], got {layers!r}")
    for name in layers or ():
        checks.choice("layers", name, found)
    for name, layer in found.items():
        if layers is None or name in layers:
            _place(chip, name, layer, deepcopy(backend), key_of(seed, name))
    chip.register_forward_pre_hook(_begin_forward)
    return chip


def _refuse(model: nn.Module, found: dict[str, nn.Module]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, DeployedLayer):
            raise TypeError(f"{name or 'the model'} is on a chip already: deploy the original model")
        if name in found and type(module).forward not in PLAIN_FORWARDS:
            raise TypeError(f"{name} ({type(module).__name__}) has a forward of its own, which a chip would replace")
        own = [p for p in module.parameters(recurse=False) if p.dim() > 1]
        if own and name not in found and not isinstance(module, DIGITAL):
            raise TypeError(
                f"{name or 'the model'} ({type(module).__name__}) has weights that deploy cannot put on a chip: "
                "it knows nn.Linear and nn.Conv1d/2d/3d"
            )
    if not found:
        raise ValueError("the model has no nn.Linear or nn.Conv layer to put on a chip")


def key_of(seed: int, name: str) -> int:
    """Of the layer ``name`` on the chip ``seed``."""
    return derive(seed, "chip", name)


def imprint(backend: Backend, key: int) -> None:
    """Give ``backend`` the patterns of the chip ``key``."""
    for path, part in backend.named_modules():
        if isinstance(part, Backend):
            word = derive(key, "pattern", path)
            part._chip = torch.tensor([word & 0xFFFFFFFF, word >> 32])


def _place(chip: nn.Module, name: str, layer: nn.Module, backend: Backend, key: int) -> None:
    imprint(backend, key)
    with draws(backend, key), torch.no_grad():
        deployed = DeployedLayer(layer, backend)  # type: ignore[arg-type]
    parent_name, _, child = name.rpartition(".")
    if not name:
        raise TypeError("the model is a single layer: wrap it in nn.Sequential")
    setattr(chip.get_submodule(parent_name), child, deployed if _sees_time(chip, name) else _WithoutTime(deployed))


def _sees_time(model: nn.Module, name: str) -> bool:
    """Whether a module sees ``[T, B, *]``: it stands in a :class:`Sequential`, perhaps inside ``nn.Sequential``."""
    above, direct = name, True
    while above:
        above = above.rpartition(".")[0]
        parent = model.get_submodule(above)
        if direct and isinstance(parent, Sequential):
            return True
        if isinstance(parent, Temporal):
            raise TypeError(f"{name} does not see time, the module around it hides it: put it directly in a Sequential")
        direct = direct and type(parent) is nn.Sequential
    return False
