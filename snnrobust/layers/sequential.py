"""``Sequential``: plain torch layers and temporal ones, side by side."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from snnrobust import checks
from snnrobust.layers.flow import advance, run
from snnrobust.layers.readout import Readout
from snnrobust.temporal import State, Temporal

__all__ = ["Sequential"]


class Sequential(Temporal):
    """Modules in order over a sequence ``[T, B, *]``.

    Around a plain torch module, which has no memory, time is folded into the batch: it sees ``[T * B, *]`` and is called
    once. A :class:`~snnrobust.temporal.Temporal` module, or ``nn.RNN/LSTM/GRU``, sees ``[T, B, *]``. ``nn.Sequential`` is
    looked into.

    Raises:
        TypeError: a plain module hides a temporal one, or is a stateful neuron of another library: folded, it would give
            the right shape and wrong numbers.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        for index, module in enumerate(modules):
            if not isinstance(module, nn.Module):
                described = type(module).__module__.startswith("snnrobust.models")
                hint = f": models.{type(module).__name__} only describes a layer" if described else ""
                raise TypeError(f"Sequential holds modules of torch.nn or snnrobust, got {module!r:.80}{hint}")
            self.add_module(str(index), module)
        for part in list(self._parts())[:-1]:
            if isinstance(part, Readout):
                raise TypeError(f"{type(part).__name__} ends the sequence, so nothing can follow it in a Sequential")

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(m for m in self._modules.values() if m is not None)  # children() leaves out repeated ones

    def __getitem__(self, index: int) -> nn.Module:
        return list(self)[index]

    def _parts(self) -> Iterator[nn.Module]:
        yield from _flat(self)

    def initial_state(self, x_t: Tensor) -> dict[int, State]:
        return {}

    def step(self, x_t: Tensor, state: dict[int, State]) -> tuple[Tensor, dict[int, State]]:
        after: dict[int, State] = {}
        for index, module in enumerate(self._parts()):
            if isinstance(module, Temporal):
                before = state[index] if state else module.initial_state(x_t)
                x_t, after[index] = module.step(x_t, before)
            elif isinstance(module, nn.RNNBase):
                y, after[index] = module(x_t[None], state.get(index))
                x_t = y[0]
            else:
                x_t = module(x_t)
        return x_t, after

    def advance(self, x: Tensor, state: dict[int, State]) -> tuple[Tensor, dict[int, State]]:
        return advance(list(self._parts()), checks.sequence("x", x), state)

    def advance_shown(self, x: Tensor, steps: int, state: dict[int, State]) -> tuple[Tensor, dict[int, State]]:
        """:meth:`advance` of the same ``x`` ``[B, *]`` at each of ``steps`` time steps."""
        return advance(list(self._parts()), x, state, steps)

    def shown(self, x: Tensor, steps: int) -> Tensor:
        checks.sequence("x", x[None])
        return run(list(self._parts()), x, checks.count("steps", steps))

    def forward(self, x: Tensor) -> Tensor:
        return run(list(self._parts()), checks.sequence("x", x))


def _flat(container: Sequential | nn.Sequential) -> Iterator[nn.Module]:
    for module in container:
        if isinstance(module, nn.Sequential):
            yield from _flat(module)
        else:
            yield _checked(module)


def _checked(module: nn.Module) -> nn.Module:
    if isinstance(module, Temporal):
        return module
    if isinstance(module, nn.RNNBase):
        if module.batch_first or module.bidirectional:
            raise TypeError(f"{type(module).__name__} in a Sequential must have batch_first=False, bidirectional=False")
        return module
    for inner in module.modules():
        if isinstance(inner, Temporal | nn.RNNBase | nn.RNNCellBase):
            raise TypeError(
                f"{type(module).__name__} is a plain module that holds the temporal {type(inner).__name__}: folded into "
                "the batch it would mix samples with time. Derive it from snnrobust.temporal.Temporal"
            )
        if any(hasattr(inner, mark) for mark in ("step_mode", "spike_grad")):
            raise TypeError(
                f"{type(inner).__name__} keeps its state between calls, as neurons of other libraries do: "
                "use snnrobust.neurons inside a Sequential"
            )
    return module
