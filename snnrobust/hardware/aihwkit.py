"""A bridge to IBM's analog hardware kit, where it is installed, to compare chips."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from snnrobust import checks
from snnrobust.draws import derive, keyed
from snnrobust.hardware.duration import seconds
from snnrobust.temporal import Temporal

__all__ = ["to_aihwkit"]


def to_aihwkit(
    model: nn.Module, rpu_config: Any = None, *, time: float | str | None = None, seed: int = 0
) -> nn.Module:
    """``model`` with aihwkit's analog layers in place of ``nn.Linear`` and ``nn.Conv*``, by its ``convert_to_analog``.

    ``model`` is untouched. Written against the interface of aihwkit 1.x as its documentation gives it.

    Args:
        model: An ordinary network: aihwkit has no spiking ones.
        rpu_config: One of aihwkit's; default ``InferenceRPUConfig`` with its ``PCMLikeNoiseModel`` at 25 microsiemens and its
            ``GlobalDriftCompensation``.
        time: Program the weights and let them drift for so long (seconds, or ``"1 day"``); the result is in eval mode. Default:
            not programmed, for hardware-aware training.
        seed: Of torch's generator while programming. What aihwkit draws later, and elsewhere, is not keyed.

    Raises:
        ImportError: aihwkit is not installed.
        TypeError: a spiking network.
    """
    checks.module("model", model)
    checks.count("seed", seed, low=0)
    wait = None if time is None else seconds("time", time)
    for name, module in model.named_modules():
        if isinstance(module, Temporal):
            raise TypeError(
                f"{name or 'the model'} ({type(module).__name__}) sees time, which aihwkit does not know: use hardware.PCM for "
                "spiking networks"
            )
    conversion, inference, configs = (
        _imported(name) for name in ("aihwkit.nn.conversion", "aihwkit.inference", "aihwkit.simulator.configs")
    )
    if rpu_config is None:
        rpu_config = configs.InferenceRPUConfig()
        rpu_config.noise_model = inference.PCMLikeNoiseModel(g_max=25.0)
        rpu_config.drift_compensation = inference.GlobalDriftCompensation()
    analog: nn.Module = conversion.convert_to_analog(model, rpu_config)
    if wait is not None:
        analog.eval()
        with keyed(derive(seed, "aihwkit")):
            inference.program_analog_weights(analog, None)
            inference.drift_analog_weights(analog, wait)
    return analog


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"to_aihwkit needs aihwkit (pip install aihwkit), and {name} cannot be imported: {error}"
        ) from error
