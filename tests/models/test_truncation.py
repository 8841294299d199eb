"""A truncated model is the first steps of the whole one, and ``exit_step`` is its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import ENCODERS, Direct, Poisson
from snnrobust.hardware import GaussianNoise, deploy
from snnrobust.layers import BNTT, TDBN, TEBN, MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.models import SpikingClassifier
from snnrobust.models.truncation import exit_step, gamma_profile, truncate
from snnrobust.neurons import IF, LIF
from snnrobust.temporal import Temporal

NORMS = {"BNTT": BNTT, "TEBN": TEBN, "TDBN": lambda features, _: TDBN(features), "none": lambda *_: nn.Identity()}


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Around(Temporal):
    """A user's temporal module with normalisation deep inside."""

    def __init__(self, inner):
        super().__init__()
        self.parts = nn.ModuleList([inner])

    def initial_state(self, x_t):
        return self.parts[0].initial_state(x_t)

    def step(self, x_t, state):
        return self.parts[0].step(x_t, state)


def _model(T=6, encoder=Poisson, norm="BNTT", readout=None):
    """Dyadic weights and statistics whose roots are exact: every sum is."""
    network = Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        NORMS[norm](4, T),
        LIF(0.5),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 8), Around(Sequential(NORMS[norm](8, T), IF()))),
        nn.Linear(8, 3),
    )
    generator = _generator()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_((torch.randn(p.shape, generator=generator) * 4).round() / 8)
        for m in network.modules():
            if isinstance(m, BNTT | TEBN | TDBN):
                m.weight.abs_().add_(0.5)
                m.running_mean.copy_((torch.randn(m.running_mean.shape, generator=generator)).round() / 4)
                m.running_var.fill_(0.25 - m.eps)
    return SpikingClassifier(encoder(T), network, MeanOutput() if readout is None else readout).eval()


def _images(batch, seed=0):
    return torch.randint(0, 257, (batch, 1, 4, 4), generator=_generator(seed)) / 256


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    norm=st.sampled_from(list(NORMS)),
    encoder=st.sampled_from([Poisson, Direct]),
    T=st.integers(1, 7),
    data=st.data(),
    readout=st.sampled_from([MeanOutput(), MeanMembrane(0.5), SpikeCount()]),
    key=st.integers(0, 2**63 - 1),
)
def test_truncated_is_the_running_output_bit_for_bit(norm, encoder, T, data, readout, key):
    steps = data.draw(st.integers(1, T))
    model, x = _model(T, encoder, norm, readout), _images(3, key)
    short = truncate(model, steps)
    assert (short.time_steps, model.time_steps, short.training) == (steps, T, False)
    with torch.no_grad():
        with draws(model, key):
            running, logits = list(model.stream(x)), model(x)
        with draws(short, key):
            assert torch.equal(short(x), running[steps - 1])
            *_, last = short.stream(x)
        assert torch.equal(last, running[steps - 1])
        assert torch.equal(logits, running[-1])
    assert {m.time_steps for m in short.network.modules() if isinstance(m, BNTT | TEBN)} <= {steps}


def test_the_original_is_untouched():
    model = _model().train()
    before, shape, state = str(model), model.time_steps, {k: v.clone() for k, v in model.state_dict().items()}
    short = truncate(model, 2)
    assert short.training
    short(_images(4))  # its statistics run on
    with torch.no_grad():
        for p in short.parameters():
            p.zero_()
    assert (str(model), model.time_steps) == (before, shape)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert list(short.state_dict()) == list(state)  # the order of the layers too


def test_a_layer_that_stands_twice_stays_one():
    norm = BNTT(4, 3)
    network = Sequential(nn.Linear(4, 4), norm, IF(), nn.Linear(4, 4), norm)
    short = truncate(SpikingClassifier(Direct(3), network, MeanOutput()), 2).network
    assert short[1] is short[4]
    assert short[1].time_steps == 2
    assert network[1] is norm


def test_a_chip_can_be_truncated():
    chip = deploy(_model(), GaussianNoise(multiplicative=0.2, drawn="step"), seed=1)
    short, x = truncate(chip, 3), _images(4)
    with torch.no_grad():
        with draws(chip, 5):
            running = list(chip.stream(x))
        with draws(short, 5):
            torch.testing.assert_close(short(x), running[2])


def test_a_whole_model_is_only_copied():
    model = _model()
    model.encoder.truncatable = False
    copy = truncate(model, 6)
    assert copy is not model
    assert str(copy) == str(model)


@pytest.mark.parametrize("kind", [k for k in ENCODERS.values() if "snnrobust" in k.__module__])
def test_an_encoder_that_says_so_can_be_shortened(kind):
    """And the others cannot: they change their first steps, or refuse an input that they took."""
    shape = (2, 6, 1, 6) if kind.__name__ in ("Frames", "Delta", "LevelCrossing") else (2, 1, 6, 6)
    x, long, short = torch.rand(shape, generator=_generator()), kind(6), kind(3)
    with draws(long, 1), draws(short, 1):
        first = long(x)[:3]
        try:
            same = torch.equal(short(x), first)
        except ValueError:
            same = False
    assert same is long.truncatable


def test_an_encoder_that_depends_on_its_length_is_refused():
    model = _model(encoder=Direct)
    model.encoder.truncatable = False
    with pytest.raises(ValueError, match=r"Direct gives other values at the first steps .* EarlyExit stops a model"):
        truncate(model, 3)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (0, ValueError, "steps must be at least 1, got 0"),
        (7, ValueError, "steps must be in 1..6, the time steps that the model was made for, got 7"),
        (2.5, TypeError, "steps must be an integer, got 2.5"),
    ],
)
def test_bad_steps(steps, error, message):
    with pytest.raises(error, match=message):
        truncate(_model(), steps)


def _with_gammas(*profiles, T=4):
    """Each profile is mean |gamma| of a BNTT; signs and channels differ."""
    layers = []
    for profile in profiles:
        norm = BNTT(2, len(profile))
        with torch.no_grad():
            norm.weight.copy_(torch.tensor(profile)[:, None] * torch.tensor([1.5, -0.5]))
        layers += [nn.Linear(2, 2), nn.Sequential(norm), IF()]
    return SpikingClassifier(Direct(T), Sequential(*layers), MeanOutput())


def test_gamma_profile():
    model = _with_gammas((1.0, 0.5, 0.25, 0.125), (0.5, 0.5, 0.5, 0.5))
    profile = gamma_profile(model)
    assert {name: values.tolist() for name, values in profile.items()} == {
        "network.1.0": [1.0, 0.5, 0.25, 0.125],
        "network.4.0": [0.5] * 4,
    }
    assert not any(values.requires_grad for values in profile.values())
    assert list(gamma_profile(model.network)) == ["1.0", "4.0"]


@pytest.mark.parametrize(
    ("profiles", "threshold", "expected"),
    [
        ([(1.0, 0.5, 0.05, 0.05)], 0.1, 2),
        ([(1.0, 0.5, 0.05, 0.05), (1.0, 0.5, 0.5, 0.05)], 0.1, 3),  # in every layer
        ([(1.0, 0.05, 0.5, 0.05)], 0.1, 3),  # at all later steps
        ([(1.0, 0.5, 0.5, 0.5)], 0.1, 4),
        ([(0.05, 0.05, 0.05, 0.05)], 0.1, 1),  # at least one step
        ([(1.0, 0.25, 0.0, 0.0)], 0.25, 2),  # below, not at
        ([(1.0, 0.25, 0.0, 0.0)], 0.3, 1),
        ([(1.0, 0.5, 0.0, 0.0, 9.0)], 0.1, 2),  # a step that the model never runs
        ([(1.0, float("nan"), 0.0, 0.0)], 0.1, 2),
    ],
)
def test_exit_step_by_hand(profiles, threshold, expected):
    assert exit_step(_with_gammas(*profiles), threshold) == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    profiles=st.lists(st.lists(st.sampled_from([0.0, 0.05, 0.2, 1.0]), min_size=4, max_size=4), min_size=1, max_size=3),
    threshold=st.sampled_from([0.01, 0.1, 0.5, 2.0]),
)
def test_exit_step_is_its_definition(profiles, threshold):
    model = _with_gammas(*profiles)
    step = exit_step(model, threshold)
    allowed = [n for n in range(1, 5) if all(g < threshold for profile in profiles for g in profile[n:])]
    assert step == min(allowed)
    assert truncate(model, step).time_steps == step


def test_a_model_without_bntt_has_no_exit_step():
    model = _model(norm="TEBN")
    for call in (lambda: exit_step(model), lambda: gamma_profile(model)):
        with pytest.raises(ValueError, match="the model has no BNTT"):
            call()


def test_bad_models_and_thresholds():
    for call in (lambda m: truncate(m, 1), exit_step):
        with pytest.raises(TypeError, match="model must be a SpikingClassifier, got Linear"):
            call(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        gamma_profile(None)
    for threshold in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must be in \(0, inf\]"):
            exit_step(_model(), threshold)
