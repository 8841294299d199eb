"""Quantization against membership inference: float and quantized models of one recipe, under the same attacks."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import MembershipReport, OfflineLiRA, ShadowMIA, train_shadows
from snnrobust.attacks.membership import SIGNALS, Settings, Signal, apart, signals
from snnrobust.attacks.membership_shadow import Shadows
from snnrobust.codesign.membership_leakage import Leakage
from snnrobust.data import Data, take
from snnrobust.draws import derive, keyed
from snnrobust.learning_rules.trainer import Trainer

__all__ = ["FittedQuantizer", "MembershipExperiment", "early_stops", "membership_experiment"]

Pair = tuple[Tensor, Tensor]
Quantize = Callable[[nn.Module], nn.Module]
Train = Callable[[Pair, int], nn.Module | Sequence[nn.Module]]
LIRA, REGRESSION, WEAK = "offline LiRA", "shadow logistic regression", ", float shadows"


@dataclass(frozen=True)
class FittedQuantizer:
    """A quantizer that is shown the samples which its model was trained on: calibration on them, quantization-aware training.

    What it sees, it may give away: so each shadow is quantized with the shadow's own training samples.

    Args:
        quantize: ``model -> model``, a copy.
        fit: ``(copy, (x, y), seed)``, changes the copy in place: ``lambda m, pair, seed: BPTT(seed=seed).fit(m, pair, epochs=5)``
            or ``lambda m, pair, seed: calibrate(m, pair[0])``. What it returns is ignored.
    """

    quantize: Quantize
    fit: Callable[[nn.Module, Pair, int], object]

    def __post_init__(self) -> None:
        checks.function("quantize", self.quantize)
        checks.function("fit", self.fit)


@dataclass(frozen=True, eq=False)
class MembershipExperiment:
    """Float victims and float shadows of one recipe, which quantizers are compared on. From :func:`membership_experiment`.

    Args:
        victims: Of each the models along its training, the last fully trained.
        shadows: At each of these moments, all of them.
        members, non_members: Whose membership is asked.
        settings: Of all attacks: draws of random models, batch size, rates of false alarms, confidence.
        seed: Of the attacks and of quantizers with randomness.
    """

    victims: tuple[tuple[nn.Module, ...], ...] = field(repr=False)
    shadows: tuple[Shadows, ...] = field(repr=False)
    members: Pair = field(repr=False)
    non_members: Pair = field(repr=False)
    settings: Settings = field(default_factory=Settings)
    seed: int = 0
    _out: dict[int | None, Tensor] = field(default_factory=dict, init=False, repr=False)

    def leakage(
        self,
        quantize: Quantize | FittedQuantizer | None = None,
        *,
        name: str = "",
        checkpoint: int = -1,
        threshold_on: Sequence[Signal] = ("loss", "modified_entropy"),
        float_shadows: bool = True,
    ) -> Leakage:
        """Quantize victims and shadows and attack the victims.

        The attacker knows the quantizer and puts its shadows through the same (adaptive). Beside it stands the weaker one
        whose shadows are left in float, marked ``", float shadows"``.

        Args:
            quantize: ``model -> model``, a quantized copy; a :class:`FittedQuantizer`; None leaves models as they are.
            name: Of the result; default ``"float"`` or ``"quantized"``.
            checkpoint: Index of the models along the trainings.
            threshold_on: Signals of :class:`~snnrobust.attacks.ThresholdMIA`.
            float_shadows: Also run the weaker attacker.

        Raises:
            ValueError: ``quantize`` changes the model that it is given or returns one model for several, or ``checkpoint`` is
                not there.
            TypeError: ``quantize`` returns no module.
        """
        number = len(self.shadows)
        if not -number <= checks.integer("checkpoint", checkpoint) < number:
            raise ValueError(
                f"checkpoint must be in {-number}..{number - 1}, the models along a training, got {checkpoint}"
            )
        for signal in threshold_on:
            checks.choice("threshold_on", signal, SIGNALS)
        checkpoint %= number
        victims = self.quantized(quantize, checkpoint=checkpoint)
        attackers = {"": self.shadows[checkpoint]}
        if quantize is not None:
            known = self.shadows[checkpoint]
            made = _quantized(quantize, known.models, _inside(known), derive(self.seed, "quantize", "shadows"))
            attackers = {"": replace(known, models=made)} | ({WEAK: known} if float_shadows else {})
        found = [self.settings.of(victim, self.members, self.non_members, self.seed) for victim in victims]
        reports = {
            f"threshold on {signal}": [self._report(signal, one[signal], other[signal]) for one, other in found]
            for signal in threshold_on
        }
        for label, shadows in attackers.items():
            attack = ShadowMIA(shadows=shadows, **self._common())
            reports[REGRESSION + label] = [attack(v, self.members, self.non_members, seed=self.seed) for v in victims]
            logits = [torch.cat([one["logit"], other["logit"]]) for one, other in found]
            float_ones = checkpoint if shadows is self.shadows[checkpoint] else None
            reports[LIRA + label] = self._lira(shadows, logits, float_ones)
        pool = (self.shadows[checkpoint].x, self.shadows[checkpoint].y)
        return Leakage(
            name or ("float" if quantize is None else "quantized"),
            checkpoint,
            tuple(float(one["correct"].mean()) for one, _ in found),
            tuple(float(other["correct"].mean()) for _, other in found),
            tuple(self._accuracy(victim, pool) for victim in victims),
            {label: tuple(of_victims) for label, of_victims in reports.items()},
        )

    def quantized(self, quantize: Quantize | FittedQuantizer | None, *, checkpoint: int = -1) -> tuple[nn.Module, ...]:
        """The victims that :meth:`leakage` attacks, for what else is asked of them."""
        models = [along[checkpoint] for along in self.victims]
        if quantize is None:
            return tuple(models)
        key = derive(self.seed, "quantize", "victims")
        return _quantized(quantize, models, [self.members] * len(models), key)

    def early_stopped(self, like: Leakage, *, name: str = "") -> Leakage:
        """The control: float models no further trained than they need to be as accurate as ``like``, with shadows alike.

        Whatever leaks less than the fully trained float model, but more than this, has merely given up accuracy. The earliest
        checkpoint is taken whose accuracy on the pool, the mean over victims, is at least that of ``like``; where there is none,
        the most accurate one, and ``matched`` is False.
        """
        aim = sum(like.on_pool) / len(like.on_pool)
        found = self._along()
        reaching = [k for k, accuracy in enumerate(found) if accuracy >= aim]
        chosen = reaching[0] if reaching else max(range(len(found)), key=lambda k: found[k])
        label = name or f"float, stopped at the accuracy of {like.name}"
        return replace(self.leakage(name=label, checkpoint=chosen), matched=bool(reaching))

    def _along(self) -> list[float]:
        """Accuracy on the pool at each checkpoint, the mean over victims."""
        pool = (self.shadows[-1].x, self.shadows[-1].y)
        every = [[self._accuracy(m, pool) for m in models] for models in self.victims]
        return [sum(column) / len(column) for column in zip(*every, strict=True)]

    def _accuracy(self, model: nn.Module, pair: Pair) -> float:
        s = self.settings
        found = signals(model, *pair, seed=self.seed, draws=s.draws, batch_size=s.batch_size)
        return float(found["correct"].mean())

    def _lira(self, shadows: Shadows, observed: Sequence[Tensor], checkpoint: int | None) -> list[MembershipReport]:
        """:class:`~snnrobust.attacks.OfflineLiRA` on all victims, what the shadows say being asked for once."""
        lira, m = OfflineLiRA(shadows=shadows, **self._common()), len(self.members[1])
        out = self._out.get(checkpoint)
        if out is None:
            x, y = (torch.cat(both) for both in zip(self.members, self.non_members, strict=True))
            s = self.settings
            out = torch.stack([
                signals(model, x, y, seed=derive(self.seed, "shadow", i), draws=s.draws, batch_size=s.batch_size)["logit"]
                for i, model in enumerate(shadows.models)
            ])  # fmt: skip
        if checkpoint is not None:
            self._out[checkpoint] = out
        name = f"offline LiRA, {len(out)} shadows"
        if bool((out == out[0]).all()):  # in and out are the same distribution: the ratio is 1 everywhere
            return [self._report(name, torch.zeros(m), torch.zeros(out.shape[1] - m)) for _ in observed]
        scores = [lira.score(phi, out) for phi in observed]
        return [self._report(name, score[:m], score[m:]) for score in scores]

    def _common(self) -> dict[str, Any]:
        return {field.name: getattr(self.settings, field.name) for field in fields(Settings)}

    def _report(self, name: str, inside: Tensor, outside: Tensor) -> MembershipReport:
        label = f"threshold on {name}" if name in SIGNALS else name
        return self.settings.report(label, inside.double().numpy(), outside.double().numpy(), self.seed)


def membership_experiment(
    train: Train,
    members: Data,
    non_members: Data,
    pool: Data,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    shadows: int = 8,
    share: float = 0.5,
    settings: Settings | None = None,
    seed: int = 0,
) -> MembershipExperiment:
    """Train victims and shadows once; quantizers are compared on them.

    Args:
        train: ``((x, y), seed) -> model``, a new float model; or the models along its training, such as one an epoch (see
            :func:`early_stops`), the fully trained one last: they are the control at equal accuracy. Models from the most to the
            least regularised do as well.
        members: What victims are trained on.
        non_members: Of the same distribution; 10,000 of them for a TPR at 0.1 % FPR that can be believed.
        pool: The attacker's samples, none of which is in the other two sets. Of ``share`` times as many as there are members.
        seeds: Of the victims.
        shadows: How many, at least 2.
        share: Of the pool that each shadow is trained on.
        settings: Of all attacks; default ``Settings()``.
        seed: Of the shadows and the attacks.

    Raises:
        ValueError, TypeError: bad data, a sample that is in two of the sets, trainings of different numbers of models.

    Sources: A. Famili et al. 2023, Sensors 23(18):7722, and arXiv:2512.15335 (quantization against membership inference; of
    neither could the procedure be read in full, so this is ours); the attacks name theirs.
    """
    checks.function("train", train)
    checks.count("shadows", shadows, low=2)
    if not seeds:
        raise ValueError("seeds must be the training seeds of at least one victim, such as (0, 1, 2), got none")
    inside, outside, x_pool = take(members), take(non_members), take(pool)
    for k in seeds:
        checks.count("seeds", k, low=0)
    for name, x, other, x_other in (
        ("members", inside[0], "non_members", outside[0]),
        ("members", inside[0], "pool", x_pool[0]),
        ("non_members", outside[0], "pool", x_pool[0]),
    ):  # before hours of training, not after
        apart(name, x, other, x_other)

    def along(pair: Pair, number: int) -> nn.Module:
        found = train(pair, number)
        models = (found,) if isinstance(found, nn.Module) and not isinstance(found, nn.ModuleList) else tuple(found)
        if not models or len({id(m) for m in models}) < len(models):
            raise ValueError("train must return a model, or different models along its training: return copies")
        return nn.ModuleList(checks.module("what train returns", m) for m in models)

    victims: list[tuple[nn.Module, ...]] = []
    for k in seeds:
        with keyed(derive(k, "victim")):
            victims.append(tuple(along(inside, k)))  # type: ignore[arg-type]
    trained = train_shadows(along, x_pool, shadows, seed=seed, share=share)
    lengths = {len(v) for v in victims} | {len(m) for m in trained.models}  # type: ignore[arg-type]
    if len(lengths) > 1:
        raise ValueError(f"train must return equally many models along each training, got {sorted(lengths)}")
    at = tuple(replace(trained, models=tuple(m[k] for m in trained.models)) for k in range(lengths.pop()))  # type: ignore[index]
    return MembershipExperiment(tuple(victims), at, inside, outside, settings or Settings(), seed)


def early_stops(trainer: Trainer, model: nn.Module, train: Pair, epochs: Sequence[int]) -> list[nn.Module]:
    """Copies of ``model`` after each of ``epochs`` of one training with ``trainer``.

    Args:
        trainer: Such as ``BPTT(lr=1e-3)``; with a constant learning rate, for another schedule goes by the last epoch.
        model: Trained in place.
        epochs: Rising, such as ``(1, 2, 4, 8)``.

    Raises:
        ValueError: epochs that do not rise, or a schedule that is not constant.
    """
    if not epochs or any(a >= b for a, b in pairwise(epochs)):
        raise ValueError(f"epochs must be rising numbers such as (1, 2, 4, 8), got {tuple(epochs)}")
    if getattr(trainer, "schedule", "constant") != "constant":
        raise ValueError(
            f"trainer must have a constant learning rate to be stopped early, got schedule={trainer.schedule!r}: "  # type: ignore[attr-defined]
            "train anew for each number of epochs instead"
        )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in epochs:
            trainer.fit(model, train, epochs=count, checkpoint=Path(folder) / "state", progress=False)
            found.append(deepcopy(model))
    return found


def _inside(shadows: Shadows) -> list[Pair]:
    return [(shadows.x[rows], shadows.y[rows]) for rows in shadows.inside]


def _quantized(
    quantize: Quantize | FittedQuantizer, models: Sequence[nn.Module], pairs: Sequence[Pair], key: int
) -> tuple[nn.Module, ...]:
    """Each of ``models``, quantized under a key of its own."""
    fitted = quantize if isinstance(quantize, FittedQuantizer) else None
    convert = quantize if fitted is None else fitted.quantize
    checks.function("quantize", convert)
    made = []
    for i, (model, pair) in enumerate(zip(models, pairs, strict=True)):
        before, own = _digest(model), derive(key, i)
        with keyed(own):
            copy = checks.module("what quantize returns", convert(model))  # type: ignore[operator]
            if fitted is not None:
                if copy is model:
                    raise ValueError(
                        "quantize must return a copy where it is fitted afterwards: return deepcopy(model)"
                    )
                fitted.fit(copy, pair, own % 2**31)
        if _digest(model) != before:
            raise ValueError(
                "quantize changed the model that it was given, which other quantizers get too: let it return a changed copy"
            )
        made.append(copy)
    if len({id(m) for m in made}) < len(made):
        raise ValueError("quantize returned the same model for several: it must return one for each")
    return tuple(made)


def _digest(model: nn.Module) -> bytes:
    """Of all parameters and buffers."""
    found = hashlib.blake2b(digest_size=16)
    for name, t in model.state_dict().items():
        found.update(name.encode())
        found.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()
