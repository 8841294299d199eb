"""What imperfect hardware costs: Gaussian noise on a product, and bit errors in stored weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Case, DisagreementError, Run
from benchmarks.targets import Target
from snnrobust.hardware import GaussianNoise, deploy
from snnrobust.kernels.bit_errors import bit_errors

__all__ = ["cases"]

SIGMA = 0.1
AIHWKIT = "aihwkit, torch tile"
DENSE, SPARSE = "dense Bernoulli masks", "torch, counts and random places"


def cases(tiny: bool = False) -> Iterator[Case]:
    yield _gaussian(*((8, 4) if tiny else (512, 128)))
    for rate, wanted in ((1e-2, "2 ms"), (1e-4, "0.5 ms")):
        yield _errors(2000 if tiny else 1_000_000, rate, wanted)


# --- Gaussian noise -------------------------------------------------------------------------------------------


def _gaussian(features: int, batch: int) -> Case:
    layer, x = nn.Linear(features, features).requires_grad_(False), torch.rand(batch, features)
    one = deploy(nn.Sequential(layer), GaussianNoise(multiplicative=SIGMA), seed=0)
    both = deploy(nn.Sequential(layer), GaussianNoise(multiplicative=SIGMA, additive=SIGMA), seed=0)
    scale = ((one(x) / layer(x) - 1) / SIGMA).std()
    if not 0.8 < scale < 1.2 and features > 100:
        raise DisagreementError(f"noise of a deviation of {scale} where 1 is asked for")
    contenders: dict[str, Run | str | None] = {
        "nn.Linear": partial(layer, x),
        OURS: partial(one, x),
        f"{OURS}, multiplicative and additive": partial(both, x),
        "nn.Linear, then torch.randn_like": lambda: _by_torch(layer(x)),
        AIHWKIT: _analog(features, x),
    }
    return Case(
        f"Gaussian noise on a Linear {features}x{features}, batch {batch}, forward",
        contenders,
        reference="nn.Linear",
        targets=(Target("Gaussian noise on a product", OURS, "nn.Linear", 1.5, most=True),),
        remarks=(
            f"{OURS}: a deployed layer, multiplicative noise; a draw depends on key, sample, step and element only.",
            "torch.randn_like draws from torch's generator, so its draws depend on the batch.",
            f"{AIHWKIT}: its default inference configuration, which also quantizes inputs and outputs.",
        ),
    )


def _by_torch(y: Tensor) -> Tensor:
    return y * (1 + SIGMA * torch.randn_like(y))


def _analog(features: int, x: Tensor) -> Run | str:
    if importlib.util.find_spec("aihwkit") is None:
        return "not installed"
    from aihwkit.nn import AnalogLinear
    from aihwkit.simulator.configs import TorchInferenceRPUConfig

    analog = AnalogLinear(features, features, rpu_config=TorchInferenceRPUConfig()).eval()

    def forward() -> Tensor:
        with torch.no_grad():
            y: Tensor = analog(x)
        return y

    return forward


# --- bit errors -----------------------------------------------------------------------------------------------


def _errors(n: int, rate: float, wanted: str) -> Case:
    words = torch.randint(0, 256, (n,), dtype=torch.uint8)
    key = torch.tensor([1, 2])
    contenders: dict[str, Run | str | None] = {
        OURS: lambda: bit_errors(words, [rate] * 8, key),
        f"{OURS}, four bits of each word": lambda: bit_errors(words, [rate] * 4, key),
        DENSE: lambda: _dense(words, rate),
        SPARSE: lambda: _sparse(words, rate),
    }
    for name in (OURS, DENSE, SPARSE):
        _check(name, contenders[name], words, rate)  # type: ignore[arg-type]
    return Case(
        f"bit errors in {n:,} int8 weights, rate {rate:g}",
        contenders,
        reference=DENSE,
        targets=(
            Target(f"bit errors at {rate:g}", OURS, DENSE, 10.0),
            Target(f"bit errors at {rate:g}", OURS, SPARSE, 1.0),
        ),
        remarks=(
            f"All eight bits of each word may go wrong, independently. To be reached: {wanted}.",
            f"{OURS}: keyed; gaps between errors are drawn. It returns new words; so do the others.",
            f"{SPARSE}: a binomial count, places with replacement: a bit that is hit twice carries over, so it is nearly exact.",
        ),
    )


def _dense(words: Tensor, rate: float) -> Tensor:
    wrong = torch.zeros_like(words)
    for bit in range(8):
        wrong |= (torch.rand(words.shape) < rate).to(torch.uint8) << bit
    return words ^ wrong


def _sparse(words: Tensor, rate: float) -> Tensor:
    n, out = len(words), words.clone()
    count = int(torch.binomial(torch.tensor(8.0 * n), torch.tensor(rate)))
    places = torch.randint(0, 8 * n, (count,))
    index, values = places >> 3, (1 << (places & 7)).to(torch.uint8)
    # distinct bits of one word are distinct powers of two; their sum is their exclusive or
    mask = torch.zeros(n, dtype=torch.uint8).index_add_(0, index, values)
    return out.bitwise_xor_(mask)


def _check(name: str, flip: Callable[[], Tensor], words: Tensor, rate: float) -> None:
    """The share of wrong bits, to 6 standard deviations."""
    wrong = flip() ^ words
    count = sum(int(((wrong >> bit) & 1).sum()) for bit in range(8))
    trials = 8 * len(words)
    if abs(count - trials * rate) > 6 * (trials * rate) ** 0.5 + 1e-3 * trials * rate**0.5:
        raise DisagreementError(f"{name} makes {count} errors in {trials} bits at a rate of {rate}")
