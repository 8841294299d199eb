"""Binary-Relax: weights that are pulled to their quantized values more and more, and then are those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.data import Data
from snnrobust.learning_rules import BPTT, RULES, History, Lent, Supervised
from snnrobust.quantization import WeightQuantizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["BinaryRelax", "relaxed", "theta_of"]

Growth = Literal["geometric", "linear"]


def theta_of(strength: float) -> float:
    r""":math:`\theta = \lambda / (1 + \lambda)`, of a strength :math:`\lambda \ge 0`; 1 at infinity."""
    if strength == float("inf"):
        return 1.0
    checks.number("strength", strength, 0.0)
    return strength / (1 + strength)


def relaxed(y: Tensor, q: Tensor, strength: float) -> Tensor:
    r"""What minimises :math:`\|w - y\|^2 + \lambda \|w - q\|^2` for the quantized :math:`q = Q(y)`.

    .. math:: w = \frac{\lambda q + y}{\lambda + 1} = (1 - \theta) y + \theta q, \quad \theta = \frac{\lambda}{1 + \lambda}

    The second form is that of :class:`~snnrobust.quantization.WeightQuantizer`.
    """
    if strength == float("inf"):
        return q
    checks.number("strength", strength, 0.0)
    return (strength * q + y) / (strength + 1)


@dataclass(frozen=True, kw_only=True)
class BinaryRelax(Supervised):
    r"""Trains quantized weights by any rule, relaxed at first.

    .. math:: y \leftarrow y - \gamma \nabla L(w), \qquad w = (1 - \theta_e) \, y + \theta_e \, Q(y)

    In epoch e of the ``relaxed`` ones, from 0, geometric: :math:`\lambda_e = \lambda_0 g^e`,
    :math:`\theta_e = \lambda_e / (1 + \lambda_e)`; linear: :math:`\theta_e` from ``start`` in equal steps, so that 1 would follow
    the last. After them :math:`\theta = 1`: plain straight-through training on quantized weights, with which the training has to
    end. ``relaxed=0`` is that from the start. The history has ``theta`` for each epoch.

    Args:
        rule: By minibatches: ``BPTT(...)``, ``PGDTraining(...)``, ``TradeOff(...)``; also as an experiment file has it,
            ``{"type": "PGDTraining", "steps": 5}``, with the other settings of this one. Default BPTT with them.
        relaxed: Epochs.
        growth: ``"geometric"`` of :math:`\lambda`, or ``"linear"`` of :math:`\theta`.
        strength: :math:`\lambda_0` > 0.
        factor: :math:`g \ge 1`. 1.02 is from memory; an author's public code has 1.05 for 120 of 200 epochs. Over few epochs
            either is little.
        start: :math:`\theta_0` in [0, 1) of the linear one.

    Raises:
        ValueError: no layer has quantized weights; epochs that leave none after the relaxed ones; ``keep`` or ``patience``,
            which would choose or end with relaxed weights.

    Sources: Yin et al. 2018, "BinaryRelax: a relaxation approach for training deep neural networks with quantized weights";
    with an EnResNet Li, Wang and Xin 2020 (arXiv:2008.13305).
    """

    name: ClassVar[str] = "BinaryRelax"

    rule: Supervised | Mapping[str, Any] | None = None
    relaxed: int = 10
    growth: Growth = "geometric"
    strength: float = 1.0
    factor: float = 1.02
    start: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", self._rule())
        for field in fields(Supervised):
            given, own = getattr(self, field.name), getattr(self.rule, field.name)
            if given not in (field.default, own):
                raise ValueError(f"{field.name} is the rule's: give it to rule, not to {type(self).__name__}")
            object.__setattr__(self, field.name, own)
        super().__post_init__()
        checks.count("relaxed", self.relaxed, low=0)
        checks.choice("growth", self.growth, get_args(Growth))
        checks.number("strength", self.strength, 0.0, exclusive_low=True)
        checks.number("factor", self.factor, 1.0, hint="1 keeps lambda")
        if checks.number("start", self.start, 0.0, 1.0) == 1.0:
            raise ValueError("start must be below 1, got 1: relaxed=0 is quantized from the start")
        if self.keep == "best" or self.patience is not None:
            raise ValueError(
                "keep='best' and patience go by epochs whose weights may be relaxed: use keep='last' and no patience"
            )

    def _rule(self) -> Supervised:
        rule: Any = self.rule
        own = {f.name: getattr(self, f.name) for f in fields(Supervised)}
        if rule is None:
            return BPTT(**own)
        if isinstance(rule, Mapping):
            arguments = dict(rule)
            kind: Any = RULES[checks.choice("rule.type", arguments.pop("type", None), RULES)]
            changed = {f.name: own[f.name] for f in fields(Supervised) if own[f.name] != f.default}
            try:
                rule = kind(**{**changed, **arguments})
            except TypeError as error:
                raise ValueError(f"rule: {error}") from error
        if isinstance(rule, BinaryRelax) or not isinstance(rule, Supervised) or type(rule).fit is not Supervised.fit:
            raise TypeError(
                f"rule must be a rule by minibatches with the common training loop, such as BPTT(lr=1e-3), got {rule!r:.80}"
            )
        return rule

    def theta(self, epoch: int) -> float:
        r""":math:`\theta` in an epoch, from 0."""
        if epoch >= self.relaxed:
            return 1.0
        if self.growth == "linear":
            return self.start + (1.0 - self.start) * epoch / self.relaxed
        try:
            return theta_of(self.strength * self.factor**epoch)
        except OverflowError:
            return 1.0

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        assert isinstance(self.rule, Supervised)
        self.rule.refuse(model, example)
        if not quantizers(model):
            raise ValueError(
                "no layer of the model has quantized weights: train quantization.quantize(model, "
                'weights=Quantizer(Ternary(), scale="least-squares"))'
            )

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        assert isinstance(self.rule, Supervised)
        found = quantizers(model)

        def relax(theta: float) -> None:
            for quantizer in found:
                quantizer.relax(theta)

        with self.rule.lend(model, example) as lent:
            judge = lent.judge

            def conclude(records: list[dict[str, Any]], data: Data) -> None:
                if judge is not None:
                    judge(records, data)
                records[-1]["theta"] = self.theta(len(records) - 1)
                relax(self.theta(len(records)))  # of the next epoch; a checkpoint has it

            lent.judge = conclude
            try:
                relax(self.theta(0))
                yield lent
            finally:
                relax(1.0)

    def fit(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None = None,
        *,
        epochs: int,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        fabric: Fabric | None = None,
        log: str | Path | None = None,
    ) -> History:
        if checks.count("epochs", epochs) <= self.relaxed:
            raise ValueError(
                f"epochs must be more than relaxed={self.relaxed}, got {epochs}: the last ones train quantized weights"
            )
        return super().fit(
            model, train, validation, epochs=epochs, checkpoint=checkpoint, progress=progress, fabric=fabric, log=log
        )

    def _identity(self, model: nn.Module, train: Data, validation: Data | None, epochs: int) -> dict[str, Any]:
        assert isinstance(self.rule, Supervised)
        found = self.rule._identity(model, train, validation, epochs)
        own = [self.relaxed, self.growth, self.strength, self.factor, self.start]
        return {**found, "rule": [self.name, found["rule"]], "relaxation": own}


def quantizers(model: nn.Module) -> list[WeightQuantizer]:
    """Those of the weights of ``model``."""
    return [m for m in model.modules() if isinstance(m, WeightQuantizer)]


RULES[BinaryRelax.name] = BinaryRelax
