"""Training under a constraint on weights: what stands around another rule, and two of them, fixed zeros and fixed levels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.data import Data
from snnrobust.hardware.deploy import SYNAPTIC
from snnrobust.learning_rules import History, Lent, Supervised
from snnrobust.quantization.conductance import NearestLevel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Constrained", "Masked", "OnLevels", "synaptic_layers"]


@dataclass(frozen=True, kw_only=True)
class Constrained(Supervised):
    """Base: trains by ``rule``, whose optimizer, learning rate, seed and so on it has, and changes what the rule lends.

    Args:
        rule: Any rule by minibatches, such as ``BPTT(lr=1e-3)`` or ``PGDTraining(...)``; another constraint does as well.
    """

    name: ClassVar[str]

    rule: Supervised

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Supervised) or type(self.rule).fit not in (Supervised.fit, Constrained.fit):
            raise TypeError(
                f"rule must be a rule by minibatches with the common training loop, such as BPTT(lr=1e-3), got {self.rule!r:.80}"
            )
        for field in fields(Supervised):
            if getattr(self, field.name) not in (field.default, getattr(self.rule, field.name)):
                raise ValueError(f"{field.name} is the rule's: give it to rule, not to {type(self).__name__}")
            object.__setattr__(self, field.name, getattr(self.rule, field.name))

    def constrain(self, model: nn.Module, lent: Lent) -> nn.Module:
        """Change ``lent``, and return a module with the state that is saved and resumed."""
        raise NotImplementedError

    def described(self) -> Any:
        """What tells one constraint from another, as JSON."""
        raise NotImplementedError

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        self.rule.refuse(model, example)

    @contextmanager
    def lend(self, model: nn.Module, example: Tensor) -> Iterator[Lent]:
        with self.rule.lend(model, example) as lent:
            both, state = nn.Module(), self.constrain(model, lent)
            both.add_module("rule", lent.learnt)
            both.add_module("state", state)
            lent.learnt = both
            yield lent

    def fit(
        self,
        model: nn.Module,
        train: Data,
        validation: Data | None = None,
        *,
        epochs: int,
        checkpoint: str | Path | None = None,
        progress: bool = True,
        fabric: Fabric | None = None,
        log: str | Path | None = None,
    ) -> History:
        history = super().fit(
            model, train, validation, epochs=epochs, checkpoint=checkpoint, progress=progress, fabric=fabric, log=log
        )
        rule: Supervised = self
        while isinstance(rule, Constrained):  # what the innermost rule has learnt beside the model
            history.learnt = {
                name.removeprefix("rule."): t for name, t in history.learnt.items() if name.startswith("rule.")
            }
            rule = rule.rule
        return history

    def _identity(self, model: nn.Module, train: Data, validation: Data | None, epochs: int) -> dict[str, Any]:
        found = self.rule._identity(model, train, validation, epochs)
        return {**found, "rule": [self.name, found["rule"]], self.name: self.described()}


@dataclass(frozen=True, kw_only=True)
class Masked(Constrained):
    """Parameters stay exactly zero where a mask leaves them out, whatever the optimizer does.

    Gradients are masked before each step and parameters after it, so that neither momentum nor weight decay brings one back.

    Args:
        masks: By the name of a parameter (as in ``model.named_parameters()``) a bool tensor of its shape, False where it is zero.
    """

    name: ClassVar[str] = "Masked"

    masks: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.masks, Mapping):
            raise TypeError(f"masks must map names of parameters to bool tensors, got {type(self.masks).__name__}")
        for name, mask in self.masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise TypeError(f"masks must be bool tensors, that of {name} is {mask!r:.40}: use (weight != 0)")

    def described(self) -> dict[str, str]:
        return {
            name: hashlib.blake2b(
                mask.cpu().contiguous().view(torch.uint8).numpy().tobytes(), digest_size=8
            ).hexdigest()
            for name, mask in self.masks.items()
        }

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        super().refuse(model, example)
        known = dict(model.named_parameters())
        for name, mask in self.masks.items():
            if known[checks.choice("masks", name, known)].shape != mask.shape:
                raise ValueError(
                    f"the mask of {name} has shape {tuple(mask.shape)}, the parameter {tuple(known[name].shape)}"
                )

    def constrain(self, model: nn.Module, lent: Lent) -> nn.Module:
        known = dict(model.named_parameters())
        left_out = [(known[name], ~mask.to(known[name].device)) for name, mask in self.masks.items()]
        inner, after = lent.backward, lent.after

        @torch.no_grad()
        def zero() -> None:
            for parameter, out in left_out:
                parameter.masked_fill_(out, 0.0)

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            found = inner(x, y, scale)
            for parameter, out in left_out:
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(out, 0.0)
            return found

        def step() -> None:
            if after is not None:
                after()
            zero()

        lent.backward, lent.after = backward, step
        zero()
        return nn.Module()


@dataclass(frozen=True, kw_only=True)
class OnLevels(Constrained):
    r"""Weights are on their levels in every forward and backward pass; what is learnt is a latent weight.

    .. math:: \tilde W \leftarrow \operatorname{clip}\big(\tilde W - \eta \, \nabla L(W), s \ell_1, s \ell_n\big), \quad
        W = \Pi(\tilde W)

    The gradient passes the projection straight through. Validation and the finished model have W.

    Args:
        levels: By the name of a layer its projection; one without a scale gets that which fits the weight at the start.

    Source: Courbariaux, Bengio and David 2015, "BinaryConnect", for latent weights and their clipping.
    """

    name: ClassVar[str] = "OnLevels"

    levels: Mapping[str, NearestLevel]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.levels, Mapping) or not self.levels:
            raise TypeError(f"levels must map names of layers to NearestLevel projections, got {self.levels!r:.80}")
        for name, levels in self.levels.items():
            if not isinstance(levels, NearestLevel):
                raise TypeError(f"levels of {name} must be a NearestLevel, got {levels!r:.80}")

    def described(self) -> dict[str, str]:
        return {name: repr(levels) for name, levels in self.levels.items()}

    def refuse(self, model: nn.Module, example: Tensor) -> None:
        super().refuse(model, example)
        synaptic_layers(model, self.levels, "levels")

    def constrain(self, model: nn.Module, lent: Lent) -> nn.Module:
        state, learnt = nn.Module(), []
        for i, (name, layer) in enumerate(synaptic_layers(model, self.levels, "levels").items()):
            levels = self.levels[name].fitted(layer.weight)
            state.register_buffer(f"latent{i}", layer.weight.detach().clone())
            state.register_buffer(f"scale{i}", torch.tensor(levels.scale, dtype=torch.float64))
            learnt.append((layer, levels.levels))
        inner, after = lent.backward, lent.after

        @torch.no_grad()
        def show(latent: bool) -> None:
            for i, (layer, values) in enumerate(learnt):
                hidden = getattr(state, f"latent{i}")
                levels = NearestLevel(values, float(getattr(state, f"scale{i}")))
                layer.weight.copy_(hidden if latent else levels(hidden))

        def backward(x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            show(latent=False)  # an earlier part of the batch has left the latent weights
            found = inner(x, y, scale)
            show(latent=True)  # what the optimizer steps
            return found

        @torch.no_grad()
        def step() -> None:
            if after is not None:
                after()
            for i, (layer, values) in enumerate(learnt):
                low, high = NearestLevel(values, float(getattr(state, f"scale{i}"))).bounds()
                getattr(state, f"latent{i}").copy_(layer.weight.clamp(low, high))
            show(latent=False)

        lent.backward, lent.after = backward, step
        show(latent=False)
        return state


def synaptic_layers(model: nn.Module, names: Mapping[str, Any], argument: str) -> dict[str, nn.Linear]:
    """The layers of ``model`` that ``names`` names, each an ``nn.Linear`` or ``nn.Conv`` whose weight is a parameter.

    Raises:
        ValueError: there is none of that name.
        TypeError: its weight is computed from other parameters.
    """
    known = {name: m for name, m in model.named_modules() if isinstance(m, SYNAPTIC)}
    found = {}
    for name in names:
        layer = known[checks.choice(f"a layer in {argument}", name, known)]
        if "weight" not in layer._parameters:
            raise TypeError(f"{name} computes its weight from other parameters: make that permanent first")
        found[name] = layer
    return found  # type: ignore[return-value]  # for what they share: weight and bias
