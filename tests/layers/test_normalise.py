"""Input normalisation against its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.encoders import Direct
from snnrobust.layers import MeanOutput, Normalise, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    batch=st.integers(0, 4),
    mean=st.sampled_from([0.5, 0, MEAN]),
    std=st.sampled_from([0.25, 2, STD]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_formula(shape, batch, mean, std, dtype):
    x = torch.rand(batch, 3, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = Normalise(mean, std)(x)
    m, s = (torch.tensor(v, dtype=torch.float32).double().expand(3).view(3, *[1] * len(shape)) for v in (mean, std))
    assert y.dtype == dtype
    rounding = {torch.float16: 4e-3, torch.bfloat16: 4e-2, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(y.double(), (x.double() - m) / s, rtol=rounding, atol=rounding)


def test_numbers_by_hand():
    x = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    assert Normalise(0.5, 0.25)(x).tolist() == [[-2.0, 2.0], [0.0, -1.0]]
    assert Normalise((0.0, 1.0), (1.0, 0.5))(x).tolist() == [[0.0, 0.0], [0.5, -1.5]]
    assert Normalise(0.0, (1.0, 0.5))(x).tolist() == [[0.0, 2.0], [0.5, 0.5]]


def test_gradient():
    x = torch.rand(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(Normalise(MEAN, STD), (x,))


def test_it_is_constant():
    layer = Normalise(list(MEAN), STD)
    assert (layer.mean, layer.std) == (MEAN, STD)  # as a checkpoint describes it
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
    assert str(layer) == f"Normalise(mean={MEAN}, std={STD})"


def test_it_is_real_when_built_on_the_meta_device():
    """As a checkpoint builds it: its constants are in no file."""
    with torch.device("meta"):
        layer = Normalise(MEAN, STD)
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(layer(x), Normalise(MEAN, STD)(x))


def test_in_a_model_it_folds_and_streams():
    network = Sequential(Normalise(MEAN, STD), nn.Conv2d(3, 2, 3), LIF(0.5), nn.Flatten())
    model, x = SpikingClassifier(Direct(3), network, MeanOutput()).eval().double(), torch.rand(4, 3, 5, 5).double()
    *_, last = model.stream(x)
    torch.testing.assert_close(last, model(x), rtol=0, atol=1e-9)
    rest = Sequential(*list(network)[1:])
    torch.testing.assert_close(MeanOutput()(rest(Normalise(MEAN, STD)(x).expand(3, *x.shape))), model(x))


def test_layout_nan_and_huge_values():
    layer, x = Normalise(MEAN, STD), torch.rand(2, 3, 4, 5)
    x[0, 1, 2, 3] = torch.nan
    x[1] *= 1e37
    y = layer(x)
    assert y.isnan().sum() == y[0, 1, 2, 3].isnan()
    assert y[1].isfinite().all()
    turned = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(turned), y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(4, 2), ValueError, r"Normalise expects 3 channels in \[B, C, ...\], got shape \(4, 2\)"),
        (torch.ones(3), ValueError, r"Normalise expects 3 channels in \[B, C, ...\], got shape \(3,\)"),
        (torch.ones(4, 3).to(torch.uint8), TypeError, "Normalise expects a floating tensor .*, got torch.uint8"),
        ([0.5], TypeError, "Normalise expects a floating tensor .*, got list"),
    ],
)
def test_bad_input(x, error, message):
    with pytest.raises(error, match=message):
        Normalise(MEAN, STD)(x)
    with pytest.raises(ValueError, match="Normalise expects 1 channels"):  # a value a channel is not one for all
        Normalise((0.5,), 0.5)(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"Normalise expects \[B, C, ...\], got shape \(\)"):
        Normalise(0.5, 0.5)(torch.tensor(0.5))


@pytest.mark.parametrize(
    ("mean", "std", "error", "message"),
    [
        (0.5, 0.0, ValueError, r"std must be in \[1e-30, 1e\+30\], got 0.0: a channel that never varies takes std=1.0"),
        (0.5, (0.2, -0.1), ValueError, r"std must be in \[1e-30, 1e\+30\], got -0.1"),
        (float("nan"), 1.0, ValueError, r"mean must be in \[-1e\+30, 1e\+30\], got nan"),
        ((0.1, 0.2), (0.1, 0.2, 0.3), ValueError, "mean and std must have one value a channel"),
        ((), 0.5, ValueError, r"mean must be a number or one for each channel, got \(\)"),
        ("0.5", 0.5, TypeError, "mean must be a number, got '0.5'"),
        (torch.tensor([0.5]), 0.5, TypeError, "mean must be a number, got tensor"),
        (0.5, None, TypeError, "std must be a number, got None"),
    ],
)
def test_bad_arguments(mean, std, error, message):
    with pytest.raises(error, match=message):
        Normalise(mean, std)
