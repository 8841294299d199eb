"""Static early exit: the same model over fewer time steps, and how few BNTT says that it needs."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers import BNTT, TEBN
from snnrobust.layers.batch_norm import check_steps
from snnrobust.models.classifier import SpikingClassifier

__all__ = ["check_classifier", "exit_step", "gamma_profile", "truncate"]


def truncate(model: SpikingClassifier, steps: int) -> SpikingClassifier:
    """A deep copy of ``model`` that runs the first ``steps`` time steps only; ``model`` is untouched.

    In eval mode and under the same draws its logits are those of ``model.stream`` after ``steps`` steps. The encoder has
    ``steps`` time steps, and every BNTT and TEBN of the network keeps the parameters of the first ``steps`` only.

    Raises:
        TypeError: not a SpikingClassifier.
        ValueError: ``steps`` outside 1..T, or an encoder whose code depends on T.
    """
    check_classifier(model)
    check_steps("the model", steps, model.time_steps)
    if steps < model.time_steps and not model.encoder.truncatable:
        raise ValueError(
            f"{type(model.encoder).__name__} gives other values at the first steps if it has fewer, or reads them from the "
            "shape of its input, so the model cannot be truncated: EarlyExit stops a model of any encoder early"
        )
    short = deepcopy(model)
    short.encoder.time_steps = steps
    shortened: dict[BNTT | TEBN, nn.Module] = {}  # a layer that stands in two places stays one layer
    for name, layer in list(short.named_modules(remove_duplicate=False)):
        if isinstance(layer, BNTT | TEBN):
            if layer not in shortened:
                shortened[layer] = layer.truncate(steps)
            parent, _, child = name.rpartition(".")
            setattr(short.get_submodule(parent), child, shortened[layer])
    return short


def gamma_profile(model: nn.Module) -> dict[str, Tensor]:
    r""":math:`\tfrac{1}{C} \sum_c |\gamma_{t,c}|` of each BNTT over its time steps, ``[T]``, by the layer's name.

    Raises:
        ValueError: the model has no BNTT.
    """
    layers = {name: m for name, m in checks.module("model", model).named_modules() if isinstance(m, BNTT)}
    if not layers:
        raise ValueError("the model has no BNTT, and only BNTT learns a gamma for each time step")
    with torch.no_grad():
        return {name: layer.weight.abs().mean(1) for name, layer in layers.items()}


def exit_step(model: SpikingClassifier, threshold: float = 0.1) -> int:
    r"""The smallest :math:`T' \ge 1` for which in every BNTT all later steps have a mean :math:`|\gamma_t|` below ``threshold``.

    A static exit, the same for every input: ``truncate(model, exit_step(model))``. T if the last step is not below it.

    Args:
        model: Trained, with BNTT.
        threshold: Above 0.

    Raises:
        TypeError: not a SpikingClassifier.
        ValueError: the model has no BNTT, or ``threshold`` is not positive.

    Source: Kim and Panda 2021, who exit by the size of the learnt gamma. The released code has no such rule; that it has to hold
    in every layer and at all later steps is our reading.
    """
    check_classifier(model)
    checks.number("threshold", threshold, 0.0, exclusive_low=True)
    last = 1
    for profile in gamma_profile(model).values():
        needed = (~(profile[: model.time_steps] < threshold)).nonzero()  # NaN counts as needed
        last = max(last, 1 + int(needed.max()) if len(needed) else 1)
    return last


def check_classifier(model: object) -> None:
    if not isinstance(model, SpikingClassifier):
        raise TypeError(f"model must be a SpikingClassifier, got {type(model).__name__}")
