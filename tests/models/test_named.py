"""The named architectures: sizes against published or hand-computed numbers, and streams against whole sequences."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Frames, Poisson, Rows
from snnrobust.models import ARCHITECTURES, NORMS, ordinary, smallest_image, spiking
from snnrobust.models.blocks import remembers
from snnrobust.neurons import LIF

SMALLEST = {
    "mlp": 1, "dense": 1, "conv-small": 4, "conv-medium": 4, "conv-mnist": 4, "lenet5": 12, "vgg5": 4, "vgg9": 8, "vgg11": 16,
    "vgg16": 32, "resnet18": 1, "resnet20": 1, "densenet40": 4, "noisy-cnn6": 4, "lstm": 1, "recurrent": 1,
}  # fmt: skip


def _cubes(*widths):
    """Weights of 3 x 3 convolutions from each width to the next."""
    return sum(9 * a * b for a, b in pairwise(widths))


def _norms(*widths):
    return 2 * sum(widths)


def _densenet():
    total, channels = 9 * 3 * 16, 16
    for block in range(3):
        for _ in range(12):
            total += 2 * channels + 9 * channels * 12
            channels += 12
        total += 2 * channels + (channels**2 if block < 2 else 10 * channels + 10)
    return total


# Parameters for images of 3 x 32 x 32 and 10 classes (28 x 28 and one channel where marked).
VGG16 = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
VGG9 = [64, 64, 128, 128, 256, 256, 256]
VGG11 = [64, 128, 256, 256, 512, 512, 512, 512]
SIZES = {
    "mlp": 256 * 3072 + 256 * 256 + _norms(256, 256) + 2570,
    "dense": 400 * 3072 + _norms(400) + 4010,
    "conv-small": _cubes(3, 16, 32) + _norms(16, 32) + 10 * 32 * 64 + 10,
    "conv-medium": _cubes(3, 32, 64) + _norms(32, 64, 128) + 128 * 64 * 64 + 1290,
    "conv-mnist": _cubes(3, 32, 64) + _norms(32, 64) + 10 * 64 * 64 + 10,
    "vgg5": _cubes(3, 64, 128, 128) + 1024 * 128 * 64 + 1024**2 + _norms(64, 128, 128, 1024, 1024) + 10250,
    "vgg9": _cubes(3, *VGG9) + 1024 * 256 * 16 + _norms(*VGG9, 1024) + 10250,
    "vgg11": _cubes(3, *VGG11) + 4096 * 512 + _norms(*VGG11, 4096) + 40970,
    "vgg16": _cubes(3, *VGG16) + _norms(*VGG16) + 5130,
    "resnet20": 272_474,  # 0.27 M in He et al., table 6: 269,722 with shortcuts of option A, and 2,752 of option B
    "resnet18": 11_173_962,
    "densenet40": _densenet(),  # 1.0 M in Huang et al., table 2
    "noisy-cnn6": _cubes(3, 32, 32, 64, 64) + 256 * 64 * 64 + _norms(32, 32, 64, 64, 256) + 2570,
    "lstm": 4 * 128 * (96 + 128 + 2) + 1290,
    "recurrent": 4 * 128 * (96 + 128 + 2) + 1290,
}


def _count(model):
    return sum(p.numel() for p in model.parameters())


def _built(name, kind, shape=(3, 32, 32), **arguments):
    if kind == "ordinary":
        return ordinary(ARCHITECTURES[name], shape, 10)
    encoder = Rows(shape[1]) if remembers(ARCHITECTURES[name]) else Direct(4)
    return spiking(ARCHITECTURES[name], shape, 10, encoder, **arguments)


def test_names():
    assert list(SMALLEST) == list(ARCHITECTURES)
    assert ARCHITECTURES["lstm"] is ARCHITECTURES["recurrent"]


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    with torch.device("meta"):
        assert _count(_built(name, "ordinary")) == SIZES[name]


def test_published_sizes():
    assert SIZES["vgg16"] == 14_724_042
    assert SIZES["densenet40"] == 1_019_722
    assert SIZES["resnet20"] == 269_722 + (16 * 32 + 32 * 64) + 2 * (32 + 64)


def test_lenet5_has_the_weights_of_its_paper():
    """61,706 in the variant in which the second convolution sees all maps; batch norm has 2 for each of 226 features instead
    of one bias."""
    with torch.device("meta"):
        assert _count(_built("lenet5", "spiking", (1, 28, 28), norm="none")) == 61_706
        assert _count(_built("lenet5", "ordinary", (1, 28, 28))) == 61_706 + 6 + 16 + 120 + 84


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_the_network_of_noisy_computations_takes_maxima(name):
    with torch.device("meta"):
        kinds = [type(m) for m in _built(name, "ordinary").modules()]
    assert kinds.count(nn.MaxPool2d) == (2 if name == "noisy-cnn6" else 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_twins_have_the_same_synapses(name):
    def synapses(model):
        return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    with torch.device("meta"):
        ann, snn = (synapses(_built(name, kind)) for kind in ("ordinary", "spiking"))
    if remembers(ARCHITECTURES[name]):  # an LSTM has four times the weights
        assert (ann, snn) == ([(10, 128)], [(128, 96), (128, 128), (10, 128)])
    else:
        assert ann == snn


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_smallest_image(name):
    side = SMALLEST[name]
    assert smallest_image(ARCHITECTURES[name]) == side
    if side > 1:
        message = f"is larger than its input of .*: the smallest square image for this architecture is {side} x {side}$"
        with torch.device("meta"), pytest.raises(ValueError, match=message):
            _built(name, "ordinary", (1, side - 1, side - 1))


def test_vgg16_on_mnist_is_told_what_fits():
    message = "Pool.* is larger than its input of 1 x 1: the smallest square image for this architecture is 32 x 32"
    for kind in ("ordinary", "spiking"):
        with torch.device("meta"), pytest.raises(ValueError, match=message):
            _built("vgg16", kind, (1, 28, 28))


# --- streams --------------------------------------------------------------------------------------------------------


def _tiny(name, slim, encoder=None, **arguments):
    """The named network with few channels on its smallest image, with the statistics of these images, so that it is alive."""
    side = max(SMALLEST[name], 3)
    shape, architecture = (2, side, side), slim(ARCHITECTURES[name], 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if encoder is None:
            model = ordinary(architecture, shape, 3)
        else:
            encoder = Rows(side) if remembers(architecture) else encoder
            model = spiking(architecture, shape, 3, encoder, **arguments)
        images = torch.randint(0, 257, (8, *shape)) / 256
        for module in model.modules():
            if hasattr(module, "momentum"):
                module.momentum = 1.0
        with torch.no_grad():
            model.train()(images)
    return model.eval(), images


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_dyadic_stream_is_the_whole_sequence_bit_for_bit(name, slim):
    model, x = _tiny(name, slim, Poisson(4), neuron=LIF(0.5, 0.5), norm="BNTT")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.copy_((torch.randn(module.weight.shape, generator=generator) * 4).round() / 8)
        with draws(model, 3):
            running, whole = list(model.stream(x)), model(x)
    assert len(running) == model.time_steps
    assert torch.equal(running[-1], whole)
    assert not torch.equal(whole, whole[:1].expand_as(whole))  # spikes reach the output


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_stream_is_the_whole_sequence_in_float64(name, norm, slim):
    model, x = _tiny(name, slim, Direct(4), neuron=LIF(0.9, 0.3), norm=norm)
    model, x = model.double(), x.double()
    with torch.no_grad():
        *_, last = model.stream(x)
        whole = model(x)
        torch.testing.assert_close(last, whole, rtol=0, atol=1e-9)
    assert norm == "none" or not torch.equal(whole, whole[:1].expand_as(whole))


def test_an_lstm_classifier_streams(slim):
    model, x = _tiny("lstm", slim)
    with torch.no_grad():
        *_, last = model.double().stream(x.double())
        torch.testing.assert_close(last, model(x.double()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["ordinary", "spiking"])
def test_every_weight_learns(name, kind, slim):
    model, x = _tiny(
        name,
        slim,
        None if kind == "ordinary" else Direct(4),
        **({} if kind == "ordinary" else {"neuron": LIF(0.9, 0.1)}),
    )
    x = x.requires_grad_()
    model.train()(x).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert x.grad.abs().sum() > 0


def test_event_frames():
    model = spiking(ARCHITECTURES["resnet20"][:2], (5, 2, 4, 4), 3, Frames(5))
    assert model(torch.rand(2, 5, 2, 4, 4)).shape == (2, 3)
