"""How far adversarial noise moves the activations of each layer, and how many of them are not zero."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnrobust import checks, figures
from snnrobust.attacks import Attack
from snnrobust.codesign.activations import Where, activations, joined, plain_names
from snnrobust.data import Data, batches, take
from snnrobust.draws import derive, device_of, draws, is_stochastic

__all__ = ["Sensitivity", "activation_density", "adversarial_noise_sensitivity"]

_RESAMPLES = 1999


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Adversarial noise sensitivity (ANS) of each layer.

    Attributes:
        ans: By layer, in order of execution; names are those of the model before it was quantized.
        intervals: 95 %, percentile bootstrap over samples: of these images and this network, not of other trainings.
        n: Samples.
        settings: Attack, where, normalised, draws, seed.
    """

    ans: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    n: int
    settings: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """A line for each layer."""
        width = max(len("layer"), *(len(name) for name in self.ans))
        lines = [f"{'layer'.ljust(width)}  {'ANS':>8}  95 % interval"]
        for name, value in self.ans.items():
            low, high = self.intervals[name]
            lines.append(f"{name.ljust(width)}  {value:8.4f}  {low:.4f} to {high:.4f}")
        s = self.settings
        lines.append(
            f"{self.n} samples, {s['attack']}; {s['where']} of each layer, {'' if s['normalised'] else 'not '}normalised"
        )
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """A point and its interval for each layer. The ending of ``path`` is the format."""
        values = np.array(list(self.ans.values()))
        ends = np.array([self.intervals[name] for name in self.ans]).T
        at = np.arange(len(values))
        with figures.style():
            made = figures.figure(max(0.7 * len(values), 2.4) + 1.4, 3.2)
            axes = made.subplots()
            reach = np.abs(ends - values)
            axes.errorbar(at, values, yerr=reach, fmt=figures.MARKERS[0], color=figures.SERIES[0], capsize=3)
            axes.set_xticks(at, list(self.ans), rotation=30, ha="right")
            axes.set_ylim(bottom=0.0)
            axes.set_xlabel("layer")
            axes.set_ylabel("ANS" if self.settings.get("normalised", True) else "ANS, not normalised")
            axes.grid(axis="y", color=figures.GRID)
            axes.set_axisbelow(True)
            figures.save(made, path)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        intervals = {name: list(ends) for name, ends in self.intervals.items()}
        return {"ans": dict(self.ans), "intervals": intervals, "n": self.n, "settings": dict(self.settings)}


def adversarial_noise_sensitivity(
    model: nn.Module,
    data: Data,
    attack: Attack,
    *,
    n: int | None = None,
    where: Where = "activation",
    normalised: bool = True,
    draws_each: int = 4,
    layers: Collection[str] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> Sensitivity:
    r"""The change that ``attack`` makes in the activations of each layer, over that layer's activations.

    .. math:: \mathrm{ANS}_l = \frac{\|a_l(x') - a_l(x)\|_2}{\|a_l(x)\|_2}

    with the norms over all samples, time steps and elements together. If not ``normalised``, the mean over samples, time steps
    and positions of the L2 norm over channels of :math:`a_l(x') - a_l(x)`, which grows with the width of a layer. Both passes
    are in eval mode and have the same draws, so that the randomness of an encoder is not taken for sensitivity.

    Args:
        model: Inputs to logits, spiking or ordinary, quantized or not.
        data: Samples and labels; those that are misclassified too.
        attack: Any, such as ``FGSM(Linf("8/255"))``; with randomness in the model, one that averages (``EOT``). With
            ``RandomNoise`` of the same threat the number is a control: the sensitivity to any noise of that size.
        n: The first n samples; default all.
        where: ``"activation"`` behind the layer (spikes; rectified values; of the last layer, logits), its ``"input"``, or its
            ``"output"`` before normalisation and neuron.
        normalised: See above.
        draws_each: Of a model with randomness, pairs of passes for each sample; their sums are taken together.
        layers: Names before quantization; default all ``nn.Linear`` and ``nn.Conv*``.
        batch_size: Does not change the result but for rounding.
        seed: Of the attack and of all draws.

    Raises:
        ValueError: a layer that did not run, or that is zero for all clean samples, of which the ratio is not defined.

    Source: the name, and that it is measured for each layer, are of Panda 2020, "QUANOS - Adversarial Noise Sensitivity Driven
    Hybrid Quantization of Neural Networks" (arXiv:2004.11233); the formula is from memory, not verified. A public
    re-implementation for spiking networks takes the mean that is not normalised, which we read as above.
    """
    if not isinstance(attack, Attack):
        raise TypeError(f"attack must be an attack such as FGSM(Linf('8/255')), got {attack!r:.80}")
    checks.boolean("normalised", normalised)
    checks.count("draws_each", draws_each)
    checks.count("batch_size", batch_size)
    checks.count("seed", seed, low=0)
    checks.module("model", model)
    pair = take(data, n, batch_size)
    device = device_of(model)
    passes = draws_each if is_stochastic(model, pair[0][:8].to(device)) else 1
    sums: dict[str, list[NDArray[np.float64]]] = {}
    for x, y, ids in batches(pair, batch_size):
        x, y = x.to(device), y.to(device)
        x_adv = attack(model, x, y, seed=derive(seed, "sensitivity attack") >> 1, sample_ids=ids)
        part: dict[str, Tensor] = {}
        with torch.no_grad(), activations(model, len(x), where, layers) as seen:
            for k in range(passes):
                found = []
                for images in (x, x_adv):
                    with draws(model, derive(seed, "sensitivity", k), ids):
                        model(images)
                    found.append(joined(seen))
                    seen.clear()
                for name, clean in found[0].items():
                    moved = _moved(clean, found[1][name], normalised)
                    part[name] = part[name] + moved if name in part else moved
        for name, value in part.items():
            sums.setdefault(name, []).append((value / passes).cpu().numpy())
    _demand_all(model, sums, layers)
    ans, intervals = {}, {}
    for name, parts in sums.items():
        ans[name], intervals[name] = _estimate(name, np.concatenate(parts, 1), normalised)
    settings = {
        "attack": f"{type(attack).__name__}({attack.threat})", "where": where, "normalised": normalised, "draws": passes,
        "seed": seed,
    }  # fmt: skip
    return Sensitivity(ans, intervals, len(pair[0]), settings)


def _moved(clean: Tensor, adversarial: Tensor, normalised: bool) -> Tensor:
    """Of each sample the squared norms of the change and of the activation, ``[2, B]``; or the mean change and 1."""
    a, change = clean.double(), adversarial.double() - clean.double()
    if normalised:
        return torch.stack([v.square().transpose(0, 1).flatten(1).sum(1) for v in (change, a)])
    channels = change.square().sum(2) if change.dim() > 2 else change.square()  # a layer of one number has no channels
    mean = channels.sqrt().transpose(0, 1).flatten(1).mean(1)
    return torch.stack([mean, torch.ones_like(mean)])


def _estimate(name: str, sums: NDArray[np.float64], normalised: bool) -> tuple[float, tuple[float, float]]:
    """ANS from the sums of each sample ``[2, n]``, and its interval."""
    n = sums.shape[1]

    def ratio(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        value: NDArray[np.float64] = totals[0] / totals[1]
        return np.sqrt(value) if normalised else value

    if not sums[1].sum() > 0:
        raise ValueError(
            f"{name or 'the model'}: the activations of all {n} clean samples are 0, so their relative change is not defined: "
            "train until the layer is active, leave it out of layers, or set normalised=False"
        )
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    resampled = sums @ counts.T
    resampled = resampled[:, resampled[1] > 0]  # a resample of silent samples alone has no ratio
    low, high = np.percentile(ratio(resampled), [2.5, 97.5])
    return float(ratio(sums.sum(1))), (float(low), float(high))


def activation_density(
    model: nn.Module,
    data: Data,
    *,
    n: int | None = None,
    where: Where = "activation",
    layers: Collection[str] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> dict[str, float]:
    r"""The share of activations of each layer that are not zero, over all samples, time steps and elements.

    .. math:: \mathrm{AD}_l = \tfrac{1}{N} \sum_i [a_{l,i} \ne 0]

    Of a last layer without an activation it is 1 or nearly so: logits are seldom 0. Arguments as of
    :func:`adversarial_noise_sensitivity`.

    Source: Vasquez et al. 2021, "Activation Density based Mixed-Precision Quantization for Energy Efficient Neural Networks"
    (arXiv:2101.04354), of which we could read the abstract alone.
    """
    checks.count("batch_size", batch_size)
    checks.count("seed", seed, low=0)
    checks.module("model", model)
    x, y = take(data, n, batch_size)
    counted: dict[str, list[int]] = {}
    for batch in batches((x, y), batch_size):
        with (
            torch.no_grad(),
            activations(model, len(batch.x), where, layers) as seen,
            draws(model, derive(seed, "density"), batch.sample_ids),
        ):
            model(batch.x.to(device_of(model)))
        for name, values in joined(seen).items():
            total = counted.setdefault(name, [0, 0])
            total[0] += int(values.count_nonzero())
            total[1] += values.numel()
    _demand_all(model, counted, layers)
    return {name: active / number for name, (active, number) in counted.items()}


def _demand_all(model: nn.Module, seen: Mapping[str, object], layers: Collection[str] | None) -> None:
    wanted = plain_names(model).values() if layers is None else layers
    missing = [name for name in wanted if name not in seen]
    if missing:
        raise ValueError(
            f"{missing[0]} did not run in a forward pass, so it was not measured: leave it out, layers={sorted(seen)}"
        )
