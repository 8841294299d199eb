"""How far a rule's gradient is from the true one."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import Stream, draws
from snnrobust.learning_rules.bptt import BPTT
from snnrobust.learning_rules.chain import SYNAPTIC
from snnrobust.learning_rules.losses import LOSSES
from snnrobust.learning_rules.supervised import Supervised

__all__ = ["alignment"]


def alignment(
    rule: Supervised,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    key: int = 0,
    learnt: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    r"""The angle between the rule's gradient and that of BPTT, in degrees, for the weight of each synaptic layer.

    .. math:: \theta_l = \arccos \frac{\langle g_l, \nabla_{W_l} L \rangle}{\|g_l\| \, \|\nabla_{W_l} L\|}

    0 is the same direction; below 90, a small enough step of that weight by the rule lowers the loss. L is the rule's ``loss``
    where it has one of those of BPTT, else the cross-entropy. Both gradients are of the mean over the batch, in train mode under
    the same draws.

    Args:
        rule: Any rule that trains by minibatches.
        model: It is copied, and stays as it is.
        x, y: Inputs ``[B, *]`` and labels ``[B]``.
        key: Of the draws.
        learnt: ``history.learnt``, of a rule that learns something beside the model; None is the untrained state.

    Returns:
        Angles by the name of the layer. NaN where one of the gradients is zero; layers that are not learnt are left out.

    Raises:
        TypeError, ValueError: the rule cannot train the model, or ``learnt`` is not of it.
    """
    if not isinstance(rule, Supervised):
        raise TypeError(f"rule must be one that trains by minibatches, such as BPTT() or FA(), got {rule!r:.80}")
    checks.module("model", model)
    loss = getattr(rule, "loss", None)
    true = BPTT(loss=loss) if isinstance(loss, str) and loss in LOSSES else BPTT()
    theirs, ours = (_gradients(r, model, x, y, key, given) for r, given in ((true, None), (rule, learnt)))
    return {name: _angle(ours[name], g) for name, g in theirs.items()}


def _gradients(
    rule: Supervised, model: nn.Module, x: Tensor, y: Tensor, key: int, learnt: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    model = deepcopy(model).train()
    rule.refuse_gradient(model, x[:1])
    with torch.enable_grad(), rule.lend(model, x[:1]) as lent:
        lent.learnt.to(x.device)
        if learnt is not None:
            try:
                lent.learnt.load_state_dict(dict(learnt))
            except RuntimeError as error:
                raise ValueError(f"learnt is not what {rule.name} learns beside this model: {error}") from error
        ids = torch.arange(len(x))
        if lent.before is not None:
            lent.before(Stream(key, ids), ids)
        with draws(model, key, ids):
            lent.backward(x, y, 1.0)
    return {
        name: torch.zeros_like(m.weight) if m.weight.grad is None else m.weight.grad
        for name, m in model.named_modules()
        if isinstance(m, SYNAPTIC) and m.weight.requires_grad
    }


def _angle(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double().flatten(), b.detach().double().flatten()
    a, b = a / a.norm(), b / b.norm()
    return float(torch.rad2deg(2 * torch.atan2((a - b).norm(), (a + b).norm())))  # exact near 0, where arccos is not
