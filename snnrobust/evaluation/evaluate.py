"""Robust accuracy, measured so that it can be believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import Attack, RandomNoise, Standard, asks_the_chip
from snnrobust.attacks.selection import Measurement, better
from snnrobust.attacks.threat import common_eps
from snnrobust.data import Data, take
from snnrobust.draws import device_of, is_stochastic
from snnrobust.evaluation.cell import Cell, Draws, run_cell
from snnrobust.evaluation.paragraph import describe
from snnrobust.evaluation.progress import progress_bar
from snnrobust.evaluation.report import CLEAN, IDEAL, NO_ATTACKS, NULL, WORST, RobustnessReport
from snnrobust.evaluation.suite import Job, run_suite

__all__ = ["evaluate", "select"]

_BLIND = (
    "{name} on {chip}: every attack was crafted without the chip's own gradient or answers. What they leave is an upper bound "
    "and no robustness: add an attack on the chip itself, with EOT where it is noisy"
)


def evaluate(
    model: nn.Module,
    data: Data,
    attacks: Mapping[str, Attack],
    *,
    eps: Sequence[float | str] | None = None,
    chips: Mapping[str, nn.Module | None] | None = None,
    n: int | None = None,
    seed: int = 0,
    selection_draws: int = 32,
    judge_draws: int = 128,
    batch_size: int = 256,
    name: str = "model",
    examples: int = 8,
    controls: bool = True,
    folder: str | Path | None = None,
    progress: bool = True,
) -> RobustnessReport:
    """Attack ``model`` and report its robust accuracy.

    For every chip, attack and budget an adversarial candidate is crafted for each sample. It competes with the clean input,
    and in the row ``worst case`` with the candidates of all attacks, on selection draws; the winner is judged on draws of
    their own. ``null control`` is the same selection with as many candidates of random noise that spends the whole budget. A
    model without randomness needs one draw of each.

    Args:
        model: Inputs to logits ``[B, K]``.
        data: The first ``n`` samples are used, the misclassified ones included.
        attacks: By name, all of one threat: the same norm and bounds.
        eps: Budgets at which every attack is run; default each attack's own.
        chips: Deployed copies of the model by name, attacked white box; None stands for ``model`` itself. Default: only that.
        n: Number of samples; default all.
        seed: Decides crafting, selection and judgement, which use independent streams.
        selection_draws, judge_draws: For models with randomness.
        batch_size: Changes no draw of snnrobust's modules; those of others (``nn.Dropout``) do depend on it.
        name: The model's name in the report.
        examples: Adversarial images kept for the report, of the worst case on the first chip.
        controls: After a suite (``attacks.standard``), run its controls: ``equal-budget control``, the model's own gradient with
            the same budget as restarts, and ``doubled effort``, the suite again on what is left with twice the steps, queries and
            draws. They have lines of their own, outside the worst case; they triple the cost.
        folder: Finished cells are kept there, and read back if nothing that they depend on has changed.
        progress: Show a progress bar.

    Returns:
        The report; its ``rows`` hold a line for each chip, attack and budget, its ``samples`` one for each sample too.

    Raises:
        ValueError, TypeError: bad data, no attack, an attack that does not apply to the model.
    """
    checks.module("model", model)
    if not isinstance(attacks, Mapping) or not attacks or any(not isinstance(a, Attack) for a in attacks.values()):
        raise TypeError(f"attacks must map names to attacks such as PGD(Linf('8/255')), got {attacks!r:.100}")
    for reserved in NO_ATTACKS:
        if reserved in attacks:
            raise ValueError(f"attacks must not be named {reserved!r}: the report uses that name")
    if eps is not None and isinstance(eps, int | float | str):
        raise TypeError(f"eps must be a sequence of budgets such as [{eps!r}], got {eps!r}")
    if sum(isinstance(a, Standard) for a in attacks.values()) > 1 and controls:
        raise ValueError("one suite at a time has controls: evaluate them one by one, or set controls=False")
    if chips is not None and not chips:
        raise ValueError("chips must name at least one chip, or be None for the model itself")
    checks.count("seed", seed, low=0)
    checks.count("examples", examples, low=0)
    checks.count("batch_size", batch_size)
    checks.count("selection_draws", selection_draws)
    checks.count("judge_draws", judge_draws)
    plan = _plan(attacks, eps)
    threat = next(iter(attacks.values())).threat
    norm, bounds = threat.name, threat.bounds
    x, y = take(data, n)
    for group in plan.values():
        next(iter(group.values())).threat.check("inputs", x)
    targets = {IDEAL: None} if chips is None else dict(chips)
    report = RobustnessReport(
        {
            "n": len(x),
            "seed": seed,
            "norm": norm,
            "bounds": list(bounds),
            "selection_draws": selection_draws,
            "judge_draws": judge_draws,
        }
    )
    report.attacks = {label: describe(attack) for label, attack in attacks.items()}
    store = None if folder is None else Path(folder)
    cells = len(targets) * (1 + 2 * sum(map(len, plan.values())))
    with progress_bar(f"attacking {name}", cells, progress) as bar:
        for chip, target in targets.items():
            victim = model if target is None else target
            draws = (
                Draws(selection_draws, judge_draws)
                if is_stochastic(victim, x[:16].to(device_of(victim)))
                else Draws(1, 1)
            )
            job = Job(victim, x, y, seed, draws, batch_size, store)
            cell = partial(_cell, job, bar)
            clean = cell(None)
            report.add(name, chip, CLEAN, 0.0, y, draws, clean, clean, [])
            if target is not None and not any(asks_the_chip(attack) for attack in attacks.values()):
                report.notes.append(_BLIND.format(name=name, chip=chip))
            for budget, group in plan.items():
                run, suites, tried = {}, [], 0
                for label, attack in group.items():
                    if isinstance(attack, Standard):
                        found = run_suite(job, attack, clean, (label, budget), controls, bar.say)
                        run[label] = found.cell
                        suites.append(found)
                        tried += sum(not r["skipped"] for r in found.records if r["suite"] == label)
                        bar()
                    else:
                        run[label], tried = cell(attack, label, budget), tried + 1
                bar.more(tried - len(run))
                noise = RandomNoise(next(iter(group.values())).threat)
                null = [cell(noise, NULL, i, budget) for i in range(tried)]
                for label, candidate in run.items():
                    report.add(name, chip, label, budget, y, draws, clean, select(clean, [candidate]), [candidate])
                winner = select(clean, list(run.values()))
                report.add(name, chip, WORST, budget, y, draws, clean, winner, list(run.values()))
                report.add(name, chip, NULL, budget, y, draws, clean, select(clean, null), null)
                for one in suites:
                    report.stages += [{"model": name, "chip": chip, "eps": budget, **record} for record in one.records]
                    for line, control in one.controls.items():
                        report.add(name, chip, line, budget, y, draws, clean, control, [control])
                if chip == next(iter(targets)) and examples:
                    report.add_examples(name, chip, budget, x, y, clean, winner, examples)
    return report


def _cell(job: Job, advance: Callable[[], None], attack: Attack | None, *labels: object) -> Cell:
    done = run_cell(
        job.model, attack, job.x, job.y, seed=job.seed, draws=job.draws, batch_size=job.batch_size, labels=labels,
        folder=job.folder,
    )  # fmt: skip
    advance()
    return done


def _plan(attacks: Mapping[str, Attack], eps: Sequence[float | str] | None) -> dict[float, dict[str, Attack]]:
    """Attacks by budget, smallest first."""
    if eps is not None and len(eps) == 0:
        raise ValueError("eps must hold at least one budget, or be None for each attack's own")
    plan: dict[float, dict[str, Attack]] = {}
    for label, attack in attacks.items():
        for one in [attack] if eps is None else [attack.at(e) for e in eps]:
            plan.setdefault(common_eps(one.threat, "evaluate"), {})[label] = one
    threats = {one.threat.at(0.0): label for group in plan.values() for label, one in group.items()}
    if len(threats) > 1:
        listed = ", ".join(f"{label!r}: {threat}" for threat, label in threats.items())
        raise ValueError(
            f"attacks must share one threat but for eps, a worst case over several means nothing, got {listed}"
        )
    return dict(sorted(plan.items()))


def select(clean: Cell, candidates: Sequence[Cell]) -> Cell:
    """Per sample, of the clean input and the candidates, the one that is worst for the model on the selection draws."""
    winner = clean
    for challenger in candidates:
        wins = better(challenger.selection, winner.selection)
        pick = partial(_pick, wins)
        winner = winner._replace(
            x_adv=pick(challenger.x_adv, winner.x_adv),
            selection=Measurement(*map(pick, challenger.selection, winner.selection)),
            judgement=Measurement(*map(pick, challenger.judgement, winner.judgement)),
            distance=pick(challenger.distance, winner.distance),
        )
    return winner


def _pick(wins: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(wins.view(-1, *[1] * (a.dim() - 1)), a, b)
