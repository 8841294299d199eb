"""RGA, BPTR and HART against their equations in loops."""

from functools import partial

import pytest
import torch
from torch import nn

from snnrobust.attacks import BPTR, EOT, HART, PGD, RGA, Linf, StraightThrough, Surrogate, cross_entropy, margin
from snnrobust.draws import Stream
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import Chunked, MeanOutput, Sequential
from snnrobust.models import Conv, EarlyExit, SpikingClassifier, spiking
from snnrobust.neurons import ALIF, IF, LIF, PLIF, CuBaLIF, LearnableThresholdLIF, Recurrent
from snnrobust.neurons import surrogate as surrogates

STREAM = Stream(3, torch.arange(6) + 10)
SETTINGS = {"threshold": 0.625, "decay": 0.75}
SOURCES = [RGA(), RGA(0.5), BPTR(), HART(), HART(0.4)]


def lif(F):
    return LIF(**SETTINGS)


def recurrent(F):
    layer = Recurrent(F, LIF(**SETTINGS))
    nn.init.zeros_(layer.recurrent.weight)
    return layer


def by_rate(gamma):
    def through(index, neuron, seen, flow):
        _, _, currents = seen
        mean = sum(currents) / len(currents) / neuron.threshold
        slope = torch.zeros_like(mean)
        for b in range(mean.shape[0]):
            for j in range(mean.shape[1]):
                c, beta = mean[b, j], neuron.decay
                if 0 <= c < 1 - beta:
                    slope[b, j] = gamma
                elif 1 - beta <= c <= 2:
                    slope[b, j] = (1 - gamma + gamma * beta) / (1 + beta)
        return [g * slope / neuron.threshold for g in flow]

    return through


def through_firing(index, neuron, seen, flow):
    _, spikes, _ = seen
    return [g * (sum(spikes) > 0) for g in flow]


def averaged(width):
    def through(index, neuron, seen, flow):
        us, _, _ = seen
        total = sum(g * (width - u.abs()).clamp(min=0) / width**2 for g, u in zip(flow, us, strict=True))
        return [total / len(us)] * len(us)

    return through


REFERENCES = {
    RGA(): by_rate(0.2),
    RGA(0.5): by_rate(0.5),
    BPTR(): through_firing,
    HART(): averaged(1.0),
    HART(0.4): averaged(0.4),
}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("neuron", [lif, lambda F: LIF(reset="hard", **SETTINGS), lambda F: IF(threshold=0.875)])
@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_is_its_equation(layers, neuron, source, layered, by_hand):
    model, x, y = layered(neuron, layers)
    found, logits = source(model, x, y, cross_entropy, STREAM)
    expected = by_hand.gradient(model, x, y, REFERENCES[source])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(logits, by_hand.forward(model, x)[1], rtol=1e-10, atol=1e-12)
    assert expected.any()


def test_the_slope_of_a_rate_has_area_one():
    """From no spikes at no current to one a step at twice the threshold, whatever gamma and the leak are."""
    grid = torch.linspace(-1, 4, 50_001, dtype=torch.float64)[:, None]
    for gamma in (0.0, 0.2, 1.0):
        for decay in (0.0, 0.5, 1.0):
            model = SpikingClassifier(
                Direct(2), Sequential(nn.Identity(), LIF(decay, 1.0), nn.Linear(1, 2)), MeanOutput()
            )
            model = model.double()
            model.encoder.bounds = (-1.0, 4.0)
            y, stream = torch.zeros(len(grid), dtype=torch.int64), Stream(0, torch.arange(len(grid)))
            found, _ = RGA(gamma)(model, grid, y, margin, stream)
            w = model.network[2].weight
            area = (found[:, 0] / (w[1] - w[0]).item()).sum() * 5 / 50_000
            assert abs(area - 1) < 1e-3


@pytest.mark.parametrize(
    "kind",
    {
        "PLIF": lambda F: PLIF(**SETTINGS),
        "LearnableThresholdLIF": lambda F: LearnableThresholdLIF(**SETTINGS),
        "ALIF": lambda F: ALIF(adaptation=0.0, **SETTINGS),
        "CuBaLIF": lambda F: CuBaLIF(current_decay=0.0, **SETTINGS),
        "Recurrent": recurrent,
        "a threshold for each neuron": lambda F: LIF(decay=[0.75] * F, threshold=[0.625] * F),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_neurons_that_are_the_same_function_get_the_same(kind, source, layered):
    model, x, y = layered(kind[1])
    plain, _, _ = layered(lif)
    found, expected = (source(m, x, y, cross_entropy, STREAM)[0] for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # some constants are learnt in float32


@pytest.mark.parametrize("source", [RGA(), BPTR(), HART()], ids=repr)
def test_a_scaled_input_has_a_scaled_gradient(source, layered):
    """PLIF with ``decay_input`` is LIF of the input times 1 - decay."""
    scaled, x, y = layered(lambda F: PLIF(threshold=0.125, decay=0.75, decay_input=True))
    plain, _, _ = layered(lambda F: nn.Sequential(_Quarter(), LIF(threshold=0.125, decay=0.75)))
    found, expected = (source(m, x, y, cross_entropy, STREAM)[0] for m in (scaled, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


class _Quarter(nn.Module):
    def forward(self, x):
        return x / 4


def test_the_current_of_a_synapse_and_what_a_layer_sends_itself_count():
    """One step of one neuron, twice: by hand."""
    x, y, stream = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([0]), Stream(0, torch.arange(1))
    head = nn.Linear(1, 2)
    w = (head.weight[1] - head.weight[0]).detach().double() / 2  # mean of two steps

    model = SpikingClassifier(Direct(2), Sequential(CuBaLIF(0.5, 0.75), head), MeanOutput()).double()
    found, _ = RGA()(model, x, y, margin, stream)  # currents 0.5 and 0.75: mean 0.625, so the outer slope
    slope = (1 - 0.2 + 0.2 * 0.75) / 1.75
    assert torch.allclose(found[0], slope * w * (1 + 1 + 0.5))  # x reaches the second step through the synapse too

    layer = Recurrent(1, LIF(0.75, 0.5))
    nn.init.constant_(layer.recurrent.weight, -1.5)
    model = SpikingClassifier(Direct(2), Sequential(layer, head), MeanOutput()).double()
    found, _ = RGA()(model, x, y, margin, stream)  # it fires at once: currents 0.5 and 0.5 - 1.5, mean -0.25
    assert not found.any()
    nn.init.constant_(layer.recurrent.weight, 0.25)
    found, _ = RGA()(model, x, y, margin, stream)
    assert torch.allclose(found[0], slope / 0.5 * w * 2)


def test_hart_passes_nothing_in_a_refractory_period():
    model = SpikingClassifier(
        Direct(4), Sequential(LIF(0.75, 0.5, refractory=2), nn.Linear(1, 2)), MeanOutput()
    ).double()
    x, y = torch.tensor([[0.75]], dtype=torch.float64), torch.tensor([0])
    found, _ = HART(2.0)(model, x, y, margin, Stream(0, torch.arange(1)))
    # h = 0.75: a spike, 0.25 stays; two steps of rest, 0.25 * 0.75^2; then 0.25 * 0.75^3 + 0.75
    u = torch.tensor([0.25, 0.25 * 0.75**3 + 0.25])
    w = model.network[1].weight
    expected = ((2 - u) / 4).sum() * (w[1] - w[0]).detach() / 4
    assert torch.allclose(found[0], expected)


def test_straight_through_is_a_surrogate_of_one(layered, by_hand):
    model, x, y = layered(lif)
    found, _ = StraightThrough()(model, x, y, cross_entropy, STREAM)
    ones = by_hand.through_time(lambda _, us: [torch.ones_like(u) for u in us])
    torch.testing.assert_close(found, by_hand.gradient(model, x, y, ones), rtol=1e-10, atol=1e-14)
    same, _ = Surrogate(surrogates.StraightThrough())(model, x, y, cross_entropy, STREAM)
    assert torch.equal(found, same)


@pytest.mark.parametrize("source", [RGA(), BPTR(), HART(), StraightThrough()], ids=repr)
def test_compose_and_do_not_depend_on_the_batch(source, victims):
    model, x, y = victims("poisson")
    stream, mean = Stream(5, torch.arange(6)), EOT(3, source)
    together, logits = mean(model, x, y, cross_entropy, stream)
    singles = [source(model, x, y, cross_entropy, stream.fork("eot", i)) for i in range(3)]
    torch.testing.assert_close(together, sum(g for g, _ in singles) / 3, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(logits, sum(z for _, z in singles) / 3, rtol=1e-12, atol=1e-15)
    for i in range(6):
        one = torch.tensor([i])
        alone, _ = mean(model, x[one], y[one], cross_entropy, stream.select(one))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("source", [RGA(), BPTR(), HART()], ids=repr)
def test_the_model_is_as_it_was_also_after_a_failure(source, layered):
    model, x, y = layered(lambda F: Recurrent(F, ALIF(**SETTINGS)))
    owned = model.network[1].advance = partial(Recurrent.advance, model.network[1])
    before = [dict(vars(m)) for m in model.modules()]

    def broken(logits, y):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        source(model, x, y, broken, STREAM)
    for m, attributes in zip(model.modules(), before, strict=True):
        ours = {k: v for k, v in vars(m).items() if k not in ("_key", "_sample_ids")}
        assert ours == {k: v for k, v in attributes.items() if k not in ("_key", "_sample_ids")}
    assert model.network[1].advance is owned


@pytest.mark.parametrize("source", [RGA(), BPTR(), HART()], ids=repr)
def test_chunks_are_run_whole(source, layered):
    model, x, y = layered(lif)
    parts = list(model.network)
    chunked = SpikingClassifier(Direct(5), Sequential(Chunked(Sequential(*parts[:4]), 2), parts[4]), MeanOutput())
    found, expected = (source(m, x, y, cross_entropy, STREAM)[0] for m in (chunked, model))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("source", [RGA(), BPTR(), HART()], ids=repr)
def test_what_it_cannot_reach_is_an_error(source, layered):
    model, x, y = layered(lif)
    name = type(source).__name__
    with pytest.raises(ValueError, match=f"no neurons of snnrobust, so {name}"):
        source(nn.Linear(7, 3).double(), x, y, cross_entropy, STREAM)
    with pytest.raises(ValueError, match=f"{name} needs whole sequences, but LIF is run step by step"):
        source(EarlyExit(model, 0.5).eval(), x, y, cross_entropy, STREAM)
    parts = list(model.network)
    for layers in (2, 4):
        chunked = Sequential(Chunked(Sequential(*parts[:layers]), 2, truncated=True), *parts[layers:])
        with pytest.raises(ValueError, match=name):
            source(SpikingClassifier(Direct(5), chunked, MeanOutput()), x, y, cross_entropy, STREAM)

    class Deaf(nn.Linear):
        def __init__(self):
            super().__init__(7, 3)
            self.unused = LIF()

    with pytest.raises(ValueError, match=f"{name} was lent to Deaf, but the forward pass of unused"):
        source(Deaf().double(), x, y, cross_entropy, STREAM)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: RGA(-0.1), ValueError, "gamma"),
        (lambda: RGA(1.1), ValueError, "gamma"),
        (lambda: HART(0.0), ValueError, "width"),
        (lambda: BPTR(3), TypeError, "source must be a function"),
        (lambda: StraightThrough(3), TypeError, "source must be a function"),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("source", [RGA(), BPTR(), HART()], ids=repr)
def test_float32_with_normalisation(source):
    model = spiking((Conv(4),), (1, 6, 6), 3, Poisson(4)).eval()
    x, y = torch.rand(5, 1, 6, 6), torch.arange(5) % 3
    x_adv = PGD(Linf(0.1), steps=2, gradient=source)(model, x, y, seed=0)
    assert not torch.equal(x_adv, x)
    assert x_adv.dtype == torch.float32
