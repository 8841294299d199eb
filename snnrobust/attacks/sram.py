"""The parameter attack on undervolted SRAM: which of the cells that may fail do most harm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.bit_flip_memory import Memory, Passes
from snnrobust.attacks.bit_flip_result import BitFlipResult, Flip, Trajectory
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.data import Data, take
from snnrobust.data.disjoint import demand_disjoint
from snnrobust.draws import derive, device_of, evaluating, is_stochastic
from snnrobust.hardware.bits import flip_deltas
from snnrobust.hardware.deploy import deploy
from snnrobust.hardware.sram import SRAM, StoredArray
from snnrobust.hardware.storage import build_backend, describe_backend
from snnrobust.neurons import surrogate as surrogates

__all__ = ["SRAMAttack", "SRAMAttackResult"]


@dataclass(frozen=True, eq=False)
class SRAMAttackResult(BitFlipResult):
    """A :class:`BitFlipResult`, where random flips are of other cells that may fail.

    Attributes:
        weak: Cells of this chip that fail at its voltage.
        undervolted: Judged accuracy when all of them do, without any attacker; and its 95 % interval over samples.
        points: Numbers of flips, and accuracies on the attacker's data, of all sets that were tried, in order.
    """

    weak: int = 0
    undervolted: tuple[float, float, float] = (0.0, 0.0, 0.0)
    points: tuple[tuple[int, float], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        accuracy, low, high = (100 * v for v in self.undervolted)
        line = f"  all {self.weak:,} weak cells fail: {accuracy:.1f} ({low:.1f} to {high:.1f}) % judged accuracy"
        return f"{super().__str__()}\n{line}"


@dataclass(frozen=True, kw_only=True)
class SRAMAttack:
    r"""An attacker who decides which of the cells that are too weak for the voltage are read wrong.

    Weights are words of ``sram``. Of its 6T cells, those fail that the fault map of the chip has: each with probability BER(V),
    independently. The attacker knows the map, and chooses among them by what a flip does to the loss to first order,

    .. math:: \text{gain}_{i,b} = \frac{\partial L}{\partial w_i} \, \Delta \, \delta_{i,b} > 0

    in ``rounds``, each with a gradient of its own: from no failing cell on; and, without a budget, from all of them on, where
    those are read right again that would raise the loss. What leaves the lowest accuracy on the attacker's data is kept, of
    several the one with the largest loss.
    Flips are judged on other samples; beside them stand as many random flips of weak cells, and the failure of all of them.

    How the paper's attacker chooses could not be read; another search among the weak cells may find more.

    Args:
        sram: The memory; when its maps are drawn is of no account here.
        flips: The most cells that are flipped; default as many as help.
        rounds: Of the search.
        surrogate: For the gradient, in place of the training surrogate.
        layers: Names of the layers that may be attacked; all are stored.
        loss: ``(logits, y) -> loss [B]``.
        draws, judge_draws: For models with randomness.
        random_runs: Runs of random flips.
        batch_size: Of all passes.

    Source of the threat: Moitra and Panda 2020, "Exposing the Robustness and Vulnerability of Hybrid 8T-6T SRAM Memory
    Architectures to Adversarial Attacks in Deep Neural Networks" (arXiv:2011.13392). The ranking is that of
    :class:`~snnrobust.attacks.BitFlipAttack`.
    """

    sram: SRAM
    flips: int | None = None
    rounds: int = 10
    surrogate: surrogates.Surrogate | None = None
    layers: Collection[str] | None = None
    loss: Loss = cross_entropy
    draws: int = 8
    judge_draws: int = 32
    random_runs: int = 3
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not isinstance(self.sram, SRAM):
            raise TypeError(f"sram must be a memory such as SRAM(0.83, ratio='4:4'), got {self.sram!r:.80}")
        if self.sram.axis not in (None, 0):
            raise ValueError(
                f"sram must have one step a layer or an output channel (axis 0), got axis={self.sram.axis}"
            )
        if self.flips is not None:
            checks.count("flips", self.flips)
        for name in ("rounds", "draws", "judge_draws", "batch_size"):
            checks.count(name, getattr(self, name))
        checks.count("random_runs", self.random_runs, low=0)
        checks.function("loss", self.loss)
        if self.surrogate is not None and not isinstance(self.surrogate, surrogates.Surrogate):
            raise TypeError(f"surrogate must be None or a Surrogate such as ATan(2.0), got {self.surrogate!r}")

    def __call__(self, model: nn.Module, data: Data, judge: Data, *, seed: int = 0) -> SRAMAttackResult:
        """Attack a copy of ``model``, which stays as it is, on chip ``seed``.

        Args:
            model: Inputs to logits ``[B, K]``, spiking or not, on no chip. It is attacked in eval mode.
            data: The attacker's samples, all of them.
            judge: Other samples.
            seed: The chip, as in ``deploy(model, sram, seed=seed)``, and all draws.

        Raises:
            ValueError: no cell fails at this voltage, ``judge`` that begins with the attacker's samples.
        """
        checks.module("model", model)
        checks.count("seed", seed, low=0)
        x, y = take(data, batch_size=self.batch_size)
        x_judge, y_judge = take(judge, batch_size=self.batch_size)
        demand_disjoint(x, x_judge, "the flips were chosen to break those")
        device = device_of(model)
        x, y, x_judge, y_judge = x.to(device), y.to(device), x_judge.to(device), y_judge.to(device)
        n, judge_n = (self.draws, self.judge_draws) if is_stochastic(model, x[:8]) else (1, 1)
        memory = self._memory(model)
        cells = _Cells.of(model, memory, self.sram, seed)
        if len(cells.layer) == 0:
            raise ValueError(f"no 6T cell of chip {seed} fails at voltage {self.sram.voltage}: nothing to attack")
        victim = Passes(memory.model, x, y, n, self.batch_size, self.loss)
        key, judge_key = derive(seed, "SRAM attack", "search"), derive(seed, "SRAM attack", "judge")
        path, blind = self._search(memory, cells, victim, key)
        best = min(range(len(path)), key=lambda i: (path[i].accuracy, -path[i].loss))
        # the way to the best: the first point is none, and a path from all cells on leaves out that from none
        way = [path[0], *(p for p in path[1 : best + 1] if p.way == path[best].way)]
        counts = [int(p.wrong.sum()) for p in way]

        def judged(passed: nn.Module) -> Passes:
            return Passes(passed, x_judge, y_judge, judge_n, self.batch_size)

        with evaluating(model):
            float_accuracy = float(judged(model).measure(judge_key)[1].mean())
        final, judgement = self._apply(model, cells, [p.wrong for p in way], judged, judge_key)
        for p, own in zip(final.model.parameters(), model.parameters(), strict=True):
            p.requires_grad_(own.requires_grad)
        everything = torch.ones(len(cells.layer), dtype=torch.bool)
        random = []
        for run in range(self.random_runs):
            generator = torch.Generator().manual_seed(derive(seed, "SRAM attack", "random", run))
            rank = torch.randperm(len(everything), generator=generator)
            random.append(self._apply(model, cells, [rank < count for count in counts], judged, judge_key)[1])
        _, failed = self._apply(model, cells, [everything], judged, judge_key)
        loss_name = getattr(self.loss, "__name__", repr(self.loss))
        settings = {
            "bits": self.sram.bits, "seed": seed, "draws": n, "judge_draws": judge_n, "chance": 1 / victim.classes,
            "memory": memory.size, "loss": loss_name,
        }  # fmt: skip
        chosen = Trajectory(tuple(counts), tuple(p.loss for p in way), torch.stack([p.shares for p in way]))
        start = "none" if path[best].way == 0 else "all"
        return SRAMAttackResult(
            final.model, tuple(cells.flips(final, path[best].order[path[best].wrong[path[best].order]])), chosen, judgement,
            random=tuple(random), float_accuracy=float_accuracy, searches=((loss_name, chosen.accuracy[-1]),), blind=blind,
            stopped=f"the best of {len(path) - 1} sets, found from {start} of the weak cells on", forwards=victim.forwards,
            gradients=victim.gradients, settings=settings, weak=len(everything),
            undervolted=(failed.accuracy[-1], *failed.interval()),
            points=tuple((int(p.wrong.sum()), p.accuracy) for p in path),
        )  # fmt: skip

    def _memory(self, model: nn.Module) -> Memory:
        return Memory(model, self.sram.bits, self.sram.positions, self.layers, self.sram.axis == 0)

    def _search(self, memory: Memory, cells: _Cells, victim: Passes, key: int) -> tuple[list[_Point], tuple[str, ...]]:
        """What was tried, in order, and layers without a gradient."""
        none = torch.zeros(len(cells.layer), dtype=torch.bool)
        path, blind = self._walk(memory, cells, victim, key, none, 0)
        if self.flips is None or self.flips >= len(none):
            cells.flip(memory, (path[-1].wrong ^ ~none).nonzero()[:, 0])
            path += self._walk(memory, cells, victim, key, ~none, 1)[0]
        return path, blind

    def _walk(
        self, memory: Memory, cells: _Cells, victim: Passes, key: int, start: Tensor, way: int
    ) -> tuple[list[_Point], tuple[str, ...]]:
        """From a memory where the cells of ``start`` are wrong: in each round more of those are turned that raise the loss."""
        wrong, free = start.clone(), torch.ones_like(start)
        order = start.nonzero()[:, 0]
        blind: tuple[str, ...] = ()
        path = [_Point(wrong.clone(), order, way, *victim.measure(key))]
        for number in range(self.rounds):
            weights = [memory.weights[name] for name in memory.attacked]
            with nullcontext() if self.surrogate is None else surrogates.override(memory.model, self.surrogate):
                gradients = victim.gradient(weights, derive(key, "round", way, number))
            if number == 0:
                blind = tuple(n for n, g in zip(memory.attacked, gradients, strict=True) if not g.any())
            gain = cells.gain(memory, gradients)
            helps = (free & (gain > 0)).nonzero()[:, 0]
            # what is left of the budget (of what helps), in equal parts over the rounds that are left
            left = len(helps) if self.flips is None or way else min(self.flips - int(wrong.sum()), len(helps))
            most = ceil(left / (self.rounds - number))
            if most == 0:
                break
            now = helps[gain[helps].argsort(descending=True, stable=True)[:most]]
            free[now] = False
            wrong[now] = ~wrong[now]
            cells.flip(memory, now)
            order = order if way else torch.cat([order, now])
            path.append(_Point(wrong.clone(), order, way, *victim.measure(key)))
        return path, blind

    def _apply(
        self,
        model: nn.Module,
        cells: _Cells,
        masks: list[Tensor],
        judged: Callable[[nn.Module], Passes],
        key: int,
    ) -> tuple[Memory, Trajectory]:
        """A new memory in which the cells of each mask in turn are wrong, judged at each."""
        memory, now, points = self._memory(model), torch.zeros_like(masks[0]), []
        passes = judged(memory.model)
        for mask in masks:
            cells.flip(memory, (now ^ mask).nonzero()[:, 0])
            now = mask
            points.append(passes.measure(key))
        counts = tuple(int(mask.sum()) for mask in masks)
        return memory, Trajectory(counts, tuple(p[0] for p in points), torch.stack([p[1] for p in points]))


@dataclass(frozen=True, eq=False)
class _Point:
    """Cells that are wrong, ``[N]``, in the order in which they were chosen, and what the attacker's data says of it."""

    wrong: Tensor
    order: Tensor
    way: int
    loss: float
    shares: Tensor

    @property
    def accuracy(self) -> float:
        return float(self.shares.mean())


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells that may fail: the number of the layer, the element in it, the bit; int64 ``[N]`` each."""

    layer: Tensor
    index: Tensor
    bit: Tensor

    @classmethod
    def of(cls, model: nn.Module, memory: Memory, sram: SRAM, seed: int) -> _Cells:
        """Those of the chip ``seed``."""
        always = build_backend({**describe_backend(sram), "drawn": "chip"})
        chip = deploy(model, always, seed=seed, layers=memory.attacked)
        found = []
        for number, name in enumerate(memory.attacked):
            (array,) = [m for m in chip.get_submodule(name).modules() if isinstance(m, StoredArray)]
            for bit in range(sram.bits):
                index = ((array.faults.cpu().flatten() >> bit) & 1).nonzero()[:, 0]
                found.append((torch.full_like(index, number), index, torch.full_like(index, bit)))
        return cls(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _by_layer(self, memory: Memory, which: Tensor) -> Iterator[tuple[str, Tensor]]:
        for number, name in enumerate(memory.attacked):
            here = which[self.layer[which] == number]
            if len(here):
                yield name, here

    def gain(self, memory: Memory, gradients: list[Tensor]) -> Tensor:
        """By how much the loss grows to first order, float64 ``[N]``."""
        gain = torch.zeros(len(self.layer), dtype=torch.float64)
        of_name = dict(zip(memory.attacked, gradients, strict=True))
        for name, here in self._by_layer(memory, torch.arange(len(self.layer))):
            stored, index, bit = memory.stored[name], self.index[here], self.bit[here]
            slope = (of_name[name].double() * stored.step).flatten().cpu()[index]
            deltas = flip_deltas(stored.words.cpu().flatten()[index], stored.bits)
            gain[here] = slope * deltas[torch.arange(len(here)), bit]
        return gain

    def flip(self, memory: Memory, which: Tensor) -> None:
        for name, here in self._by_layer(memory, which):
            memory.flip(name, self.index[here], self.bit[here])

    def flips(self, memory: Memory, which: Tensor) -> Iterator[Flip]:
        """As a record; the integers are those of the word before and after all flips of this memory."""
        names = memory.attacked
        after = {name: memory.stored[name] for name in names}
        before = {
            n: after[n].flip(self.index[i], self.bit[i]).codes.flatten() for n, i in self._by_layer(memory, which)
        }
        codes = {name: stored.codes.flatten() for name, stored in after.items()}
        for number, i, bit in zip(self.layer[which].tolist(), self.index[which], self.bit[which].tolist(), strict=True):
            name = names[number]
            where = tuple(int(v) for v in torch.unravel_index(i, memory.weights[name].shape))
            yield Flip(name, where, bit, int(before[name][i]), int(codes[name][i]))
