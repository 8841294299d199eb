"""Does a network resist, or does its gradient merely hide the way?"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import (
    EOT,
    FGSM,
    PGD,
    Attack,
    Backprop,
    BluntGradientWarning,
    Goal,
    GradientSource,
    Linf,
    RandomNoise,
    ThreatModel,
    Transfer,
    cross_entropy,
)
from snnrobust.attacks.selection import Measurement, measure
from snnrobust.attacks.threat import common_eps
from snnrobust.data import Data, take
from snnrobust.draws import Stream, derive, device_of, evaluating, is_stochastic
from snnrobust.evaluation.progress import progress_bar
from snnrobust.statistics import holm, paired_greater

__all__ = ["Check", "MaskingReport", "diagnose"]

Status = Literal["passed", "failed", "inconclusive", "not run"]
LEVEL = 0.05
ENOUGH = 50  # samples below which a difference that is not significant means nothing


@dataclass(frozen=True)
class Check:
    """One question to the gradient: what was found, what it means, what to do if it failed."""

    name: str
    status: Status
    found: str
    meaning: str
    remedy: str
    p_value: float | None = None


@dataclass
class MaskingReport:
    """The checks, and the verdict: ``masked`` if one failed, ``inconclusive`` if one could not tell, else ``consistent``.

    ``consistent`` says that nothing speaks against the gradient, not that the network is robust.
    """

    settings: dict[str, Any]
    checks: list[Check] = field(default_factory=list)

    @property
    def verdict(self) -> Literal["masked", "inconclusive", "consistent"]:
        statuses = {c.status for c in self.checks}
        if "failed" in statuses:
            return "masked"
        return "inconclusive" if "inconclusive" in statuses else "consistent"

    def __str__(self) -> str:
        lines = [f"gradient: {self.verdict} ({self.caption()})"]
        for c in self.checks:
            lines.append(f"  {c.status:12} {c.name}: {c.found}")
            if c.status in ("failed", "inconclusive"):
                lines += [f"               means: {c.meaning}", f"               do: {c.remedy}"]
        return "\n".join(lines)

    def caption(self) -> str:
        s = self.settings
        norm = f" in {s['norm']}" if "norm" in s else ""
        return f"eps = {s['eps']:.4g}{norm}, n = {s['n']}, seed {s['seed']}, {s['draws']} draws a judgement"

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, **asdict(self)}


def diagnose(
    model: nn.Module,
    data: Data,
    threat: ThreatModel,
    *,
    gradient: GradientSource | None = None,
    source: nn.Module | None = None,
    n: int | None = None,
    seed: int = 0,
    draws: int = 32,
    progress: bool = True,
) -> MaskingReport:
    """Look for gradient masking: would an attack through this gradient find what is there to find?

    Args:
        model: Inputs to logits ``[B, K]``.
        data: The first ``n`` samples are used.
        threat: The budget that the robustness claim is about.
        gradient: The gradient under examination; default ``Backprop()``, with ``EOT(4)`` for a model with randomness.
        source: Another model of the same task, whose attacks are transferred; without it that check is not run.
        n: Number of samples; default all. Below 100 little can be told.
        seed: Decides every draw.
        draws: Draws of each judgement, for a model with randomness.
        progress: Show a progress bar.

    Source: the checks follow Athalye et al. 2018 and Carlini et al. 2019; tests are paired, one-sided and Holm-adjusted at
    the 5 % level.
    """
    checks.module("model", model)
    if not isinstance(threat, ThreatModel):
        raise TypeError(f'threat must be a threat model such as Linf("8/255"), got {threat!r}')
    if common_eps(threat, "diagnose") == 0:
        raise ValueError("eps must be positive: with eps = 0 there is no attack to diagnose")
    x, y = (t.to(device_of(model)) for t in take(data, n))
    threat.check("inputs", x)
    random = is_stochastic(model, x[:16])
    draws = checks.count("draws", draws) if random else 1
    examined = _default(model, x) if gradient is None else gradient
    report = MaskingReport(
        {"eps": threat.eps, "norm": threat.name, "n": len(x), "seed": seed, "draws": draws, "gradient": repr(examined)}
    )
    ids, others = torch.arange(len(x)), _of_another_class(x, y)

    def judge(inputs: Tensor) -> Measurement:
        with evaluating(model):
            return measure(model, inputs, Goal(y), Stream(derive(seed, "judge"), ids), draws)

    with progress_bar("diagnosing", 7 if source is None else 8, progress) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", BluntGradientWarning)  # that is what is being found out

        def attacked(attack: Attack) -> Measurement:
            x_adv = attack(model, x, y, seed=seed, sample_ids=ids)
            advance()
            return judge(x_adv)

        with evaluating(model):
            alive, usable = _alive(examined, model, x, y, Stream(derive(seed, "gradient"), ids))
        report.checks += [_classifies(judge(x), y, draws), alive]
        advance()
        if not usable:
            return report
        pgd = PGD(threat, steps=40, gradient=examined)
        noise = attacked(RandomNoise(threat))
        fgsm = attacked(FGSM(threat, gradient=examined))
        pgd10, pgd40 = attacked(replace(pgd, steps=10)), attacked(pgd)
        box = threat.largest(x)
        whole_box = attacked(pgd.at(box))
        swapped = judge(others)
        advance()
        transferred = None if source is None else attacked(Transfer(replace(pgd, gradient=_default(source, x)), source))
    kind = "random signs" if isinstance(threat, Linf) else "random noise"
    report.checks.append(_stronger_than_noise(pgd40, noise, draws, len(x), kind))
    report.checks += _orderings(
        [
            (
                "PGD-10 is not weaker than FGSM", pgd10, fgsm, ("PGD-10", "FGSM"),
                "Ten small steps find less than one large one: the gradient misleads beyond its first step.",
                "Attack with other surrogates (attacks.Surrogate), more EOT draws, a smaller step.",
            ),
            (
                "PGD-40 is not weaker than PGD-10", pgd40, pgd10, ("PGD-40", "PGD-10"),
                "More steps find less: the steps go astray, so no number of steps can be trusted.",
                "Attack with other surrogates (attacks.Surrogate), more EOT draws, restarts.",
            ),
            (
                "the whole box breaks what swapping images breaks", whole_box, swapped,
                (f"PGD-40 at eps = {box:g}", "another class's image"),
                "With the whole box allowed the attack could put in another class's image, and does worse than that: it fails.",
                "The gradient does not lead there. Check the encoder's gradient, quantizers and saturated neurons.",
            ),
            (
                "transfer is not stronger than white box", pgd40, transferred, ("PGD-40", "transfer"),
                "A model that knows nothing of the victim attacks it better than the victim's own gradient does.",
                "The victim's gradient is blunt: report the transfer attack, and look for the cause.",
            ),
        ],
        draws,
    )  # fmt: skip
    return report


def _default(model: nn.Module, x: Tensor) -> GradientSource:
    return EOT(4) if is_stochastic(model, x[:16]) else Backprop()


def _share(measured: Measurement, draws: int) -> NDArray[np.float64]:
    return (measured.correct.double() / draws).cpu().numpy()


def _alive(source: GradientSource, model: nn.Module, x: Tensor, y: Tensor, stream: Stream) -> tuple[Check, bool]:
    """The check, and whether an attack can be run through this gradient at all."""
    name, meaning = "the input gradient is alive", "Where the gradient is zero or NaN, a gradient attack does nothing."
    remedy = (
        "Find what cuts it: an encoder without gradient, a hard quantizer, dead or saturated neurons, a saturated softmax "
        "(attack the margin instead)."
    )
    zero = 0
    for index in torch.arange(len(x)).split(256):
        try:
            gradient, _ = source(model, x[index], y[index], cross_entropy, stream.select(index))
        except ValueError as error:  # it names the share of NaN, or says that there is no path
            return Check(name, "failed", str(error), meaning, remedy), False
        zero += int((gradient.flatten(1) == 0).all(1).sum())
    share = zero / len(x)
    status: Status = "failed" if share > 0.1 else "inconclusive" if share > 0.01 else "passed"
    return Check(name, status, f"zero for {share:.1%} of samples, NaN for none", meaning, remedy), True


def _classifies(clean: Measurement, y: Tensor, draws: int) -> Check:
    accuracy, chance = float(_share(clean, draws).mean()), float(torch.bincount(y).max() / len(y))
    return Check(
        "there is something to attack",
        "passed" if len(y) >= ENOUGH and accuracy > 2 * chance else "inconclusive",
        f"clean accuracy {accuracy:.1%} on {len(y)} samples; the commonest class has {chance:.1%} of them",
        "On few samples, or on a model that hardly classifies, the other checks cannot tell much.",
        "Use at least 50 samples and a trained model.",
    )


def _stronger_than_noise(pgd: Measurement, noise: Measurement, draws: int, n: int, kind: str) -> Check:
    p = paired_greater(pgd.margin.cpu().numpy(), noise.margin.cpu().numpy())
    found = (
        f"accuracy {_share(pgd, draws).mean():.1%} under PGD-40 and {_share(noise, draws).mean():.1%} under {kind}; "
        f"mean margin of the wrong class {float(pgd.margin.mean()):.3g} and {float(noise.margin.mean()):.3g}"
    )
    return Check(
        f"PGD-40 is stronger than {kind}",
        "passed" if p < LEVEL else "failed" if n >= ENOUGH else "inconclusive",
        found,
        "The gradient knows no more about the model than noise of the same size.",
        "Do not report this attack's accuracy as robustness. Check the encoder's gradient; attack through another surrogate.",
        p,
    )


Ordering = tuple[str, Measurement, Measurement | None, tuple[str, str], str, str]


def _orderings(orderings: list[Ordering], draws: int) -> list[Check]:
    """Each says that the first measurement's accuracy is not above the second's."""
    tested = [
        (o, None if o[2] is None else paired_greater(_share(o[1], draws), _share(o[2], draws))) for o in orderings
    ]
    adjusted = iter(holm([p for _, p in tested if p is not None]))
    found = []
    for (name, stronger, weaker, (first, second), meaning, remedy), p in tested:
        if weaker is None or p is None:
            found.append(Check(name, "not run", "no source model was given", meaning, "Pass source=another model."))
            continue
        q = next(adjusted)
        text = f"accuracy {_share(stronger, draws).mean():.1%} with {first}, {_share(weaker, draws).mean():.1%} with {second}"
        found.append(Check(name, "failed" if q < LEVEL else "passed", text, meaning, remedy, q))
    return found


def _of_another_class(x: Tensor, y: Tensor) -> Tensor:
    """For each sample, the next one in the set with another label."""
    if len(y.unique()) < 2:
        raise ValueError("the data holds one class only: diagnosis needs at least two")
    start = index = torch.arange(len(y), device=y.device)
    for shift in range(1, len(y)):
        same = y[index] == y
        if not same.any():
            break
        index = torch.where(same, (start + shift) % len(y), index)
    return x[index]
