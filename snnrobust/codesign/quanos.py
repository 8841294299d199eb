"""Train for a few epochs, measure each layer, give it bits of its own, train on."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks import Attack
from snnrobust.codesign.activations import Where, plain_names
from snnrobust.codesign.allocation import Direction, Reference, Shape, density_bits, sensitivity_bits
from snnrobust.codesign.quanos_result import QuanosResult, Round
from snnrobust.codesign.sensitivity import activation_density, adversarial_noise_sensitivity
from snnrobust.data import Data, take
from snnrobust.draws import derive, device_of, draws
from snnrobust.learning_rules.trainer import History, Trainer
from snnrobust.quantization import Integer, QuantizedMembrane, Quantizer, SignalQuantizer, calibrate, quantize

__all__ = ["ByDensity", "BySensitivity", "HybridPrecision", "quanos", "unquantized"]


class Allocation(Protocol):
    """What gives each layer its bits."""

    def measure(self, model: nn.Module, data: Data, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
        """A number for each layer by its plain name, and what to keep of the measurement as JSON."""

    def bits(self, measured: Mapping[str, float], now: Mapping[str, int]) -> dict[str, int]:
        """The new bits of the measured layers."""


@dataclass(frozen=True, kw_only=True)
class BySensitivity:
    """:func:`~snnrobust.codesign.sensitivity_bits` of :func:`~snnrobust.codesign.adversarial_noise_sensitivity`.

    Args:
        attack: Of the measurement.
        direction, shape, reference, least: Of the rule, whose published form is not verified.
        most: Bits where the rule's r is 1; default those that the layers have so far. Fewer give a smaller network whose layers
            stand in the same proportion.
        where, normalised, draws_each: Of the measurement.
    """

    attack: Attack
    direction: Direction = "more"
    shape: Shape = "linear"
    reference: Reference = "extreme"
    most: int | None = None
    least: int = 2
    where: Where = "activation"
    normalised: bool = True
    draws_each: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack must be an attack such as FGSM(Linf('8/255')), got {self.attack!r:.80}")
        sensitivity_bits(
            {"a layer": 1.0}, start=16 if self.most is None else self.most, least=self.least, direction=self.direction,
            shape=self.shape, reference=self.reference,
        )  # fmt: skip

    def measure(self, model: nn.Module, data: Data, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
        found = adversarial_noise_sensitivity(
            model,
            data,
            self.attack,
            where=self.where,
            normalised=self.normalised,
            draws_each=self.draws_each,
            seed=seed,
        )
        return found.ans, found.to_json()

    def bits(self, measured: Mapping[str, float], now: Mapping[str, int]) -> dict[str, int]:
        return sensitivity_bits(
            measured, start=self.most or max(now[name] for name in measured), least=self.least,
            direction=self.direction, shape=self.shape, reference=self.reference,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ByDensity:
    """:func:`~snnrobust.codesign.density_bits` of :func:`~snnrobust.codesign.activation_density`; may be repeated.

    Args:
        where: Whose density.
        least: No layer gets fewer bits.
        keep_ends: The first and the last layer keep the bits that they have: the density of the last layer's logits says
            nothing, and with ``where="input"`` that of the first is one of the images.
    """

    where: Where = "activation"
    least: int = 2
    keep_ends: bool = False

    def __post_init__(self) -> None:
        checks.boolean("keep_ends", self.keep_ends)
        density_bits({"a layer": 1.0}, self.least, least=self.least)

    def measure(self, model: nn.Module, data: Data, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
        found = activation_density(model, data, where=self.where, seed=seed)
        return found, {"density": found, "where": self.where}

    def bits(self, measured: Mapping[str, float], now: Mapping[str, int]) -> dict[str, int]:
        found = density_bits(measured, now, least=self.least)
        if self.keep_ends:
            for name in (next(iter(found)), next(reversed(found))):
                found[name] = now[name]
        return found


@dataclass(frozen=True, kw_only=True)
class HybridPrecision:
    r"""Quantization-aware training in which layers get bits of their own early on.

    1. Train a copy of the model for ``early`` epochs, all layers at ``bits``.
    2. Measure each layer on the first ``samples`` training images, and allocate bits. (1 and 2 are done ``rounds`` times.)
    3. Quantize the learnt weights (not their rounded values) with the new bits, observe the ranges of inputs anew, and train for
       the remaining epochs.

    Each of these trainings is a call of the rule's ``fit``: its optimizer begins without moments, and the schedule of its
    learning rate begins anew. Only the weights and the statistics of normalisations go on.

    Args:
        rule: That steps parameters, such as BPTT, or robust training.
        allocation: :class:`BySensitivity` (QUANOS), :class:`ByDensity`, or what has their methods.
        then: The rule of the last training; default ``rule``.
        bits: To begin with.
        early: Epochs before each measurement.
        rounds: Of measuring and allocating.
        samples: For measurements and for ranges.
        weights, inputs: Quantizers, whose own bits do not count; ``inputs=None`` quantizes weights alone.
        seed: Of the measurements.
    """

    rule: Trainer
    allocation: Allocation
    then: Trainer | None = None
    bits: int = 16
    early: int = 2
    rounds: int = 1
    samples: int = 256
    weights: Quantizer = field(default_factory=Quantizer)
    inputs: Quantizer | None = field(default_factory=lambda: Quantizer(affine=True))
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("early", "rounds", "samples"):
            checks.count(name, getattr(self, name))
        checks.count("seed", self.seed, low=0)
        for name in ("rule", "then"):
            rule = getattr(self, name)
            if not (name == "then" and rule is None) and not hasattr(rule, "fit"):
                raise TypeError(f"{name} must be a learning rule such as BPTT(lr=1e-3), got {rule!r:.80}")
        if not (hasattr(self.allocation, "measure") and hasattr(self.allocation, "bits")):
            raise TypeError(
                "allocation must be an instance such as BySensitivity(attack=FGSM(Linf('8/255'))) or ByDensity(), got "
                f"{self.allocation!r:.80}"
            )
        if not isinstance(self.weights, Quantizer) or not (self.inputs is None or isinstance(self.inputs, Quantizer)):
            raise TypeError("weights and inputs must be Quantizers such as Quantizer(Integer(8))")
        Integer(self.bits)

    def __call__(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None = None,
        *,
        epochs: int,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> QuanosResult:
        """Train copies; ``model`` stays as it is.

        Args:
            model: Not quantized, spiking or ordinary, trained or not.
            train: In memory or not; measurements take its first samples, in its order.
            validation: As the rule takes it.
            epochs: In all, of which ``rounds * early`` come before the last allocation.
            folder: For the checkpoints of each training: an interrupted call goes on where it was.
            progress: Show progress bars.

        Raises:
            ValueError: too few epochs or samples, a measurement that is not defined, such as of a silent layer.
        """
        checks.module("model", model)
        last = checks.count("epochs", epochs) - self.rounds * self.early
        if last < 1:
            raise ValueError(
                f"epochs must be more than rounds * early = {self.rounds * self.early}, got {epochs}: training has to go on "
                "after bits are allocated"
            )
        x, y = take(train, self.samples)
        bits = dict.fromkeys(plain_names(model).values(), self.bits)
        float_model, rounds, histories = deepcopy(model), [], []
        for r in range(self.rounds):
            quantized = self._quantized(float_model, bits, x)
            histories.append(
                self._fit(self.rule, quantized, train, validation, self.early, folder, f"early-{r + 1}", progress)
            )
            measured, details = self.allocation.measure(quantized, (x, y), derive(self.seed, "measure", r) >> 1)
            bits = {**bits, **self.allocation.bits(measured, bits)}
            rounds.append(Round(measured, dict(bits), details))
            float_model = unquantized(quantized, float_model)
        quantized = self._quantized(float_model, bits, x)
        histories.append(
            self._fit(self.then or self.rule, quantized, train, validation, last, folder, "hybrid", progress)
        )
        settings = {
            "start": self.bits, "early": self.early, "rounds": self.rounds, "epochs": epochs, "samples": self.samples,
            "rule": self.rule.name, "allocation": str(self.allocation), "seed": self.seed,
        }  # fmt: skip
        return QuanosResult(quantized, bits, tuple(rounds), tuple(histories), settings)

    def _quantized(self, model: nn.Module, bits: Mapping[str, int], x: Tensor) -> nn.Module:
        made = quantize(model, weights=self.weights, inputs=self.inputs, bits=bits)
        observing = any(isinstance(m, SignalQuantizer) and m.recipe.scale != "constant" for m in made.modules())
        if observing:
            with draws(made, derive(self.seed, "ranges")):
                calibrate(made, x.to(device_of(made)), allow_silent=True)  # the first training finds the range
        return made

    @staticmethod
    def _fit(
        rule: Trainer,
        model: nn.Module,
        train: Data,
        validation: Data | None,
        epochs: int,
        folder: str | Path | None,
        name: str,
        progress: bool,
    ) -> History:
        path = None if folder is None else Path(folder) / f"{name}.training.safetensors"
        return rule.fit(model, train, validation, epochs=epochs, checkpoint=path, progress=progress)


def quanos(rule: Trainer, attack: Attack, *, direction: Direction = "more", **settings: Any) -> HybridPrecision:
    """:class:`HybridPrecision` by adversarial noise sensitivity.

    ``quanos(BPTT(), FGSM(Linf("8/255")), early=2)(model, train, epochs=10)``; ``settings`` are those of
    :class:`BySensitivity` and of :class:`HybridPrecision`.

    Source: Panda 2020, "QUANOS - Adversarial Noise Sensitivity Driven Hybrid Quantization of Neural Networks"
    (arXiv:2004.11233). Verified (abstract) are that ANS is measured for each layer in the initial stages of training, and that
    it sets the layer's precision. The formula of ANS, 16 bits to begin with and one allocation are from memory; the rule from
    ANS to bits and its direction are not known to us.
    """
    own = {name: settings.pop(name) for name in BySensitivity.__dataclass_fields__ if name in settings}
    return HybridPrecision(rule=rule, allocation=BySensitivity(attack=attack, direction=direction, **own), **settings)


def unquantized(quantized: nn.Module, like: nn.Module) -> nn.Module:
    """The learnt weights of a quantized model, before rounding, in a copy of the model ``like`` that it was made of.

    Statistics of normalisations and learnt neurons come along; ranges and steps of quantizers do not.
    """
    found = deepcopy(like)
    names = {}
    for name, module in quantized.named_modules():
        if isinstance(module, QuantizedMembrane):
            names[f"{name}.neuron"] = name
    names |= {name: plain for name, plain in plain_names(quantized).items() if name != plain}
    drop = {f"{n}." if n else "" for n, m in quantized.named_modules() if isinstance(m, SignalQuantizer)}
    state: dict[str, Tensor] = {}
    for key, value in quantized.state_dict().items():
        if key.startswith(tuple(drop)):
            continue
        if ".parametrizations." in f".{key}":
            if not key.endswith("parametrizations.weight.original"):
                continue
            key = key.replace("parametrizations.weight.original", "weight")
        owner = key.rpartition(".")[0]
        renamed = next((old for old in names if owner == old or owner.startswith(f"{old}.")), None)
        state[key if renamed is None else names[renamed] + key[len(renamed) :]] = value
    found.load_state_dict(state)
    return found.train(quantized.training)
