"""Several models that answer together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import one_key

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    r"""The mean of the logits of its members, :math:`\frac{1}{E} \sum_e f_e(x)`.

    All members see the same input, each with draws of its own. It is trained as one model.

    Args:
        members: Models from inputs to logits ``[B, K]``, at least one.
    """

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        if not members:
            raise ValueError("an Ensemble needs at least one model")
        for index, member in enumerate(members):
            self.add_module(str(index), checks.module(f"member {index}", member))

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(m for m in self._modules.values() if m is not None)

    def __getitem__(self, index: int) -> nn.Module:
        return list(self)[index]

    def forward(self, x: Tensor) -> Tensor:
        with one_key(self):
            answers = [member(x) for member in self]
        for index, answer in enumerate(answers[1:], 1):
            if answer.shape != answers[0].shape:
                raise ValueError(
                    f"member {index} gives logits {tuple(answer.shape)} and member 0 {tuple(answers[0].shape)}: "
                    "give models of the same classes"
                )
        return torch.stack(answers).mean(0)
