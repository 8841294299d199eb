"""Voting over several predictions of a noisy model."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import Stochastic, derive, draws, is_stochastic
from snnrobust.models.description import MODULES

__all__ = ["Rule", "Voting", "mean_logits", "mean_probabilities", "mode"]

Rule = Literal["mode", "mean_logits", "mean_probabilities"]


def mode(logits: Tensor) -> Tensor:
    r"""Logarithm of the share of votes that each class gets, ``[n, B, K] -> [B, K]``.

    .. math:: \log \frac{c_k + \bar p_k / 2}{n + 1/2}, \quad c_k = \sum_i [\arg\max z_i = k], \quad \bar p = \frac{1}{n} \sum_i
        \operatorname{softmax}(z_i)

    The half vote that goes to :math:`\bar p` breaks ties, changes no other result and keeps the logarithm finite. A vote whose
    own largest logits are equal goes to the first of them. The gradient is that of :func:`mean_probabilities`.
    """
    n, _, classes = logits.shape
    smooth = mean_probabilities(logits)
    with torch.no_grad():
        counts = F.one_hot(logits.argmax(2), classes).sum(0).to(logits.dtype)
        shares = torch.logaddexp(counts.log(), smooth - log(2)) - log(n + 0.5)
    return smooth + (shares - smooth).detach()


def mean_logits(logits: Tensor) -> Tensor:
    r"""``[n, B, K] -> [B, K]``: :math:`\frac{1}{n} \sum_i z_i`, with its gradient."""
    return logits.mean(0)


def mean_probabilities(logits: Tensor) -> Tensor:
    r"""``[n, B, K] -> [B, K]``: :math:`\log \frac{1}{n} \sum_i \operatorname{softmax}(z_i)`, with its gradient."""
    return logits.log_softmax(2).logsumexp(0) - log(len(logits))


_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "mode": mode,
    "mean_logits": mean_logits,
    "mean_probabilities": mean_probabilities,
}


class Voting(Stochastic):
    r"""``votes`` predictions of a model with randomness, joined into one, ``[B, *] -> [B, K]``.

    Drawing rule: vote i of the key k runs under the key :meth:`vote_key` (k, i), the same sample ids and no other draws, so votes
    are independent and none depends on the batch. A model without randomness votes the same each time.

    Gradient: through every vote; that of ``"mode"`` is :func:`mean_probabilities`'s. It holds the activations of all votes at
    once. Attack it through :class:`~snnrobust.attacks.EOT` as well, for the votes are drawn anew.

    Args:
        model: Of a spiking or ordinary network, on a chip or with a random encoder: inputs to logits ``[B, K]``.
        votes: n, and its cost: forward passes of ``model`` a prediction.
        rule: :func:`mode`, :func:`mean_logits` or :func:`mean_probabilities`.

    Raises:
        TypeError, ValueError: bad arguments, or a model that does not return logits ``[B, K]``.

    Source: Qin and Vucinic 2018, "Noisy computations during inference: harmful or helpful?" (20 votes, the mode). How they break
    ties they do not say.
    """

    def __init__(self, model: nn.Module, votes: int = 20, rule: Rule = "mode") -> None:
        super().__init__()
        self.model = checks.module("model", model)
        self.votes = checks.count("votes", votes)
        self.rule: Rule = checks.choice("rule", rule, get_args(Rule))  # type: ignore[assignment]
        self.training = model.training  # each module keeps its own mode

    @property
    def cost(self) -> int:
        """Forward passes of the model a prediction."""
        return self.votes

    @property
    def stochastic(self) -> bool:
        return is_stochastic(self.model)

    @staticmethod
    def vote_key(key: int, vote: int) -> int:
        """Under which :func:`~snnrobust.draws.draws` the model gives that vote, where ``key`` is :attr:`key`."""
        return derive(key, "vote", vote)

    @property
    def key(self) -> int:
        """Of the next prediction: inside :func:`~snnrobust.draws.draws` what that decided, else one from torch's generator."""
        if self._key is None:
            return int(torch.randint(0, 1 << 62, ()))
        low, high = self._key.tolist()
        return int(high << 32 | low)

    def ballots(self, x: Tensor) -> Tensor:
        """The logits of each vote, ``[n, B, K]``."""
        key, ballots = self.key, []
        for vote in range(self.votes):
            with draws(self.model, self.vote_key(key, vote), self._sample_ids):
                logits = self.model(x)
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(f"the model of Voting must return logits [B, K], got {given}")
            ballots.append(logits)
        return torch.stack(ballots)

    def forward(self, x: Tensor) -> Tensor:
        return _RULES[self.rule](self.ballots(x))

    def extra_repr(self) -> str:
        return f"votes={self.votes}, rule={self.rule!r}"


MODULES[Voting.__name__] = Voting
