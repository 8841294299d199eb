"""Pictures are written as asked and show what they were given."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from snnrobust import figures
from snnrobust.encoders import Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.monitors import Trace, membranes, monitor, raster
from snnrobust.neurons import LIF


def colour_share(path, colour):
    """Share of the picture's points in a colour."""
    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB")).astype(int)
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(image - wanted).max(-1) < 40).mean())


def size(path):
    with Image.open(path) as opened:
        return opened.size


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "picture.png"


def test_a_raster_has_a_mark_for_each_spike(path, tmp_path):
    blank, half, full = torch.zeros(10, 20), torch.zeros(10, 20), torch.ones(10, 20)
    half[::2] = 1
    shares = []
    for spikes in (blank, half, full):
        raster(spikes, path)
        shares.append(colour_share(path, figures.SERIES[0]))
    assert shares[0] == 0
    assert shares[2] == pytest.approx(2 * shares[1], rel=0.15)
    assert colour_share(path, figures.SERIES[1]) == 0
    raster(-full, path)
    assert colour_share(path, figures.SERIES[1]) == pytest.approx(shares[2], rel=0.1)
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_a_raster_of_one_sample(path):
    spikes = torch.zeros(6, 3, 2, 4, 4)
    spikes[:, 1] = 1
    for sample, shown in ((0, False), (1, True), (2, False)):
        raster(spikes, path, sample=sample)
        assert (colour_share(path, figures.SERIES[0]) > 0.01) == shown


def made(threshold=1.0):
    current = torch.full((12, 2, 2, 3), 0.4)
    neuron = LIF(1.0, threshold)
    return Trace("0", current, neuron.membrane(current), neuron(current), threshold)


def test_membranes(path):
    membranes(made(), path, neurons=(0, 4), sample=1)
    two = size(path)
    membranes(made(), path, neurons=[5])
    assert two[1] > size(path)[1]
    assert colour_share(path, figures.SERIES[0]) > 0.002
    assert colour_share(path, figures.SERIES[1]) > 0.0005
    silent = Trace("0", torch.zeros(4, 1, 2), torch.zeros(4, 1, 2), torch.zeros(4, 1, 2), 1.0)
    membranes(silent, path, neurons=[0])
    assert colour_share(path, figures.SERIES[1]) < 0.0005


def test_the_threshold_of_each_channel():
    from snnrobust.monitors.plots import _threshold

    trace = made()
    per_channel = Trace("0", trace.current, trace.membrane, trace.spikes, torch.tensor([1.0, 2.0]))
    assert [_threshold(per_channel, i) for i in range(6)] == [1, 1, 1, 2, 2, 2]
    assert _threshold(Trace("0", trace.current, trace.membrane, trace.spikes, torch.tensor(0.5)), 4) == 0.5
    assert _threshold(trace, 4) == 1.0


def test_rates(path):
    torch.manual_seed(0)
    model = SpikingClassifier(
        Poisson(20), Sequential(nn.Linear(6, 5), LIF(threshold=0.2), nn.Linear(5, 3)), MeanOutput()
    )
    with monitor(model, membrane=True) as record:
        model(torch.rand(4, 6))
    record.plot(path)
    assert min(size(path)) > 100
    record.plot(str(path.with_suffix(".svg")))
    assert ">network.1 LIF<" in path.with_suffix(".svg").read_text()
    heading, rule, line, caption = record.table().splitlines()
    assert " ".join(heading.split()) == "layer type neurons rate silent saturated membrane mean std min max"
    assert set(rule) == {"-"}
    layer = record["network.1"]
    m = layer.membrane
    assert line.split()[:5] == ["network.1", "LIF", "5", f"{100 * float(layer.rate.mean()):.1f}", "%"]
    over_steps = (m.std.square() + (m.mean - m.mean.mean()).square()).mean().sqrt()
    expected = (m.mean.mean(), over_steps, m.low.min(), m.high.max())
    assert line.split()[-4:] == [f"{float(v):.3f}" for v in expected]
    assert caption == "4 samples, T = 20"


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda p: raster([1.0], p), TypeError, "spikes must be a tensor"),
        (lambda p: raster(torch.ones(3, 4).int(), p), TypeError, "spikes must be floating"),
        (lambda p: raster(torch.ones(3), p), ValueError, "spikes must be .* at least one time step"),
        (lambda p: raster(torch.ones(0, 4), p), ValueError, "spikes must be .* at least one time step"),
        (lambda p: raster(torch.ones(3, 0), p), ValueError, "spikes must hold at least one value and no NaN"),
        (
            lambda p: raster(torch.full((3, 4), torch.nan), p),
            ValueError,
            "spikes must hold at least one value and no NaN",
        ),
        (lambda p: raster(torch.ones(3, 2, 4), p, sample=2), ValueError, "sample must be below 2, got 2"),
        (lambda p: raster(torch.ones(3, 2, 4), p, sample=-1), ValueError, "sample must be at least 0"),
        (
            lambda p: raster(torch.ones(3, 4), p.with_suffix(".docx")),
            ValueError,
            "path must end in one of .*png.*: use .png",
        ),
        (lambda p: raster(torch.ones(3, 4), p.with_suffix("")), ValueError, "path must end in one of"),
        (lambda p: membranes(torch.ones(3, 4), p), TypeError, "trace must be a Trace"),
        (lambda p: membranes(made(), p, neurons=[6]), ValueError, "neurons must be below 6, got 6"),
        (lambda p: membranes(made(), p, neurons=[]), ValueError, "neurons must hold at least one index"),
        (lambda p: membranes(made(), p, sample=2), ValueError, "sample must be below 2, got 2"),
    ],
)
def test_bad_arguments(path, draw, error, message):
    with pytest.raises(error, match=message):
        draw(path)
    assert not path.parent.exists() or not list(path.parent.iterdir())
