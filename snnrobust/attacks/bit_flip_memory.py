"""The memory under attack: a copy of a model whose weights are words, and what its data says about them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snnrobust import checks
from snnrobust.attacks.bit_flip_result import Flip
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.draws import derive, draws
from snnrobust.hardware.bits import StoredWeights, flip_deltas, store
from snnrobust.hardware.deploy import SYNAPTIC
from snnrobust.hardware.synapses import DeployedLayer

__all__ = ["Candidates", "Memory", "Passes"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Bits of one layer, best first."""

    layer: str
    index: Tensor
    bit: Tensor


class Memory:
    """A copy of the model whose weights are what words of memory stand for."""

    def __init__(
        self, model: nn.Module, bits: int, positions: tuple[int, ...], layers: Collection[str] | None, per_channel: bool
    ) -> None:
        _layers(model)  # raises
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.positions = torch.tensor(sorted(positions))
        found = _layers(self.model)
        if isinstance(layers, str) or (layers is not None and not layers):
            raise ValueError(f"layers must be a collection of names such as [{next(iter(found))!r}], got {layers!r}")
        for name in layers or ():
            checks.choice("layers", name, found)
        self.weights = {name: m.weight for name, m in found.items()}
        self.attacked = [name for name in found if layers is None or name in layers]
        self.stored: dict[str, StoredWeights] = {}
        for name, weight in self.weights.items():
            self.stored[name] = store(weight, bits, axis=0 if per_channel else None)
            with torch.no_grad():
                weight.copy_(self.stored[name].values(weight.dtype))
        self.flips: list[Flip] = []
        self.flipped: dict[str, list[tuple[int, int]]] = {name: [] for name in self.attacked}
        self.size = len(self.positions) * sum(self.weights[name].numel() for name in self.attacked)

    def flip(self, layer: str, index: Tensor, bit: Tensor) -> None:
        """Flip bits, and write the weights that change; the same call again takes it back."""
        weight = self.weights[layer]
        index = index.to(weight.device)
        self.stored[layer] = self.stored[layer].flip(index, bit.to(weight.device))
        with torch.no_grad():
            weight[torch.unravel_index(index, weight.shape)] = self.stored[layer].at(index).to(weight.dtype)

    def commit(self, layer: str, index: Tensor, bit: Tensor) -> None:
        """Flip bits for good, and keep account of them one by one."""
        shape = self.weights[layer].shape
        for i, b in zip(index.split(1), bit.split(1), strict=True):
            before = int(self.stored[layer].codes.flatten()[i])
            self.flip(layer, i, b)
            where = tuple(int(v) for v in torch.unravel_index(i[0].cpu(), shape))
            after = int(self.stored[layer].codes.flatten()[i])
            self.flips.append(Flip(layer, where, int(b), before, after))
            self.flipped[layer].append((int(i), int(b)))

    def best(self, layer: str, gradient: Tensor, k: int) -> tuple[Candidates, Tensor]:
        """The k bits of the largest gain that were not flipped yet, best first, and their gains."""
        stored = self.stored[layer]
        slope = (gradient.double() * stored.step).flatten()
        deltas = flip_deltas(stored.words.flatten(), stored.bits)
        gains, indices, bits = [], [], []
        for (
            position
        ) in self.positions.tolist():  # one after the other: gains are float64, and all of them would be large
            gain = slope * deltas[:, position]
            gone = [i for i, b in self.flipped[layer] if b == position]
            gain[gone] = -torch.inf
            top, index = gain.topk(min(k, len(gain)))
            gains.append(top)
            indices.append(index)
            bits.append(torch.full_like(index, position))
        gain, order = torch.cat(gains).sort(descending=True, stable=True)
        order = order[: min(k, int((gain > -torch.inf).sum()))]
        return Candidates(layer, torch.cat(indices)[order], torch.cat(bits)[order]), gain[: len(order)]

    def pick(self, count: int, generator: torch.Generator) -> list[tuple[str, int, int]]:
        """Different bits, uniformly."""
        numbers: list[int] = []
        if self.size < 20 * count:
            numbers = torch.randperm(self.size, generator=generator)[:count].tolist()
        while len(numbers) < count:
            more = torch.randint(self.size, (2 * count,), generator=generator).tolist()
            numbers = list(dict.fromkeys([*numbers, *more]))[:count]
        return [self._bit(number) for number in numbers]

    def _bit(self, number: int) -> tuple[str, int, int]:
        for name in self.attacked:
            size = len(self.positions) * self.weights[name].numel()
            if number < size:
                return name, number // len(self.positions), int(self.positions[number % len(self.positions)])
            number -= size
        raise AssertionError("number is beyond the memory")


def _layers(model: nn.Module) -> dict[str, nn.Linear | nn.modules.conv._ConvNd]:
    """Synaptic layers by name, one for each weight."""
    found: dict[int, tuple[str, nn.Linear | nn.modules.conv._ConvNd]] = {}
    for name, module in model.named_modules():
        if isinstance(module, DeployedLayer):
            raise TypeError(
                f"{name or 'the model'} is on a chip already: attack the original, its weights are quantized here"
            )
        if not isinstance(module, SYNAPTIC):
            continue
        if "weight" not in module._parameters:
            raise TypeError(f"the weight of {name or 'the model'} is computed (a parametrization): remove that first")
        if is_lazy(module.weight):
            raise ValueError(f"{name or 'the model'} has no weight yet: run the model once before it is attacked")
        found.setdefault(id(module.weight), (name, module))
    if not found:
        raise ValueError("the model has no nn.Linear or nn.Conv layer whose weights could be attacked")
    return dict(found.values())


class Passes:
    """Loss and gradients of some data under keyed draws; counts what it costs."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, n: int, batch_size: int, loss: Loss = cross_entropy
    ) -> None:
        self.objective = loss
        self.model, self.x, self.y, self.draws, self.batch_size = model, x, y, n, batch_size
        self.forwards = self.gradients = self.classes = 0

    def _passes(self, key: int) -> Iterator[tuple[Tensor, int]]:
        """Indices of each batch, and the key of each draw."""
        for index in torch.arange(len(self.x)).split(self.batch_size):
            for draw in range(self.draws):
                yield index, derive(key, "draw", draw)

    def _logits(self, index: Tensor) -> tuple[Tensor, Tensor]:
        at = index.to(self.x.device)
        logits = checks.call(self.model, self.x[at], self.y[at])
        self.forwards += len(index)
        self.classes = logits.shape[1]
        return logits, self.y[at]

    @torch.no_grad()
    def measure(self, key: int) -> tuple[float, Tensor]:
        """Mean loss, and the share of draws that is right for each sample, float64 ``[n]``."""
        total, right = 0.0, torch.zeros(len(self.x), dtype=torch.int64)
        for index, draw in self._passes(key):
            with draws(self.model, draw, index):
                logits, y = self._logits(index)
            total += float(self.objective(logits.double(), y).sum())
            right[index] += (logits.argmax(1) == y).cpu()
        return total / (len(self.x) * self.draws), right.double() / self.draws

    def loss(self, key: int) -> float:
        return self.measure(key)[0]

    def gradient(self, weights: list[Tensor], key: int) -> list[Tensor]:
        """Of the mean loss by each of ``weights``; zero where there is no path."""
        total = [torch.zeros_like(w) for w in weights]
        try:
            for w in weights:
                w.requires_grad_(True)
            for index, draw in self._passes(key):
                # the backward pass too: a layer that computes its forward again in it needs the same draws
                with torch.enable_grad(), draws(self.model, draw, index):
                    logits, y = self._logits(index)
                    loss = self.objective(logits, y).sum() / (len(self.x) * self.draws)
                    if loss.requires_grad:
                        for sum_, g in zip(total, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                            if g is not None:
                                sum_ += g
                self.gradients += len(index)
        finally:
            for w in weights:
                w.requires_grad_(False)
        if any(g.isnan().any() for g in total):
            raise ValueError("the gradient by the weights has NaN")
        return total
