"""Fan-out maps against counting synapses one by one."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.energy.fan_out import fan_out


def brute_force(layer, shape):
    """For each output, each weight that it uses: one more synapse of the input there."""
    channels, *size = shape
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    synapses = torch.zeros(shape, dtype=torch.int64)
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, layer.padding, dilation, kernel, stride, strict=True)
    ]
    group_in, group_out = channels // layer.groups, layer.out_channels // layer.groups
    for o in range(layer.out_channels):
        for position in itertools.product(*map(range, out)):
            for offset in itertools.product(*map(range, kernel)):
                at = [
                    i * s + k * d - p
                    for i, s, k, d, p in zip(position, stride, offset, dilation, layer.padding, strict=True)
                ]
                if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                    first = o // group_out * group_in
                    synapses[(slice(first, first + group_in), *at)] += 1
    return synapses


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    small = st.integers(1, 3)
    groups = draw(st.integers(1, 2))

    def sizes(choice):
        return tuple(draw(choice) for _ in range(rank))

    kernel, stride, dilation, padding = sizes(small), sizes(small), sizes(st.integers(1, 2)), sizes(st.integers(0, 2))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = [n + draw(st.integers(0, 3 if rank < 3 else 1)) for n in least]
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer = kind(
        groups * draw(small),
        groups * draw(small),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return layer, (layer.in_channels, *size)


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_convolutions(case):
    layer, shape = case
    assert torch.equal(fan_out(layer._conv_forward, layer.weight, shape), brute_force(layer, shape))


def test_a_linear_layer_reaches_all_its_outputs():
    layer = nn.Linear(4, 7)
    assert torch.equal(fan_out(F.linear, layer.weight, (4,)), torch.full((4,), 7))
    assert torch.equal(fan_out(F.linear, layer.weight, (3, 4)), torch.full((3, 4), 7))


def test_by_hand():
    """A 3 x 3 kernel on 3 x 3 pixels with padding 1: a corner is in 4 windows, an edge in 6, the centre in 9."""
    layer = nn.Conv2d(1, 2, 3, padding=1)
    expected = 2 * torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]])
    assert torch.equal(fan_out(layer._conv_forward, layer.weight, (1, 3, 3))[0], expected)


@pytest.mark.parametrize(("padding", "total"), [("same", 13**2), ("valid", 9 * 9)])
def test_padding_by_name(padding, total):
    layer = nn.Conv2d(1, 1, 3, padding=padding)
    synapses = fan_out(layer._conv_forward, layer.weight, (1, 5, 5))
    assert int(synapses.sum()) == total


def test_circular_padding_is_made_of_inputs():
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
    assert torch.equal(fan_out(layer._conv_forward, layer.weight, (1, 4)), torch.full((1, 4), 3))


def test_it_needs_no_gradient_mode_and_leaves_the_layer_alone():
    layer = nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        fan_out(layer._conv_forward, layer.weight, (2, 4, 4))
    assert layer.weight.grad is None
    with torch.inference_mode():
        assert int(fan_out(layer._conv_forward, layer.weight, (2, 4, 4)).sum()) == 3 * 2 * 9 * 4


@settings(max_examples=20, deadline=None)
@given(convolutions(), st.integers(0, 2**31))
def test_without_the_zeros_it_is_the_number_of_weights_that_are_not(case, seed):
    layer, shape = case
    kept = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    x = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
    layer._conv_forward(x, kept.double(), None).sum().backward()
    assert torch.equal(fan_out(layer._conv_forward, kept * 0.3, shape, zeros=False), x.grad[0].long())
