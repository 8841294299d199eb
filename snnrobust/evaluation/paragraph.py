"""What was measured, in the words that a paper needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from snnrobust import __version__
from snnrobust.evaluation.report import CONTROL, DOUBLED, NO_ATTACKS, NULL, WORST, RobustnessReport

__all__ = ["describe", "paragraph"]

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
        f"{settings.get('norm', 'Linf')}, wants any wrong class, and knows at most architecture, weights and chip, not the "
        "draws of a model with randomness.",
        f"Samples: the first {settings['n']:,} of the test set, those that are misclassified without attack included"
        + (" (fewer than the 1,000 that a claim needs)." if settings["n"] < 1000 else "."),
        _attacks(content),
    ]
    random = [r for r in attacked if r["judge_draws"] > 1]
    if random:
        select, judge = random[0]["selection_draws"], random[0]["judge_draws"]
        said.append(
            f"{_expectation(content)}For each sample the candidate, the clean input included, that is worst on {select} draws is "
            f"judged on {judge} others: RA_1 is the mean share of right answers, RA_10 the chance of ten right answers in a row."
        )
    for r in attacked:
        said.append(_numbers(r, rows, content.get("stages") or []))
    said.append(f"Measured with snnrobust {__version__}, seed {settings['seed']}; intervals are 95 % over samples.")
    return " ".join(said)


def _expectation(content: Mapping[str, Any]) -> str:
    """Said where it is true of every attack."""
    suites = {s["suite"] for s in content.get("stages") or []}
    described = content.get("attacks") or {}
    names = {r["attack"] for r in content["rows"] if r["attack"] not in NO_ATTACKS}
    averaged = all(n in suites or "EOT(" in described.get(n, "") for n in names)
    return "Models with randomness are attacked through the expectation. " if averaged else ""


def describe(part: Any) -> str:
    """An attack or a part of it with its settings, without the threat and what is inside of models."""
    if isinstance(part, nn.Module):
        return type(part).__name__
    if is_dataclass(part) and not isinstance(part, type):
        shown = {f.name: getattr(part, f.name) for f in fields(part) if f.name != "threat"}
        return f"{type(part).__name__}({', '.join(f'{name}={describe(value)}' for name, value in shown.items())})"
    if isinstance(part, Mapping):
        return f"{{{', '.join(f'{key}: {describe(value)}' for key, value in part.items())}}}"
    if isinstance(part, tuple | list):
        return f"[{', '.join(map(describe, part))}]"
    return getattr(part, "__name__", None) or f"{part!r:.80}"


def _attacks(content: Mapping[str, Any]) -> str:
    suites = {s["suite"]: s for s in content.get("stages") or [] if s.get("version")}
    names = {r["attack"]: None for r in content["rows"] if r["attack"] not in NO_ATTACKS}
    said = []
    for name in names:
        if name not in suites:
            described = (content.get("attacks") or {}).get(name)
            said.append(f"{name} ({described})" if described else name)
            continue
        run = {s["stage"]: s for s in content["stages"] if s["suite"] == name and not s["skipped"]}
        most, queries = (sum(s[key] for s in run.values()) for key in ("most_gradients", "most_forwards"))
        said.append(
            f"{name} (snnrobust's suite, version {suites[name]['version']}: {', '.join(run)}; at most {most:,} gradients and "
            f"{queries:,} further forward passes for each image)"
        )
    return f"Attacks: {'; '.join(said)}; a sample counts as broken by the worst of them."


def _numbers(worst: Mapping[str, Any], rows: list[dict[str, Any]], stages: list[dict[str, Any]]) -> str:
    here = {r["attack"]: r for r in rows if all(r[k] == worst[k] for k in ("model", "chip", "eps"))}
    clean = next(r for r in rows if r["attack"] == "clean" and all(r[k] == worst[k] for k in ("model", "chip")))
    text = f"{worst['model']} ({worst['chip']}) has {_share(clean)} without attack, {_share(worst)} at eps = {worst['eps']:.4g}"
    if worst["judge_draws"] > 1 and worst["accuracy_10"] is not None:
        text += f" (RA_10 {100 * worst['accuracy_10']:.1f} %)"
    if NULL in here:
        text += f"; random noise of the same size, as often selected, leaves {_share(here[NULL])}"
    suite = here.get(next((s["suite"] for s in stages if s.get("version")), ""))
    if CONTROL in here:
        text += f"; its own gradient with the suite's whole budget leaves {_share(here[CONTROL])}"
    if DOUBLED in here and suite is not None:
        moved = suite["accuracy"] - here[DOUBLED]["accuracy"]
        verdict = "converged" if abs(moved) < CONVERGED else "not converged"
        text += f"; doubling steps, queries and draws moves the accuracy of the suite by {100 * moved:.1f} points ({verdict})"
    return text + "."


def _share(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
