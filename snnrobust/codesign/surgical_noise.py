"""Surgical noise: bit errors in those layers of the memory where they make adversarial images less harmful."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import EOT_DRAWS, Attack, crafted
from snnrobust.attacks.bit_flip_memory import Passes
from snnrobust.attacks.losses import Loss, cross_entropy
from snnrobust.codesign.surgical_result import Judgement, Score, SurgicalResult, Trial
from snnrobust.data import Data, take
from snnrobust.data.disjoint import demand_disjoint
from snnrobust.draws import derive, device_of, is_stochastic
from snnrobust.hardware.deploy import synaptic
from snnrobust.hardware.layerwise import deploy_each
from snnrobust.hardware.sram import SRAM

__all__ = ["SurgicalNoise"]

Named = Literal["loss", "accuracy", "gap"]
Rule = Named | Callable[[Score, Score], float]
Selection = Literal["software", "chip"]

_GAINS: dict[str, Callable[[Score, Score], float]] = {
    "loss": lambda before, after: before.loss - after.loss,
    "accuracy": lambda before, after: after.accuracy - before.accuracy,
    "gap": lambda before, after: before.gap - after.gap,
}


@dataclass(frozen=True, kw_only=True)
class SurgicalNoise:
    """Scan layers and configurations, combine what helps, and judge it by attackers who know the chip.

    1. **Scan.** For each layer and each configuration, with all other layers in memory without errors: the adversarial loss on
       the selection images, averaged over ``chips`` chips.
    2. **Keep** a layer's best configuration if its gain by ``rule`` is above ``least`` and clean accuracy does not fall by more
       than ``clean_drop``.
    3. **Combine** greedily, the largest single gain first: a layer stays if the gain of the whole set grows.
    4. **Judge** on other images and other chips: with attacks crafted on the ideal memory, as such gains are published, and
       with the same attacks crafted on each chip through its own gradient (with EOT where maps are drawn in each pass).

    The paper's rule for choosing layers could not be read; steps 1 to 3 follow a summary from memory, so they are parameters.

    Args:
        attack: Of the selection, such as ``FGSM(Linf("8/255"))``.
        configurations: Memories that a layer may get.
        rule: ``"loss"`` (the mean loss of adversarial images falls), ``"accuracy"`` (theirs rises), ``"gap"`` (clean less
            adversarial accuracy falls), or ``(score before, score after) -> gain``.
        crafted_on: In the selection: ``"software"`` shows all chips the images that were crafted on the ideal memory; ``"chip"``
            attacks each chip, which takes far longer.
        judges: Attacks of the judgement by name; default ``attack`` alone.
        layers: That may get noise; default all.
        least, clean_drop: See above.
        bits: Of the words of layers without noise.
        chips, judge_chips: Fault maps that scores are averaged over.
        draws, judge_draws: Of a random model or memory, for scores and for the judgement.
        eot: Draws of each gradient on a chip with randomness.
        loss: ``(logits, y) -> loss [B]``, of the scores.
        batch_size: Of all passes.

    Source: Moitra and Panda 2020, "Exposing the Robustness and Vulnerability of Hybrid 8T-6T SRAM Memory Architectures to
    Adversarial Attacks in Deep Neural Networks" (arXiv:2011.13392).
    """

    attack: Attack
    configurations: Sequence[SRAM]
    rule: Rule = "loss"
    crafted_on: Selection = "software"
    judges: Mapping[str, Attack] | None = None
    layers: Collection[str] | None = None
    least: float = 0.0
    clean_drop: float = 0.02
    bits: int = 8
    chips: int = 3
    judge_chips: int = 3
    draws: int = 4
    judge_draws: int = 16
    eot: int = EOT_DRAWS
    loss: Loss = field(default=cross_entropy)
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack must be an attack such as FGSM(Linf('8/255')), got {self.attack!r:.80}")
        given = self.configurations
        if not isinstance(given, Sequence) or not given or not all(isinstance(s, SRAM) for s in given):
            raise TypeError(
                f"configurations must be a list of SRAM such as [SRAM(0.83, ratio='5:3')], got {given!r:.80}"
            )
        if not callable(self.rule):
            checks.choice("rule", self.rule, _GAINS)
        checks.choice("crafted_on", self.crafted_on, get_args(Selection))
        if self.judges is not None and (
            not self.judges or not all(isinstance(attack, Attack) for attack in self.judges.values())
        ):
            raise TypeError(f"judges must map names to attacks, got {self.judges!r:.80}")
        checks.number("least", self.least)
        checks.number("clean_drop", self.clean_drop, 0.0)
        for name in ("chips", "judge_chips", "draws", "judge_draws", "eot", "batch_size"):
            checks.count(name, getattr(self, name))
        checks.function("loss", self.loss)

    def __call__(self, model: nn.Module, data: Data, judge: Data, *, seed: int = 0) -> SurgicalResult:
        """Search on a copy of ``model``, which stays as it is.

        Args:
            model: Inputs to logits ``[B, K]``, spiking or not, on no chip.
            data: Images of the selection, all of them.
            judge: Other images.
            seed: Decides chips and draws.
        """
        checks.module("model", model)
        checks.count("seed", seed, low=0)
        x, y = take(data, batch_size=self.batch_size)
        x_judge, y_judge = take(judge, batch_size=self.batch_size)
        demand_disjoint(x, x_judge, "the choice was made on those")
        names = tuple(synaptic(model))
        for name in self.layers or ():
            checks.choice("layers", name, names)
        device = device_of(model)
        search = _Search(self, model, names, x.to(device), y.to(device), seed)
        chosen = search.chosen()
        clean, judgements = self._judge(search, chosen, x_judge.to(device), y_judge.to(device), seed)
        settings = {
            "rule": self.rule if isinstance(self.rule, str) else getattr(self.rule, "__name__", "given"),
            "selected": len(x), "judged": len(x_judge), "chips": self.chips, "judge_chips": self.judge_chips,
            "crafted_on": self.crafted_on, "seed": seed,
        }  # fmt: skip
        trials, combined = tuple(search.trials), tuple(search.combined)
        return SurgicalResult(
            chosen, search.ideal, names, search.baseline, trials, combined, clean, judgements, settings
        )

    def _judge(
        self, search: _Search, chosen: Mapping[str, SRAM], x: Tensor, y: Tensor, seed: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Judgement, ...]]:
        key = derive(seed, "surgical noise", "judge")
        ideal = search.chip({}, 0)
        chips = [search.chip(chosen, derive(seed, "judge chip", i) >> 1) for i in range(self.judge_chips)]

        def shares(chip: nn.Module, images: Tensor) -> Tensor:
            return self.passes(chip, images, y, self.judge_draws).measure(key)[1]

        def over(images: Sequence[Tensor]) -> Tensor:
            return torch.stack([shares(chip, some) for chip, some in zip(chips, images, strict=True)]).mean(0)

        found = []
        for name, attack in (self.judges or {"selection's attack": self.attack}).items():
            shown = self.craft(attack, ideal, x, y, seed)
            own = [self.craft(attack, chip, x, y, seed) for chip in chips]
            found.append(Judgement(name, shares(ideal, shown), over([shown] * len(chips)), over(own)))
        return (shares(ideal, x), over([x] * len(chips))), tuple(found)

    def craft(self, attack: Attack, chip: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """``attack`` on ``chip`` through its own gradient."""
        if is_stochastic(chip, x[:8]):
            attack = crafted(attack, "eot", draws=self.eot)
        key = derive(seed, "surgical noise", "craft") >> 1
        parts = torch.arange(len(x)).split(self.batch_size)
        return torch.cat([attack(chip, x[i], y[i], seed=key, sample_ids=i) for i in parts])

    def passes(self, chip: nn.Module, x: Tensor, y: Tensor, draws: int) -> Passes:
        return Passes(chip, x, y, draws if is_stochastic(chip, x[:8]) else 1, self.batch_size, self.loss)


class _Search:
    """The scan and the combination, on the selection images."""

    def __init__(
        self, settings: SurgicalNoise, model: nn.Module, names: tuple[str, ...], x: Tensor, y: Tensor, seed: int
    ) -> None:
        self.settings, self.model, self.names, self.x, self.y, self.seed = settings, model, names, x, y, seed
        self.ideal = SRAM(1.0, bits=settings.bits)
        self.shown = settings.craft(settings.attack, self.chip({}, 0), x, y, seed)
        self.baseline = self.score({})
        self.trials: list[Trial] = []
        self.combined: list[tuple[str, Score]] = []

    def chip(self, memories: Mapping[str, SRAM], seed: int) -> nn.Module:
        return deploy_each(self.model, {name: memories.get(name, self.ideal) for name in self.names}, seed=seed)

    def score(self, memories: Mapping[str, SRAM]) -> Score:
        s, key = self.settings, derive(self.seed, "surgical noise", "select")
        found = []
        for i in range(s.chips if memories else 1):  # without errors all chips are one
            chip = self.chip(memories, derive(self.seed, "selection chip", i) >> 1)
            images = self.shown
            if s.crafted_on == "chip" and memories:
                images = s.craft(s.attack, chip, self.x, self.y, self.seed)
            loss, right = s.passes(chip, images, self.y, s.draws).measure(key)
            clean = s.passes(chip, self.x, self.y, s.draws).measure(key)[1]
            found.append((loss, float(right.mean()), float(clean.mean())))
        return Score(*(sum(values) / len(found) for values in zip(*found, strict=True)))

    def gain(self, after: Score) -> float:
        rule = self.settings.rule
        return float((rule if callable(rule) else _GAINS[rule])(self.baseline, after))

    def fits(self, score: Score, gain: float) -> bool:
        return gain > self.settings.least and self.baseline.clean - score.clean <= self.settings.clean_drop

    def chosen(self) -> dict[str, SRAM]:
        s = self.settings
        best: list[Trial] = []
        for name in self.names if s.layers is None else [n for n in self.names if n in s.layers]:
            of_layer = []
            for sram in s.configurations:
                score = self.score({name: sram})
                of_layer.append(Trial(name, sram, score, self.gain(score)))
            fitting = [t for t in of_layer if self.fits(t.score, t.gain)]
            if fitting:
                best.append(max(fitting, key=lambda t: t.gain))
            self.trials += of_layer
        kept: dict[str, SRAM] = {}
        so_far = 0.0
        for trial in sorted(best, key=lambda t: -t.gain):
            wider = {**kept, trial.layer: trial.sram}
            score = trial.score if not kept else self.score(wider)
            gain = self.gain(score)
            if not kept or (gain > so_far and self.fits(score, gain)):
                kept, so_far = wider, gain
                self.combined.append((" + ".join(kept), score))
                at = self.trials.index(trial)
                self.trials[at] = replace(trial, kept=True)
        return {name: kept[name] for name in self.names if name in kept}
