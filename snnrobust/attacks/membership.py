"""Membership inference: was a sample in a model's training data?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.membership_report import MembershipReport, Scores, membership_report
from snnrobust.data import Data, take
from snnrobust.draws import derive, device_of, evaluating, is_stochastic
from snnrobust.draws import draws as keyed_draws

__all__ = ["SIGNALS", "Signal", "ThresholdMIA", "signals"]

Signal = Literal["logit", "loss", "confidence", "entropy", "modified_entropy", "margin", "correct"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)
"""What a model's logits say about a sample; each is higher for samples that look like members."""
Signals = dict[Signal, Tensor]


def from_logits(z: Tensor, y: Tensor) -> Signals:
    r"""Signals of logits ``[B, K]`` and labels ``[B]``, float64 ``[B]``, with p the softmax.

    .. math::

        \text{logit} = \log \frac{p_y}{1 - p_y}, \quad \text{loss} = \log p_y, \quad \text{confidence} = \max_j p_j, \quad
        \text{entropy} = \sum_j p_j \log p_j, \quad \text{margin} = z_y - \max_{j \ne y} z_j,

        \text{modified entropy} = (1 - p_y) \log p_y + \sum_{j \ne y} p_j \log(1 - p_j), \quad \text{correct} = [\arg\max z = y].

    ``confidence`` and ``entropy`` do without the label. Exact also where p rounds to 0 or 1.
    """
    z = z.double()
    if z.shape[1] < 2 or not z.isfinite().all():
        raise ValueError(f"logits must be finite and of at least 2 classes, got shape {tuple(z.shape)}")
    log_p = z.log_softmax(1)
    p = log_p.exp()
    label = y[:, None]
    top = z.argmax(1, keepdim=True)
    # of the most likely class, whose p may round to 1, by the others; all others have p <= 1/2
    rest = z.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True) - z.logsumexp(1, keepdim=True)
    log_q = (-p).log1p().scatter(1, top, rest)
    true, others = z.gather(1, label)[:, 0], z.scatter(1, label, -torch.inf)
    log_p_true, log_q_true = log_p.gather(1, label)[:, 0], log_q.gather(1, label)[:, 0]
    wrong = (p * log_q).scatter(1, label, 0.0).sum(1)
    return {
        "logit": true - others.logsumexp(1),
        "loss": log_p_true,
        "confidence": p.amax(1),
        "entropy": (p * log_p).sum(1),
        "modified_entropy": log_q_true.exp() * log_p_true + wrong,
        "margin": true - others.amax(1),
        "correct": (top[:, 0] == y).double(),
    }


def signals(
    model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, draws: int = 16, batch_size: int = 256, first_id: int = 0
) -> Signals:
    """:func:`from_logits` of a model in eval mode, float64 ``[n]``, the mean over ``draws`` if it has randomness.

    Args:
        model: Inputs to logits ``[B, K]``.
        x, y: Samples ``[n, *]`` and labels ``[n]``.
        seed: Of the draws.
        draws: For models with randomness.
        batch_size: Of the passes.
        first_id: Sample ids count from here, so that other samples have other draws.
    """
    device = device_of(model)
    n = draws if is_stochastic(model, x[:8].to(device)) else 1
    total: Signals = {name: torch.zeros(len(x), dtype=torch.float64) for name in SIGNALS}
    with torch.no_grad(), evaluating(model):
        for index in torch.arange(len(x)).split(batch_size):
            at, labels = x[index].to(device), y[index].to(device)
            for draw in range(n):
                with keyed_draws(model, derive(seed, "membership", draw), index + first_id):
                    logits = checks.call(model, at, labels)
                for name, value in from_logits(logits, labels).items():
                    total[name][index] += value.cpu()
    return {name: value / n for name, value in total.items()}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all membership attacks share.

    Args:
        draws: For models with randomness: each signal is the mean over these.
        batch_size: Of the passes.
        fpr: Rates of false alarms at which the TPR is reported.
        confidence: Of the intervals.
    """

    draws: int = 16
    batch_size: int = 256
    fpr: Sequence[float] = (0.001, 0.01)
    confidence: float = 0.95

    def __post_init__(self) -> None:
        checks.count("draws", self.draws)
        checks.count("batch_size", self.batch_size)

    def of(self, model: nn.Module, members: Data, non_members: Data, seed: int) -> tuple[Signals, Signals]:
        """Signals of members and of non-members."""
        x, y, x_other, y_other = candidates(model, members, non_members)
        return (
            signals(model, x, y, seed=seed, draws=self.draws, batch_size=self.batch_size),
            signals(model, x_other, y_other, seed=seed, draws=self.draws, batch_size=self.batch_size, first_id=len(x)),
        )

    def report(
        self, name: str, members: Scores, non_members: Scores, seed: int, threshold: float | None = None
    ) -> MembershipReport:
        return membership_report(
            name, members, non_members, fpr=self.fpr, threshold=threshold, confidence=self.confidence, seed=seed
        )


@dataclass(frozen=True, kw_only=True)
class ThresholdMIA(Settings):
    """A threshold on one signal: needs the model's logits and nothing else.

    Args:
        signal: ``"loss"`` (Yeom et al. 2018), ``"confidence"`` (Salem et al. 2019), ``"modified_entropy"`` (Song and Mittal
            2021) or another of :data:`SIGNALS`. ``"correct"`` is the baseline that knows only who is classified rightly.

    Source: Yeom et al. 2018, "Privacy risk in machine learning: analyzing the connection to overfitting"; Salem et al. 2019,
    "ML-Leaks"; Song and Mittal 2021, "Systematic evaluation of privacy risks of machine learning models".
    """

    signal: Signal = "loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("signal", self.signal, SIGNALS)

    def __call__(self, model: nn.Module, members: Data, non_members: Data, *, seed: int = 0) -> MembershipReport:
        """Attack ``model``.

        Args:
            model: Inputs to logits ``[B, K]``.
            members: Samples that it was trained on.
            non_members: Samples of the same distribution that it was not.
            seed: Of draws and halves.

        Raises:
            ValueError, TypeError: bad data, or a sample that is in both sets.
        """
        inside, outside = self.of(model, members, non_members, seed)
        name = f"threshold on {self.signal}"
        return self.report(name, inside[self.signal].numpy(), outside[self.signal].numpy(), seed)


def candidates(model: nn.Module, members: Data, non_members: Data) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The samples of the two sets, which have none in common."""
    checks.module("model", model)
    x, y = take(members)
    x_other, y_other = take(non_members)
    for name, value in (("members", x), ("non_members", x_other)):
        checks.pixels(name, value, bounds=(-torch.inf, torch.inf))
    apart("members", x, "non_members", x_other)
    return x, y, x_other, y_other


def apart(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise if a sample is in both: who is a member would be undefined, or a shadow model trained on it."""
    if x.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"{name} and {other_name} must be inputs of one shape, got {tuple(x.shape[1:])} and {tuple(other.shape[1:])}"
        )
    known = set(_digests(other))
    common = sum(digest in known for digest in _digests(x.to(other.dtype)))
    if common:
        raise ValueError(f"{common} of {len(x)} {name} are among the {other_name} too: take them out of one")


def _digests(x: Tensor) -> Iterator[bytes]:
    return (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x.flatten(1).cpu().numpy())
