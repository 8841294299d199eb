"""Experiment files: TOML, validated before anything runs. Reading one runs none of its author's code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from snnrobust import checks
from snnrobust.attacks import SOURCES, Craft
from snnrobust.data import DATASETS
from snnrobust.evaluation.report import IDEAL, NO_ATTACKS
from snnrobust.experiments.component import Component
from snnrobust.learning_rules import RULES, rule_name
from snnrobust.models import ARCHITECTURES, NORMS, remembers
from snnrobust.quantization import Quantizer

__all__ = ["Experiment", "file_name", "parse", "read"]

Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f/\\]+$")]
Count = Annotated[int, Field(ge=1)]
Confidence = Annotated[float, Field(ge=0.0, le=1.0)]
Eps = Annotated[float, BeforeValidator(lambda value: checks.fraction("eps", value))]


def file_name(name: str) -> str:
    """What a model's files are called: letters and digits of its name, joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataSection(_Section):
    """The data set; the last ``validation`` samples of its training part are held out."""

    name: str = "digits"
    train: Count | None = None
    validation: Annotated[int, Field(ge=0)] = 0

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return checks.choice("data set", name, DATASETS)


class Training(_Section):
    """A learning rule and its arguments, and for how long."""

    rule: Component = Component(type="BPTT")
    epochs: Count = 10


class Normalisation(_Section):
    """(x - mean) / std, for all channels alike or one number a channel."""

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


class QuantizationSection(_Section):
    """Quantizers by what they quantize, such as ``weights = { bits = 4, axis = 0 }``; ``bits`` gives layers their own.

    Inputs are affine unless they say otherwise, for they are images, activations that are not negative, or spikes.
    """

    weights: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None
    membranes: dict[str, Any] | None = None
    layers: tuple[str, ...] | None = None
    bits: dict[str, int] = {}
    when: Literal["training", "after"] = "training"  # quantization-aware, or post-training
    calibration: Count = 256  # training samples on which ranges are observed

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return _with_tuple(value, "layers")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not self.quantizers():
            raise ValueError("nothing to quantize: give weights, inputs or membranes, such as weights = { bits = 4 }")
        return self

    def quantizers(self) -> dict[str, Quantizer]:
        """Those that are given, by what they quantize."""
        given = {name: getattr(self, name) for name in ("weights", "inputs", "membranes")}
        found = {}
        for name, recipe in given.items():
            if recipe is not None:
                chosen = {"affine", "signed", "levels"} & recipe.keys() or recipe.get("scale") == "learned"
                own = recipe if name != "inputs" or chosen else {"affine": True, **recipe}
                found[name] = Quantizer.build(own, name)
        return found


class GammaRule(_Section):
    """Truncate to ``models.exit_step(model, gamma)`` time steps."""

    gamma: float


def _trainer(where: str, value: Any) -> dict[str, Any] | None:
    """A rule by name, in any case, or by name and arguments."""
    if value is None:
        return None
    given = {"type": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        raise ValueError(f'{where} must be a rule such as "DFA" or {{ type = "DFA", lr = 1e-3 }}, got {value!r:.80}')
    try:
        return {**given, "type": rule_name(given["type"])}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _trained_by(model: dict[str, Any], rule: dict[str, Any], force: bool) -> dict[str, Any]:
    """A model's section with ``rule`` and with what that needs; if ``force``, in place of what is there."""
    needs = dict(RULES[rule["type"]].needs)
    if not force and "same_weights_as" in model:
        raise ValueError(f"models.{model.get('name')}: a model with same_weights_as is not trained, remove its trainer")
    if not force and needs and model.get("kind") == "ordinary":
        raise ValueError(
            f"models.{model.get('name')}: {rule['type']} trains spiking networks only: set kind = 'spiking'"
        )
    model = {**model, **needs} if force else {**needs, **model}
    if "same_weights_as" in model:
        return model
    return {**model, "training": {**model.get("training", {}), "rule": rule}}


def _truncation(value: Any) -> int | GammaRule:
    try:
        if not isinstance(value, dict):
            return checks.count("truncate", value, hint="a number of time steps, or { gamma = 0.1 }")
        if value.keys() != {"gamma"}:
            raise ValueError(f"truncate must be a number of time steps or {{ gamma = 0.1 }}, got {value}")
        return GammaRule(gamma=checks.number("truncate.gamma", value["gamma"], 0.0, exclusive_low=True))
    except TypeError as error:
        raise ValueError(str(error)) from error


class ModelSection(_Section):
    """A network to be trained; or, with ``same_weights_as``, another's weights behind another encoder.

    ``trainer = "DFA"`` is short for ``training.rule = { type = "DFA" }`` and for the keys that a model for this rule must have
    (``needs`` of the rule), where the section does not set them.
    """

    name: Name
    kind: Literal["spiking", "ordinary"] = "spiking"
    architecture: str = "conv-small"
    encoder: Component | None = None  # default: Poisson(8); Rows of the image for a network that remembers
    neuron: Component = Component(type="LIF")
    norm: str = "BNTT"
    normalise: Normalisation | None = None  # of the input; by default none
    readout: Component = Component(type="MeanMembrane")
    training: Training = Training()
    trainer: None = Field(default=None, exclude=True)  # written out as training.rule before anything is checked
    same_weights_as: Name | None = None
    # after training, keep only so many time steps, or those that BNTT says are needed
    truncate: Annotated[int | GammaRule | None, BeforeValidator(_truncation)] = None
    exit_confidence: Confidence | None = None  # after training, stop a sample once its running output is so sure
    quantization: QuantizationSection | None = None  # default: that of the experiment
    trap: str | None = None  # why this model's result is false, for a model that is here to show it

    @model_validator(mode="after")
    def _fits(self) -> Self:
        checks.choice("architecture", self.architecture, ARCHITECTURES)
        checks.choice("norm", self.norm, NORMS)
        if self.kind == "ordinary":
            spiking = {"encoder", "neuron", "norm", "readout", "same_weights_as", "truncate", "exit_confidence"}
            spiking -= {"encoder"} if remembers(ARCHITECTURES[self.architecture]) else set()
            given = sorted(spiking & self.model_fields_set)
            if given:
                raise ValueError(f"an ordinary network has no {', '.join(given)}: remove it, or set kind = 'spiking'")
        return self


def _with_tuple(value: Any, key: str) -> Any:
    """A section whose list ``key`` is a tuple."""
    if isinstance(value, dict) and isinstance(value.get(key), list):
        return {**value, key: tuple(value[key])}
    return value


class AttackSection(_Section):
    """An attack; ``source`` makes it a transfer from another model, ``models`` limits it to some victims.

    With ``craft`` it is run on chips alone, crafted as :func:`~snnrobust.attacks.crafted` says; ``eot`` says
    how many draws ``craft = "eot"`` averages (default 8).
    """

    name: Name
    attack: Component
    eot: Count = 1  # draws averaged in each gradient, for victims with randomness
    gradient: Component | None = None  # default: the neurons' own, by backpropagation
    surrogate: Component | None = None
    craft: Craft | None = None
    source: Name | None = None
    models: tuple[Name, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return _with_tuple(value, "models")

    @model_validator(mode="after")
    def _alone(self) -> Self:
        if self.craft is not None and self.source is not None:
            raise ValueError("an attack has a source or a craft, not both: a transfer is never crafted on the chip")
        return self

    @property
    def spiking(self) -> bool:
        """Whether it differentiates spiking neurons in a way of its own, so that other models have nothing for it."""
        source = None if self.gradient is None else SOURCES.get(self.gradient.type)
        return self.surrogate is not None or (source is not None and source.spiking)


class ChipSection(_Section):
    """A chip: backends in order, and the seed that identifies it; ``models`` limits it to some."""

    name: Name
    backends: list[Component] = Field(min_length=1)
    seed: Annotated[int, Field(ge=0)] = 0
    models: tuple[Name, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return _with_tuple(value, "models")


class Evaluation(_Section):
    samples: Count = 200
    eps: list[Eps] = Field(default=[8 / 255], min_length=1)
    chip_eps: list[Eps] | None = Field(default=None, min_length=1)  # default: eps
    selection_draws: Count = 32
    judge_draws: Count = 128
    examples: Annotated[int, Field(ge=0)] = 8
    controls: bool = True  # of suites: equal budget and doubled effort, at three times the cost


class Diagnosis(_Section):
    eps: Eps
    samples: Count = 200
    draws: Count = 32
    source: Name | None = None


class Experiment(_Section):
    """A whole experiment: every model is trained, attacked, put on every chip and judged."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    notes: list[str] = Field(default=[])  # shown in the report
    trainer: None = Field(default=None, exclude=True)  # written out in the models before anything is checked
    quantization: None = Field(default=None, exclude=True)  # likewise
    data: DataSection = DataSection()
    models: list[ModelSection] = Field(min_length=1)
    attacks: list[AttackSection] = Field(min_length=1)
    chips: list[ChipSection] = Field(default=[])
    threat: Component = Component(type="Linf")  # its budgets are those of evaluation and diagnosis
    evaluation: Evaluation = Evaluation()
    diagnosis: Diagnosis | None = None

    @model_validator(mode="before")
    @classmethod
    def _trainers(cls, value: Any) -> Any:
        """``trainer`` written out: of a model, and of the whole experiment, which goes before what the models say.
        ``quantization`` of the experiment is that of the models that have none."""
        if not isinstance(value, dict) or not isinstance(value.get("models"), list):
            return value
        value = dict(value)
        of_all = _trainer("trainer", value.pop("trainer", None))
        quantization = value.pop("quantization", None)
        models = []
        for m in value["models"]:
            if isinstance(m, dict):
                m = m if quantization is None else {"quantization": quantization, **m}
                own = _trainer(f"models.{m.get('name')}.trainer", m.get("trainer"))
                m = {k: v for k, v in m.items() if k != "trainer"}
                if own is not None and (of_all is not None or "rule" in m.get("training", {})):
                    raise ValueError(f"models.{m.get('name')}: trainer is given twice, remove it here or there")
                spiking = m.get("kind", "spiking") == "spiking"
                m = _trained_by(m, own, force=False) if own is not None else m
                m = _trained_by(m, of_all, force=True) if of_all is not None and spiking else m
            models.append(m)
        return {**value, "models": models}

    def chips_of(self, victim: ModelSection) -> list[ChipSection]:
        """The chips that it is put on; a trap is put on none."""
        return [c for c in self.chips if victim.trap is None and (c.models is None or victim.name in c.models)]

    def attacks_on(self, victim: ModelSection) -> list[AttackSection]:
        """The attacks that apply: not limited to others, not a transfer from itself, nothing for neurons without them.

        A suite takes transfers in beside its other stages: on their source it is run without them.
        """
        own = (victim.name, victim.same_weights_as)
        kinds = {m.name: m.kind for m in self.models}
        attacks = [
            a.model_copy(update={"source": None}) if a.attack.type == "Standard" and a.source in own else a
            for a in self.attacks
        ]
        return [
            a for a in attacks
            if (a.models is None or victim.name in a.models)
            and (a.source is None or a.source not in own)
            and (not a.spiking or kinds.get(a.source or victim.name) == "spiking")
        ]  # fmt: skip

    @model_validator(mode="after")
    def _refers(self) -> Self:
        models = {m.name: m for m in self.models}
        for what, names in (
            ("models", [m.name for m in self.models]),
            ("attacks", [a.name for a in self.attacks]),
            ("chips", [c.name for c in self.chips]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what}: the name {twice[0]!r} is given twice")
        for what, names in (("models", list(models)), ("chips", [c.name for c in self.chips])):
            if len({file_name(name) for name in names}) < len(names):
                raise ValueError(f"{what}: two names give the same file name: {', '.join(names)}")
        reserved = {"chips": [IDEAL], "attacks": [*NO_ATTACKS]}
        for what, found in (("chips", [c.name for c in self.chips]), ("attacks", [a.name for a in self.attacks])):
            for taken in reserved[what]:
                if taken in found:
                    raise ValueError(f"{what}: the report uses the name {taken!r} itself, give another")
        references: list[tuple[str, Iterable[str | None]]] = [
            (f"models.{m.name}.same_weights_as", [m.same_weights_as]) for m in self.models
        ]
        references += [(f"attacks.{a.name}.source", [a.source]) for a in self.attacks]
        references += [(f"attacks.{a.name}.models", a.models or ()) for a in self.attacks]
        references += [(f"chips.{c.name}.models", c.models or ()) for c in self.chips]
        references += [("diagnosis.source", [self.diagnosis.source if self.diagnosis else None])]
        for what, targets in references:
            for name in targets:
                if name is not None and name not in models:
                    raise ValueError(f"{what}: there is no model {name!r}{checks.nearest(name, models)}")
        for m in self.models:
            if m.same_weights_as is not None and models[m.same_weights_as].same_weights_as is not None:
                raise ValueError(f"models.{m.name}.same_weights_as must name a model that is trained itself")
            if m.same_weights_as is not None and models[m.same_weights_as].kind != m.kind:
                raise ValueError(f"models.{m.name}.same_weights_as must name a spiking model")
        if not self.chips and any(a.craft for a in self.attacks):
            name = next(a.name for a in self.attacks if a.craft)
            raise ValueError(f"attacks.{name}: craft says how an attack on a chip is made, but there are no [[chips]]")
        for victim in self.models:
            if not self.attacks_on(victim):
                raise ValueError(
                    f"models.{victim.name}: no attack applies to it (see attacks.*.models, source, surrogate, gradient)"
                )
        return self


def read(path: str | Path) -> tuple[Experiment, str]:
    """The experiment of a file, and the file's text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: every mistake in it, by path, with the nearest valid name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no experiment file {path}")
    text = path.read_text(encoding="utf-8", errors="replace")
    return parse(text, str(path)), text


def parse(text: str, origin: str = "experiment") -> Experiment:
    """The experiment of a TOML text; see :func:`read`."""
    from snnrobust.experiments.build import rehearse

    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{origin} is not valid TOML: {error}") from error
    try:
        experiment = Experiment.model_validate(content)
    except ValidationError as error:
        lines = [f"  {_explain(e, content)}" for e in error.errors()]
        raise ValueError("\n".join([f"{origin} has {len(lines)} mistake{'s' * (len(lines) > 1)}:", *lines])) from error
    try:
        rehearse(experiment)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return experiment


def _explain(error: Any, content: dict[str, Any]) -> str:
    """One mistake: its path, what is wrong, and for an unknown key the nearest valid name."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        valid = _keys(error["loc"][:-1])
        return f"{path}: unknown key{checks.nearest(error['loc'][-1], valid)}; valid here: {', '.join(valid)}"
    message = error["msg"].removeprefix("Value error, ")
    given = (
        ""
        if error["type"] == "missing" or isinstance(error["input"], dict) or "got" in message
        else f", got {error['input']!r:.60}"
    )
    return f"{path}: {message}{given}" if path else message


_SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSection, "models": ModelSection, "attacks": AttackSection, "chips": ChipSection, "evaluation": Evaluation,
    "diagnosis": Diagnosis, "training": Training, "normalise": Normalisation, "quantization": QuantizationSection,
}  # fmt: skip


def _keys(location: tuple[int | str, ...]) -> list[str]:
    named = [part for part in location if isinstance(part, str)]
    return list((_SECTIONS[named[-1]] if named else Experiment).model_fields)
