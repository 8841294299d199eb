"""Keyed randomness: a draw is a function of (key, module path, sample, time step, element) and of nothing else.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), written in torch
integers. The same key gives the same draws for any batch size, chunk or thread count, on any device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable loads the whole compiler

from snnrobust import checks

__all__ = [
    "Stochastic",
    "Stream",
    "derive",
    "device_of",
    "draws",
    "evaluating",
    "fresh_key",
    "held",
    "is_stochastic",
    "keyed",
    "normal",
    "one_key",
    "philox",
    "uniform",
]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_CHUNK = 1 << 14  # blocks a chunk: its temporaries stay in the second-level cache


def derive(key: int, *labels: object) -> int:
    """A 63-bit key for the purpose that ``labels`` name; different labels give independent streams.

    Labels are numbers, strings or tuples of them: their ``repr`` is hashed (BLAKE2b).
    """
    digest = hashlib.blake2b(repr((int(key), *labels)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Stream:
    """The source of all draws of one batch: a key and the identity of each sample (``[B]``, int64).

    ``Stream(key, ids).fork("judge", 3)`` is an independent stream of the same samples.
    """

    key: int
    sample_ids: Tensor

    def fork(self, *labels: object) -> Self:
        return type(self)(derive(self.key, *labels), self.sample_ids)

    def select(self, index: Tensor) -> Self:
        return type(self)(self.key, self.sample_ids[index])


class Stochastic(nn.Module):
    """A module that draws random numbers each forward, through :meth:`uniform` and :meth:`normal` only."""

    _key: Tensor | None = None
    _sample_ids: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy made inside :func:`draws` is not bound to its key."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_key", "_sample_ids")}

    @property
    def stochastic(self) -> bool:
        """False where this instance never draws, whatever the input."""
        return True

    def uniform(self, shape: Sequence[int], start: int = 0, device: torch.device | None = None) -> Tensor:
        """float32 draws in [0, 1) of ``shape`` ``[T, B, *]``, for the time steps from ``start`` on."""
        return uniform(*self._state(shape, device), shape, start)

    def normal(self, shape: Sequence[int], start: int = 0, device: torch.device | None = None) -> Tensor:
        """float32 standard normal draws of ``shape`` ``[T, B, *]``, for the time steps from ``start`` on."""
        return normal(*self._state(shape, device), shape, start)

    def _state(self, shape: Sequence[int], device: torch.device | None) -> tuple[Tensor, Tensor]:
        batch = shape[1]
        key = _fresh_key() if self._key is None else self._key
        ids = torch.arange(batch) if self._sample_ids is None else self._sample_ids
        if ids.shape[0] != batch:  # len() would fix the batch of an exported graph
            raise ValueError(
                f"{type(self).__name__} got a batch of {batch} under {ids.shape[0]} sample_ids: "
                "pass draws() one id a sample, and keep time apart from the batch ([T, B, ...])"
            )
        return key.to(device), ids.to(device)


def _fresh_key() -> Tensor:
    return torch.randint(0, 1 << 32, (2,))


def _words(key: int) -> Tensor:
    return torch.tensor([key & _MASK, (key >> 32) & _MASK])


@contextmanager
def draws(model: nn.Module, key: int, sample_ids: Tensor | None = None) -> Iterator[None]:
    """Within this context ``model`` draws from ``key``: the same key, the same draws. Exception-safe, per model.

    Args:
        model: Any module. Its :class:`Stochastic` modules are keyed by their path in it; other random modules (such as
            ``nn.Dropout``) run under a forked torch generator seeded from ``key`` and ``sample_ids``: their draws do depend
            on the batch.
        key: Any integer; 63 bits count.
        sample_ids: int64 ``[B]``, the identity of each sample of the batch; default 0, 1, 2, ...

    Raises:
        TypeError: a key or ids that are no integers.
    """
    checks.module("model", model)
    checks.integer("key", key)
    if sample_ids is not None and not (
        isinstance(sample_ids, Tensor) and sample_ids.dtype == torch.int64 and sample_ids.dim() == 1
    ):
        given = (
            f"{sample_ids.dtype} of shape {tuple(sample_ids.shape)}"
            if isinstance(sample_ids, Tensor)
            else type(sample_ids).__name__
        )
        raise TypeError(f"sample_ids must be an int64 tensor [B], got {given}: use torch.tensor([...])")
    ids = None if sample_ids is None else sample_ids.detach().cpu()
    states = [(m, (_words(derive(key, path)), ids)) for path, m in _stochastic(model)]
    with keyed(derive(key, "torch", *([] if ids is None else [ids.numpy().tobytes()])), model), _drawing(states):
        yield


_Draws = tuple[Tensor | None, Tensor | None]  # key and sample ids of one module


@contextmanager
def _drawing(states: Sequence[tuple[Stochastic, _Draws]]) -> Iterator[None]:
    before = [(m._key, m._sample_ids) for m, _ in states]
    try:
        for m, state in states:
            m._key, m._sample_ids = state
        yield
    finally:
        for (m, _), state in zip(states, before, strict=True):
            m._key, m._sample_ids = state


def held(model: nn.Module) -> Callable[[int], AbstractContextManager[None]]:
    """The draws of ``model`` as they are now, for what goes on later: ``again = held(model)``, then ``with again(t): ...``.

    Without :func:`draws` around it takes a :func:`fresh_key`, if ``model`` needs any. Random modules that are not ours draw
    from another torch generator at each ``t``.
    """
    key = fresh_key(model)
    states: list[tuple[Stochastic, _Draws]]
    if key is not None:
        states = [(m, (_words(derive(key, path)), None)) for path, m in _stochastic(model)]
    else:
        states = [(m, (m._key, m._sample_ids)) for _, m in _stochastic(model)]
        if all(m_key is None for _, (m_key, _) in states):
            return lambda t: nullcontext()
        key = int(torch.randint(0, 1 << 62, ()))  # from the generator that draws() has forked

    @contextmanager
    def again(t: int) -> Iterator[None]:
        with keyed(derive(key, "torch", t), model), _drawing(states):
            yield

    return again


def _stochastic(model: nn.Module) -> list[tuple[str, Stochastic]]:
    return [(_path(name), m) for name, m in model.named_modules() if isinstance(m, Stochastic)]


def _path(name: str) -> str:
    """A module's path without the wrappers of ``torch.compile``: a compiled model has the same draws."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


@contextmanager
def keyed(key: int, model: nn.Module | None = None) -> Iterator[None]:
    """torch's own generators, seeded from ``key`` inside and as they were afterwards."""
    parameters = [] if model is None else list(model.parameters())
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(key)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(key)
        yield


@_disable_dynamo  # around a graph break it is run, not traced: it walks all modules and returns a number
def fresh_key(model: nn.Module) -> int | None:
    """One key from torch's generator for a whole forward; None if ``model`` draws nothing or :func:`draws` has set a key."""
    stochastic = [m for m in model.modules() if isinstance(m, Stochastic) and m.stochastic]
    unkeyed = bool(stochastic) and all(m._key is None for m in stochastic)
    return int(torch.randint(0, 1 << 62, ())) if unkeyed else None


@contextmanager
def one_key(model: nn.Module) -> Iterator[None]:
    """A whole forward under one :func:`fresh_key`, if it needs any.

    In a graph that is being compiled or exported each module takes its own key instead: there a key is a tensor, never a number.
    """
    key = None if torch.compiler.is_compiling() else fresh_key(model)
    with nullcontext() if key is None else draws(model, key):
        yield


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def is_stochastic(model: nn.Module, x: Tensor | None = None) -> bool:
    """True if ``model`` in eval mode declares draws, or if its logits for ``x`` differ between two keys."""
    if any(m.stochastic for m in model.modules() if isinstance(m, Stochastic)):
        return True
    if x is None:
        return False
    logits = []
    with torch.no_grad(), evaluating(model):
        for key in (1, 2):
            with draws(model, key):
                logits.append(model(x))
    return not torch.equal(*logits)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module has the mode that it had, one by one."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def philox(key: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words for a 128-bit ``counter`` (four int64 tensors of 32-bit words, broadcast)
    and a 64-bit ``key`` (int64 ``[2]``, two 32-bit words)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key[0], key[1]
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps modulo 2**64: the bits are right
        c0 = (p1 >> 32).bitwise_xor(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p0 >> 32).bitwise_xor(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _blocks(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Philox words for rows (t, b) of blocks of four elements, a slice of rows at a time."""
    steps, batch, elements = shape[0], shape[1], prod(shape[2:])
    blocks = -(-elements // 4)
    device = sample_ids.device
    step = torch.arange(start, start + steps, device=device).repeat_interleave(batch)[:, None]
    low, high = sample_ids & _MASK, (sample_ids >> 32) & _MASK
    low, high = low.repeat(steps)[:, None], high.repeat(steps)[:, None]
    block = torch.arange(blocks, device=device)[None]
    if torch.compiler.is_compiling():  # one chunk, so that the batch stays a symbol
        yield slice(None), list(philox(key, (block, step, low, high)))
        return
    rows = max(1, _CHUNK // max(blocks, 1))  # one row may be longer than a chunk: rows are not split
    for first in range(0, steps * batch, rows):
        part = slice(first, min(first + rows, steps * batch))
        yield part, list(philox(key, (block, step[part], low[part], high[part])))


def _fill(shape: Sequence[int], device: torch.device, parts: Iterator[tuple[slice, list[Tensor]]]) -> Tensor:
    elements = prod(shape[2:])
    blocks = -(-elements // 4)
    if torch.compiler.is_compiling():
        ((_, lanes),) = parts
        return torch.stack(lanes, -1).flatten(1)[:, :elements].reshape(tuple(shape))
    out = torch.empty(shape[0] * shape[1], blocks * 4, device=device)
    for part, lanes in parts:
        torch.stack(lanes, -1, out=out[part].view(-1, blocks, 4))
    return out[:, :elements].reshape(tuple(shape))


def uniform(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int = 0) -> Tensor:
    """Uniform float32 in [0, 1) with 24 random bits, shape ``[T, B, *]``."""
    parts = (
        (part, [(w >> 8).to(torch.float32).mul_(2.0**-24) for w in words])
        for part, words in _blocks(key, sample_ids, shape, start)
    )
    return _fill(shape, sample_ids.device, parts)


def normal(key: Tensor, sample_ids: Tensor, shape: Sequence[int], start: int = 0) -> Tensor:
    """Standard normal float32 (Box-Muller, 32 random bits a coordinate), shape ``[T, B, *]``."""

    def pairs(words: list[Tensor]) -> list[Tensor]:
        lanes = []
        for radius, angle in (words[:2], words[2:]):
            r = radius.to(torch.float32).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
            a = angle.to(torch.float32).mul_(2.0 * torch.pi * 2.0**-32)
            lanes += [r * a.cos(), r * a.sin()]
        return lanes

    parts = ((part, pairs(words)) for part, words in _blocks(key, sample_ids, shape, start))
    return _fill(shape, sample_ids.device, parts)
