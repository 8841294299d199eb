"""HopSkipJump: an attack that sees nothing but predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.projection import unit
from snnrobust.attacks.threat import Linf, ThreatModel, uniform_like
from snnrobust.draws import Stream, _words, draws, is_stochastic, normal, uniform

__all__ = ["HopSkipJump"]

_HALVINGS = 25  # of a step at most


@dataclass(frozen=True)
class HopSkipJump(Attack):
    r"""Walks along the boundary of the decision towards ``x``; asks for predictions only.

    From an adversarial point it goes by bisection towards x up to the boundary, and there, with :math:`\phi(z) = \pm 1` for
    inputs that reach the goal or not, estimates the normal of the boundary from :math:`B_t = B_0 \sqrt{t}` trials,

    .. math:: v = \frac{1}{B_t} \sum_b \big( \phi(x_t + \delta u_b) - \bar\phi \big) u_b

    and steps along it (its sign in Linf) by :math:`\|x_t - x\| / \sqrt{t}`, halved until the goal is reached again.

    The result is the nearest adversarial input that was found, where it is within ``eps``; otherwise its projection. In a model
    with randomness most of ``draws`` predictions decide; a point on its boundary is wrong about every other time.

    Args:
        threat: ``Linf`` or ``L2``.
        queries: Forward passes per sample at most.
        first_trials: :math:`B_0`.
        gamma: The bisection ends at :math:`\gamma / d^{3/2}` of the way (L2), :math:`\gamma / d^2` (Linf), and the trials have
            the length that goes with it.
        start_trials: Points of noise that are tried as a start, in turns uniform and of black and white with a random share of
            white. If none reaches the goal, the result is the projection of the last.
        draws: See above; odd is best.
        early_stop: A sample stops when it is within ``eps``.

    Whether the model is random is tried with two passes of at most eight samples, beyond ``queries``.

    Source: Chen, Jordan and Wainwright 2020, "HopSkipJumpAttack: a query-efficient decision-based attack".
    """

    threat: ThreatModel
    queries: int = 5000
    first_trials: int = 100
    gamma: float = 1.0
    start_trials: int = 50
    draws: int = 1
    early_stop: bool = True

    def __post_init__(self) -> None:
        for name in ("queries", "first_trials", "start_trials", "draws"):
            checks.count(name, getattr(self, name))
        checks.number("gamma", self.gamma, 0.0, exclusive_low=True)
        checks.boolean("early_stop", self.early_stop)
        if isinstance(self.threat, ThreatModel) and not isinstance(self.threat, Linf | L2):
            raise ValueError(f"HopSkipJump works in Linf and L2, got a threat in {self.threat.name}")

    @torch.no_grad()
    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        votes = self.draws if is_stochastic(model, x[:8]) else 1
        oracle = _Oracle(model, goal, stream.fork("model"), votes, torch.full((len(x),), self.queries))
        everyone = torch.arange(len(x), device=x.device)
        best, found = x.clone(), oracle(x, everyone, "clean")  # what is wrong already is at distance 0
        lost = everyone[~found]
        start, started = self._start(x[lost], oracle, lost, stream.select(lost.cpu()).fork("start"))
        active = lost[started]
        best[lost] = start
        best[active] = self._bisect(x[active], start[started], oracle, active, 0)
        at = best.clone()
        for t in range(1, self.queries + 1):
            if self.early_stop:
                active = active[~self._inside(x, best, active)]
            trials = int(self.first_trials * math.sqrt(t))
            active = active[oracle.left[active.cpu()].to(x.device) >= (trials + 1) * votes]
            if len(active) == 0:
                break
            away = self._distance(x[active], at[active])
            normal_at = self._normal(x[active], at[active], away, t, trials, oracle, active, stream)
            direction = normal_at.sign() if isinstance(self.threat, Linf) else normal_at
            stepped, reached = self._step(at[active], direction, away / math.sqrt(t), oracle, active, t)
            moved = active[reached]
            at[moved] = self._bisect(x[moved], stepped[reached], oracle, moved, t)
            nearer = moved[self._distance(x[moved], at[moved]) < self._distance(x[moved], best[moved])]
            best[nearer] = at[nearer]
        return self.threat.project(best, x)

    def _start(self, x: Tensor, oracle: _Oracle, index: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        low, high = self.threat.bounds
        start, started = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        ones = [1] * (x.dim() - 1)
        for i in range(self.start_trials):
            open_ = (~started).nonzero()[:, 0]
            if len(open_) == 0:
                break
            part = stream.select(open_.cpu()).fork("trial", i)
            noise = uniform_like(x[open_], part)
            if i % 2:
                noise = (noise < uniform_like(x[open_].flatten(1)[:, 0], part.fork("share")).view(-1, *ones)).to(
                    x.dtype
                )
            noise = low + (high - low) * noise
            reached = oracle(noise, index[open_], "start", i)
            start[open_] = noise
            started[open_[reached]] = True
        return start, started

    def _bisect(self, x: Tensor, reached: Tensor, oracle: _Oracle, index: Tensor, t: int) -> Tensor:
        """The point next to the boundary, on its far side, on the line to ``x`` (Linf: on the path of projections)."""
        d = x[0].numel() if len(x) else 1
        steps = max(math.ceil(math.log2(d ** (2.0 if isinstance(self.threat, Linf) else 1.5) / self.gamma)), 1)
        high = torch.ones(len(x), 1, dtype=torch.float64, device=x.device)
        low, point = torch.zeros_like(high), reached.clone()
        for i in range(steps):
            middle = (low + high) / 2
            tried = self._between(x, reached, middle)
            there = oracle(tried, index, "bisect", t, i)
            point = torch.where(there.view(-1, *[1] * (x.dim() - 1)), tried, point)
            high, low = torch.where(there[:, None], middle, high), torch.where(there[:, None], low, middle)
        return point

    def _between(self, x: Tensor, far: Tensor, share: Tensor) -> Tensor:
        share = share.view(-1, *[1] * (x.dim() - 1))
        exact, change = x.double(), far.double() - x.double()
        if isinstance(self.threat, Linf):
            most = share * change.abs().flatten(1).amax(1).view_as(share)
            moved = exact + change.clamp(-most, most)
        else:
            moved = exact + share * change
        return moved.clamp(*self.threat.bounds).to(x.dtype)

    def _normal(
        self, x: Tensor, at: Tensor, away: Tensor, t: int, trials: int, oracle: _Oracle, index: Tensor, stream: Stream
    ) -> Tensor:
        """The estimate :math:`v` over its length."""
        d = x[0].numel()
        linf = isinstance(self.threat, Linf)
        theta = self.gamma / d ** (2.0 if linf else 1.5)
        width = self.threat.bounds[1] - self.threat.bounds[0]
        delta = 0.1 * width * torch.ones_like(away) if t == 1 else (d if linf else math.sqrt(d)) * theta * away
        delta = delta.view(-1, *[1] * (x.dim() - 1))
        part = stream.select(index.cpu()).fork("trials", t)
        key, ids = _words(part.key).to(x.device), part.sample_ids.to(x.device)
        total, weighted, plain = torch.zeros(len(x), device=x.device), torch.zeros_like(x), torch.zeros_like(x)
        for b in range(trials):
            drawn = 2 * uniform(key, ids, (1, *x.shape), b)[0] - 1 if linf else normal(key, ids, (1, *x.shape), b)[0]
            tried = (at.double() + delta * unit(drawn.double(), 2)).clamp(*self.threat.bounds).to(x.dtype)
            phi = torch.where(oracle(tried, index, "normal", t, b), 1.0, -1.0)
            went = (tried - at) / delta.clamp(min=1e-30).to(x.dtype)
            total += phi
            weighted += phi.to(x.dtype).view_as(delta) * went
            plain += went
        mean = total / trials
        mean = torch.where(mean.abs() == 1, 0.0, mean).to(x.dtype)
        return unit(weighted - mean.view_as(delta) * plain, 2)

    def _step(
        self, at: Tensor, direction: Tensor, size: Tensor, oracle: _Oracle, index: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        size = size.view(-1, *[1] * (at.dim() - 1)).clone()
        stepped, done = at.clone(), torch.zeros(len(at), dtype=torch.bool, device=at.device)
        for i in range(_HALVINGS):
            open_ = (~done).nonzero()[:, 0]
            if len(open_) == 0:
                break
            tried = (at[open_].double() + size[open_] * direction[open_]).clamp(*self.threat.bounds).to(at.dtype)
            reached = oracle(tried, index[open_], "step", t, i)
            stepped[open_[reached]] = tried[reached]
            done[open_[reached]] = True
            size[open_] /= 2
        return stepped, done

    def _distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        return self.threat.distance(x, x_adv)

    def _inside(self, x: Tensor, best: Tensor, active: Tensor) -> Tensor:
        assert isinstance(self.threat, Linf | L2)
        distance = self._distance(x[active], best[active])
        return distance <= self.threat.select(active).budget(distance)


@dataclass
class _Oracle:
    """Whether inputs of the samples at ``index`` reach the goal; after the last query, no."""

    model: nn.Module
    goal: Goal
    stream: Stream
    votes: int
    left: Tensor  # int64 [B], queries

    def __call__(self, x: Tensor, index: Tensor, *label: object) -> Tensor:
        answer = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        able = (self.left[index.cpu()] >= self.votes).nonzero()[:, 0].to(x.device)
        if len(able) == 0:
            return answer
        who = index[able].cpu()
        self.left[who] -= self.votes
        aim, part, reached = (
            self.goal.select(index[able]),
            self.stream.select(who),
            torch.zeros(len(able), device=x.device),
        )
        for vote in range(self.votes):
            with draws(self.model, part.fork(*label, vote).key, part.sample_ids):
                reached += aim.reached(checks.call(self.model, x[able], aim.labels))
        answer[able] = 2 * reached > self.votes
        return answer
