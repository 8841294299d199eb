"""The hybrid attack: transfer, true weights, the victim's own rule and a search, each sample by the worst of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import GradientSource
from snnrobust.attacks.gradient_learning import LearningSignal, TrueTranspose
from snnrobust.attacks.selection import Measurement, better, measure, worst_of
from snnrobust.attacks.threat import Eps, ThreatModel
from snnrobust.attacks.transfer import Transfer
from snnrobust.draws import Stream, derive, evaluating, is_stochastic
from snnrobust.neurons.surrogate import Surrogate as NeuronSurrogate

__all__ = ["Components", "Hybrid", "Refinement"]

REFINED = "refined"


@runtime_checkable
class Refinement(Protocol):
    """An attack by queries that can begin elsewhere than at ``x``."""

    threat: ThreatModel

    def search(self, model: nn.Module, x: Tensor, start: Tensor, goal: Goal, stream: Stream) -> Tensor: ...
    def at(self, eps: Eps) -> Self: ...


class Components(NamedTuple):
    """What each component of a :class:`Hybrid` found.

    Attributes:
        x_adv: Per sample the worst candidate: what the attack returns.
        candidates: Those of each component by its name.
        reached: bool ``[B]`` by name: the candidate reaches the goal in every selection draw.
        winner: int64 ``[B]``, whose candidate is the worst, an index into the names; the first of equal ones.
    """

    x_adv: Tensor
    candidates: dict[str, Tensor]
    reached: dict[str, Tensor]
    winner: Tensor

    def shares(self) -> dict[str, tuple[float, float]]:
        """By name: the share of samples in which the component reached the goal, and in which it won."""
        won = [float((self.winner == i).double().mean()) for i in range(len(self.candidates))]
        return {name: (float(r.double().mean()), w) for (name, r), w in zip(self.reached.items(), won, strict=True)}


@dataclass(frozen=True)
class Hybrid(Attack):
    """Of several attacks on a victim trained by any rule, for each sample the candidate that is worst for it.

    One ``attack``, run on other models and shown to the victim (``sources``), and run on the victim by several gradients
    (``gradients``); then a search by queries from the best transferred input (``refine``). What is left out is not tried: without
    ``gradients`` it is a black box, which sees the victim's logits only. ``FGSM`` makes it a single-step attack, ``PGD`` a
    multi-step one.

    The worst is chosen by ``worst_of`` on draws of the victim of its own. ``attacks`` holds the components as attacks of their
    own, and ``components`` says which one won.

    Args:
        attack: With a field ``gradient``, such as ``PGD(threat, steps=20)``; on the sources it runs as it is.
        sources: Models of the same inputs and classes by name: a twin trained by BPTT, an ordinary network.
        gradients: Gradient sources by name, each in the place of the attack's own.
        refine: An attack by queries with a method ``search(model, x, start, goal, stream)``, within the same threat. It begins
            where the sources' best candidate is, or at ``x`` without sources.
        selection_draws: Of a victim with randomness.

    Source: the paradigm of Lin and Sengupta 2025 (arXiv 2504.08897), who combine transferred adversarial inputs against networks
    trained by local rules; the choice of components is ours.
    """

    attack: Attack
    sources: Mapping[str, nn.Module] = field(default_factory=dict)
    gradients: Mapping[str, GradientSource] = field(default_factory=dict)
    refine: Refinement | None = None
    selection_draws: int = 32
    threat: ThreatModel = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack must be an attack such as PGD(Linf('8/255')), got {self.attack!r:.80}")
        checks.count("selection_draws", self.selection_draws)
        for name, mapping in (("sources", self.sources), ("gradients", self.gradients)):
            if not isinstance(mapping, Mapping):
                raise TypeError(f"{name} must be a dict by name, got {type(mapping).__name__}")
        if self.gradients and "gradient" not in {f.name for f in fields(self.attack)}:  # type: ignore[arg-type]
            raise TypeError(
                f"{type(self.attack).__name__} uses no gradient, so gradients say nothing: give FGSM or PGD"
            )
        for name, source in self.sources.items():
            checks.module(f"sources[{name!r}]", source)
        for name, gradient in self.gradients.items():
            checks.function(f"gradients[{name!r}]", gradient)
        twice = sorted({*self.sources} & {*self.gradients} | {REFINED} & {*self.sources, *self.gradients})
        if twice:
            raise ValueError(
                f"components need names of their own, and {', '.join(map(repr, twice))} is taken: rename it"
            )
        if not self.sources and not self.gradients and self.refine is None:
            raise ValueError("a hybrid of nothing: give sources, gradients or refine")
        if self.refine is not None and not isinstance(self.refine, Refinement):
            raise TypeError(f"refine must be an attack with a method search, such as Square, got {self.refine!r:.80}")
        if self.refine is not None and self.refine.threat != self.attack.threat:
            raise ValueError(
                f"attack and refine must share one threat, got {self.attack.threat} and {self.refine.threat}"
            )
        object.__setattr__(self, "threat", self.attack.threat)

    @classmethod
    def white_box(
        cls,
        attack: Attack,
        sources: Mapping[str, nn.Module],
        *signals: LearningSignal,
        surrogates: Mapping[str, NeuronSurrogate] | None = None,
        refine: Refinement | None = None,
    ) -> Self:
        """All that is known against a victim whose weights and rule are known.

        The victim's own weights with true transposes, with the surrogate of its training and with each of ``surrogates``; the
        signal of its own rule as each of ``signals`` has it; transfer; and the search.
        """
        gradients: dict[str, GradientSource] = {"true weights": TrueTranspose()}
        gradients |= {f"true weights, {name}": TrueTranspose(s) for name, s in (surrogates or {}).items()}
        gradients |= {f"own rule, {s.input_feedback}" if s.input_feedback else "own rule": s for s in signals}
        return cls(attack, sources, gradients, refine)

    @classmethod
    def black_box(cls, attack: Attack, sources: Mapping[str, nn.Module], refine: Refinement | None = None) -> Self:
        """Transfer and the search alone: of the victim, its logits."""
        return cls(attack, sources, {}, refine)

    @property
    def attacks(self) -> dict[str, Attack]:
        """Each component as an attack of its own, by name. With one seed all of them and the whole have the same candidates."""
        found: dict[str, Attack] = {name: Transfer(self.attack, source) for name, source in self.sources.items()}
        found |= {name: replace(self.attack, gradient=g) for name, g in self.gradients.items()}  # type: ignore[type-var]
        if self.refine is not None:
            found[REFINED] = replace(self, gradients={})
        return found

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        return self._components(model, x, goal, stream).x_adv

    def components(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        targets: Tensor | None = None,
        seed: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Components:
        """What the attack finds when it is called with these arguments, component by component."""
        checks.module("model", model)
        self.threat.check("x", x)
        checks.labels("y", y, len(x))
        if targets is not None:
            self._check_targets(targets, y)
        ids = torch.arange(len(x)) if sample_ids is None else sample_ids
        stream = Stream(derive(checks.count("seed", seed, low=0), "attack"), ids.cpu())
        with evaluating(model):
            return self._components(model, x.detach(), Goal(y, targets), stream)

    def _components(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Components:
        draws = self.selection_draws if is_stochastic(model, x[:8]) else 1
        select = stream.fork("hybrid")
        candidates = {
            name: attack.perturb(model, x, goal, stream) for name, attack in self.attacks.items() if name != REFINED
        }
        if self.refine is not None:
            transferred = [candidates[name] for name in self.sources] or [x]
            start = worst_of(model, transferred, goal, select, draws)
            searched = self.refine.search(model, x, start, goal, stream.fork("refine"))
            candidates[REFINED] = worst_of(model, [start, searched], goal, select, draws)
        worst, standing, winner = x, None, torch.zeros_like(goal.labels)
        reached = {}
        for index, (name, candidate) in enumerate(candidates.items()):
            measured = measure(model, candidate, goal, select, draws)
            reached[name] = measured.correct == 0
            wins = torch.ones_like(winner, dtype=torch.bool) if standing is None else better(measured, standing)
            winner = torch.where(wins, index, winner)
            worst = torch.where(wins.view(-1, *[1] * (x.dim() - 1)), candidate, worst)
            held = measured if standing is None else standing
            standing = Measurement(*(torch.where(wins, a, b) for a, b in zip(measured, held, strict=True)))
        return Components(worst, candidates, reached, winner)

    def _check_targets(self, targets: Tensor, y: Tensor) -> None:
        self.attack._check_targets(targets, y)

    def at(self, eps: Eps) -> Self:
        refine = None if self.refine is None else self.refine.at(eps)
        return replace(self, attack=self.attack.at(eps), refine=refine)
