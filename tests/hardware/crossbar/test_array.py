import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.hardware import Crossbar, deploy


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return nn.Sequential(layer).to(weight.dtype)


def some_weight(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 4), st.integers(2, 8), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_an_adc_reads_each_tile_of_rows(inputs, rows, bits, seed):
    weight = some_weight(3, inputs, seed=seed)
    x = some_weight(4, inputs, seed=seed + 1)
    chip = deploy(linear(weight), Crossbar(rows, 2, ir_drop=False, adc_bits=bits, adc_range=0.5), seed=0)
    real = chip[0].layer.array.weight
    top = 0.5 * max(real[:, a : a + rows].abs().sum(1).max() for a in range(0, inputs, rows))
    levels = 2 ** (bits - 1) - 1
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for n in range(4):
        full = float(top * x[n].abs().max())
        for j in range(3):
            for a in range(0, inputs, rows):
                partial = float((x[n, a : a + rows] * real[j, a : a + rows]).sum())
                expected[n, j] += round(max(-1.0, min(1.0, partial / full)) * levels) * full / levels
    torch.testing.assert_close(chip(x), expected, rtol=1e-9, atol=1e-9)


def test_an_adc_of_a_convolution_is_that_of_its_patches():
    layer = nn.Conv2d(2, 3, 3, padding=1, stride=2).double()
    x = some_weight(2, 2, 5, 5).abs()
    chip = deploy(nn.Sequential(layer), Crossbar(5, 8, ir_drop=False, adc_bits=4, dac_range=2.0), seed=0)
    array = chip[0].layer.array
    rows = F.unfold(x, 3, padding=1, stride=2).mT  # [N, L, 18]
    y = torch.zeros(2, 9, 3, dtype=torch.float64)
    matrix = array.weight.view(3, 18).T
    step = float(array.top) * 2.0 / 7
    for a in range(0, 18, 5):
        y += (rows[..., a : a + 5] @ matrix[a : a + 5] / step).round().clamp(-7, 7) * step
    expected = y.mT.unflatten(-1, (3, 3)) + layer.bias.detach().view(3, 1, 1)
    torch.testing.assert_close(chip(x), expected, rtol=1e-9, atol=1e-9)


def test_chunks_of_patches_change_nothing(monkeypatch):
    from snnrobust.hardware.crossbar import array

    net, x = nn.Sequential(nn.Conv2d(2, 3, 3)), torch.rand(7, 2, 6, 6)
    chip = deploy(net, Crossbar(5, 8, adc_bits=5), seed=0)
    whole = chip(x)
    monkeypatch.setattr(array, "MOST_PATCHES", 2 * 9 * 2 * 36)
    torch.testing.assert_close(chip(x), whole, rtol=1e-6, atol=1e-7)


def test_a_dac_converts_what_is_driven():
    crossbar = Crossbar(4, 4, dac_bits=3)
    x = torch.tensor([[[0.0, 0.4, -1.0, 0.7]], [[3.0, 1.4, 0.2, -0.6]]])
    assert torch.allclose(crossbar.drive(x), torch.tensor([[[0.0, 1 / 3, -1.0, 2 / 3]], [[3.0, 1.0, 0.0, -1.0]]]))
    fixed = Crossbar(4, 4, dac_bits=3, dac_range=1.5)
    assert torch.allclose(fixed.drive(x), torch.tensor([[[0.0, 0.5, -1.0, 0.5]], [[1.5, 1.5, 0.0, -0.5]]]))


def test_a_sample_is_converted_alike_in_any_batch_and_as_a_stream(model, x):
    chip = deploy(model, Crossbar(5, 4, adc_bits=8, dac_bits=8), seed=0)
    whole = chip(x * torch.tensor([1.0, 0.1, 0.5, 0.9, 0.3]).view(-1, 1, 1, 1))
    torch.testing.assert_close(chip(x[1:2] * 0.1), whole[1:2])
    if hasattr(chip, "stream"):
        *_, last = chip.stream(x[1:2] * 0.1)
        torch.testing.assert_close(last, whole[1:2])
