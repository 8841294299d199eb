"""Recurrent torch layers, step by step, with products that a chip can take over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust.temporal import Temporal

__all__ = ["Product", "TorchSignature", "Unrolled", "products"]


class Product:
    """One product of a recurrent cell, ``weight @ [x, h] + bias``: the parts of ``nn.Linear``, read from the layer's parameters.

    An LSTM or a plain RNN has one product for all its gates, of input and state together; a GRU has two, as it gates the
    state's; a projection is one more.
    """

    def __init__(self, rnn: nn.RNNBase, weights: tuple[str, ...], biases: tuple[str, ...]) -> None:
        self.rnn, self.weights, self.biases = rnn, weights, biases if rnn.bias else ()

    @property
    def weight(self) -> Tensor:
        parts = [getattr(self.rnn, name) for name in self.weights]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    @property
    def bias(self) -> Tensor | None:
        parts: list[Tensor] = [getattr(self.rnn, name) for name in self.biases]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def products(rnn: nn.RNNBase) -> dict[str, Product]:
    """All products of ``rnn`` by name: ``gates_l0``, ``gates_l0_reverse``, ..."""
    found = {}
    for layer in range(rnn.num_layers):
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: 2 if rnn.bidirectional else 1]:
            names = [f"{kind}_{side}{suffix}" for kind in ("weight", "bias") for side in ("ih", "hh")]
            if rnn.mode == "GRU":
                found[f"input{suffix}"] = Product(rnn, (names[0],), (names[2],))
                found[f"state{suffix}"] = Product(rnn, (names[1],), (names[3],))
            else:
                found[f"gates{suffix}"] = Product(rnn, (names[0], names[1]), (names[2], names[3]))
            if rnn.proj_size:
                found[f"projection{suffix}"] = Product(rnn, (f"weight_hr{suffix}",), ())
    return found


_Cell = tuple[Tensor, ...]


class Unrolled(Temporal):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` as a loop, ``[T, B, F] -> [T, B, H]``, equal to the layer to rounding.

    Args:
        rnn: The layer; only its shape is kept.
        synapse: Makes the temporal module of each product.
    """

    def __init__(self, rnn: nn.RNNBase, synapse: Callable[[str, Product], Temporal]) -> None:
        super().__init__()
        self.mode, self.hidden, self.layers = rnn.mode, rnn.hidden_size, rnn.num_layers
        self.output, self.both, self.dropout = rnn.proj_size or rnn.hidden_size, rnn.bidirectional, rnn.dropout
        self.synapses = nn.ModuleDict({name: synapse(name, product) for name, product in products(rnn).items()})

    def initial_state(self, x_t: Tensor) -> tuple[int, list[_Cell]]:
        return 0, [self._zero(x_t) for _ in self._suffixes()]

    def step(self, x_t: Tensor, state: tuple[int, list[_Cell]]) -> tuple[Tensor, tuple[int, list[_Cell]]]:
        if self.both:
            raise TypeError("a bidirectional layer needs the whole sequence")
        t, cells = state
        after = []
        for layer, (suffix, cell) in enumerate(zip(self._suffixes(), cells, strict=True)):
            x_t = self._between(x_t, layer)
            cell = self._cell(suffix, x_t, cell, t)
            after.append(cell)
            x_t = cell[0]
        return x_t, (t + 1, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.initial_state(x[0])[1])[0]

    def run(self, x: Tensor, cells: list[_Cell], start: int = 0) -> tuple[Tensor, list[_Cell]]:
        """A whole sequence, whose first step is ``start``, from the states of all layers and directions, as torch orders them;
        and those after it."""
        after, ways = [], 1 + self.both
        for layer in range(self.layers):
            x = self._between(x, layer)
            outputs = []
            for way, suffix in enumerate(self._suffixes()[layer * ways : (layer + 1) * ways]):
                cell, found = cells[layer * ways + way], []
                steps = list(enumerate(x.unbind(0), start))
                for t, x_t in reversed(steps) if way else steps:
                    cell = self._cell(suffix, x_t, cell, t)
                    found.append(cell[0])
                outputs.append(torch.stack(found[::-1] if way else found))
                after.append(cell)
            x = torch.cat(outputs, -1) if self.both else outputs[0]
        return x, after

    def _between(self, x: Tensor, layer: int) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if layer and self.dropout else x

    def _suffixes(self) -> list[str]:
        ways = ("", "_reverse")[: 1 + self.both]
        return [f"_l{layer}{way}" for layer in range(self.layers) for way in ways]

    def _zero(self, x_t: Tensor) -> _Cell:
        h = x_t.new_zeros(x_t.shape[0], self.output)
        return (h, x_t.new_zeros(x_t.shape[0], self.hidden)) if self.mode == "LSTM" else (h,)

    def _product(self, name: str, x: Tensor, t: int) -> Tensor:
        synapse = self.synapses[name]
        assert isinstance(synapse, Temporal)
        y: Tensor = synapse.step(x, t)[0]
        return y

    def _cell(self, suffix: str, x: Tensor, state: _Cell, t: int) -> _Cell:
        h = state[0]
        if self.mode == "GRU":
            xr, xz, xn = self._product(f"input{suffix}", x, t).chunk(3, -1)
            hr, hz, hn = self._product(f"state{suffix}", h, t).chunk(3, -1)
            z, n = torch.sigmoid(xz + hz), torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
            return ((1 - z) * n + z * h,)
        gates = self._product(f"gates{suffix}", torch.cat([x, h], -1), t)
        if self.mode != "LSTM":
            return (torch.tanh(gates) if self.mode == "RNN_TANH" else torch.relu(gates),)
        i, f, g, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return self._product(f"projection{suffix}", h, t) if f"projection{suffix}" in self.synapses else h, c


class TorchSignature(nn.Module):
    """An :class:`Unrolled` layer that is called as torch's: ``(x, state) -> (y, state)``, batched or not."""

    def __init__(self, rnn: nn.RNNBase, unrolled: Unrolled) -> None:
        super().__init__()
        self.unrolled, self.batch_first = unrolled, rnn.batch_first
        self._steps = 0

    def reset(self) -> None:
        """Before another forward pass."""
        self._steps = 0

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if not isinstance(x, Tensor):
            raise TypeError(f"a recurrent layer on a chip takes a tensor of padded sequences, got {type(x).__name__}")
        lstm, single = self.unrolled.mode == "LSTM", x.dim() == 2
        time_first = x.transpose(0, 1) if self.batch_first and not single else x
        time_first = time_first[:, None] if single else time_first
        if state is None:
            cells = self.unrolled.initial_state(time_first[0])[1]
        else:
            given = state if lstm else (state,)
            given = [part[:, None] if single else part for part in given]
            cells = list(zip(*(part.unbind(0) for part in given), strict=True))
        y, after = self.unrolled.run(time_first, cells, self._steps)  # called again in a pass, it meets fresh noise
        self._steps += len(time_first)
        stacked = [torch.stack(part) for part in zip(*after, strict=True)]
        y, stacked = (y[:, 0], [part[:, 0] for part in stacked]) if single else (y, stacked)
        y = y.transpose(0, 1) if self.batch_first and not single else y
        return y, tuple(stacked) if lstm else stacked[0]
