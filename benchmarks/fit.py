"""What the training loop costs: ``BPTT.fit`` beside the loop that one would write by hand for the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import networks, peers
from benchmarks.harness import OURS, Case, DisagreementError
from benchmarks.networks import SMALL
from benchmarks.targets import Target
from snnrobust import SpikingClassifier
from snnrobust.data import batches
from snnrobust.draws import derive
from snnrobust.encoders import Direct
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.learning_rules import BPTT

__all__ = ["cases", "loop"]

STEPS = 50  # an epoch; in one of them fit looks at the rates of the neurons
LR = 1e-3
FIT, LOOP = f"{OURS}, BPTT.fit", f"{OURS}, loop by hand"


def cases(tiny: bool = False) -> Iterator[Case]:
    steps = 2 if tiny else STEPS
    conv = partial(networks.ours, SMALL.tiny() if tiny else SMALL)
    for name, make, full in (("small conv SNN", conv, 16), ("MLP SNN", mlp, 64)):
        size = 2 if tiny else full
        shape = SMALL.tiny().shape if tiny and name != "MLP SNN" else SMALL.shape
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(size * steps, *shape, generator=generator)
        y = torch.randint(0, 10, (len(x),), generator=generator)
        rule = BPTT(lr=LR, batch_size=size)
        _check(make, x, y, rule)
        yield Case(
            f"{steps} training steps, {name}, T = 8, batch of {size}",
            {LOOP: loop(make(), x, y, rule), FIT: partial(rule.fit, make(), (x, y), epochs=1, progress=False)},
            reference=LOOP,
            targets=(Target(f"BPTT training speed, {name}", FIT, LOOP, 1.03, most=True),),
            unit="ms a step",
            scale=1e3 / steps,
            remarks=(
                "Both shuffle and step with AdamW, and end with equal weights (checked). fit also checks its data, keys",
                f"the draws, records loss and accuracy, and looks at the neurons once in {STEPS} steps.",
            ),
        )


def mlp() -> SpikingClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        hidden = nn.Linear(784, 256), peers.our_lif(), nn.Linear(256, 256), peers.our_lif()
        return SpikingClassifier(Direct(8), Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10)), MeanOutput())


def loop(model: nn.Module, x: Tensor, y: Tensor, rule: BPTT) -> Callable[[], None]:
    """One epoch: forward, backward and AdamW, and nothing more."""

    def run() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rule.lr, weight_decay=rule.weight_decay)
        model.train()
        for batch in batches((x, y), rule.batch_size, derive(rule.seed, "shuffle", 0)):
            optimizer.zero_grad()
            F.cross_entropy(model(batch.x), batch.y).backward()
            optimizer.step()

    return run


def _check(make: Callable[[], nn.Module], x: Tensor, y: Tensor, rule: BPTT) -> None:
    """Two steps by both give the same weights, to rounding."""
    x, y = x[: 2 * rule.batch_size], y[: 2 * rule.batch_size]
    mine, other = make(), make()
    rule.fit(mine, (x, y), epochs=1, progress=False)
    loop(other, x, y, rule)()
    if not all(torch.allclose(a, b, atol=LR / 10) for a, b in zip(mine.parameters(), other.parameters(), strict=True)):
        raise DisagreementError("BPTT.fit and the loop by hand give different weights")
