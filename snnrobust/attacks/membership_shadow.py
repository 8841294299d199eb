"""Membership inference with shadow models: networks that the attacker trained, so that it knows their members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.membership import SIGNALS, Settings, Signal, Signals, apart, candidates, signals
from snnrobust.attacks.membership_report import MembershipReport, Scores, choose_threshold
from snnrobust.data import Data, take
from snnrobust.draws import derive, keyed

__all__ = ["OfflineLiRA", "ShadowMIA", "Shadows", "train_shadows"]

FEATURES: tuple[Signal, ...] = ("logit", "confidence", "entropy", "modified_entropy", "margin", "correct")


@dataclass(frozen=True, eq=False)
class Shadows:
    """Shadow models, the attacker's samples, and which of them each was trained on.

    Args:
        models: S of them.
        x, y: The pool, ``[n, *]`` and ``[n]``.
        inside: bool ``[S, n]``.
    """

    models: tuple[nn.Module, ...] = field(repr=False)
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    inside: Tensor = field(repr=False)


def train_shadows(
    train: Callable[[tuple[Tensor, Tensor], int], nn.Module],
    pool: Data,
    count: int,
    *,
    seed: int = 0,
    share: float = 0.5,
) -> Shadows:
    """Train ``count`` shadow models, each on a random ``share`` of ``pool``.

    Args:
        train: ``((x, y), seed) -> model``, a new model trained as the victim was; ``x`` should have as many samples as the
            victim had. Called with torch's generator seeded, and put back afterwards.
        pool: The attacker's samples. None of them may be one whose membership is asked.
        count: S.
        seed: Of shares and trainings.
        share: Of the pool that a shadow is trained on.
    """
    checks.function("train", train)
    checks.count("count", count)
    checks.count("seed", seed, low=0)
    checks.number("share", share, 0.0, 1.0, exclusive_low=True)
    x, y = take(pool)
    size = round(share * len(x))
    if not 0 < size < len(x):
        raise ValueError(f"share must leave samples inside and outside, got {size} of {len(x)} inside")
    inside = torch.zeros(count, len(x), dtype=torch.bool)
    models = []
    for i in range(count):
        key = derive(seed, "shadow", i)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(key))[:size].sort().values
        inside[i, order] = True
        with keyed(key):
            models.append(checks.module("what train returns", train((x[order], y[order]), key % 2**31)))
    if len({id(m) for m in models}) < count:
        raise ValueError("train returned the same model twice: it must build a new one each time")
    return Shadows(tuple(models), x, y, inside)


@dataclass(frozen=True, kw_only=True)
class ShadowMIA(Settings):
    """A classifier of signals, learnt on shadow models, whose members are known.

    Args:
        shadows: From :func:`train_shadows`.
        signal: One signal, whose threshold (of the largest balanced accuracy on the shadows) is taken over to the victim;
            default a logistic regression on all.

    The report's ``calibrated`` is the balanced accuracy at the threshold of the shadows: nothing is chosen on the victim.

    Source: Shokri et al. 2017, "Membership inference attacks against machine learning models", with one attack model for all
    classes on signals in place of one for each class on probabilities.
    """

    shadows: Shadows
    signal: Signal | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.shadows, 1)
        if self.signal is not None:
            checks.choice("signal", self.signal, SIGNALS)

    def __call__(self, model: nn.Module, members: Data, non_members: Data, *, seed: int = 0) -> MembershipReport:
        """As of :class:`~snnrobust.attacks.ThresholdMIA`; no sample may be in the shadows' pool."""
        x, _, x_other, _ = candidates(model, members, non_members)
        apart("members", x, "shadows' pool", self.shadows.x)
        apart("non_members", x_other, "shadows' pool", self.shadows.x)
        inside, outside = self.of(model, members, non_members, seed)
        known, label = self._known(seed)
        if self.signal is not None:
            values = known[self.signal].numpy()
            threshold, above = choose_threshold(values[label], values[~label])
            sign = 1 if above else -1
            scores = (sign * inside[self.signal].numpy(), sign * outside[self.signal].numpy())
            return self.report(f"shadow threshold on {self.signal}", *scores, seed, sign * threshold)
        score = _logistic(known, label)
        return self.report("shadow logistic regression", score(inside), score(outside), seed, 0.0)

    def _known(self, seed: int) -> tuple[Signals, NDArray[np.bool_]]:
        """Signals of all shadows on the pool, one after the other, and whether each was a member."""
        pool = self.shadows
        found = [
            signals(m, pool.x, pool.y, seed=derive(seed, "shadow", i), draws=self.draws, batch_size=self.batch_size)
            for i, m in enumerate(pool.models)
        ]
        return {name: torch.cat([f[name] for f in found]) for name in SIGNALS}, pool.inside.flatten().numpy()


def _logistic(known: Signals, label: NDArray[np.bool_]) -> Callable[[Signals], Scores]:
    from sklearn.linear_model import LogisticRegression

    features = np.stack([known[name].numpy() for name in FEATURES], 1)
    mean, scale = features.mean(0), features.std(0)
    scale[scale == 0] = 1.0
    fitted = LogisticRegression(class_weight="balanced", max_iter=1000).fit((features - mean) / scale, label)

    def score(found: Signals) -> Scores:
        values = np.stack([found[name].numpy() for name in FEATURES], 1)
        return np.asarray(fitted.decision_function((values - mean) / scale), dtype=np.float64)

    return score


@dataclass(frozen=True, kw_only=True)
class OfflineLiRA(Settings):
    r"""Likelihood ratio attack with shadow models that saw none of the samples (the offline variant).

    For each sample the logit-scaled confidence :math:`\phi = \log \frac{p_y}{1 - p_y}` of the S shadows is Gaussian by
    assumption. The score

    .. math:: \frac{\phi(x) - \mu_{out}(x)}{\sigma_{out}}

    ranks as :math:`1 - P[Z > \phi(x)], \; Z \sim N(\mu_{out}(x), \sigma_{out}^2)`: samples whose confidence is high for
    themselves, not high as such.

    Args:
        shadows: From :func:`~snnrobust.attacks.train_shadows`, at least 2; all were trained without the samples.
        variance: ``"global"`` (one for all samples, the mean of theirs: for few shadows) or ``"each"``. One below a millionth of
            the mean counts as that.

    Source: Carlini et al. 2022, "Membership inference attacks from first principles". Without its augmented queries.
    """

    shadows: Shadows
    variance: Literal["global", "each"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("variance", self.variance, get_args(Literal["global", "each"]))
        _check(self.shadows, 2)

    def __call__(self, model: nn.Module, members: Data, non_members: Data, *, seed: int = 0) -> MembershipReport:
        """As of :class:`~snnrobust.attacks.ThresholdMIA`; no sample may be in the shadows' pool."""
        x, y, x_other, y_other = candidates(model, members, non_members)
        apart("members", x, "shadows' pool", self.shadows.x)
        apart("non_members", x_other, "shadows' pool", self.shadows.x)
        every, labels = torch.cat([x, x_other]), torch.cat([y, y_other])
        inside, outside = self.of(model, members, non_members, seed)
        observed = torch.cat([inside["logit"], outside["logit"]])
        out = torch.stack([
            signals(m, every, labels, seed=derive(seed, "shadow", i), draws=self.draws, batch_size=self.batch_size)["logit"]
            for i, m in enumerate(self.shadows.models)
        ])  # fmt: skip
        scores = self.score(observed, out).numpy()
        return self.report(f"offline LiRA, {len(out)} shadows", scores[: len(x)], scores[len(x) :], seed)

    def score(self, observed: Tensor, out: Tensor) -> Tensor:
        """Of logit-scaled confidences ``[n]`` of the victim, and ``[S, n]`` of the shadows."""
        variance = out.var(0, correction=1)
        common = variance.mean()
        if common == 0:
            raise ValueError("all shadows agree on all samples: are they trained at all, and from different data?")
        variance = common.expand_as(variance) if self.variance == "global" else variance.clamp(min=1e-6 * float(common))
        return (observed - out.mean(0)) / variance.sqrt()


def _check(shadows: Shadows, least: int) -> None:
    if not isinstance(shadows, Shadows):
        raise TypeError(f"shadows must come from train_shadows(...), got {type(shadows).__name__}")
    if len(shadows.models) < least:
        raise ValueError(f"shadows must be at least {least} models, got {len(shadows.models)}")
