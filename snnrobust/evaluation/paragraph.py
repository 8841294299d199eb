"""What was measured, in the words that a paper needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snnrobust import __version__
from snnrobust.evaluation.report import CONTROL, DOUBLED, NO_ATTACKS, NULL, WORST, RobustnessReport

__all__ = ["paragraph"]

CONVERGED = 0.01  # what doubling may move the accuracy by


def paragraph(report: RobustnessReport | Mapping[str, Any]) -> str:
    """Threat model, measurement and numbers of a report, as text to be copied; empty for one without attacks."""
    content = report.to_json() if isinstance(report, RobustnessReport) else report
    rows, settings = content["rows"], content["settings"]
    attacked = [r for r in rows if r["attack"] == WORST]
    if not attacked:
        return ""
    low, high = settings.get("bounds", (0.0, 1.0))
    budgets = ", ".join(f"{eps:.4g}" for eps in sorted({r["eps"] for r in attacked}))
    said = [
        f"Threat model: inputs lie in [{low:g}, {high:g}]; the attacker may change each by at most eps = {budgets} in "
        f"{settings.get('norm', 'Linf')}, wants any wrong class, knows architecture, weights and chip, but not the "
        "draws of a model with randomness.",
        f"Samples: the first {settings['n']:,} of the test set, those that are misclassified without attack included"
        + (" (fewer than the 1,000 that a claim needs)." if settings["n"] < 1000 else "."),
        _attacks(content),
    ]
    random = [r for r in attacked if r["judge_draws"] > 1]
    if random:
        said.append(
            f"Models with randomness are attacked through the expectation. For each sample the candidate, the clean input "
            f"included, that is worst on {random[0]['selection_draws']} draws is judged on {random[0]['judge_draws']} others: "
            "RA_1 is the mean share of right answers, RA_10 the chance of ten right answers in a row."
        )
    for r in attacked:
        said.append(_numbers(r, rows))
    said.append(f"Measured with snnrobust {__version__}, seed {settings['seed']}; intervals are 95 % over samples.")
    return " ".join(said)


def _attacks(content: Mapping[str, Any]) -> str:
    suites = {s["suite"]: s for s in content.get("stages") or [] if s.get("version")}
    names = {r["attack"]: None for r in content["rows"] if r["attack"] not in NO_ATTACKS}
    said = []
    for name in names:
        if name not in suites:
            said.append(name)
            continue
        run = {s["stage"]: s for s in content["stages"] if s["suite"] == name and not s["skipped"]}
        most, queries = (sum(s[key] for s in run.values()) for key in ("most_gradients", "most_forwards"))
        said.append(
            f"{name} (snnrobust's suite, version {suites[name]['version']}: {', '.join(run)}; at most {most:,} gradients and "
            f"{queries:,} further forward passes for each image)"
        )
    return f"Attacks: {'; '.join(said)}; a sample counts as broken by the worst of them."


def _numbers(worst: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    here = {r["attack"]: r for r in rows if all(r[k] == worst[k] for k in ("model", "chip", "eps"))}
    clean = next(r for r in rows if r["attack"] == "clean" and all(r[k] == worst[k] for k in ("model", "chip")))
    text = f"{worst['model']} ({worst['chip']}) has {_share(clean)} without attack, {_share(worst)} at eps = {worst['eps']:.4g}"
    if worst["judge_draws"] > 1 and worst["accuracy_10"] is not None:
        text += f" (RA_10 {100 * worst['accuracy_10']:.1f} %)"
    if NULL in here:
        text += f"; random noise of the same size, as often selected, leaves {_share(here[NULL])}"
    if CONTROL in here:
        text += f"; its own gradient with the suite's whole budget leaves {_share(here[CONTROL])}"
    if DOUBLED in here:
        moved = worst["accuracy"] - here[DOUBLED]["accuracy"]
        verdict = "converged" if abs(moved) < CONVERGED else "not converged"
        text += f"; doubling steps, queries and draws moves the accuracy by {100 * moved:.1f} points ({verdict})"
    return text + "."


def _share(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
