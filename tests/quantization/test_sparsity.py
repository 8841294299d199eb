"""Hand-counted zeros of weights and channels."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.encoders import Direct
from snnrobust.models import en_resnet
from snnrobust.quantization import Quantizer, Ternary, quantize
from snnrobust.quantization.sparsity import sparsity


def test_by_hand():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
        model[2].weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, -0.0], [0.0, 3.0]]))
    first, second = sparsity(model).layers
    assert (first.name, first.weights, first.zeros, first.outputs, first.silent) == ("0", 6, 4, 2, 0)
    assert (first.inputs, first.unused, first.share) == (3, 1, 4 / 6)
    assert (second.name, second.weights, second.zeros, second.outputs, second.silent) == ("2", 8, 6, 4, 2)
    assert (second.inputs, second.unused) == (2, 1)
    total = sparsity(model).total
    assert (total.weights, total.zeros, total.outputs, total.silent, total.inputs, total.unused) == (14, 10, 6, 2, 5, 2)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), groups=st.sampled_from([1, 2, 3]), keep=st.floats(0.0, 0.5))
def test_convolutions_with_groups_against_their_gradients(seed, groups, keep):
    """An input that is unused changes no output, and a silent output does not depend on any input."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(6, 12, (2, 3), groups=groups, bias=False).double()
    with torch.no_grad():
        shape = layer.weight.shape
        layer.weight.copy_(
            torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < keep * 0.3)
        )
    (found,) = sparsity(layer).layers
    x = torch.zeros(1, 6, 4, 4, dtype=torch.float64)
    reached = torch.stack([layer(x.index_fill(1, torch.tensor([i]), 1.0))[0].abs().sum((1, 2)) > 0 for i in range(6)])
    assert found.unused == int((~reached.any(1)).sum())
    assert found.silent == int((~reached.any(0)).sum())
    assert found.zeros == int((layer.weight == 0).sum())


def test_quantized_weights_are_those_that_count():
    model = nn.Sequential(nn.Linear(8, 4))
    assert sparsity(model).total.zeros == 0
    quantized = quantize(model, weights=Quantizer(Ternary(), scale="least-squares"))
    assert sparsity(quantized).total.zeros == int((quantized[0].weight == 0).sum()) > 0


def test_table_and_json():
    model = en_resnet((1, 6, 6), 3, members=1, blocks=1, widths=(2,), encoder=Direct(2))
    found = sparsity(model)
    assert next(layer.name for layer in found.layers) == "0.network.0"
    lines = found.table().splitlines()
    assert len(lines) == 2 + len(found.layers) + 1
    assert lines[-1].startswith("all layers")
    again = json.loads(json.dumps(found.to_json()))
    assert again["total"]["weights"] == found.total.weights
    assert again["layers"][0]["share"] == found.layers[0].share


def test_bad_input():
    with pytest.raises(ValueError, match=r"no nn.Linear or nn.Conv layer"):
        sparsity(nn.ReLU())
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        sparsity(3)
