"""Train a model through chips: its layers run on a backend for a while, and their own parameters learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snnrobust import checks
from snnrobust.draws import derive, draws
from snnrobust.hardware.backend import Array, Backend, effects
from snnrobust.hardware.deploy import begin_forward, end_forward, key_of, norm_after, refuse, sees_time, swap, synaptic
from snnrobust.hardware.operation import Operation
from snnrobust.hardware.recurrent import Product, TorchSignature, Unrolled
from snnrobust.hardware.synapses import (
    AfterNorm,
    Counting,
    WithoutTime,
    channels_last,
    imprint,
    is_after,
    reads_after,
    reads_before,
)
from snnrobust.temporal import State, Temporal

__all__ = ["demand_learnable", "on_chips"]

_Module = TypeVar("_Module", bound=nn.Module)


class LearningLayer(Counting):
    """A product whose forward pass is that of a chip, ``[T, B, *] -> [T, B, *]``; in eval mode it is the layer's alone.

    The gradient passes :meth:`Backend.program` straight through to the layer's weight.

    Args:
        layer: ``nn.Linear``, ``nn.Conv*``, or a product of a recurrent layer.
    """

    array: Array

    def __init__(self, layer: nn.Module | Product, backend: Backend) -> None:
        super().__init__()
        self._of = (layer,)  # in a tuple it is no part of the module tree: its parameters keep their names
        self.operation = Operation() if isinstance(layer, Product) else Operation.of(layer)
        self.backend = backend

    def _parameters_now(self) -> tuple[Tensor, Tensor | None]:
        return self._of[0].weight, self._of[0].bias  # type: ignore[return-value]

    def make(self, key: int) -> None:
        """A new chip of the weights as they are now."""
        imprint(self.backend, key)
        with draws(self.backend, key), torch.no_grad():
            self.array = self.backend.program(Array(self._parameters_now()[0], self.operation))
        _forget(self.array)

    def _run(self, x: Tensor, start: int, whole: bool = False) -> Tensor:
        planar = whole and self.operation.planar
        weight, bias = self._parameters_now()
        if not self.training:
            return _folded(self.operation, channels_last(x, planar), weight, bias)
        x = channels_last(self.backend.drive(x), planar)
        return self.backend.read(self._product(x, weight, bias, start), start)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, start: int) -> Tensor:
        through = weight - weight.detach()  # zero, with the gradient of the identity
        if type(self.array).product is Array.product:
            return _folded(self.operation, x, self.array.weight + through, bias)
        without = None if bias is None else torch.zeros_like(bias)
        return self.array.product(x, bias, start) + _folded(self.operation, x.detach(), through, without)


def _folded(operation: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = operation(x.flatten(0, 1), weight, bias).unflatten(0, x.shape[:2])
    return y


class LearningRecurrent(Temporal):
    """A recurrent torch layer whose products are learnt on chips; in eval mode it is the layer alone."""

    def __init__(self, rnn: nn.RNNBase, backend: Backend) -> None:
        super().__init__()
        self._of = (rnn,)
        self.unrolled = Unrolled(rnn, lambda name, product: LearningLayer(product, _forget(deepcopy(backend))))

    def make(self, key: int) -> None:
        for name, synapse in self.unrolled.synapses.items():
            assert isinstance(synapse, LearningLayer)
            synapse.make(derive(key, name))

    def initial_state(self, x_t: Tensor) -> State:
        return self.unrolled.initial_state(x_t)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        return self.unrolled.step(x_t, state)

    def forward(self, x: Tensor) -> Tensor:
        return self.unrolled(x) if self.training else self._of[0](x)[0]  # type: ignore[no-any-return]


class LearningTorchSignature(TorchSignature):
    """A :class:`LearningRecurrent` layer that is called as torch's."""

    def __init__(self, rnn: nn.RNNBase, backend: Backend) -> None:
        learning = LearningRecurrent(rnn, backend)
        super().__init__(rnn, learning.unrolled)
        self._of, self.make = (rnn,), learning.make

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return super().forward(x, state) if self.training else self._of[0](x, state)


class LearningAfterNorm(AfterNorm):
    """A normalisation whose backend reads after it while it is trained; it keeps the parameters and buffers of its own."""

    def __init__(self, norm: nn.Module, backend: Backend) -> None:
        Temporal.__init__(self)
        self._of, self.backend = (norm,), backend

    @property
    def norm(self) -> nn.Module:  # type: ignore[override]
        return self._of[0]

    def make(self, key: int) -> None:
        imprint(self.backend, key)

    def train(self, mode: bool = True) -> LearningAfterNorm:
        super().train(mode)
        self._of[0].train(mode)
        return self

    def _read(self, y: Tensor, start: int) -> Tensor:
        return super()._read(y, start) if self.training else y


class LearningWithoutTime(WithoutTime):
    """A learning module where there is no time axis."""


@contextmanager
def on_chips(model: nn.Module, backend: Backend) -> Iterator[Callable[[int], None]]:
    """Inside, ``model`` runs on chips while it is in train mode, and what it learns are its own parameters.

    Yields ``make``: ``make(seed)`` puts the weights, as they are then, on the chip that ``deploy(model, backend, seed=seed)``
    gives, and has to be called before the first forward pass. In eval mode the model is without chip.

    .. math:: y = \\operatorname{read}(W_c \\operatorname{drive}(x) + b), \\quad W_c = \\operatorname{program}(W), \\quad
        \\partial W_c / \\partial W := 1

    Names of parameters and buffers are those outside. Afterwards all modules are where they were.

    Args:
        model: Spiking or ordinary.
        backend: A recipe, of which each layer gets a copy; none that changes neurons.

    Raises:
        TypeError, ValueError: as :func:`~snnrobust.hardware.deploy`; weights that are computed from other parameters; a backend
            with parameters of its own.
    """
    demand_learnable(model, backend)
    placed: list[tuple[str, nn.Module, nn.Module]] = []
    late = reads_after(backend)
    learners: dict[str, Callable[[int], None]] = {}

    def place(name: str, seat: nn.Module, make: Callable[[int], None]) -> None:
        own = model.get_submodule(name)
        for path, parameter in own.named_parameters(recurse=False):
            seat.register_parameter(path, parameter)
        if isinstance(seat, WithoutTime | LearningAfterNorm):
            for path, buffer in own.named_buffers(recurse=False):
                seat.register_buffer(path, buffer, path not in own._non_persistent_buffers_set)
        if parametrize.is_parametrized(own):  # what a quantized weight is computed from keeps its name too
            seat.add_module("parametrizations", own.get_submodule("parametrizations"))
        placed.append((name, own, seat))
        learners[name] = make
        swap(model, name, seat.train(own.training))

    norms = {name: None if late is None else norm_after(model, name) for name in synaptic(model)}
    handles = [
        model.register_forward_pre_hook(begin_forward), model.register_forward_hook(end_forward, always_call=True)
    ]  # fmt: skip
    try:
        for name, layer in synaptic(model).items():
            device = next(layer.parameters()).device
            norm = norms[name]
            own = _forget((deepcopy(backend) if norm is None else reads_before(backend)).to(device))
            time = sees_time(model, name)
            if isinstance(layer, nn.RNNBase):
                recurrent = LearningRecurrent(layer, own) if time else LearningTorchSignature(layer, own)
                place(name, recurrent, recurrent.make)
            else:
                learning = LearningLayer(layer, own)
                place(name, learning if time else LearningWithoutTime(learning), learning.make)
            if (
                norm is not None
                and late is not None
                and norm not in learners
                and not is_after(model.get_submodule(norm))
            ):
                after = LearningAfterNorm(model.get_submodule(norm), _forget(deepcopy(late).to(device)))
                place(norm, after if time else LearningWithoutTime(after), after.make)

        def make(seed: int) -> None:
            checks.count("seed", seed, low=0)
            for name, learner in learners.items():
                learner(key_of(seed, name))

        yield make
    finally:
        for handle in handles:
            handle.remove()
        vars(model).pop("_passes", None)
        for name, own_layer, seat in placed:
            swap(model, name, own_layer.train(seat.training))


def demand_learnable(model: nn.Module, backend: Backend) -> None:
    """Raise what :func:`on_chips` raises."""
    if not isinstance(backend, Backend):
        raise TypeError(
            f"backend must be a hardware Backend such as GaussianNoise(multiplicative=0.2), got {backend!r:.80}"
        )
    if next(backend.parameters(), None) is not None:
        raise TypeError(
            f"{type(backend).__name__} has parameters of its own, which training through chips does not learn"
        )
    for part in effects(backend):
        if type(part).neuron is not Backend.neuron:
            raise TypeError(
                f"{type(part).__name__} changes neurons, which is not trained through: leave it out, and deploy with it"
            )
    found = synaptic(checks.module("model", model))
    refuse(model, found)
    for name, layer in found.items():
        sees_time(model, name)
        plain = "weight" in layer._parameters or parametrize.is_parametrized(layer, "weight")
        if not isinstance(layer, nn.RNNBase) and not plain:
            raise TypeError(
                f"{name} ({type(layer).__name__}) computes its weight from other parameters: make that permanent first, as by "
                "torch.nn.utils.prune.remove"
            )


def _forget(module: _Module) -> _Module:
    """What a chip stores is no part of the model's state."""
    for part in module.modules():
        part._non_persistent_buffers_set.update(part._buffers)
    return module
