"""The standard suite: many gradients, several optimisers, transfer and random search, for spiking and ordinary networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack, BluntGradientWarning
from snnrobust.attacks.auto_pgd import APGD
from snnrobust.attacks.auto_pgd_targeted import APGDT
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import EOT, Backprop, GradientSource, Surrogate
from snnrobust.attacks.gradient_adaptive import ASSG, PDSG
from snnrobust.attacks.gradient_bpda import BPDA
from snnrobust.attacks.gradient_rate import BPTR
from snnrobust.attacks.l0 import L0
from snnrobust.attacks.losses import Loss, cross_entropy, dlr, margin
from snnrobust.attacks.sa_pgd import SAPGD
from snnrobust.attacks.selection import Measurement, better, measure
from snnrobust.attacks.sparse_rs import SparseRS
from snnrobust.attacks.square import Square
from snnrobust.attacks.threat import Eps, ThreatModel
from snnrobust.attacks.transfer import Transfer
from snnrobust.draws import Stream, draws, evaluating, is_stochastic
from snnrobust.neurons.surrogate import ATan, Triangle

__all__ = ["Stage", "Standard", "standard"]

STEPS = 40
TARGETS = 9
QUERIES = 5000  # of Square, forward passes
EOT_DRAWS, QUERY_DRAWS = 4, 4  # for models with randomness
FORWARDS_A_GRADIENT = 3  # what a forward and a backward pass cost together, in forward passes
CHUNK = 5  # restarts in one stage of the control
PROBE = 8  # samples that show what applies to a model
ASKED = 2  # passes that show whether a model has randomness

SWEEP: dict[str, Callable[[GradientSource], GradientSource]] = {
    "own": lambda inner: inner,
    "ASSG": lambda inner: ASSG(source=inner),
    "ATan(10)": lambda inner: Surrogate(ATan(10.0), inner),
    "ATan(2)": lambda inner: Surrogate(ATan(2.0), inner),
    "Triangle(1)": lambda inner: Surrogate(Triangle(1.0), inner),
    "PDSG": lambda inner: PDSG(source=inner),
    "BPTR": lambda inner: BPTR(source=inner),
}
"""Gradients by name, around a backward pass."""


@dataclass(frozen=True)
class Stage:
    """One attack of a suite, and what it costs at most for each image that it is run on."""

    name: str
    attack: Attack | None  # None: not run
    gradients: int = 0
    forwards: int = 0  # without gradient
    skipped: str = ""  # why it is not run


@dataclass(frozen=True)
class Standard(Attack):
    r"""An AutoAttack for spiking networks: for each sample the worst that any of its stages finds.

    In this order, each on the samples that are left: APGD (cross-entropy) and SA-PGD through each gradient of ``SWEEP``; APGD
    with the DLR loss; APGD crafted on every model of ``transfer``; APGD towards the nine likeliest classes (DLR), through the
    model's own gradient and through ASSG; Square, in L0 SparseRS. A sample leaves when its candidate is misclassified in all
    ``selection_draws`` draws (one, for a model without randomness), and by no other rule.

    What does not apply is left out and named: surrogates where there are no spiking neurons. Where cross-entropy saturates, the
    margin takes its place. Where the encoder lets no gradient through, all gradients pass it straight through (:class:`BPDA`).
    Models with randomness are attacked through the expectation (:class:`EOT`), with margins averaged over draws.

    Args:
        threat: Budget and box.
        transfer: Other models of the same task, which lend their gradients.
        effort: Multiplies steps, queries and the draws of EOT. 2 is what convergence is tested with.
        selection_draws: See above.
        gradient: The backward pass that all surrogates are put around: ``BPDA("model.0")`` where a module cuts it. An encoder
            that does is found without.

    Warns:
        BluntGradientWarning: no gradient reaches the input, so that only the search and transfer are left.

    ``evaluation.evaluate`` runs it stage by stage, so that it can be interrupted, and says what each stage found and cost.

    Sources: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks" (the idea, APGD, DLR); arXiv 2512.22522 (ASSG, SA-PGD); Andriushchenko et al. 2020 (Square).
    """

    version: ClassVar[str] = "1"

    threat: ThreatModel
    transfer: tuple[nn.Module, ...] = ()
    effort: int = 1
    selection_draws: int = 32
    gradient: GradientSource = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        checks.count("effort", self.effort)
        checks.count("selection_draws", self.selection_draws)
        if not isinstance(self.transfer, Sequence):
            raise TypeError(f"transfer must be a sequence of models, got {type(self.transfer).__name__}")
        for source in self.transfer:
            checks.module("transfer", source)
        checks.function("gradient", self.gradient)
        inner: Any = self.gradient
        while inner is not None:  # an inner surrogate would win over those of the sweep, and make them all the same
            own = getattr(inner, "spiking", False) or getattr(inner, "surrogate", None) is not None
            if isinstance(inner, EOT) or own:
                raise ValueError(
                    "gradient must be a backward pass such as BPDA('encoder'): the suite puts surrogates and EOT around it "
                    f"itself, got {type(inner).__name__}"
                )
            inner = getattr(inner, "source", None)
        object.__setattr__(self, "transfer", tuple(self.transfer))

    def stages(self, model: nn.Module, x: Tensor) -> list[Stage]:
        """What is run on ``model``, in order. The first of the samples ``x`` show what applies to it."""
        with evaluating(model), warnings.catch_warnings():
            warnings.simplefilter("ignore", BluntGradientWarning)
            random, classes, sources, loss = self._look(model, x[:PROBE])
            made = [
                *self._sweep(sources, random, loss),
                *self._transfers(x[:PROBE]),
                *self._targeted(sources, random, min(TARGETS, classes - 1)),
                self._search(random),
            ]
        if all(isinstance(source, str) for source in sources.values()):
            why = sources["own"]
            warnings.warn(
                f"the suite has no gradient of {type(model).__name__} ({why}): only transfer and the search by queries are run. "
                "Name the module that cuts it, Standard(threat, gradient=BPDA(...))",
                BluntGradientWarning,
                stacklevel=2,
            )
        return made

    def control(self, model: nn.Module, x: Tensor, gradients: int, forwards: int) -> list[Stage]:
        """As many restarts of APGD through the model's own gradient as cost at most what a suite of that cost does."""
        with evaluating(model):
            random, _, sources, loss = self._look(model, x[:PROBE])
        if isinstance(own := sources["own"], str):
            return [Stage("restarts", None, skipped=own)]
        once = self._ascent(APGD, own, random, "").gradients
        restarts = max(1, (gradients + forwards // FORWARDS_A_GRADIENT) // once)
        made = []
        for first in range(0, restarts, CHUNK):
            last = min(first + CHUNK, restarts)
            name = f"restarts {first + 1} to {last}"
            made.append(self._ascent(APGD, own, random, name, last - first, restarts=last - first, loss=loss))
        return made

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        n = self.selection_draws if is_stochastic(model, x[:PROBE]) else 1
        best = x.clone()
        standing = measure(model, best, goal, stream.fork("selection"), n)
        for stage in self.stages(model, x):
            left = (standing.correct > 0).nonzero()[:, 0]
            if stage.attack is None or len(left) == 0:
                continue
            aim, part = goal.select(left), stream.select(left.cpu())
            attack = stage.attack.at(self.threat.select(left).eps)
            candidate = attack.perturb(model, x[left], aim, part.fork(stage.name))
            measured = measure(model, candidate, aim, part.fork("selection"), n)
            wins = better(measured, Measurement(*(t[left] for t in standing)))
            best[left[wins]] = candidate[wins]
            for old, new in zip(standing, measured, strict=True):
                old[left[wins]] = new[wins]
        return best

    def at(self, eps: Eps) -> Self:
        return replace(self, threat=self.threat.at(eps))

    def _look(self, model: nn.Module, x: Tensor) -> tuple[bool, int, dict[str, GradientSource | str], Loss]:
        """Whether the model has randomness, its classes, each gradient of the sweep or why it does not apply, and the loss.

        The loss is cross-entropy, or the margin where that of some sample saturates: its gradient is then exactly zero.
        """
        stream = Stream(0, torch.arange(len(x)))
        with torch.no_grad(), draws(model, stream.key, stream.sample_ids):
            logits = model(x)
        y = logits.argmax(1)
        inner = self._open(model, x, y, stream)
        found: dict[str, GradientSource | str] = {}
        seen: dict[str, Tensor] = {}
        for name, around in SWEEP.items():
            source = around(inner)
            try:
                gradient, _ = source(model, x, y, margin, stream)
            except (TypeError, ValueError) as error:
                found[name] = str(error).split(":")[0]
                continue
            if not gradient.any():
                found[name] = "it is exactly zero"
                continue
            same = next((other for other, g in seen.items() if torch.equal(g, gradient)), None)
            found[name] = source if same is None else f"it is the same as {same}"
            seen.setdefault(name, gradient)
        loss: Loss = cross_entropy
        if not isinstance(own := found["own"], str):
            dead = ~own(model, x, y, cross_entropy, stream)[0].flatten(1).any(1)
            loss = margin if (dead & seen["own"].flatten(1).any(1)).any() else cross_entropy
        return is_stochastic(model, x), logits.shape[1], found, loss

    def _open(self, model: nn.Module, x: Tensor, y: Tensor, stream: Stream) -> GradientSource:
        """The given backward pass, past the model's encoder if that lets nothing through."""
        ways: list[GradientSource] = [self.gradient]
        if isinstance(getattr(model, "encoder", None), nn.Module):
            ways.append(BPDA("encoder", source=self.gradient))
        for source in ways:
            try:
                if source(model, x, y, margin, stream)[0].any():
                    return source
            except (TypeError, ValueError):
                continue
        return self.gradient

    def _sweep(self, sources: Mapping[str, GradientSource | str], random: bool, loss: Loss) -> Iterator[Stage]:
        for name, source in sources.items():
            for kind, optimiser in ((APGD, "APGD"), (SAPGD, "SA-PGD")):
                if isinstance(source, str):
                    yield Stage(f"{optimiser} ({name})", None, skipped=source)
                else:
                    yield self._ascent(kind, source, random, f"{optimiser} ({name})", loss=loss)
        if not isinstance(own := sources["own"], str):
            yield self._ascent(APGD, own, random, "APGD (own, DLR)", loss=dlr)

    def _transfers(self, x: Tensor) -> Iterator[Stage]:
        if not self.transfer:
            yield Stage("transfer", None, skipped="no other model was given")
        for i, source in enumerate(self.transfer, 1):
            stage = self._ascent(APGD, Backprop(), is_stochastic(source, x), f"APGD on model {i}", early_stop=False)
            assert stage.attack is not None
            yield replace(stage, attack=Transfer(stage.attack, source))

    def _targeted(self, sources: Mapping[str, GradientSource | str], random: bool, targets: int) -> Iterator[Stage]:
        for name in ("own", "ASSG"):
            if isinstance(source := sources[name], str):
                yield Stage(f"APGD-T ({name})", None, skipped=source)
            else:
                yield self._ascent(APGDT, source, random, f"APGD-T ({name})", ascents=targets, targets=targets)

    def _ascent(
        self,
        kind: type[APGD | SAPGD],
        source: GradientSource,
        random: bool,
        name: str,
        ascents: int = 1,
        **settings: Any,
    ) -> Stage:
        """A stage of so many ascents, from random starts or towards classes, and what they cost.

        Of a model with randomness none stops early: whether it is always wrong costs more to ask than to go on.
        """
        steps, draws = STEPS * self.effort, self._draws(random)
        made = kind(
            self.threat, **{
                "steps": steps, "gradient": EOT(draws, source) if random else source, "early_stop": not random,
                "selection_draws": self.selection_draws, **settings,
            }
        )  # fmt: skip
        gradients = steps + random  # that of the last point is not needed where logits are no draws
        forwards = 2 * self.selection_draws if random else 3  # the last point, and the choice between two candidates
        classes = forwards if ascents > 1 else 0  # targets are chosen by the logits at x
        return Stage(name, made, ascents * gradients * draws, ascents * forwards + classes + ASKED)

    def _search(self, random: bool) -> Stage:
        queries = self.effort * QUERIES
        try:
            kind = SparseRS if isinstance(self.threat, L0) else Square
            made = kind(self.threat, queries=queries, draws=QUERY_DRAWS * self.effort if random else 1)
        except (TypeError, ValueError) as error:
            return Stage("Square", None, skipped=str(error))
        return Stage(kind.__name__, made, 0, queries + ASKED)

    def _draws(self, random: bool) -> int:
        return EOT_DRAWS * self.effort if random else 1


def standard(
    threat: ThreatModel,
    *,
    transfer: Sequence[nn.Module] = (),
    effort: int = 1,
    gradient: GradientSource = Backprop(),  # noqa: B008  frozen
) -> Standard:
    """The suite by which a robust accuracy is claimed: :class:`Standard`."""
    return Standard(threat, tuple(transfer), effort, gradient=gradient)
