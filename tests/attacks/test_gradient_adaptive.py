"""ASSG and PDSG against their equations in loops; the state of a run."""

from math import pi, sqrt

import pytest
import torch
from torch import nn

from snnrobust.attacks import (
    ASSG,
    BPDA,
    EOT,
    PDSG,
    PGD,
    Backprop,
    EvolutionStrategies,
    Linf,
    Surrogate,
    again,
    begin,
    cross_entropy,
    margin,
)
from snnrobust.draws import Stream
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import Chunked, MeanOutput, Sequential
from snnrobust.models import Conv, EarlyExit, SpikingClassifier, spiking
from snnrobust.neurons import ALIF, IF, LIF, PLIF, CuBaLIF, LearnableThresholdLIF, Recurrent
from snnrobust.neurons.surrogate import ATan, Gaussian
from snnrobust.temporal import Temporal

STREAM = Stream(3, torch.arange(6) + 10)
SETTINGS = {"threshold": 0.625, "decay": 0.75}


def recurrent(F):
    layer = Recurrent(F, LIF(**SETTINGS))
    nn.init.zeros_(layer.recurrent.weight)
    return layer


LIKE_LIF = {  # the same function as LIF, by other code
    "PLIF": lambda F: PLIF(**SETTINGS),
    "LearnableThresholdLIF": lambda F: LearnableThresholdLIF(**SETTINGS),
    "ALIF": lambda F: ALIF(adaptation=0.0, **SETTINGS),
    "CuBaLIF": lambda F: CuBaLIF(current_decay=0.0, **SETTINGS),
    "Recurrent": recurrent,
    "a threshold for each neuron": lambda F: LIF(decay=0.75, threshold=[0.625] * F),
}


def lif(F):
    return LIF(**SETTINGS)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("neuron", [lif, lambda F: LIF(reset="hard", **SETTINGS), lambda F: IF(threshold=0.8)])
@pytest.mark.parametrize("settings", [{}, {"degree": 0.2, "relaxation": 0.5, "momentum": 0.6}])
def test_assg_is_its_equation_over_the_iterations_of_a_run(layers, neuron, settings, layered, by_hand):
    model, x, y = layered(neuron, layers)
    run, slopes = begin(ASSG(**settings)), by_hand.Sharpness(**settings)
    for i in range(4):
        at = (x + 0.1 * i).clamp(0, 1)
        found, _ = run(model, at, y, cross_entropy, STREAM.fork(i))
        expected = by_hand.gradient(model, at, y, by_hand.through_time(slopes))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
        assert expected.abs().min() > 0


def test_assg_at_known_potentials():
    """One neuron, one step: u = 0.5, so M = 0.95, D = 0.1 (0.95 - 0.5) = 0.045."""
    model = SpikingClassifier(Direct(1), Sequential(IF(threshold=0.5), nn.Linear(1, 2)), MeanOutput()).double()
    x = torch.tensor([[1.0]], dtype=torch.float64)
    stream, y = Stream(0, torch.arange(1)), torch.tensor([0])
    w = model.network[1].weight
    alpha = 2 / pi * torch.tensor(0.4 * pi).double().tan() / (0.95 + 1.5 * 0.045 + 1e-4)
    expected = alpha / 2 / (1 + (pi / 2 * alpha * 0.5) ** 2) * (w[1] - w[0])
    found, _ = ASSG()(model, x, y, margin, stream)
    assert torch.allclose(found[0], expected.detach(), rtol=1e-6)


def spread_by_hand(us, batch):
    """The standard deviation of all potentials so far: [B, F] pooled over batch (a column each) or over neurons (a row)."""
    slopes = []
    for t, u in enumerate(us):
        so_far = torch.stack(us[: t + 1])
        sigma = torch.empty_like(u)
        for b in range(len(u)):
            for j in range(u.shape[1]):
                values = (so_far[:, :, j] if batch else so_far[:, b, :]).flatten()
                sigma[b, j] = values.std() if len(values) > 1 and values.std() > 0 else 1.0
        slopes.append((-((u - sigma / 2) ** 2) / (2 * sigma**2)).exp() / (sqrt(2 * pi) * sigma))
    return slopes


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("over", ["sample", "batch"])
def test_pdsg_is_its_equation(layers, over, layered, by_hand):
    model, x, y = layered(lif, layers)
    found, _ = PDSG(over)(model, x, y, cross_entropy, STREAM)
    expected = by_hand.gradient(model, x, y, by_hand.through_time(lambda _, us: spread_by_hand(us, over == "batch")))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_pdsg_takes_the_spread_of_a_channel_over_its_positions(over):
    torch.manual_seed(0)
    neuron = LIF(**SETTINGS)
    model = SpikingClassifier(Direct(3), Sequential(neuron, nn.Flatten(), nn.Linear(2 * 9, 3)), MeanOutput()).double()
    x, y = torch.rand(4, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found, logits = PDSG(over)(model, x, y, cross_entropy, Stream(0, torch.arange(4)))
    u, v = [], torch.zeros_like(x)
    for _ in range(3):
        h = 0.75 * v + x
        u.append(h - 0.625)
        v = h - 0.625 * (h >= 0.625)
    error = (logits.softmax(1) - nn.functional.one_hot(y, 3)) @ model.network[2].weight.detach() / 3
    later, expected = torch.zeros_like(x), torch.zeros_like(x)
    for t in (2, 1, 0):
        axes = (0, 1, 3, 4) if over == "batch" else (0, 3, 4)
        sigma = torch.stack(u[: t + 1]).std(axes, keepdim=True)[0]
        slope = (-((u[t] - sigma / 2) ** 2) / (2 * sigma**2)).exp() / (sqrt(2 * pi) * sigma)
        later = error.view_as(x) * slope + 0.75 * later
        expected += later
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_pdsg_of_potentials_that_do_not_spread_is_a_gaussian_of_width_one():
    model = SpikingClassifier(Direct(1), Sequential(IF(threshold=0.5), nn.Linear(1, 2)), MeanOutput()).double()
    x, y = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([0])
    found, _ = PDSG()(model, x, y, margin, Stream(0, torch.arange(1)))
    w = model.network[1].weight
    slope = Gaussian(1.0).derivative(torch.tensor(0.2 - 0.5, dtype=torch.float64))
    assert torch.allclose(found[0], slope * (w[1] - w[0]).detach())


@pytest.mark.parametrize("source", [ASSG(), PDSG(), PDSG("batch")], ids=repr)
@pytest.mark.parametrize("kind", LIKE_LIF)
def test_neurons_that_run_step_by_step_get_the_same(kind, source, layered):
    model, x, y = layered(LIKE_LIF[kind])
    plain, _, _ = layered(lif)
    runs = begin(source), begin(source)
    for i in range(3):
        at = (x + 0.1 * i).clamp(0, 1)
        found, expected = (run(m, at, y, cross_entropy, STREAM)[0] for run, m in zip(runs, (model, plain), strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # some constants are learnt in float32


def test_a_stream_gets_the_same_surrogates_as_a_sequence(layered):
    model, x, y = layered(lif)
    for source in (ASSG(), PDSG()):
        found, expected = (source(m, x, y, cross_entropy, STREAM)[0] for m in (EarlyExit(model, 1.0).eval(), model))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_chunks(layered):
    model, x, y = layered(lif)
    parts = list(model.network)
    chunked = SpikingClassifier(Direct(5), Sequential(Chunked(Sequential(*parts[:4]), 2), parts[4]), MeanOutput())
    runs = begin(ASSG()), begin(ASSG())
    for _ in range(3):
        found, expected = (
            run(m, x, y, cross_entropy, STREAM)[0] for run, m in zip(runs, (chunked, model), strict=True)
        )
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="Chunked shows a layer some of them"):
        PDSG()(chunked, x, y, cross_entropy, STREAM)


def test_a_run_tells_samples_apart_by_their_ids(layered):
    """In any order, some of them, some new: each has its own past."""
    model, x, y = layered(lif)
    together, apart = begin(ASSG()), [begin(ASSG()) for _ in range(6)]
    for chosen in ([0, 1, 2, 3], [3, 1], [4, 5], [5, 0, 3, 4], [2]):
        index = torch.tensor(chosen)
        found, _ = together(model, x[index], y[index], cross_entropy, STREAM.select(index))
        for row, i in enumerate(chosen):
            one = torch.tensor([i])
            alone, _ = apart[i](model, x[one], y[one], cross_entropy, STREAM.select(one))
            torch.testing.assert_close(found[row], alone[0], rtol=1e-10, atol=1e-14)
    fresh, _ = ASSG()(model, x[:1], y[:1], cross_entropy, STREAM.select(torch.tensor([0])))
    used, _ = together(model, x[:1], y[:1], cross_entropy, STREAM.select(torch.tensor([0])))
    assert not torch.allclose(fresh, used, rtol=1e-3)


def test_only_the_first_draw_of_an_iteration_moves_the_state(victims):
    model, x, y = victims("poisson")
    run, single, n = begin(EOT(3, ASSG())), begin(ASSG()), 3
    stream = Stream(5, torch.arange(6))
    for i in range(3):
        step = stream.fork("step", i)
        found, _ = run(model, x, y, cross_entropy, step)
        draws = [single(model, x, y, cross_entropy, step.fork("eot", 0))[0]]
        frozen = again(single)
        draws += [frozen(model, x, y, cross_entropy, step.fork("eot", k))[0] for k in (1, 2)]
        draws_twice = frozen(model, x, y, cross_entropy, step.fork("eot", 2))[0]
        assert torch.equal(draws[2], draws_twice)
        torch.testing.assert_close(found, sum(draws) / n, rtol=1e-12, atol=1e-15)
    moving = [single(model, x, y, cross_entropy, stream)[0] for _ in range(2)]
    assert not torch.equal(*moving)


def test_sources_around_begin_what_they_hold(layered):
    model, x, y = layered(lif)
    plain, around = begin(ASSG()), begin(EOT(1, BPDA("encoder", source=ASSG())))
    for i in range(2):
        at = (x + 0.1 * i).clamp(0, 1)
        found, expected = (run(model, at, y, cross_entropy, STREAM)[0] for run in (around, plain))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert begin(Backprop()) == again(Backprop()) == Backprop()


class Counting(ASSG):
    begun = 0

    def begin(self):
        type(self).begun += 1
        return super().begin()


def test_pgd_begins_each_restart_and_keeps_the_state_of_who_is_left(layered, monkeypatch):
    model, x, y = layered(lif)
    monkeypatch.setattr(Counting, "begun", 0)
    PGD(Linf(0.1), steps=3, restarts=2, gradient=Counting())(model, x, y, seed=0)
    assert Counting.begun == 2
    attack = PGD(Linf(0.2), steps=6, early_stop=True, gradient=ASSG())
    together = attack(model, x, y, seed=0)
    alone = torch.cat(
        [attack(model, x[i : i + 1], y[i : i + 1], seed=0, sample_ids=torch.tensor([i])) for i in range(6)]
    )
    stopped = (model(x).argmax(1) != y).sum()
    assert 0 < stopped < 6
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("source", [ASSG(), PDSG()], ids=repr)
def test_the_model_is_as_it_was_also_after_a_failure(source, layered):
    model, x, y = layered(lambda F: ALIF(**SETTINGS))
    before = [(dict(vars(m)), m.surrogate) for m in model.modules() if hasattr(m, "surrogate")]

    def broken(logits, y):
        raise RuntimeError("on purpose")

    source(model, x, y, cross_entropy, STREAM)
    with pytest.raises(RuntimeError, match="on purpose"):
        source(model, x, y, broken, STREAM)
    after = [(dict(vars(m)), m.surrogate) for m in model.modules() if hasattr(m, "surrogate")]
    assert [a[1] for a in after] == [b[1] for b in before]
    assert [a[0].keys() for a in after] == [b[0].keys() for b in before]
    assert all(p.requires_grad for p in model.parameters())


class Deaf(nn.Module):
    """Has a surrogate and does not use it."""

    def __init__(self):
        super().__init__()
        self.surrogate, self.linear = ATan(2.0), nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x)


class Folded(nn.Module):
    """Shows its neurons another batch than its own."""

    def __init__(self):
        super().__init__()
        self.neuron, self.linear = LIF(**SETTINGS), nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.neuron(torch.cat([x, x])[None])[0].unflatten(0, (2, -1)).mean(0))


@pytest.mark.parametrize(
    ("source", "model", "error", "words"),
    [
        (ASSG(), nn.Linear(4, 3), ValueError, "no surrogate to override"),
        (PDSG(), nn.Linear(4, 3), ValueError, "no surrogate to override"),
        (ASSG(), Deaf(), ValueError, "ASSG was lent to Deaf, but no surrogate was asked"),
        (PDSG(), Deaf(), ValueError, "PDSG was lent to Deaf, but no surrogate was asked"),
        (ASSG(source=EvolutionStrategies(2)), Folded(), ValueError, "no surrogate was asked"),
        (ASSG(), Folded(), ValueError, "neurons got a batch of 4 under 2 sample ids"),
    ],
)
def test_a_source_that_reaches_nothing_is_an_error(source, model, error, words):
    with pytest.raises(error, match=words):
        source(model, torch.rand(2, 4), torch.tensor([0, 1]), cross_entropy, Stream(0, torch.arange(2)))


def test_equal_ids_are_an_error(layered):
    model, x, y = layered(lif)
    with pytest.raises(ValueError, match="some are equal"):
        ASSG()(model, x, y, cross_entropy, Stream(0, torch.zeros(6, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ASSG(degree=0.5), ValueError, "degree must be below 0.5"),
        (lambda: ASSG(degree=0.0), ValueError, "degree"),
        (lambda: ASSG(relaxation=-1.0), ValueError, "relaxation"),
        (lambda: ASSG(momentum=1.1), ValueError, "momentum"),
        (lambda: ASSG(source=EOT(3)), TypeError, r"EOT\(3, ASSG\(\)\)"),
        (lambda: PDSG(source=EOT(3)), TypeError, r"EOT\(3, PDSG\(\)\)"),
        (lambda: PDSG("all"), ValueError, "over must be one of sample, batch"),
        (lambda: ASSG(source=3), TypeError, "source must be a function"),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_float32_with_normalisation_and_convolutions():
    """Where neurons would otherwise run as one with the normalisation before them."""
    model = spiking((Conv(4),), (1, 6, 6), 3, Poisson(4)).eval()
    x, y, stream = torch.rand(5, 1, 6, 6), torch.arange(5) % 3, Stream(1, torch.arange(5))
    gradients = [s(model, x, y, cross_entropy, stream) for s in (Backprop(), ASSG(), PDSG(), Surrogate(ATan(1.96)))]
    assert all(torch.allclose(z, gradients[0][1], atol=1e-5) for _, z in gradients)  # the forward pass is the same
    assert not any(torch.allclose(g, gradients[0][0], rtol=1e-2) for g, _ in gradients[1:3])
    similar = nn.functional.cosine_similarity(gradients[1][0].flatten(), gradients[3][0].flatten(), dim=0)
    assert similar > 0.8  # M = 1 at the start: near ATan(omega)


class Foreign(Temporal):
    """LIF as another library writes it: a callable spikes, in a loop."""

    def __init__(self, decay, threshold):
        super().__init__()
        self.decay, self.threshold, self.surrogate_function = decay, threshold, lambda u: (u >= 0).to(u.dtype)

    def forward(self, x):
        v, spikes = torch.zeros_like(x[0]), []
        for x_t in x.unbind(0):
            h = self.decay * v + x_t
            spikes.append(self.surrogate_function(h - self.threshold))
            v = h - self.threshold * spikes[-1].detach()
        return torch.stack(spikes)


@pytest.mark.parametrize("source", [ASSG(), PDSG()], ids=repr)
def test_neurons_of_other_libraries(source, layered):
    model, x, y = layered(lambda F: Foreign(**SETTINGS))
    plain, _, _ = layered(lif)
    runs = begin(source), begin(source)
    for _ in range(2):
        found, expected = (run(m, x, y, cross_entropy, STREAM)[0] for run, m in zip(runs, (model, plain), strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
