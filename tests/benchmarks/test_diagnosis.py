"""What the benchmark plants leaves the function of a network as it is."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from benchmarks import diagnosis
from snnrobust import models
from snnrobust.draws import keyed
from snnrobust.encoders import Direct
from snnrobust.layers import BNTT


def network() -> nn.Module:
    with keyed(0):
        model = models.spiking(models.ARCHITECTURES["conv-small"], (1, 8, 8), 10, Direct(4))
    for m in model.modules():
        if isinstance(m, BNTT):
            m.weight.data.mul_(20.0)  # untrained neurons fire
    return model.eval()


@pytest.mark.parametrize("mask", diagnosis.MASKS)
def test_a_mask_hides_the_gradient_and_nothing_else(mask: str) -> None:
    sound = network()
    masked = diagnosis.MASKS[mask](deepcopy(sound))
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    a, b = sound(x), masked(x)
    assert a.std() > 0
    torch.testing.assert_close(a, b)
    own, hidden = (torch.autograd.grad(z.square().sum(), x)[0].flatten(1) for z in (a, b))
    assert torch.cosine_similarity(own, hidden).mean() < 0.9


def test_the_table_of_verdicts() -> None:
    rows = [{"name": "a", "masked": True, "verdict": "masked"}] * 19
    rows += [
        {"name": "a", "masked": True, "verdict": "inconclusive"},
        {"name": "b", "masked": False, "verdict": "consistent"},
    ]
    lines = diagnosis.confusion(rows).splitlines()
    assert lines[1].split() == ["masked", "by", "construction", "19", "1", "0", "95%", "[76%,", "99%]"]
    assert lines[2].split()[:4] == ["sound", "0", "0", "1"]
