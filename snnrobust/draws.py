"""Keyed randomness: a draw is a function of (key, module path, sample, time step, element) and of nothing else.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), in
:mod:`snnrobust.kernels.philox`. The same key gives the same draws for any batch size, chunk or thread count, on any device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable loads the whole compiler

from snnrobust import checks
from snnrobust.kernels.philox import bernoulli, normal, philox, uniform

__all__ = [
    "Stochastic",
    "Stream",
    "bernoulli",
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
    """A module that draws random numbers each forward, through :meth:`uniform`, :meth:`normal` and :meth:`bernoulli` only."""

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

    def bernoulli(
        self, p: Tensor, steps: int, start: int = 0, *, signed: bool = False, value: Tensor | None = None
    ) -> Tensor:
        r"""Spikes :math:`[u < p]`, or :math:`\mathrm{sign}(p) [u < |p|]`, of the draws :math:`u` that :meth:`uniform` gives.

        ``[B, *] -> [steps, B, *]``, in the dtype of ``p``; the gradient is straight-through to ``value``, default ``p``.
        """
        return bernoulli(*self._state((steps, *p.shape), p.device), p, steps, start, signed, value)

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
    return [
        (_path(name) if "_orig_mod" in name else name, m)
        for name, m in model.named_modules()
        if isinstance(m, Stochastic)
    ]


def _path(name: str) -> str:
    """A module's path without the wrappers of ``torch.compile``: a compiled model has the same draws."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


@contextmanager
def keyed(key: int, model: nn.Module | None = None) -> Iterator[None]:
    """torch's own generators, seeded from ``key`` inside and as they were afterwards."""
    parameters = () if model is None or not torch.cuda.is_initialized() else model.parameters()
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    generators = [torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(key)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


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
