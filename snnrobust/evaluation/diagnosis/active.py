r"""The active test: an adversarial is planted, and the attack has to find one.

For each sample a direction :math:`u` of the logits is drawn, and the decision is replaced by a binary one,
:math:`[u \cdot z(x') > t]`. Queries alone, without gradient, find an input of the ball with a high :math:`u \cdot z`: the planted
one. The threshold :math:`t` lies halfway between it and the highest of many inputs of random noise of the whole budget. So, for a
deterministic model, the ball holds an adversarial input with certainty (a forward pass has shown it), while noise does not find
it. Of a random model the scores are means over draws, those that decide about the planted input are fresh ones, and it counts
where it is more than two standard errors above the noise.

Source: the idea is that of Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations"; there noise is
planted, here the end of a short search, since an attack that is barely better than noise should not pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy import stats
from torch import Tensor

from snnrobust import checks
from snnrobust.attacks import EOT, EvolutionStrategies, GradientSource
from snnrobust.attacks.threat import normal_like
from snnrobust.draws import Stream, derive, draws
from snnrobust.evaluation.diagnosis.check import Check, Status, not_run
from snnrobust.evaluation.diagnosis.stronger import pixel_width
from snnrobust.evaluation.diagnosis.subject import Subject

__all__ = ["FINDS", "Planted", "active", "plant"]

SAMPLES = 50
NOISE = 16
"""Inputs of noise that stay below the threshold."""
QUERIES, STEPS = 60, 3
FINDS = 0.5
"""Share of planted inputs that a fit attack finds at least."""
ENOUGH = 20
DRAWS = 32
SEARCH_DRAWS = 4  # that an estimate is averaged over; these of a random model


@dataclass(frozen=True, eq=False)
class Planted:
    """The loss :math:`(u_i \\cdot z - t_i)`, positive where the planted decision is reached; rows repeat as batches do."""

    directions: Tensor  # [n, K]
    thresholds: Tensor  # [n]

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        row = torch.arange(len(logits), device=logits.device) % len(self.thresholds)
        return (self.directions[row].to(logits.dtype) * logits).sum(1) - self.thresholds[row].to(logits.dtype)


def plant(s: Subject, count: int) -> tuple[Planted, Tensor, Tensor]:
    """The binary decisions of the first ``count`` samples, the planted inputs, and for which of them planting succeeded."""
    x, y = s.x[:count], s.y[:count]
    classes = _logits(s, x, 0).shape[1]
    stream = s.stream("planted", count=count)
    u = torch.nn.functional.normalize(
        normal_like(x.new_empty(count, classes), stream.fork("direction")).double(), dim=1
    )
    u = u - u.mean(1, keepdim=True)  # raising all logits alike is no direction
    noise = [_score(s, s.threat.boundary(x, stream.fork("noise", i)), u) for i in range(NOISE)]
    ceiling, highest = torch.stack([mean for mean, _ in noise]).max(0)
    doubt = torch.stack([error for _, error in noise]).gather(0, highest[None])[0]
    search = Planted(u, torch.zeros(count, dtype=torch.float64, device=x.device))
    estimate: GradientSource = EvolutionStrategies(QUERIES, pixel_width(s), s.threat.bounds)
    estimate = EOT(SEARCH_DRAWS, estimate) if s.random else estimate
    best, top = x.clone(), _score(s, x, u)[0]
    planted = x
    for i in range(STEPS):  # whole steps from where the last one ended: the ends of the ball
        gradient, _ = estimate(s.model, planted, y, search, stream.fork("search", i))
        planted = s.threat.project(s.threat.step(planted, gradient, s.threat.step_size(x)), x)
        reached = _score(s, planted, u)[0]
        better = reached > top
        best[better], top = planted[better], torch.maximum(top, reached)
    top, error = _score(s, best, u, first=DRAWS)  # on draws that did not choose it
    return Planted(u, (top + ceiling) / 2), best, top - ceiling > 2 * (error + doubt).sqrt()


def _logits(s: Subject, x: Tensor, draw: int) -> Tensor:
    stream = s.stream("planted", "draw", draw, count=len(x))
    with torch.no_grad(), draws(s.model, stream.key, stream.sample_ids):
        return checks.call(s.model, x, s.y[: len(x)]).double()


def _score(s: Subject, x: Tensor, u: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """The score, of a random model its mean over draws, and the square of the standard error of that."""
    scores = torch.stack([(u * _logits(s, x, first + i)).sum(1) for i in range(DRAWS if s.random else 1)])
    return scores.mean(0), scores.var(0, correction=1) / len(scores) if s.random else torch.zeros_like(scores[0])


def active(s: Subject) -> list[Check]:
    name, topic = "the attack finds a planted adversarial", "active test"
    meaning = "An adversarial input was put into the ball, and the attack through this gradient does not find it: it is unfit."
    remedy = (
        "Do not believe the attack where it fails either. Try other surrogates, EOT, BPDA until it passes this test."
    )
    if not s.usable:
        return [not_run(name, "there is no gradient", meaning, remedy, topic)]
    count = min(SAMPLES, len(s))
    decision, planted, sure = plant(s, count)
    x, y, stream = s.x[:count], s.y[:count], s.stream("active", count=count)
    s.threat.validate(x, planted)
    try:
        if not _follows(s, x, y, decision, stream):
            return [
                not_run(
                    name, "this gradient follows a loss of its own, whatever the attack raises", meaning, remedy, topic
                )
            ]
        attack = replace(s.pgd, loss=decision)
        x_adv = attack(s.model, x, y, seed=derive(s.seed, "active"), sample_ids=s.ids[:count])
    except (ValueError, TypeError) as error:
        return [not_run(name, f"this gradient cannot raise another decision: {error}", meaning, remedy, topic)]
    number = int(sure.sum())
    found = _reached(s, x_adv, decision)[sure]
    chance = _reached(s, s.threat.boundary(x, Stream(stream.fork("chance").key, stream.sample_ids)), decision)[sure]
    if number < ENOUGH:
        text = f"planted for {number} of {count} samples only: queries found nothing that noise does not"
        return [Check(name, "inconclusive", text, meaning, "Use more samples or a larger eps.", topic=topic)]
    rate = float(found.double().mean())
    p = float(stats.binomtest(int(found.sum()), number, FINDS, alternative="less").pvalue)
    by_noise = float(chance.double().mean())
    text = f"found for {rate:.0%} of {number} (planted for {number} of {count} samples), by noise for {by_noise:.0%}"
    status: Status = "failed" if rate < FINDS else "passed"
    return [Check(name, status, text, meaning, remedy, p, topic=topic)]


def _follows(s: Subject, x: Tensor, y: Tensor, decision: Planted, stream: Stream) -> bool:
    """Whether the gradient of the opposite loss is another one."""
    up, down = (s.gradient(s.model, x, y, loss, stream)[0] for loss in (decision, lambda z, y: -decision(z, y)))
    return not (up.any() and torch.equal(up, down))


def _reached(s: Subject, x: Tensor, decision: Planted) -> Tensor:
    scores = [decision(_logits(s, x, 100 + i), s.y[: len(x)]) for i in range(DRAWS if s.random else 1)]
    return torch.stack(scores).mean(0) > 0
