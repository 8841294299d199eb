"""PGD with 10 steps through a small convolutional SNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import networks, peers
from benchmarks.harness import OURS, Case, DisagreementError, Run
from benchmarks.networks import SMALL
from benchmarks.peers import JELLY, SNNTORCH
from benchmarks.targets import Target
from snnrobust.attacks import PGD, Linf

__all__ = ["by_hand", "by_torchattacks", "cases"]

EPS = 8 / 255
STEPS = 10
SIZE = 2.5 * EPS / STEPS


def cases(tiny: bool = False) -> Iterator[Case]:
    architecture = SMALL.tiny() if tiny else SMALL
    size = architecture.batch
    x, y = networks.batch(architecture, size)
    ours = networks.ours(architecture).eval()
    pgd = PGD(Linf(EPS), steps=STEPS, step_size=SIZE, random_start=False)
    there = peers.optional(_torchattacks) is not None
    expected = by_hand(ours, x[:8], y[:8])
    _check("PGD", pgd(ours, x[:8], y[:8], seed=0), expected)
    if there:
        _check("torchattacks", by_torchattacks(ours)(x[:8], y[:8]), expected)
    rival = f"{SNNTORCH} and torchattacks"
    models = {name: peers.optional(partial(make, architecture)) for name, make in _PEERS.items()}

    def attacked(name: str) -> Run | None:
        model = models[name]
        if model is None:
            return None
        return partial(by_torchattacks(model.eval()) if there else partial(by_hand, model.eval()), x, y)

    snntorch = models[SNNTORCH]
    yield Case(
        f"PGD-{STEPS}, {architecture.name}, T = {architecture.time_steps}, batch of {size}",
        {
            OURS: partial(pgd, ours, x, y, seed=0),
            rival: attacked(SNNTORCH),
            f"{JELLY} and torchattacks": attacked(JELLY),
            f"{SNNTORCH}, loss.backward()": None
            if snntorch is None
            else partial(by_hand, snntorch, x, y, backward=True),
        },
        reference=rival,
        targets=(Target(f"PGD-{STEPS}, {architecture.name}", OURS, rival, 2.0),),
        unit="ms a sample",
        scale=1e3 / size,
        remarks=(
            "Same weights, steps, budget and start (at x), float32, no early stop; on one model the same images (checked).",
            "torchattacks is the package."
            if there
            else "torchattacks is not installed: its loop is written out, with torch.autograd.grad.",
            "loss.backward(), as in most papers' code, computes the gradients of the weights too.",
        ),
        figure="speed",
    )


_PEERS: dict[str, Callable[..., nn.Module]] = {SNNTORCH: networks.snntorch, JELLY: networks.jelly}


def _torchattacks() -> Any:
    import torchattacks  # type: ignore[import-not-found]

    return torchattacks


def by_torchattacks(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    attack: Callable[[Tensor, Tensor], Tensor] = _torchattacks().PGD(
        model, eps=EPS, alpha=SIZE, steps=STEPS, random_start=False
    )
    return attack


def by_hand(model: nn.Module, x: Tensor, y: Tensor, backward: bool = False) -> Tensor:
    """The loop of torchattacks; with ``backward`` the one that is in most papers' code."""
    x_adv = x.clone()
    for _ in range(STEPS):
        x_adv.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y)
        if backward:
            model.zero_grad()
            loss.backward()
            gradient = x_adv.grad
            assert gradient is not None
        else:
            (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + SIZE * gradient.sign()
        x_adv = (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)
    return x_adv


def _check(name: str, images: Tensor, by_hand: Tensor) -> None:
    """Rounding turns a few signs, and so a few pixels."""
    differ = float(((images - by_hand).abs() > 1e-6).float().mean())
    if differ > 0.01:
        raise DisagreementError(f"{name} and the loop by hand differ in {differ:.1%} of the pixels")
