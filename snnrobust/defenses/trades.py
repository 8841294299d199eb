"""A clean loss, and the distance to the answer at an adversarial example."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import BluntGradientWarning
from snnrobust.defenses.adversarial import Adversarial, Backward, Given, positive
from snnrobust.draws import Stream, _words, draws, evaluating, normal
from snnrobust.learning_rules import RULES, Lent
from snnrobust.learning_rules.losses import LOSSES, answer

__all__ = ["TRADES"]


def divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(p \,\|\, q) = \sum_k p_k (\log p_k - \log q_k)` to :math:`q = \operatorname{softmax}(z)`, ``[B]``."""
    return F.kl_div(F.log_softmax(logits, 1), log_p, reduction="none", log_target=True).sum(1)


@dataclass(frozen=True, kw_only=True)
class TRADES(Adversarial):
    r"""Trade clean accuracy for robustness by a number.

    .. math:: \mathrm{CE}(f(x), y) + \beta \, \mathrm{KL}(f(x) \,\|\, f(x')), \quad
        x'_0 = x + \tau \xi, \; \xi \sim N(0, 1), \quad
        x'_{i+1} = \Pi \big( x'_i + \alpha \operatorname{sign} \nabla_{x'} \mathrm{KL}(f(x) \,\|\, f(x'_i)) \big)

    :math:`f` is the softmax of the logits. Both forward passes that are learnt have the same draws, and gradients pass through
    both. ``accuracy`` in the history is the clean one, ``adversarial_accuracy`` that at :math:`x'`.

    Where an :math:`x'` gives the very answer of :math:`x`, as it can where no spike changes, KL has a gradient of exactly zero,
    and the sample stays there. ``unmoved`` in the history is the share of samples for which :math:`x'` has stayed at
    :math:`x'_0`: where it is not small, raise ``start``.

    Args:
        beta: :math:`\beta`, 0 or more.
        steps: Of the attack.
        step_size: :math:`\alpha`; default :math:`2.5 \epsilon / \text{steps}`.
        start: :math:`\tau`, greater than 0.

    Source: Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy".
    """

    name: ClassVar[str] = "TRADES"

    beta: float = 6.0
    steps: int = 10
    step_size: float | str | None = None
    start: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("beta", self.beta, 0.0)
        checks.count("steps", self.steps)
        checks.number("start", self.start, 0.0, exclusive_low=True, hint="at x itself KL has no gradient")
        object.__setattr__(self, "step_size", positive("step_size", self.step_size))

    def ascend(self, model: nn.Module, x: Tensor, y: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """:math:`x'`, and which samples have left :math:`x'_0` (bool ``[B]``). The labels are not used but to check them."""
        threat, gradient = self.threat, self._gradient()
        size = positive("step_size", self.step_size) or 2.5 * self.budget / self.steps
        checks.pixels("x", x, bounds=threat.bounds)
        with evaluating(model):
            log_p = self._clean(model, x, y, stream.fork("clean"))
            noise = normal(_words(stream.fork("start").key).to(x.device), stream.sample_ids.to(x.device), (1, *x.shape))
            first = x_adv = threat.project(x + self.start * noise[0].to(x.dtype), x)
            for i in range(self.steps):
                g, _ = gradient(model, x_adv, y, lambda z, _: divergence(log_p, z), stream.fork("step", i))
                x_adv = threat.project(threat.step(x_adv, g, size), x)
        threat.validate(x, x_adv)
        moved = (x_adv != first).flatten(1).any(1)
        if not moved.any():
            warnings.warn(
                f"TRADES: the gradient of KL is exactly zero for all {len(x)} samples, so that it trains on x and noise of "
                f"{self.start:g}: raise start",
                BluntGradientWarning,
                stacklevel=2,
            )
        return x_adv, moved

    @torch.no_grad()
    def _clean(self, model: nn.Module, x: Tensor, y: Tensor, stream: Stream) -> Tensor:
        """Logarithm of the mean answer over the draws, ``[B, K]``."""
        answers = []
        for i in range(self.eot):
            with draws(model, stream.fork("eot", i).key, stream.sample_ids):
                answers.append(F.log_softmax(checks.call(model, x, y).float(), 1))
        return answers[0] if self.eot == 1 else torch.stack(answers).logsumexp(0) - torch.tensor(float(self.eot)).log()

    def _robust(self, model: nn.Module, lent: Lent, given: Given) -> Backward:
        criterion, network = LOSSES[self.loss], self._network(model)
        right, unmoved = [0.0, 0.0], [0.0, 0.0]
        lent.tally |= {"adversarial_accuracy": right, "unmoved": unmoved}

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            x_adv, moved = self.ascend(model, x, y, given.stream.fork("inner"))
            clean = answer(model, x, network)
            far = answer(model, x_adv, network).logits
            loss = criterion(clean, y) + self.beta * divergence(F.log_softmax(clean.logits, 1), far).mean()
            (loss * scale).backward()
            if scale > 0:  # else these samples are only there to go along
                for counted, found in ((right, far.argmax(1) == y), (unmoved, ~moved)):
                    counted[0] += float(found.sum())
                    counted[1] += len(y)
            return loss.detach(), clean.logits.detach()

        return backward


RULES[TRADES.name] = TRADES
