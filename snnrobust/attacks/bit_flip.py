"""The bit-flip attack: which few bits of the stored weights destroy a network."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import BluntGradientWarning
from snnrobust.attacks.bit_flip_memory import Candidates, Memory, Passes
from snnrobust.attacks.bit_flip_result import BitFlipResult, Trajectory
from snnrobust.attacks.losses import Loss, cross_entropy, margin
from snnrobust.data import Data, take
from snnrobust.data.disjoint import demand_disjoint
from snnrobust.draws import derive, device_of, evaluating, is_stochastic
from snnrobust.hardware.bits import bit_values
from snnrobust.neurons import surrogate as surrogates

__all__ = ["BitFlipAttack", "hinge", "wrong_probability"]

Ranking = surrogates.Surrogate | None


def wrong_probability(logits: Tensor, y: Tensor) -> Tensor:
    r""":math:`1 - \operatorname{softmax}(z)_y`, per sample."""
    return 1 - logits.softmax(1).gather(1, y[:, None])[:, 0]


def hinge(logits: Tensor, y: Tensor) -> Tensor:
    r""":math:`\min(0, \max_{j \ne y} z_j - z_y)`, per sample: one that is wrong counts no more."""
    return margin(logits, y).clamp(max=0.0)


@dataclass(frozen=True, kw_only=True)
class BitFlipAttack:
    r"""Progressive bit search: the attacker reads the weights and flips a few of their bits in memory.

    Weights of ``nn.Linear`` and ``nn.Conv*`` are stored in two's complement with one step a layer
    (:mod:`snnrobust.hardware.bits`). L is the mean loss of the attacker's data. One iteration:

    .. math:: \text{gain}_{i,b} = \frac{\partial L}{\partial w_i} \, \Delta \, \delta_{i,b}

    with :math:`\delta` what flipping bit b does to the integer. In each layer by itself the n bits of the largest positive gain
    are flipped, L is measured, and they are put back; the layer with the largest L keeps its flips. n grows while no layer
    raises L, and starts at ``at_once`` again in the next iteration. A bit is flipped once.

    In a spiking network the gain depends on the surrogate, and the training surrogate may hide layers: with several
    ``surrogate`` s each has its own candidates, and L decides between them. ``exact`` measures L of every candidate. The mean
    cross-entropy can be raised for ever by samples that are wrong already, and then the search gets nowhere; so by default a
    search is made for each of three losses, and the one whose flips leave the lowest accuracy on the attacker's data is kept.

    Args:
        flips: Budget.
        bits: Of a weight, 2 to 8.
        candidates: Bits of a layer (for each surrogate) that are looked at, and the most that are flipped in one iteration.
        at_once: n to start with.
        surrogate: In place of the training surrogate, or several; None in the tuple is the training surrogate.
        exact: Rank the candidates of a layer by the loss that each causes alone, those of no positive gain too. With
            ``candidates`` as large as the layer and one flip at once, each iteration finds the best single flip there is.
        positions: Bits that may be flipped, 0 the least significant; default all.
        layers: Names of the layers that may be attacked; all are quantized. Default all.
        per_channel: A step for each output channel.
        loss: ``(logits, y) -> loss [B]``, or several; the paper's is ``cross_entropy`` alone.
        draws: For models with randomness: draws of a gradient and of a measured loss, new ones in each iteration.
        judge_draws: Of the judgement, for models with randomness.
        random_runs: Runs of random flips, of the same bits and numbers.
        stop_at: Stop when the accuracy on the attacker's data is at most this; default chance, 1/K.
        batch_size: Of all passes.

    Source: Rakin, He and Fan 2019, "Bit-flip attack: crushing neural network with progressive bit search". They rank weights
    first and take bits of the ten best; here bits are ranked by what they change.
    """

    flips: int = 20
    bits: int = 8
    candidates: int = 10
    at_once: int = 1
    surrogate: Ranking | tuple[Ranking, ...] = None
    exact: bool = False
    positions: tuple[int, ...] | None = None
    layers: Collection[str] | None = None
    per_channel: bool = False
    loss: Loss | tuple[Loss, ...] = (cross_entropy, wrong_probability, hinge)
    draws: int = 8
    judge_draws: int = 32
    random_runs: int = 3
    stop_at: float | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("flips", "candidates", "at_once", "draws", "judge_draws", "batch_size"):
            checks.count(name, getattr(self, name))
        checks.count("random_runs", self.random_runs, low=0)
        checks.boolean("exact", self.exact)
        checks.boolean("per_channel", self.per_channel)
        values = bit_values(self.bits)
        if self.at_once > self.candidates:
            raise ValueError(f"at_once must be at most candidates, got {self.at_once} of {self.candidates}")
        if self.stop_at is not None:
            checks.number("stop_at", self.stop_at, 0.0, 1.0)
        if self.positions is not None:
            known = isinstance(self.positions, tuple) and set(self.positions) <= set(range(len(values)))
            if not known or not self.positions or len(set(self.positions)) < len(self.positions):
                raise ValueError(
                    f"positions must be a tuple of different bits in 0..{self.bits - 1}, got {self.positions!r}"
                )
        if not self._losses():
            raise ValueError("loss must be a function or a tuple of at least one, got ()")
        for loss in self._losses():
            checks.function("loss", loss)
        rankings = self._rankings()
        if not rankings or not all(s is None or isinstance(s, surrogates.Surrogate) for s in rankings):
            raise TypeError(
                f"surrogate must be None, a Surrogate such as ATan(2.0) or a tuple of them, got {self.surrogate!r}"
            )

    def _losses(self) -> tuple[Loss, ...]:
        return self.loss if isinstance(self.loss, tuple) else (self.loss,)

    def _rankings(self) -> tuple[Ranking, ...]:
        return self.surrogate if isinstance(self.surrogate, tuple) else (self.surrogate,)

    def __call__(self, model: nn.Module, data: Data, judge: Data, *, seed: int = 0) -> BitFlipResult:
        """Flip bits of a copy of ``model``, which stays as it is.

        Args:
            model: Inputs to logits ``[B, K]``, spiking or not. It is attacked in eval mode.
            data: The attacker's samples, all of them; 128 in the paper.
            judge: Other samples, on which the result is judged.
            seed: Decides all draws.

        Raises:
            ValueError, TypeError: bad data, ``judge`` that begins with the attacker's samples, a model without layers to attack
                or that is on a chip already, a surrogate for a model without one.
        """
        checks.module("model", model)
        checks.count("seed", seed, low=0)
        if torch.is_inference_mode_enabled():
            raise ValueError("gradients cannot be taken under torch.inference_mode(): use torch.no_grad() instead")
        x, y = take(data, batch_size=self.batch_size)
        x_judge, y_judge = take(judge, batch_size=self.batch_size)
        checks.pixels("data", x, bounds=(-torch.inf, torch.inf))
        checks.pixels("judge", x_judge, bounds=(-torch.inf, torch.inf))
        demand_disjoint(x, x_judge, "the flips were chosen to break those")
        device = device_of(model)
        x, y, x_judge, y_judge = x.to(device), y.to(device), x_judge.to(device), y_judge.to(device)
        size = self._memory(model).size  # raises where there is nothing to attack
        n, judge_n = (self.draws, self.judge_draws) if is_stochastic(model, x[:8]) else (1, 1)
        judge_key = derive(seed, "bit flips", "judge")
        with evaluating(model):
            original = Passes(model, x_judge, y_judge, judge_n, self.batch_size)
            float_accuracy = float(original.measure(judge_key)[1].mean())
        settings = {
            "bits": self.bits, "seed": seed, "draws": n, "judge_draws": judge_n, "chance": 1 / original.classes,
            "memory": size,
        }  # fmt: skip
        found = []
        for loss in self._losses():
            memory = self._memory(model)
            victim = Passes(memory.model, x, y, n, self.batch_size, loss)
            judged = Passes(memory.model, x_judge, y_judge, judge_n, self.batch_size)
            found.append(self._search(memory, victim, judged, derive(seed, "bit flips", "search"), judge_key))
        best = min(found, key=lambda f: (f.selection.accuracy[-1], len(f.flips)))
        for p, own in zip(best.model.parameters(), model.parameters(), strict=True):
            p.requires_grad_(own.requires_grad)
        names = [getattr(loss, "__name__", repr(loss)) for loss in self._losses()]
        return replace(
            best,
            random=tuple(self._random(model, original, best.selection.flips, seed, judge_key)),
            float_accuracy=float_accuracy,
            searches=tuple((name, f.selection.accuracy[-1]) for name, f in zip(names, found, strict=True)),
            forwards=sum(f.forwards for f in found),
            gradients=sum(f.gradients for f in found),
            settings=settings | {"loss": names[found.index(best)]},
        )

    def _search(self, memory: Memory, victim: Passes, judged: Passes, key: int, judge_key: int) -> BitFlipResult:
        """The flips for one loss, without what is beside them."""
        search = _Search(self, memory, victim, key)
        counts, selection, judgement = [0], [victim.measure(key)], [judged.measure(judge_key)]
        target = 1 / victim.classes if self.stop_at is None else self.stop_at
        stopped = ""
        while not stopped:
            if float(selection[-1][1].mean()) <= target:
                stopped = f"stopped at {100 * target:.4g} % on the attacker's data"
            elif counts[-1] == self.flips:
                stopped = "the whole budget"
            elif not (stopped := search.iterate(len(counts) - 1)):
                counts.append(len(memory.flips))
                selection.append(victim.measure(key))
                judgement.append(judged.measure(judge_key))
        return BitFlipResult(
            memory.model, tuple(memory.flips), _trajectory(counts, selection), _trajectory(counts, judgement),
            blind=search.blind, stopped=stopped, forwards=victim.forwards, gradients=victim.gradients,
        )  # fmt: skip

    def _memory(self, model: nn.Module) -> Memory:
        positions = tuple(range(self.bits)) if self.positions is None else self.positions
        memory = Memory(model, self.bits, positions, self.layers, self.per_channel)
        if self.flips > memory.size:
            raise ValueError(f"flips must be at most the {memory.size} bits that may be flipped, got {self.flips}")
        return memory

    def _random(
        self, model: nn.Module, judged: Passes, counts: tuple[int, ...], seed: int, judge_key: int
    ) -> Iterator[Trajectory]:
        for run in range(self.random_runs):
            memory = self._memory(model)
            passes = Passes(memory.model, judged.x, judged.y, judged.draws, self.batch_size)
            chosen = memory.pick(counts[-1], torch.Generator().manual_seed(derive(seed, "bit flips", "random", run)))
            points = []
            for count in counts:
                for name, index, bit in chosen[len(memory.flips) : count]:
                    memory.commit(name, torch.tensor([index]), torch.tensor([bit]))
                points.append(passes.measure(judge_key))
            yield _trajectory(counts, points)


def _trajectory(counts: Sequence[int], points: list[tuple[float, Tensor]]) -> Trajectory:
    return Trajectory(tuple(counts), tuple(p[0] for p in points), torch.stack([p[1] for p in points]))


class _Search:
    """The search for the next flips."""

    def __init__(self, attack: BitFlipAttack, memory: Memory, victim: Passes, key: int) -> None:
        self.attack, self.memory, self.victim, self.key = attack, memory, victim, key
        self.blind: tuple[str, ...] = ()

    def iterate(self, number: int) -> str:
        """Commit the best flips there are; or say why there are none."""
        key = derive(self.key, "iteration", number)
        before = self.victim.loss(key)
        choices = self._choices(key, first=number == 0)
        left = self.attack.flips - len(self.memory.flips)
        start = min(self.attack.at_once, left)
        most = min(max((len(c.index) for c in choices), default=0), left)
        for n in range(start, max(start, most) + 1 if choices else start):
            # a layer with fewer than n candidates was tried with a smaller n already
            trials = [c for c in choices if len(c.index) >= n or n == start]
            losses = [self._tried(c, n, key) for c in trials]
            best = max(range(len(losses)), key=losses.__getitem__)
            if losses[best] > before:
                self.memory.commit(trials[best].layer, trials[best].index[:n], trials[best].bit[:n])
                return ""
        return "no flips that were tried raise the loss" if choices else "no bit has a gain"

    def _tried(self, c: Candidates, n: int, key: int) -> float:
        self.memory.flip(c.layer, c.index[:n], c.bit[:n])
        try:
            return self.victim.loss(key)
        finally:
            self.memory.flip(c.layer, c.index[:n], c.bit[:n])

    def _choices(self, key: int, first: bool) -> list[Candidates]:
        """The candidates of each layer: of each surrogate, or with ``exact`` of all of them together, ranked by the loss."""
        weights = [self.memory.weights[name] for name in self.memory.attacked]
        choices: dict[str, list[Candidates]] = {name: [] for name in self.memory.attacked}
        alive = set()
        for ranking in self.attack._rankings():
            with nullcontext() if ranking is None else surrogates.override(self.memory.model, ranking):
                gradients = self.victim.gradient(weights, key)
            for name, gradient in zip(self.memory.attacked, gradients, strict=True):
                if gradient.any():
                    alive.add(name)
                found, gain = self.memory.best(name, gradient, self.attack.candidates)
                keep = torch.ones_like(gain, dtype=torch.bool) if self.attack.exact else gain > 0
                if keep.any():
                    choices[name].append(Candidates(name, found.index[keep], found.bit[keep]))
        if first:
            self.blind = tuple(name for name in self.memory.attacked if name not in alive)
            if not alive:
                warnings.warn(
                    "BitFlipAttack: the gradient is exactly zero for the weights of all layers: use another surrogate",
                    BluntGradientWarning,
                    stacklevel=4,
                )
        if self.attack.exact:
            return [self._ranked(found, key) for found in choices.values() if found]
        return [c for found in choices.values() for c in found]

    def _ranked(self, found: list[Candidates], key: int) -> Candidates:
        pairs = dict.fromkeys(pair for c in found for pair in zip(c.index.tolist(), c.bit.tolist(), strict=True))
        index, bit = torch.tensor(list(pairs)).unbind(1)
        layer = found[0].layer
        losses = [
            self._tried(Candidates(layer, i, b), 1, key) for i, b in zip(index.split(1), bit.split(1), strict=True)
        ]
        order = torch.tensor(losses, dtype=torch.float64).argsort(descending=True, stable=True)
        return Candidates(layer, index[order], bit[order])
