"""Does a network resist, or does its gradient merely hide the way?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection

from torch import Tensor, nn

from snnrobust import checks as arguments
from snnrobust.attacks import Backprop, BluntGradientWarning, GradientSource, ThreatModel
from snnrobust.attacks.threat import common_eps
from snnrobust.data import Data, take
from snnrobust.draws import device_of, evaluating, is_stochastic
from snnrobust.evaluation.diagnosis import ablation, active, alive, fidelity, orderings, output, stronger, validity
from snnrobust.evaluation.diagnosis.check import Check, MaskingReport, settled
from snnrobust.evaluation.diagnosis.hygiene import REPEATS, hygiene, restored
from snnrobust.evaluation.diagnosis.subject import Subject, default_gradient
from snnrobust.evaluation.progress import progress_bar

__all__ = ["CHECKS", "Check", "MaskingReport", "diagnose"]

SAMPLES = 128

CHECKS: dict[str, Callable[[Subject], list[Check]]] = {
    "skill": output.skill,
    "determinism": output.determinism,
    "output": output.output,
    "gradient": alive.alive,
    "neurons": alive.neurons,
    "noise": orderings.noise,
    "fidelity": fidelity.fidelity,
    "active test": active.active,
    "sweep": stronger.sweep,
    "orderings": orderings.orderings,
    "transfer": stronger.transfer,
    "gradient-free": stronger.gradient_free,
    "encoder": ablation.encoder,
    "noise ablation": ablation.noise_ablation,
    "learning rule": stronger.own_rule,
    "validity": validity.validity,
}
"""By name, in the order in which they are run. Before them, always, the hygiene of the model's state."""


def diagnose(
    model: nn.Module,
    data: Data,
    threat: ThreatModel,
    *,
    gradient: GradientSource | None = None,
    source: nn.Module | None = None,
    checks: Collection[str] | None = None,
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
        checks: Names of the checks to run, of ``CHECKS``; default all. The model's hygiene and whether the gradient is alive are
            always examined.
        n: Number of samples; default 128, or all where there are fewer. Below 100 little can be told.
        seed: Decides every draw.
        draws: Draws of each judgement, for a model with randomness.
        progress: Show a progress bar.

    Returns:
        The checks and the verdict. Tests are paired and one-sided, and share the 5 % level after Holm. docs/diagnosis.md says how
        each check is measured, its threshold, and what to do.

    Source: the checks follow Athalye et al. 2018, Carlini et al. 2019 and Zimmermann et al. 2022.
    """
    arguments.module("model", model)
    if not isinstance(threat, ThreatModel):
        raise TypeError(f'threat must be a threat model such as Linf("8/255"), got {threat!r}')
    if common_eps(threat, "diagnose") == 0:
        raise ValueError("eps must be positive: with eps = 0 there is no attack to diagnose")
    wanted = _wanted(checks)
    x, y = (t.to(device_of(model)) for t in (_first(data) if n is None else take(data, n)))
    threat.check("inputs", x)
    orderings.another_class(x, y)
    arguments.count("draws", draws)
    with (
        progress_bar("diagnosing", 1 + len(wanted), progress) as advance,
        warnings.catch_warnings(),
        evaluating(model),
        restored(model),
    ):
        warnings.simplefilter("ignore", BluntGradientWarning)  # that is what is being found out
        found = hygiene(model, x, y, seed, threat.bounds[1])
        advance()
        stateful = any(c.name == REPEATS and c.status == "failed" for c in found)
        random = not stateful and is_stochastic(model, x[:16])
        draws = draws if random else 1
        examined = gradient or (Backprop() if stateful else default_gradient(model, x))
        report = MaskingReport(
            {
                "eps": threat.eps,
                "norm": threat.name,
                "n": len(x),
                "seed": seed,
                "draws": draws,
                "gradient": repr(examined),
            }
        )
        if not stateful:  # of what is no function of its input, nothing else can be said
            subject = Subject(model, x, y, threat, examined, seed, draws, random, source)
            for name in wanted:
                found += CHECKS[name](subject)
                advance()
    report.checks = settled(found)
    return report


def _first(data: Data) -> tuple[Tensor, Tensor]:
    try:
        return take(data, SAMPLES)
    except ValueError:  # there are fewer
        return take(data, None)


def _wanted(checks: Collection[str] | None) -> list[str]:
    if checks is None:
        return list(CHECKS)
    if isinstance(checks, str) or not checks:
        raise TypeError(f"checks must be names such as ['sweep'], got {checks!r}")
    for name in checks:
        arguments.choice("checks", name, CHECKS)
    return [name for name in CHECKS if name in checks or name == "gradient"]
