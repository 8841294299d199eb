"""From the sections of an experiment file to objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields

import torch
from torch import nn

from snnrobust import checks, defenses, neurons, quantization
from snnrobust.attacks import (
    ATTACKS,
    BPDA,
    CRAFTS,
    EOT,
    LOSSES,
    SOURCES,
    THREATS,
    Attack,
    Backprop,
    External,
    FromModel,
    GradientSource,
    Hybrid,
    LearningSignal,
    Linf,
    MinimalNorm,
    Mixed,
    Standard,
    Surrogate,
    ThreatModel,
    TimeSummed,
    Transfer,
    TrueTranspose,
    crafted,
)
from snnrobust.data import DATASETS, SHAPES
from snnrobust.draws import derive, evaluating, keyed
from snnrobust.encoders import ENCODERS, Delta, Encoder, Frames, LevelCrossing, Poisson
from snnrobust.experiments.component import Component, make
from snnrobust.experiments.config import AttackSection, ChipSection, Experiment, GammaRule, ModelSection
from snnrobust.hardware import BACKENDS, Backend, Chain, deploy
from snnrobust.hardware.storage import blank
from snnrobust.layers import READOUTS
from snnrobust.learning_rules import BPTT, RULES, Trainer
from snnrobust.models import (
    ARCHITECTURES,
    NORMS,
    EarlyExit,
    Normalise,
    SpikingClassifier,
    exit_step,
    gamma_profile,
    ordinary,
    remembers,
    spiking,
    truncate,
)
from snnrobust.models.twins import default_encoder
from snnrobust.neurons import NEURONS
from snnrobust.neurons.surrogate import SURROGATES
from snnrobust.quantization import LEVELS, SignalQuantizer, calibrate, quantize

__all__ = [
    "NAMES",
    "build_attack",
    "build_backend",
    "build_model",
    "build_rule",
    "build_threat",
    "changes",
    "finished",
    "quantized",
    "quantized_when",
    "rehearse",
    "takes_gradient",
]

_REGISTERED = quantization, defenses  # their quantizers and trainers enter BACKENDS and RULES when they are imported
_SEQUENCES = (Delta, Frames, LevelCrossing)  # they take no images
NAMES: dict[str, list[str]] = {
    "data": list(DATASETS),
    "model key": list(ModelSection.model_fields),
    "architecture": list(ARCHITECTURES),
    "encoder": list(ENCODERS),
    "neuron": list(NEURONS),
    "surrogate": list(SURROGATES),
    "norm": list(NORMS),
    "readout": list(READOUTS),
    "learning rule": list(RULES),
    "loss": list(LOSSES),
    "quantization levels": list(LEVELS),
}
_HOLDING = (External, Hybrid, MinimalNorm, Transfer)  # they hold models, functions or another attack
_CRAFTED = {name: kind for name, kind in ATTACKS.items() if kind not in _HOLDING}
_EFFECTS = {name: kind for name, kind in BACKENDS.items() if kind is not Chain}
_ELSEWHERE = {EOT: "eot = 8", Surrogate: "surrogate = ...", FromModel: 'source = "..."'}  # keys of their own
_GRADIENTS = {name: kind for name, kind in SOURCES.items() if kind not in (*_ELSEWHERE, LearningSignal)}
_OWN_SURROGATE = (
    Backprop,
    BPDA,
    TimeSummed,
    TrueTranspose,
)  # they differentiate neurons by the surrogates that these have
NAMES |= {"threat": list(THREATS), "attack": list(_CRAFTED), "backend": list(_EFFECTS)}
NAMES |= {"gradient source": list(_GRADIENTS), "craft": list(CRAFTS)}


def build_model(section: ModelSection, shape: Sequence[int], classes: int, seed: int) -> nn.Module:
    """The untrained model, its weights decided by ``seed`` and its name."""
    architecture, where = ARCHITECTURES[section.architecture], f"models.{section.name}"
    if section.normalise is not None:
        architecture = (Normalise(section.normalise.mean, section.normalise.std), *architecture)
    with keyed(derive(seed, "weights", section.name)):
        if section.kind == "ordinary" and not remembers(architecture):
            return ordinary(architecture, shape, classes)
        encoder = _encoder(section, shape, f"{where}.encoder")
        if section.kind == "ordinary":
            return ordinary(architecture, shape, classes, encoder)
        if section.neuron.type == neurons.Recurrent.__name__:
            raise ValueError(f'{where}.neuron: Recurrent is a layer, not a neuron: set architecture = "recurrent"')
        neuron = make(section.neuron, NEURONS, f"{where}.neuron")
        readout = make(section.readout, READOUTS, f"{where}.readout")
        try:
            return spiking(architecture, shape, classes, encoder, neuron, section.norm, readout)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error


def _encoder(section: ModelSection, shape: Sequence[int], where: str) -> Encoder:
    if section.encoder is None:
        return default_encoder(shape) if remembers(ARCHITECTURES[section.architecture]) else Poisson(8)
    encoder: Encoder = make(section.encoder, ENCODERS, where)
    if isinstance(encoder, _SEQUENCES) and len(shape) == 3:
        raise ValueError(
            f"{where}: {section.encoder.type} takes sequences [T, F], but the data holds images {list(shape)}, whose channels "
            f"would be taken for time: use Rows(time_steps = {shape[1]}), which reads an image row by row"
        )
    return encoder


def quantized(section: ModelSection, model: nn.Module, x: torch.Tensor | None) -> nn.Module:
    """``model`` with the quantizers of its section, calibrated on the first samples of ``x`` (None: shapes only)."""
    own = section.quantization
    if own is None:
        return model
    try:
        model = quantize(model, **own.quantizers(), layers=own.layers, bits=own.bits)
        observed = any(isinstance(m, SignalQuantizer) and m.recipe.scale != "constant" for m in model.modules())
        if observed and x is not None:
            calibrate(model, x[: own.calibration], allow_silent=own.when == "training")
        return model
    except (TypeError, ValueError) as error:
        raise ValueError(f"models.{section.name}.quantization: {error}") from error


def quantized_when(section: ModelSection) -> str | None:
    """When: "training" or "after", or None. Shared weights were quantized in training, if they were, with their owner."""
    if section.quantization is None or (section.same_weights_as and section.quantization.when == "training"):
        return None
    return section.quantization.when


def finished(section: ModelSection, model: nn.Module, x: torch.Tensor | None = None) -> nn.Module:
    """The model that is judged: the trained one, with fewer time steps, an early exit or quantizers if the section says so.

    Args:
        section: Its section.
        model: The trained one.
        x: Training samples, for ranges of quantizers.
    """
    if quantized_when(section) == "after":
        model = quantized(section, model, x)
    if section.truncate is None and section.exit_confidence is None:
        return model
    assert isinstance(model, SpikingClassifier)  # only spiking sections have these keys
    try:
        if isinstance(section.truncate, GammaRule):
            model = truncate(model, exit_step(model, section.truncate.gamma))
        elif section.truncate is not None:
            model = truncate(model, section.truncate)
        return model if section.exit_confidence is None else EarlyExit(model, section.exit_confidence).eval()
    except (TypeError, ValueError) as error:
        raise ValueError(f"models.{section.name}: {error}") from error


def changes(section: ModelSection) -> bool:
    """Whether :func:`finished` gives another model than the trained one."""
    return section.truncate is not None or section.exit_confidence is not None or quantized_when(section) == "after"


def build_rule(section: ModelSection, seed: int) -> Trainer:
    rule = section.training.rule
    where = f"models.{section.name}.training.rule"
    trainer: Trainer = make(rule, RULES, where, seed=derive(seed, "training", section.name) >> 1)
    return trainer


def build_threat(component: Component, eps: float = 0.0) -> ThreatModel:
    """The threat, inside the box of the data; the budgets come from the evaluation."""
    threat: ThreatModel = make(component, THREATS, "threat", eps=eps, bounds=(0.0, 1.0))
    return threat


def build_attack(
    section: AttackSection, models: Mapping[str, nn.Module], random: bool, threat: ThreatModel | None = None
) -> Attack:
    """The attack, at a budget that the evaluation replaces.

    Args:
        section: Its section.
        models: Where a transfer finds its source.
        random: Whether the model that it differentiates has randomness: without it, averaging draws is a waste.
        threat: Default Linf.
    """
    kind = _CRAFTED.get(section.attack.type)
    gradient = (
        _default_gradient(kind)
        if section.gradient is None
        else build_gradient(section.gradient, f"attacks.{section.name}.gradient")
    )
    if section.surrogate is not None:
        if not isinstance(gradient, _OWN_SURROGATE):
            raise ValueError(
                f"attacks.{section.name}: {type(gradient).__name__} uses no surrogate of the neurons, remove one of both"
            )
        gradient = Surrogate(make(section.surrogate, SURROGATES, f"attacks.{section.name}.surrogate"), gradient)
    if section.eot > 1 and random:
        gradient = EOT(section.eot, gradient)
    component, where = section.attack, f"attacks.{section.name}.attack"
    given: dict[str, object] = {}
    arguments = dict(component.arguments)
    if kind is not None:
        accepted = {f.name for f in fields(kind)}  # type: ignore[arg-type]
        known = {"threat": threat or Linf(0.0), "gradient": gradient}
        given = {name: value for name, value in known.items() if name in accepted}
        if kind is Standard and (section.surrogate or section.eot > 1):
            raise ValueError(
                f"attacks.{section.name}: Standard has surrogates and EOT of its own, so eot and surrogate say nothing"
            )
        if "gradient" not in accepted and (section.surrogate or section.gradient or section.eot > 1):
            raise ValueError(
                f"attacks.{section.name}: {component.type} uses no gradient, so eot, gradient and surrogate say nothing"
            )
        if "loss" in accepted and "loss" in arguments:
            given["loss"] = LOSSES[checks.choice(f"{where}.loss", str(arguments.pop("loss")), LOSSES)]
    if kind is Standard and section.source is not None:
        given["transfer"] = (models[section.source],)
    attack: Attack = make(Component.model_validate({"type": component.type, **arguments}), _CRAFTED, where, **given)
    return attack if section.source is None or kind is Standard else Transfer(attack, models[section.source])


def takes_gradient(name: str) -> bool:
    """Whether the attack of that name differentiates what it attacks, and is told how."""
    if name == Standard.__name__:
        return False
    return "gradient" in {f.name for f in fields(_CRAFTED[name])} if name in _CRAFTED else True  # type: ignore[arg-type]


def _default_gradient(kind: type[Attack] | None) -> GradientSource:
    """What an attack differentiates unless it is told otherwise."""
    made = [f.default_factory for f in fields(kind) if f.name == "gradient"] if kind is not None else []  # type: ignore[arg-type]
    return Backprop() if not made or made[0] is MISSING else made[0]()


def build_gradient(component: Component, where: str) -> GradientSource:
    """A gradient source; ``where`` names it in errors."""
    for kind, key in _ELSEWHERE.items():
        if component.type == kind.__name__:
            raise ValueError(f"{where}: {component.type} is written {key} in the section of the attack")
    if component.type == LearningSignal.__name__:
        raise ValueError(
            f"{where}: LearningSignal needs the rule that trained the victim, with its seed, as an object: use it from Python, "
            "see docs/attacks/hybrid.md"
        )
    checks.choice(f"{where}.type", component.type, _GRADIENTS)
    if component.type == Mixed.__name__:
        return _mixed(component, where)
    own = [f.name for f in fields(_GRADIENTS[component.type])]
    inner = {"source": Backprop()} if "source" in own else {}
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in component.arguments.items()}
    source: GradientSource = make(Component(type=component.type, **arguments), _GRADIENTS, where, **inner)
    return source


def _mixed(component: Component, where: str) -> GradientSource:
    """``{ type = "Mixed", sources = [{ type = "ASSG" }, { type = "Surrogate", surrogate = { type = "ATan" } }] }``."""
    given = component.arguments.get("sources", [])
    if not isinstance(given, list) or not all(isinstance(g, dict) and isinstance(g.get("type"), str) for g in given):
        raise ValueError(f'{where}.sources must be a list such as [{{ type = "ASSG" }}, ...], got {given!r:.80}')
    sources = []
    for i, inner in enumerate(map(Component.model_validate, given)):
        at = f"{where}.sources[{i}]"
        if inner.type == Surrogate.__name__:
            sources.append(make(inner, {inner.type: Surrogate}, at, source=Backprop()))
        else:
            sources.append(build_gradient(inner, at))
    rest = {k: v for k, v in component.arguments.items() if k != "sources"}
    mixed: GradientSource = make(Component(type=component.type, **rest), _GRADIENTS, where, sources=tuple(sources))
    return mixed


def build_backend(section: ChipSection) -> Backend:
    made = [make(c, _EFFECTS, f"chips.{section.name}.backends[{i}]") for i, c in enumerate(section.backends)]
    return made[0] if len(made) == 1 else Chain(*made)


def _try(section: ModelSection, model: nn.Module, shape: Sequence[int]) -> None:
    """One time step through an untrained ``model`` without weights, and what becomes of it after training."""
    rule = section.truncate
    if isinstance(rule, GammaRule):  # what it will say is not known yet; one step is the least
        try:
            gamma_profile(model)
        except ValueError as error:
            raise ValueError(f"models.{section.name}.truncate: {error}") from error
    finished(section.model_copy(update={"truncate": 1}) if isinstance(rule, GammaRule) else section, model)
    try:
        with torch.no_grad(), evaluating(model):
            if isinstance(model, SpikingClassifier):
                x_t = torch.empty(1, *model.encoder.output_shape(shape), device="meta")
                model.network.step(x_t, model.network.initial_state(x_t))
            else:
                model(torch.empty(1, *shape, device="meta"))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"models.{section.name}: {error}") from error


def rehearse(experiment: Experiment) -> None:
    """Build everything once, small, so that a mistake is found before any work is done."""
    shape, classes = SHAPES[experiment.data.name], 10
    with torch.device("meta"):  # shapes without weights: a large network costs nothing here
        models = {m.name: build_model(m, shape, classes, 0) for m in experiment.models}
    for m in experiment.models:
        rule = build_rule(m, 0)
        plain = models[m.name]
        if quantized_when(m) == "training":
            if not isinstance(rule, BPTT):
                raise ValueError(
                    f"models.{m.name}.quantization: {m.training.rule.type} has gradients of its own, and "
                    "quantized weights learn by BPTT and the robust training built on it: set when = 'after'"
                )
            plain = quantized(m, plain, None)
        _try(m, plain, shape)
        refuse = getattr(rule, "refuse", None)
        if refuse is not None and m.same_weights_as is None:
            try:
                refuse(plain, torch.empty(1, *shape, device="meta"))
            except (TypeError, ValueError) as error:
                raise ValueError(f"models.{m.name}: {error}") from error
        judged = quantized(m, models[m.name], None) if m.quantization is not None else plain
        zero = blank(deepcopy(judged)) if experiment.chips_of(m) else None
        for chip in experiment.chips_of(m):
            assert zero is not None
            try:
                deploy(zero, build_backend(chip), seed=0)
            except (TypeError, ValueError) as error:
                raise ValueError(f"chips.{chip.name}: models.{m.name}: {error}") from error
        if m.same_weights_as is not None:
            mine, theirs = (
                {k: v.shape for k, v in models[n].state_dict().items()} for n in (m.name, m.same_weights_as)
            )
            if mine != theirs:
                raise ValueError(f"models.{m.name}: the weights of {m.same_weights_as!r} do not fit, make them alike")
    threat = build_threat(experiment.threat)
    for where, budgets in (
        ("evaluation.eps", experiment.evaluation.eps),
        ("evaluation.chip_eps", experiment.evaluation.chip_eps or ()),
        ("diagnosis.eps", () if experiment.diagnosis is None else (experiment.diagnosis.eps,)),
    ):
        for eps in budgets:
            try:
                threat.at(eps).check("inputs", torch.zeros(1, *shape))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
    for attack in experiment.attacks:
        made = build_attack(attack, models, random=True, threat=threat)
        if attack.craft is not None:
            try:
                crafted(made, attack.craft, next(iter(models.values())))
            except TypeError as error:
                raise ValueError(f"attacks.{attack.name}: {error}") from error
    for chip in experiment.chips:
        build_backend(chip)
