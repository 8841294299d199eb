"""What attacks with adaptive step sizes share: one ascent with checkpoints, and several of them for one sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import warn_if_blunt
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import GradientSource, begin
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.losses import Loss
from snnrobust.attacks.selection import always_reached, worst_of
from snnrobust.attacks.threat import ThreatModel
from snnrobust.draws import Stream, draws, is_stochastic

__all__ = ["Move", "Settings", "check_settings", "checkpoints", "first_size", "search", "shrinks"]


class Settings(Protocol):
    """The fields of an attack that :func:`search` reads."""

    @property
    def threat(self) -> ThreatModel: ...
    @property
    def steps(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def random_start(self) -> bool: ...
    @property
    def gradient(self) -> GradientSource: ...
    @property
    def loss(self) -> Loss: ...
    @property
    def early_stop(self) -> bool: ...
    @property
    def selection_draws(self) -> int: ...


class Move(Protocol):
    """How one ascent goes from a point to the next. It may remember something of each sample."""

    def __call__(self, threat: ThreatModel, x: Tensor, at: Tensor, gradient: Tensor, size: Tensor) -> Tensor: ...

    def keep(self, index: Tensor) -> None:
        """From now on only the samples at ``index``."""


def check_settings(attack: Settings) -> None:
    checks.count("steps", attack.steps)
    checks.count("restarts", attack.restarts)
    checks.count("selection_draws", attack.selection_draws)
    checks.function("gradient", attack.gradient)
    checks.function("loss", attack.loss)
    if attack.restarts > 1 and not attack.random_start:
        raise ValueError("restarts > 1 need random_start=True: without it they are all the same")


def checkpoints(steps: int) -> list[int]:
    r"""After how many steps step sizes are reconsidered, :math:`w_j = \lceil p_j \cdot \text{steps} \rceil`.

    :math:`p_0 = 0`, :math:`p_1 = 0.22`, :math:`p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03, 0.06)`.
    """
    found, p, gap = [], 22, 22  # per cent
    while (w := -(-p * steps // 100)) < steps:
        found.append(w)
        gap = max(gap - 3, 6)
        p += gap
    return sorted(set(found))


def first_size(threat: ThreatModel, x: Tensor, share: float) -> Tensor:
    r"""The length of the first step for each sample, ``[B, 1, ...]``: ``share`` of :math:`\epsilon`; in L0 that threat's own."""
    size = torch.as_tensor(threat.step_size(x, 1), dtype=torch.float64, device=x.device)  # 2.5 eps but for L0
    return (size * (share / 2.5 if shrinks(threat) else 1)).to(x.dtype).expand(len(x), *[1] * (x.dim() - 1)).clone()


def shrinks(threat: ThreatModel) -> bool:
    """Whether shorter steps go on where longer ones no longer help. Not in L0: by a short one no new pixel gets in."""
    return not isinstance(threat, L0)


@dataclass
class _State:
    """Of the samples that are still attacked, ``[B, ...]`` each."""

    x: Tensor
    at: Tensor
    gradient: Tensor
    loss: Tensor  # at the last point
    best: Tensor  # the point of the largest loss, its gradient and loss
    best_gradient: Tensor
    best_loss: Tensor
    found: Tensor  # the point of the largest margin, and this
    found_margin: Tensor
    size: Tensor
    rises: Tensor  # steps that raised the loss, since the last checkpoint
    checked_loss: Tensor  # the best loss at the last checkpoint
    halved: Tensor  # whether it stalled at that one

    def select(self, index: Tensor) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def before(cls, x: Tensor, at: Tensor, size: Tensor) -> Self:
        low = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        none, zero = torch.zeros_like(low, dtype=torch.int64), torch.zeros_like(x)
        return cls(x, at, zero, -low, at, zero, low, at, low.double(), size, none, low, none.bool())

    def enter(self, gradient: Tensor, loss: Tensor, margin: Tensor) -> None:
        """What was seen at :attr:`at`."""
        self.rises = self.rises + (loss > self.loss)
        self.loss, self.gradient = loss, gradient
        better = loss > self.best_loss
        wide = _wide(better, self.at)
        self.best = torch.where(wide, self.at, self.best)
        self.best_gradient = torch.where(wide, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        wins = margin > self.found_margin
        self.found = torch.where(_wide(wins, self.at), self.at, self.found)
        self.found_margin = torch.where(wins, margin, self.found_margin)

    def check(self, steps: int, rho: float, factor: float) -> None:
        """A checkpoint, ``steps`` after the last: who stalls goes on from the best point, the step size times ``factor``."""
        stalled = ~self.halved & (self.best_loss <= self.checked_loss)
        self.halved = (self.rises <= rho * steps) | stalled
        wide = _wide(self.halved, self.at)
        self.size = torch.where(wide, self.size * factor, self.size)
        self.at = torch.where(wide, self.best, self.at)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.rises, self.checked_loss = torch.zeros_like(self.rises), self.best_loss


def _order(goal: Goal, logits: Tensor) -> Tensor:
    """The margin, a little less where it is zero but the goal is not reached: spike counts tie."""
    margin = goal.margin(logits.double())
    return torch.where(goal.reached(logits), margin, margin.clamp(max=-1e-300))


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class _Ascent:
    """One ascent: what does not change on the way."""

    attack: Settings
    model: nn.Module
    draws: int
    random: bool
    share: float
    rho: float | None

    def __call__(
        self, threat: ThreatModel, x: Tensor, goal: Goal, towards: Goal, stream: Stream, move: Move, warn: bool
    ) -> tuple[Tensor, Tensor]:
        """``(candidates, bool [B] who stopped early)``; the loss is that of ``towards``, success that of ``goal``."""
        attack, last, loss_of = self.attack, self.attack.steps, towards.loss(self.attack.loss)
        start = threat.random_start(x, stream.fork("start")) if attack.random_start else x.clone()
        state = _State.before(x, start, first_size(threat, x, self.share))
        result, stopped = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        active = torch.arange(len(x), device=x.device)
        source, since, due = begin(attack.gradient), 0, checkpoints(last)
        for i in range(last + 1):
            draw = stream.fork("step", i)
            if i == last and not self.random:  # nothing but the logits is left to know
                gradient, logits = state.gradient, self._logits(state.at, towards, draw)
            else:
                gradient, logits = towards.gradient(source, self.model, state.at, attack.loss, draw)
            if warn and i == 0:
                warn_if_blunt(attack, gradient)
            state.enter(gradient, loss_of(logits, towards.labels).to(x.dtype), _order(goal, logits))
            if attack.early_stop:
                done = always_reached(self.model, state.at, goal, logits, draw.fork("stop"), self.draws)
                if done.any():
                    result[active[done]], stopped[active[done]] = state.at[done], True
                    keep = (~done).nonzero()[:, 0]
                    active, state, stream = active[keep], state.select(keep), stream.select(keep.cpu())
                    threat, goal, towards = threat.select(keep), goal.select(keep), towards.select(keep)
                    move.keep(keep)
                    if len(active) == 0:
                        break
            if i == last:
                break
            if self.rho is not None and i in due:
                state.check(i - since, self.rho, 0.5 if shrinks(threat) else 1.0)
                since = i
            state.at = move(threat, state.x, state.at, state.gradient, state.size)
        result[active] = state.found
        return result, stopped

    @torch.no_grad()
    def _logits(self, at: Tensor, goal: Goal, stream: Stream) -> Tensor:
        with draws(self.model, stream.key, stream.sample_ids):
            return checks.call(self.model, at, goal.y)


def search(
    attack: Settings,
    model: nn.Module,
    x: Tensor,
    goal: Goal,
    towards: Sequence[Goal],
    stream: Stream,
    share: float,
    rho: float | None,
    move: Callable[[], Move],
) -> Tensor:
    """``attack.restarts`` ascents towards each of ``towards`` in turn, and for each sample the worst that they found.

    With ``attack.early_stop`` those that have reached ``goal`` are left alone from then on.

    Args:
        share: As :func:`first_size` has it.
        rho: At checkpoints those are sent back to their best point, with half the step size, who have raised the loss in no more
            than this share of the steps; None for no such checks.
        move: Makes the :class:`Move` of one ascent.
    """
    random = is_stochastic(model, x[:8])
    n = attack.selection_draws if random else 1
    ascent = _Ascent(attack, model, n, random, share, rho)
    result, active = x, torch.arange(len(x), device=x.device)
    for r in range(attack.restarts * len(towards)):
        aim, mine, to = goal.select(active), stream.select(active.cpu()), towards[r % len(towards)].select(active)
        threat, climbing = attack.threat.select(active), mine.fork("restart", r)
        found, stopped = ascent(threat, x[active], aim, to, climbing, move(), warn=r == 0)
        if r > 0:
            found = worst_of(model, (result[active], found), aim, mine.fork("selection"), n)
        result = result.index_copy(0, active, found)
        active = active[~stopped]
        if len(active) == 0:
            break
    return result
