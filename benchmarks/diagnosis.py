"""How often ``diagnose`` is right: ``python -m benchmarks.diagnosis OUT`` trains small networks on MNIST, hides the gradient of
some, and prints what the diagnosis calls each. Whatever is in the folder OUT already is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats
from torch import Tensor, nn

from snnrobust import data, evaluation, models
from snnrobust.attacks import Linf
from snnrobust.draws import keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import BNTT
from snnrobust.learning_rules import BPTT
from snnrobust.neurons import LIF
from snnrobust.neurons import surrogate as surrogates

__all__ = ["MASKS", "NETWORKS", "Shifted", "confusion", "main", "saturate", "train"]

TIME_STEPS, TRAINED, EPOCHS = 4, 12_000, 2
SHAPE, CLASSES = (1, 28, 28), 10


@dataclass(frozen=True)
class Shifted(surrogates.Surrogate, registered=False):
    """A sharp arctangent beside the threshold, where potentials seldom are."""

    alpha: float = 20.0
    shift: float = 3.0

    def derivative(self, u: Tensor) -> Tensor:
        return surrogates.ATan(self.alpha).derivative(u - self.shift)


def _ann() -> nn.Module:
    return models.ordinary(models.ARCHITECTURES["conv-small"], SHAPE, CLASSES)


def _snn(encoder: type[Direct] | type[Poisson], norm: str) -> Callable[[], nn.Module]:
    return lambda: models.spiking(models.ARCHITECTURES["conv-small"], SHAPE, CLASSES, encoder(TIME_STEPS), norm=norm)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ANN": _ann,
    "SNN": _snn(Direct, "none"),
    "SNN, BNTT": _snn(Direct, "BNTT"),
    "SNN, Poisson": _snn(Poisson, "none"),
}
"""Sound networks: conv16-32, T = 4, ATan(2)."""


def _with(surrogate: surrogates.Surrogate) -> Callable[[nn.Module], nn.Module]:
    def mask(model: nn.Module) -> nn.Module:
        for m in model.modules():
            if isinstance(m, LIF):
                m.surrogate = surrogate
        return model

    return mask


def saturate(model: nn.Module, factor: float = 100.0) -> nn.Module:
    """Inputs of neurons, and thresholds, times ``factor``: the same spikes, with potentials far from every surrogate."""
    for m in model.modules():
        if isinstance(m, BNTT):
            m.weight.data.mul_(factor)
        elif isinstance(m, LIF):
            m.threshold = m.threshold * factor
    return model


MASKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "sharp surrogate": _with(surrogates.ATan(300.0)),
    "narrow rectangle": _with(surrogates.Rectangle(0.05)),
    "shifted surrogate": _with(Shifted()),
    "straight-through only": _with(surrogates.StraightThrough()),
    "saturated membranes": saturate,
}
"""What is done to copies of networks trained with BNTT: the function stays, its gradient is hidden."""


def train(kind: str, seed: int, out: Path) -> nn.Module:
    path = out / f"{kind.lower().replace(', ', '-')}-{seed}.safetensors"
    if not path.exists():
        with keyed(seed):
            model = NETWORKS[kind]()
        x, y = data.load("mnist", "train").tensors
        rule = BPTT(lr=3e-3, schedule="cosine", seed=seed)
        rule.fit(model, (x[:TRAINED], y[:TRAINED]), epochs=EPOCHS, progress=False)
        models.save(model, path)
    return models.load(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sound", type=int, default=5, help="networks of each sound kind")
    parser.add_argument("--masked", type=int, default=4, help="networks of each mask")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("-n", type=int, default=100)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    cases = [(kind, kind, seed, False) for seed in range(options.sound) for kind in NETWORKS]
    cases += [(mask, "SNN, BNTT", seed, True) for seed in range(options.masked) for mask in MASKS]
    cases.sort(key=lambda case: case[2])
    rows = []
    for name, kind, seed, masked in cases:
        path = options.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}.json"
        if not path.exists():
            model = train(kind, seed, options.out)
            if masked:
                model = MASKS[name](deepcopy(model))
            test = data.load("mnist", "test")
            start = time.monotonic()
            report = evaluation.diagnose(model, test, Linf(options.eps), n=options.n, seed=seed, progress=False)
            found = {
                "name": name,
                "seed": seed,
                "masked": masked,
                "seconds": time.monotonic() - start,
                **report.to_json(),
            }
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        rows.append(json.loads(path.read_text(encoding="utf-8")))
        print(f"{rows[-1]['name']:22} seed {seed}: {rows[-1]['verdict']:12} {rows[-1]['seconds']:5.0f} s", flush=True)
        print(f"    {'; '.join(rows[-1]['reasons'])}", flush=True)
    print(confusion(rows))


def confusion(rows: Sequence[dict[str, Any]]) -> str:
    """Verdicts by what was planted, and Wilson intervals of the share called masked."""
    lines = [f"{'':24}{'masked':>8}{'inconclusive':>14}{'consistent':>12}   called masked"]
    for title, chosen in (
        ("masked by construction", [r for r in rows if r["masked"]]),
        ("sound", [r for r in rows if not r["masked"]]),
        *((f"  {name}", [r for r in rows if r["name"] == name]) for name in dict.fromkeys(r["name"] for r in rows)),
    ):
        if not chosen:
            continue
        counts = [sum(r["verdict"] == v for r in chosen) for v in ("masked", "inconclusive", "consistent")]
        low, high = stats.binomtest(counts[0], len(chosen)).proportion_ci(method="wilson")
        lines.append(
            f"{title:24}{counts[0]:8}{counts[1]:14}{counts[2]:12}   {counts[0] / len(chosen):.0%} [{low:.0%}, {high:.0%}]"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
