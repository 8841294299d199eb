"""``EarlyExit`` against a loop over the stream, and ``exit_curve`` against ``EarlyExit``."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from snnrobust import layers
from snnrobust.attacks import EOT, PGD, Backprop, Linf, cross_entropy
from snnrobust.data import batches
from snnrobust.draws import Stream, draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy import count_operations
from snnrobust.hardware import Chain, deploy
from snnrobust.layers import BNTT, MeanMembrane, MeanOutput, Readout, Sequential, SpikeCount
from snnrobust.models import SpikingClassifier
from snnrobust.models.early_exit import EarlyExit, exit_steps
from snnrobust.models.exit_curve import exit_curve
from snnrobust.models.truncation import truncate
from snnrobust.neurons import LIF
from snnrobust.temporal import Temporal

READOUTS = [MeanOutput(), MeanMembrane(0.5), SpikeCount()]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _model(T=6, encoder=Poisson, readout=None, scale=4.0):
    network = Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        BNTT(4, T),
        LIF(0.5),
        nn.Flatten(),
        nn.Linear(64, 3),
        *([LIF(0.5)] if isinstance(readout, SpikeCount) else []),
    )
    with torch.no_grad():
        for p in network.parameters():
            p.copy_((torch.randn(p.shape, generator=_generator(p.numel())) * scale).round() / 8)
        network[1].weight.abs_().add_(0.5)
    return SpikingClassifier(encoder(T), network, MeanOutput() if readout is None else readout).eval()


def _images(batch, seed=0):
    return torch.randint(0, 257, (batch, 1, 4, 4), generator=_generator(seed)) / 256


def _by_hand(model, x, confidence):
    """The definition, sample by sample."""
    running = list(model.stream(x))
    logits, steps = [], []
    for i in range(len(x)):
        for t, z in enumerate(running, 1):
            z = z[i].double()
            if float((z - z.logsumexp(0)).exp().max()) >= confidence or t == len(running):
                logits.append(running[t - 1][i])
                steps.append(t)
                break
    return torch.stack(logits), torch.tensor(steps)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 6),
    batch=st.integers(1, 6),
    confidence=st.sampled_from([0.0, 0.4, 0.5, 0.7, 0.9, 0.99, 1.0]),
    encoder=st.sampled_from([Poisson, Direct]),
    readout=st.sampled_from(READOUTS),
    key=st.integers(0, 2**63 - 1),
)
def test_each_sample_exits_when_it_is_confident(T, batch, confidence, encoder, readout, key):
    model, x = _model(T, encoder, readout), _images(batch, key)
    with torch.no_grad(), draws(model, key):
        logits, steps = _by_hand(model, x, confidence)
        assert torch.equal(EarlyExit(model, confidence)(x), logits)
        found = exit_steps(model, x, confidence)
    assert found.dtype == torch.int64
    assert torch.equal(found, steps)


def test_samples_exit_at_different_steps():
    """What the other tests rely on."""
    model = _model()
    with draws(model, 0):
        steps = exit_steps(model, _images(64), 0.7)
    assert len(steps.unique()) >= 4
    assert (steps == 6).sum() < 60


def test_confidence_zero_is_one_step_and_a_confidence_out_of_reach_is_all():
    model, x = _model(scale=2.0), _images(8)
    with torch.no_grad(), draws(model, 3):
        assert torch.equal(EarlyExit(model, 0.0)(x), next(model.stream(x)))
        assert torch.equal(EarlyExit(model, 1.0)(x), model(x))
        assert exit_steps(model, x, 0.0).tolist() == [1] * 8
        assert exit_steps(model, x, 1.0).tolist() == [6] * 8


class Counting(Temporal):
    """Counts the steps that are computed."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def initial_state(self, x_t):
        return None

    def step(self, x_t, state):
        self.steps += 1
        self.graph = x_t.requires_grad
        return x_t, state


@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.7, 1.0])
def test_it_stops_once_all_have_exited(confidence):
    model, x, counting = _model(), _images(4), Counting()
    model.network.add_module("counting", counting)
    with draws(model, 1):
        latest = int(exit_steps(model, x, confidence).max())
        assert counting.steps == latest
        assert not counting.graph
        EarlyExit(model, confidence)(x)
        assert counting.graph
    assert counting.steps == 2 * latest


@pytest.mark.parametrize("confidence", [0.5, 0.65])
def test_gradient_is_that_of_the_logits_at_the_exit(confidence):
    model, x, y = _model(), _images(16), torch.arange(16) % 3
    early = EarlyExit(model, confidence)
    stream = Stream(7, torch.arange(16))
    gradient, logits = Backprop()(early, x, y, cross_entropy, stream)
    x = x.requires_grad_()
    with draws(early, stream.key, stream.sample_ids):
        steps = exit_steps(model, x, confidence)
        running = torch.stack(list(model.stream(x)))
    chosen = running[steps - 1, torch.arange(16)]
    assert torch.equal(logits, chosen)
    (expected,) = torch.autograd.grad(cross_entropy(chosen, y).sum(), x)
    torch.testing.assert_close(gradient, expected)
    assert (gradient.flatten(1) != 0).any(1).all()
    assert len(steps.unique()) > 1


def test_attacks_work_on_it():
    early, x = EarlyExit(_model(), 0.7), _images(12)
    with torch.no_grad(), draws(early, 0):
        y = early(x).argmax(1)
    x_adv = PGD(Linf(0.3), steps=5, gradient=EOT(2))(early, x, y, seed=1)
    assert (x_adv - x).abs().max() <= 0.3 + 1e-6
    with torch.no_grad(), draws(early, 0):
        before, after = (float(cross_entropy(early(inputs), y).mean()) for inputs in (x, x_adv))
    assert after > before + 0.1


def test_it_keeps_no_state_and_takes_one_key_a_call():
    early, x = EarlyExit(_model(), 0.8), _images(32)
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = early(x), early(x)
        torch.manual_seed(0)
        assert torch.equal(early(x), first)
    assert not torch.equal(first, second)
    assert early.model.encoder._key is None
    assert list(early.state_dict()) == [f"model.{name}" for name in early.model.state_dict()]
    with torch.no_grad(), draws(early, 4):
        assert torch.equal(early(x), early(x))


def test_it_can_be_copied_and_put_on_a_chip():
    early, x = EarlyExit(_model(), 0.8), _images(8)
    chip = deploy(early, Chain(), seed=0)
    with torch.no_grad():
        results = []
        for model in (early, deepcopy(early), chip):
            with draws(model, 4):
                results.append(model(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_it_takes_over_the_mode_and_refuses_training():
    model, x = _model(), _images(2)
    assert not EarlyExit(model, 0.9).training
    early = EarlyExit(model.train(), 0.9)
    for call in (lambda: early(x), lambda: early.eval().train()(x)):
        with pytest.raises(
            RuntimeError, match=r"EarlyExit is for inference: train the model itself, and call eval\(\)"
        ):
            call()
    early.eval()
    early(x)
    model.train()  # behind its back
    with pytest.raises(RuntimeError, match="EarlyExit is for inference"):
        early(x)
    early.train()
    model.eval()
    with pytest.raises(RuntimeError, match="EarlyExit is for inference"):
        early(x)
    model.train()
    state = deepcopy(model.state_dict())
    exit_steps(model, x, 0.9)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert model.network[1].training


class Given(Readout):
    """Running logits as given, ``[T, K]``, the same for each sample."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values)

    def initial_state(self, x_t):
        return 0

    def step(self, x_t, state):
        return self.values[state].expand(len(x_t), -1), state + 1


del layers.READOUTS["Given"]  # other tests go through the registry


def _given(values):
    return SpikingClassifier(Direct(len(values)), Sequential(nn.Flatten()), Given(values)).eval()


def test_numbers_by_hand():
    """softmax of (log 3, 0) is 3/4, of (log 4, 0) 4/5, of (0, log 9) 9/10."""
    model = _given([[np.log(3.0), 0.0], [np.log(4.0), 0.0], [0.0, np.log(9.0)]])
    x = _images(2)
    for confidence, step in ((0.7, 1), (0.76, 2), (0.79, 2), (0.81, 3), (0.89, 3), (0.95, 3)):
        assert exit_steps(model, x, confidence).tolist() == [step, step]
        assert EarlyExit(model, confidence)(x).tolist() == model.readout.values[step - 1].expand(2, 2).tolist()
    curve = exit_curve(model, (x, torch.tensor([0, 1])), [0.95, 0.7])
    assert curve.confidences.tolist() == [0.7, 0.95]
    assert curve.steps.mean.tolist() == [1.0, 3.0]
    assert curve.correct.tolist() == [[True, True, False], [False, False, True]]
    assert curve.confidence == pytest.approx(np.array([[0.75, 0.8, 0.9]] * 2))
    assert curve.running(0.78).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_raise(value):
    model, x = _given([[0.0, 1.0], [value, 1.0], [0.0, 9.0]]), _images(2)
    for call in (
        lambda: EarlyExit(model, 0.99)(x),
        lambda: exit_steps(model, x, 0.99),
        lambda: exit_curve(model, (x, torch.tensor([0, 1]))),
    ):
        with pytest.raises(ValueError, match="the running logits have NaN or infinity at time step 2"):
            call()


def test_logits_of_another_shape_are_refused():
    model = SpikingClassifier(Direct(2), Sequential(), MeanOutput()).eval()
    with pytest.raises(ValueError, match=r"the model must return logits \[B, K\], got shape \(2, 1, 4, 4\)"):
        EarlyExit(model, 0.5)(_images(2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear(2, 2), 0.5), TypeError, "model must be a SpikingClassifier, got Linear"),
        ((_model(), 1.5), ValueError, r"confidence must be in \[0, 1\], got 1.5"),
        ((_model(), float("nan")), ValueError, r"confidence must be in \[0, 1\], got nan"),
        ((_model(), "0.9"), TypeError, "confidence must be a number, got '0.9'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        EarlyExit(*arguments)
    model, confidence = arguments
    with pytest.raises(error, match=message):
        exit_steps(model, _images(2), confidence)


@pytest.mark.parametrize("x", [_images(2) * 9, _images(2)[:0], _images(2).int(), torch.tensor(0.5)])
def test_bad_images(x):
    with pytest.raises((ValueError, TypeError), match="x must"):
        EarlyExit(_model(), 0.5)(x)


# --- the curve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS, ids=str)
@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_curve_is_early_exit_sample_by_sample(readout, batch_size):
    model, x, y = _model(readout=readout), _images(40), torch.randint(0, 3, (40,), generator=_generator(1))
    confidences = [0.5, 0.7, 0.9]
    curve = exit_curve(model, (x, y), confidences, batch_size=batch_size, key=5)
    assert curve.key == 5
    assert curve.confidence.shape == curve.correct.shape == (40, 6)
    for i, c in enumerate(confidences):
        right, steps = [], []
        for batch in batches((x, y), 16):  # another batch size
            with torch.no_grad(), draws(model, 5, batch.sample_ids):
                right.append(EarlyExit(model, c)(batch.x).argmax(1) == batch.y)
                steps.append(exit_steps(model, batch.x, c))
        right, steps = torch.cat(right).numpy(), torch.cat(steps).numpy()
        assert (curve.exits(c) == steps).all()
        assert (curve.correct[np.arange(40), steps - 1] == right).all()
        assert curve.accuracy.mean[i] == right.mean()
        assert curve.steps.mean[i] == steps.mean()
        assert curve.running(c).sum() == pytest.approx(steps.mean())
        wilson = stats.binomtest(int(right.sum()), 40).proportion_ci(method="wilson")
        assert (curve.accuracy.low[i], curve.accuracy.high[i]) == pytest.approx((wilson.low, wilson.high))
    for t in range(1, 7):
        short = truncate(model, t)
        with torch.no_grad(), draws(short, 5):
            assert curve.fixed.mean[t - 1] == (short(x).argmax(1) == y).double().mean()


def test_the_interval_of_the_steps_is_the_bootstraps():
    model, x = _model(), _images(60)
    curve = exit_curve(model, (x, torch.zeros(60, dtype=torch.int64)), [0.7])
    exits = curve.exits(0.7).astype(float)
    expected = stats.bootstrap(
        (exits,), np.mean, n_resamples=4999, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert width > 0.2
    assert curve.steps.low[0] == pytest.approx(expected.low, abs=0.05 * width)
    assert curve.steps.high[0] == pytest.approx(expected.high, abs=0.05 * width)


def test_one_pass_that_leaves_everything_as_it_was():
    model, x, counting = _model().train(), _images(20), Counting()
    model.network.add_module("counting", counting)
    state, generator = deepcopy(model.state_dict()), torch.get_rng_state()
    exit_curve(model, (x, torch.zeros(20, dtype=torch.int64)), [0.5, 0.6, 0.7, 0.8], batch_size=5)
    assert counting.steps == 4 * 6
    assert model.training
    assert model.encoder._key is None
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_key_is_its_draws():
    model, x, y = _model(), _images(20), torch.zeros(20, dtype=torch.int64)
    one, again, other = (exit_curve(model, (x, y), key=key) for key in (1, 1, 2))
    assert np.array_equal(one.confidence, again.confidence)
    assert not np.array_equal(one.confidence, other.confidence)


def test_table():
    curve = exit_curve(_model(), (_images(20), torch.arange(20) % 3), [0.5, 0.9], key=3)
    lines = curve.table().splitlines()
    assert len(lines) == 1 + 2 + 2 + 6 + 2
    assert lines[2].startswith("0.9 ")
    assert f"{100 * curve.accuracy.mean[1]:.2f} [" in lines[2]
    assert f"{curve.steps.mean[1]:.2f} [{curve.steps.low[1]:.2f}, {curve.steps.high[1]:.2f}]" in lines[2]
    assert f"{100 * curve.fixed.mean[5]:.2f} [" in lines[10]
    assert lines[-1] == "n = 20 samples, 6 time steps, key 3; 95 % intervals over samples"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_leaves_matplotlib_alone(tmp_path, suffix):
    import matplotlib

    settings_before = dict(matplotlib.rcParams)
    curve = exit_curve(_model(), (_images(20), torch.arange(20) % 3))
    curve.plot(tmp_path / f"curve.{suffix}")
    assert (tmp_path / f"curve.{suffix}").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == settings_before
    if suffix == "svg":
        assert "mean time steps" in (tmp_path / "curve.svg").read_text()
    with pytest.raises(ValueError, match="path must end in one of"):
        curve.plot(tmp_path / "curve")


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ((_images(4), torch.tensor([0, 1, 2, 3])), {}, ValueError, r"y must lie in 0..2, got 0..3"),
        ((_images(4), torch.zeros(3).long()), {}, ValueError, "labels must have one label a sample"),
        ((_images(4)[:0], torch.zeros(0).long()), {}, ValueError, "the data is empty"),
        ((_images(4) * torch.nan, torch.zeros(4).long()), {}, ValueError, "x contains NaN"),
        ((_images(4), torch.zeros(4).long()), {"confidences": []}, TypeError, "confidences must be a sequence"),
        ((_images(4), torch.zeros(4).long()), {"confidences": 0.9}, TypeError, "confidences must be a sequence"),
        (
            (_images(4), torch.zeros(4).long()),
            {"confidences": [0.9, 2]},
            ValueError,
            r"confidences must be in \[0, 1\]",
        ),
        ((_images(4), torch.zeros(4).long()), {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_bad_data(data, options, error, message):
    with pytest.raises(error, match=message):
        exit_curve(_model(), data, **options)
    with pytest.raises(TypeError, match="model must be a SpikingClassifier, got Linear"):
        exit_curve(nn.Linear(2, 2), data, **options)


def test_a_confidence_that_is_just_reached_is_enough():
    counting = Counting()
    network = Sequential(nn.Flatten(), nn.Linear(16, 2), counting)
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    model, x = SpikingClassifier(Direct(3), network, MeanOutput()).eval(), _images(5)
    curve = exit_curve(model, (x, torch.zeros(5).long()), np.array([0.5, np.nextafter(0.5, 1.0)]))
    for i, (confidence, steps) in enumerate(((0.5, 1), (float(np.nextafter(0.5, 1.0)), 3))):
        counting.steps = 0
        EarlyExit(model, confidence)(x)
        assert counting.steps == steps
        assert exit_steps(model, x, confidence).tolist() == curve.exits(confidence).tolist() == [steps] * 5
        assert curve.steps.mean[i] == steps


def test_the_table_shows_what_stopping_leaves_of_the_operations():
    model, x = _model(), _images(20)
    curve = exit_curve(model, (x, torch.arange(20) % 3), [0.5, 0.9], key=3)
    with draws(model, 3):
        operations = count_operations(model, x)
    lines = curve.table(operations).splitlines()
    assert lines[0].split()[-2:] == lines[4].split()[-2:] == ["MAC", "AC"]
    for line, steps in ((1, curve.exits(0.5)), (2, curve.exits(0.9)), (5, 1), (10, 6)):
        executed = operations.upto(steps)
        assert executed.ac > 0
        assert lines[line].split()[-2:] == [f"{executed.mac:,.0f}", f"{executed.ac:,.0f}"]
    assert lines[10].split()[-1] == f"{operations.ac:,.0f}"
    for other in (operations.upto(5), count_operations(model, x[:5])):
        with pytest.raises(ValueError, match="operations must be of the 20 samples and 6 time steps of this curve"):
            curve.table(other)
