"""Hard pruning, and the whole procedure: ADMM, masks, retraining, purification, levels, retraining."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.codesign.admm import ADMM, Convergence
from snnrobust.codesign.constrained import Constrained, Masked, OnLevels, synaptic_layers
from snnrobust.data import Data, take
from snnrobust.draws import derive
from snnrobust.hardware.deploy import norm_after
from snnrobust.hardware.operation import Operation
from snnrobust.layers import BNTT, TEBN
from snnrobust.learning_rules import History, Supervised
from snnrobust.quantization.conductance import NearestLevel
from snnrobust.quantization.purification import Purification, purify
from snnrobust.quantization.structured import Projection

__all__ = ["Compressed", "Pruned", "compress", "prune", "put_on_levels"]

Masks = dict[str, Tensor]
"""By the name of a parameter, False where it is zero and stays so."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned copy, and the masks with which it is trained again: ``Masked(rule=..., masks=pruned.masks)``."""

    model: nn.Module
    masks: Masks

    @property
    def kept(self) -> float:
        """Share of the weights of the pruned layers that are left."""
        weights = [mask for name, mask in self.masks.items() if name.endswith("weight") and mask.dim() > 1]
        return sum(int(m.sum()) for m in weights) / max(sum(m.numel() for m in weights), 1)


def prune(model: nn.Module, projections: Mapping[str, Projection]) -> Pruned:
    """A copy whose weights are projected, and masks of what is zero in them.

    An output all of whose weights are pruned away takes its bias with it, and scale and offset of the normalisation that follows:
    it is exactly zero from then on, so that it can be removed without a trace (:func:`~snnrobust.quantization.purify`).

    Args:
        model: Untouched.
        projections: As of :class:`~snnrobust.codesign.ADMM`. A weight that is zero in the model is zero in the mask.

    Raises:
        ValueError: layers that do not exist.
    """
    checks.module("model", model)
    synaptic_layers(model, projections, "projections")
    copy, masks = deepcopy(model), Masks()
    with torch.no_grad():
        for name, layer in synaptic_layers(copy, projections, "projections").items():
            layer.weight.copy_(projections[name](layer.weight.detach(), Operation.of(layer)))
            masks[f"{name}.weight"] = layer.weight != 0
            masks |= _silenced(copy, name, layer)
        for parameter, mask in masks.items():
            copy.get_parameter(parameter).masked_fill_(~mask, 0.0)
    return Pruned(copy, masks)


def _silenced(model: nn.Module, name: str, layer: nn.Module) -> Masks:
    """Masks of the other parameters of outputs that have no weight."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    alive = weight.flatten(1).any(1)
    if bool(alive.all()):
        return {}
    found = {} if bias is None else {f"{name}.bias": alive.clone()}
    try:
        norm = norm_after(model, name)
    except TypeError:  # its parent runs its children in an order of its own
        norm = None
    module = None if norm is None else model.get_submodule(norm)
    if isinstance(module, nn.modules.batchnorm._BatchNorm | BNTT | TEBN):  # which act channel by channel
        for part in ("weight", "bias"):
            parameter = module._parameters.get(part)
            if parameter is not None and parameter.shape[-1] == len(alive):
                found[f"{norm}.{part}"] = alive.expand(parameter.shape).clone()
    return found


def put_on_levels(model: nn.Module, levels: Mapping[str, NearestLevel]) -> nn.Module:
    """A copy whose weights are mapped to their levels, without any training."""
    checks.module("model", model)
    synaptic_layers(model, levels, "levels")
    copy = deepcopy(model)
    with torch.no_grad():
        for name, layer in synaptic_layers(copy, levels, "levels").items():
            layer.weight.copy_(levels[name](layer.weight.detach()))
    return copy


@dataclass(frozen=True, eq=False)
class Compressed:
    """What :func:`compress` made, stage by stage; None where a stage was left out.

    Attributes:
        model: The last one, in eval mode.
        masks: What is zero in it, by parameter.
        levels: Projections with their scales, by layer.
        pruning, quantization: Residuals of the two runs of ADMM.
        purification: What the purification removed.
        histories: Of each training, by stage.
    """

    model: nn.Module
    masks: Masks
    levels: dict[str, NearestLevel]
    pruning: Convergence | None
    quantization: Convergence | None
    purification: Purification | None
    histories: dict[str, History]


def compress(
    model: nn.Module,
    rule: Supervised,
    train: Data,
    validation: Data | None = None,
    *,
    keep: Mapping[str, Projection] | None = None,
    levels: Mapping[str, NearestLevel] | None = None,
    epochs: int = 10,
    retrain: int = 5,
    rho: float = 1e-2,
    growth: float = 1.3,
    every: int = 1,
    tolerance: float = 0.05,
    purified: bool = True,
    masks: Mapping[str, Tensor] | None = None,
    progress: bool = True,
) -> Compressed:
    """Prune and quantize a trained model by ADMM; ``model`` is untouched.

    For each of the two sets, first what is kept and then the levels: :class:`~snnrobust.codesign.ADMM`, hard mapping, training
    again inside the set (:class:`~snnrobust.codesign.Masked`, and for the levels :class:`~snnrobust.codesign.OnLevels`). Between
    them unused paths are removed. Seeds of the stages derive from that of ``rule``.

    Args:
        model: Trained.
        rule: Trains at all stages, such as ``BPTT(lr=1e-3, schedule="cosine", seed=0)``.
        train, validation: As of the rule.
        keep: Projections that prune, by layer; None prunes nothing.
        levels: Projections to levels, by layer; scales that are not given fit the weights at the start. None quantizes nothing.
        epochs: Of each run of ADMM; 0 is one-shot: the mapping without ADMM.
        retrain: Epochs inside the set; 0 trains no more.
        rho, growth, every, tolerance: As of ADMM.
        purified: Remove unused paths after pruning.
        masks: What is zero already and stays so, as from an earlier run.
        progress: Show progress bars.

    Raises:
        ValueError: neither ``keep`` nor ``levels``; layers that do not exist.

    Warns:
        ADMMWarning: a run of ADMM misses the tolerance.
    """
    checks.module("model", model)
    if isinstance(rule, Constrained):
        raise TypeError(
            f"rule must be a plain rule such as BPTT(), not {type(rule).__name__}: give what it keeps zero as masks"
        )
    if not keep and not levels:
        raise ValueError(
            "give keep, such as {'0': Keep(Filters(), 0.5)}, levels, or both: with neither nothing is compressed"
        )
    checks.count("epochs", epochs, low=0)
    checks.count("retrain", retrain, low=0)
    current, zeros, histories = deepcopy(model), dict(masks or {}), dict[str, History]()
    pruning = quantization = None
    removed: Purification | None = None

    def within(stage: str) -> Supervised:
        inside = replace(rule, seed=derive(rule.seed, stage))
        return Masked(rule=inside, masks=zeros) if zeros else inside

    def pulled(stage: str, projections: Mapping[str, Projection]) -> Convergence | None:
        if not epochs:
            return None
        admm = ADMM(
            rule=within(stage), projections=projections, rho=rho, growth=growth, every=every, tolerance=tolerance
        )
        histories[stage] = admm.fit(current, train, validation, epochs=epochs, progress=progress)
        return Convergence.of(histories[stage], tolerance)

    def again(stage: str, trainer: Supervised) -> None:
        if retrain:
            histories[stage] = trainer.fit(current, train, validation, epochs=retrain, progress=progress)

    if keep:
        pruning = pulled("prune", keep)
        pruned = prune(current, keep)
        current = pruned.model
        zeros = _both(zeros, pruned.masks)
        again("retrain", within("retrain"))
        if purified:
            removed = purify(current, take(train, 1)[0])
            current = removed.model
            zeros = _both(zeros, removed.masks)
    fitted = {}
    if levels:
        layers = synaptic_layers(current, levels, "levels")
        fitted = {name: levels[name].fitted(layer.weight) for name, layer in layers.items()}
        quantization = pulled("quantize", fitted)
        if retrain:  # latent weights start where ADMM has left them
            again("retrain-levels", OnLevels(rule=within("retrain-levels"), levels=fitted))
        else:
            current = put_on_levels(current, fitted)
    return Compressed(current.eval(), zeros, fitted, pruning, quantization, removed, histories)


def _both(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Masks:
    """What both leave in."""
    joint = dict(one)
    for name, mask in other.items():
        joint[name] = joint[name] & mask if name in joint else mask
    return joint
