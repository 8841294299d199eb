"""A chip whose layers are made in different ways."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from snnrobust import checks
from snnrobust.hardware.backend import Backend, effects
from snnrobust.hardware.deploy import deploy, swap, synaptic

__all__ = ["deploy_each"]


def deploy_each(model: nn.Module, backends: Mapping[str, Backend], *, seed: int) -> nn.Module:
    """As :func:`~snnrobust.hardware.deploy`, with a backend for each layer; layers without one stay as they are.

    A layer's patterns are those that it has on ``deploy(model, its backend, seed=seed)``, whatever the others are.

    Args:
        model: As there.
        backends: By the names of layers; for products only, not for neurons or what follows a normalisation.
        seed: Identifies the chip. One of several backends cannot be saved: keep what made it.
    """
    checks.module("model", model)
    if not isinstance(backends, Mapping) or not backends:
        raise ValueError(f"backends must map names of layers to backends, got {backends!r:.80}")
    known = synaptic(model)
    for name, backend in backends.items():
        checks.choice("backends", name, known)
        for part in effects(backend) if isinstance(backend, Backend) else ():
            if part.at != "product" or type(part).neuron is not Backend.neuron:
                raise TypeError(
                    f"{type(part).__name__} of {name} acts on neurons or after a normalisation: use deploy() for the whole model"
                )
    together: dict[int, list[str]] = {}
    for name, backend in backends.items():
        together.setdefault(id(backend), []).append(name)
    chip: nn.Module | None = None
    for names in together.values():
        made = deploy(model, backends[names[0]], seed=seed, layers=names)
        if chip is None:
            chip = made
            continue
        for name in names:
            swap(chip, name, made.get_submodule(name))
    assert chip is not None
    if len(together) > 1:
        del chip._recipe  # which knows of one backend; hardware.save refuses what has none
    return chip
