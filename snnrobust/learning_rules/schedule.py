"""Learning rates over a training."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["Schedule", "scheduled"]

Schedule = Literal["constant", "cosine", "step", "cyclic"]


def scheduled(schedule: Schedule, lr: float, epoch: int, epochs: int, within: float) -> float:
    r"""The learning rate in epoch ``epoch`` (from 0) of E ``epochs``, a share ``within`` of which is done.

    With :math:`e` the epoch and :math:`u = (e + \text{within}) / E`:

    - ``"constant"``: :math:`\eta`
    - ``"cosine"``: :math:`\tfrac{\eta}{2} (1 + \cos(\pi e / E))`, a step each epoch
    - ``"step"``: :math:`\eta`, divided by 10 at 50, 70 and 90 % of the epochs
    - ``"cyclic"``: :math:`\eta u / 0.4` up to :math:`u = 0.4`, then :math:`\eta (1 - u) / 0.6`
    """
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if schedule == "step":
        return lr / 10.0 ** sum(10 * epoch >= tenths * epochs for tenths in (5, 7, 9))
    if schedule == "cyclic":
        done = (epoch + within) / epochs
        return lr * (done / 0.4 if done < 0.4 else (1 - done) / 0.6)
    return lr
