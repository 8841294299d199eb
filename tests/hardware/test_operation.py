import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.hardware import Operation


def same(layer, x):
    operation = Operation.of(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about even kernels with padding="same"
        y, found = layer(x), operation(x, layer.weight, layer.bias)
    assert torch.equal(found, y)
    as_matrix = operation.assemble(operation.patches(x) @ operation.matrix(layer.weight), x)
    bias = 0 if layer.bias is None else layer.bias.view(-1, *[1] * len(operation.kernel))
    torch.testing.assert_close(as_matrix + bias, y, rtol=1e-12, atol=1e-12)
    assert torch.equal(operation.unmatrix(operation.matrix(layer.weight), layer.weight.shape), layer.weight)


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 5), (1, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_its_matrix(shape, bias):
    same(nn.Linear(5, 3, bias=bias, dtype=torch.float64), torch.rand(shape, dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_convolution_is_the_matrix_of_its_patches(data):
    rank = data.draw(st.integers(1, 3))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    groups, kernel, dilation = data.draw(st.sampled_from([1, 2])), draw(1, 3), draw(1, 2)
    mode = data.draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    padding = data.draw(st.sampled_from(["same", "valid", "numbers"]))
    stride = (1,) * rank if padding == "same" else draw(1, 3)
    given_padding = draw(0, 2) if padding == "numbers" else padding
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer = kind(
        2 * groups, 3 * groups, kernel, stride, given_padding, dilation, groups, data.draw(st.booleans()), mode,
        dtype=torch.float64,
    )  # fmt: skip
    same(layer, torch.rand(2, 2 * groups, *draw(6, 8), dtype=torch.float64))


def test_depthwise_layers_have_a_matrix_for_each_channel():
    layer = nn.Conv2d(4, 4, 3, groups=4)
    assert Operation.of(layer).matrix(layer.weight).shape == (4, 9, 1)
