import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Poisson
from snnrobust.hardware import Chain, deploy
from snnrobust.hardware.bits import store
from snnrobust.hardware.faults import BitErrors
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3),
    "snn": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(4), LIF(threshold=0.1)),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]().eval()


@pytest.fixture
def x():
    return torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def run(m, x, key=3, ids=None):
    with torch.no_grad(), draws(m, key, ids):
        return m(x)


def flipped(w, read, bits):
    """Which bits of the words differ, ``[*w.shape, k]``."""
    stored = store(w, bits)
    codes = (read.double() / stored.step).round().to(torch.int16)
    words = (codes & (2**bits - 1)).to(torch.uint8)
    return ((words ^ stored.words)[..., None] >> torch.arange(bits)) & 1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rate", [0.002, 0.1])
def test_the_rate_is_that_of_every_bit(bits, rate):
    """Binomial test over all bits, and chi-square for equal rates of positions; 0.001 each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(200, 150)
    chip = deploy(nn.Sequential(layer), BitErrors(rate, bits), seed=2)
    flips = flipped(layer.weight, chip[0].layer.array.weight, bits)
    assert stats.binomtest(int(flips.sum()), flips.numel(), rate).pvalue > 1e-3
    assert stats.chisquare(flips.flatten(0, 1).sum(0).numpy()).pvalue > 1e-3
    other = deploy(nn.Sequential(layer), BitErrors(rate, bits), seed=3)
    both = (flips & flipped(layer.weight, other[0].layer.array.weight, bits)).sum()
    assert stats.binomtest(int(both), flips.numel(), rate**2).pvalue > 1e-3


def test_no_errors_are_the_quantized_model_bit_for_bit(model, x):
    ideal = run(deploy(model, Uniform(bits=8), seed=0), x)
    for drawn in ("chip", "inference", "step"):
        assert torch.equal(run(deploy(model, BitErrors(0.0, drawn=drawn), seed=0), x), ideal)


def test_all_bits_flipped_is_the_complement():
    layer = nn.Linear(5, 4)
    chip = deploy(nn.Sequential(layer), BitErrors(1.0), seed=0)
    codes = store(layer.weight).codes
    expected = (-codes - 1).double() * store(layer.weight).step
    torch.testing.assert_close(chip[0].layer.array.weight.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("drawn", "forwards_equal"), [("chip", True), ("inference", False), ("step", False)])
def test_when_they_are_drawn(model, x, drawn, forwards_equal):
    chips = [deploy(model, BitErrors(0.05, drawn=drawn), seed=seed) for seed in (7, 7, 8)]
    one, again, other_key, other_chip = run(chips[0], x), run(chips[1], x), run(chips[0], x, 4), run(chips[2], x)
    assert torch.equal(one, again)
    spiking_model = not isinstance(model, nn.Sequential)
    if not spiking_model:  # a Poisson encoder draws as well
        assert torch.equal(one, other_key) == forwards_equal
        assert is_stochastic(chips[0]) == (not forwards_equal)
    assert torch.equal(one, other_chip) == (drawn != "chip")


@pytest.mark.parametrize("drawn", ["inference", "step"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_flips_come_and_go_for_all_samples_at_once(drawn, per_channel):
    """The weight of each step, read column by column: that of all samples, whatever the batch."""
    model = nn.Sequential(nn.Linear(16, 6))
    layer = deploy(model, BitErrors(0.05, drawn=drawn, per_channel=per_channel), seed=0)[0].layer
    seen = torch.eye(16)
    with draws(layer, 1, torch.tensor([4, 9, 2])):
        weights = torch.stack([layer(seen[k].expand(4, 3, 16)) for k in range(16)], -1) - layer.bias[:, None]
    assert torch.allclose(weights[0], weights[1]) == (drawn == "inference")
    assert torch.allclose(weights[:, 0], weights[:, 1])
    stored = store(model[0].weight.detach(), axis=0 if per_channel else None)
    flips = (weights[:, 0].double() / stored.step - stored.codes.double()).round() != 0
    count = flips.sum() if drawn == "step" else flips[0].sum()
    trials = 96 * (4 if drawn == "step" else 1)
    assert stats.binomtest(int(count), trials, 1 - 0.95**8).pvalue > 1e-3
    x = torch.rand(4, 3, 16)
    with draws(layer, 1):
        whole, part = layer(x), layer(x[:, 1:])
        state, each = layer.initial_state(x[0]), []
        for x_t in x:
            y, state = layer.step(x_t, state)
            each.append(y)
        first, middle = layer.advance(x[:2], layer.initial_state(x[0]))
        second, _ = layer.advance(x[2:], middle)
    torch.testing.assert_close(whole[:, 1:], part)
    torch.testing.assert_close(torch.stack(each), whole)
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_the_gradient_is_that_of_the_weights_that_were_read():
    chip = deploy(nn.Sequential(nn.Linear(5, 4).double()), BitErrors(0.1, drawn="inference"), seed=0)
    x = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    with draws(chip, 2):
        assert torch.autograd.gradcheck(chip, (x,))


def test_a_step_for_each_channel():
    layer = nn.Linear(50, 3)
    layer.weight.data[0] *= 100
    exact = store(layer.weight, 8, axis=0).values(torch.float32)
    chip = deploy(nn.Sequential(layer), BitErrors(0.0, per_channel=True), seed=0)
    assert torch.equal(chip[0].layer.array.weight, exact)
    assert not torch.equal(exact, store(layer.weight, 8).values(torch.float32))


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 2"):
        BitErrors(2)
    with pytest.raises(ValueError, match=r"bits must be in 2..8, got 9"):
        BitErrors(0.1, bits=9)
    with pytest.raises(ValueError, match="drawn must be one of"):
        BitErrors(0.1, drawn="always")
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        deploy(nn.Sequential(layer), BitErrors(0.1), seed=0)
    with pytest.raises(TypeError, match=r"BitErrors stores the weights themselves, got .*StoredArray"):
        deploy(nn.Sequential(nn.Linear(2, 2)), Chain(BitErrors(0.1), BitErrors(0.1)), seed=0)
    assert repr(BitErrors(0.1, 4)) == "BitErrors(rate=0.1, bits=4, drawn='chip')"
