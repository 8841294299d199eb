"""A spiking classifier: encoder, network, readout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from torch import Tensor, nn

from snnrobust.draws import held, one_key
from snnrobust.encoders import Direct, Encoder
from snnrobust.kernels.lif import watched
from snnrobust.layers import Readout
from snnrobust.layers.fused import hooked
from snnrobust.temporal import Temporal, shown

__all__ = ["SpikingClassifier"]


class SpikingClassifier(nn.Module):
    """``encoder -> network -> readout``: images ``[B, C, H, W]`` in [0, 1] to logits ``[B, K]``.

    ``forward`` always runs the whole sequence from the zero state. Outside :func:`snnrobust.draws.draws` each forward takes
    one key from torch's generator.

    Args:
        encoder: Gives the sequence ``[T, B, *]``; it decides T.
        network: A temporal module, ``[T, B, *] -> [T, B, K]``.
        readout: ``[T, B, K] -> [B, K]``.
    """

    def __init__(self, encoder: Encoder, network: Temporal, readout: Readout) -> None:
        super().__init__()
        for name, value, kind in (
            ("encoder", encoder, Encoder),
            ("network", network, Temporal),
            ("readout", readout, Readout),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        self.encoder, self.network, self.readout = encoder, network, readout

    @property
    def time_steps(self) -> int:
        return self.encoder.time_steps

    def forward(self, x: Tensor) -> Tensor:
        with one_key(self):
            return self.readout(self.outputs(x))  # type: ignore[no-any-return]

    def outputs(self, x: Tensor) -> Tensor:
        """What the readout gets, ``[T, B, K]``."""
        if type(self.encoder) is Direct and not (watched() or hooked(self.encoder) or hooked(self.network)):
            return shown(self.network, self.encoder.image(x), self.time_steps)
        return self.network(self.encoder(x))  # type: ignore[no-any-return]

    def stream(self, x: Tensor) -> Iterator[Tensor]:
        """The running logits ``[B, K]`` after each time step; the last are those of ``forward`` under the same draws.

        The draws are those of the call, wherever the iterator is read. Random modules that are not ours (such as
        ``nn.Dropout``) draw at each step, and so differ from ``forward``.
        """
        return self._running(self.encoder.stream(x), held(self))

    def _running(
        self, steps: Iterator[Tensor], again: Callable[[int], AbstractContextManager[None]]
    ) -> Iterator[Tensor]:
        network_state = readout_state = None
        for t in range(self.time_steps):
            with again(t):  # left open across a yield it would leak into the caller's own forwards
                x_t = next(steps)
                network_state = self.network.initial_state(x_t) if t == 0 else network_state
                y_t, network_state = self.network.step(x_t, network_state)
                readout_state = self.readout.initial_state(y_t) if t == 0 else readout_state
                logits, readout_state = self.readout.step(y_t, readout_state)
            yield logits
