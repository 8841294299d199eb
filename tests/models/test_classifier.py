"""``SpikingClassifier``: ``stream`` is ``forward``, and one forward is one key."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Delta, Direct, Frames, Latency, LevelCrossing, Poisson
from snnrobust.layers import BNTT, MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF, LIF


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _classifier(encoder, decay=0.5, reset="soft", readout=None, dyadic=True):
    """A small convolutional network; dyadic weights make every sum exact."""
    network = Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        BNTT(4, encoder.time_steps),
        LIF(decay, reset=reset),
        nn.AvgPool2d(2),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), IF(reset=reset)),
        nn.Linear(8, 3),
    )
    with torch.no_grad():
        for p in network.parameters():
            drawn = torch.randn(p.shape, generator=_generator(p.numel()))
            p.copy_((drawn * 4).round() / 8 if dyadic else drawn)
        network[1].weight.abs_().add_(0.5)
    return SpikingClassifier(encoder, network, MeanOutput() if readout is None else readout).eval()


def _images(batch, seed=0):
    return torch.randint(0, 257, (batch, 1, 4, 4), generator=_generator(seed)) / 256


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    encoder=st.sampled_from([Poisson, Direct]),
    T=st.integers(1, 9),
    batch=st.integers(1, 5),
    decay=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    reset=st.sampled_from(["soft", "hard"]),
    readout=st.sampled_from([MeanOutput(), MeanMembrane(0.5), SpikeCount()]),
    key=st.integers(0, 2**63 - 1),
)
def test_stream_is_forward_bit_for_bit(encoder, T, batch, decay, reset, readout, key):
    model, x = _classifier(encoder(T), decay, reset, readout), _images(batch, seed=key)
    with torch.no_grad(), draws(model, key):
        logits, running = model(x), list(model.stream(x))
        shorter = SpikingClassifier(encoder((T + 1) // 2), model.network, readout)
    assert len(running) == T
    assert logits.shape == (batch, 3)
    assert torch.equal(running[-1], logits)
    with torch.no_grad(), draws(shorter, key):  # the logits on the way are those of fewer time steps
        assert torch.equal(shorter(x), running[(T + 1) // 2 - 1])


@pytest.mark.parametrize("encoder", [Poisson(8), Direct(8)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_stream_is_forward_in_float64(encoder, seed):
    model, x = _classifier(encoder, decay=0.9, dyadic=False).double(), _images(16, seed).double()
    with torch.no_grad(), draws(model, seed):
        *_, last = model.stream(x)
        torch.testing.assert_close(last, model(x), rtol=0, atol=1e-9)


def test_a_sample_does_not_depend_on_its_batch():
    model, x = _classifier(Poisson(6)), _images(5)
    with torch.no_grad():
        with draws(model, 3):
            everyone = model(x)
        for i in (4, 0, 2):
            with draws(model, 3, sample_ids=torch.tensor([i])):
                assert torch.equal(model(x[i : i + 1]), everyone[i : i + 1])


def test_no_state_stays_between_calls():
    model, x = _classifier(Poisson(6)), _images(5)
    with torch.no_grad(), draws(model, 3):
        first = model(x)
        next(model.stream(x))
        model(_images(2, seed=1))
        assert torch.equal(model(x), first)


def test_a_forward_and_a_stream_take_one_key_each():
    model, x = _classifier(Poisson(6)), _images(64)
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = model(x), model(x)
        torch.manual_seed(0)
        assert torch.equal(model(x), first)
        torch.manual_seed(0)
        *_, last = model.stream(x)
    assert torch.equal(last, first)
    assert not torch.equal(first, second)


def test_a_stream_that_is_left_open_keys_nothing():
    model, x = _classifier(Poisson(6)), _images(64)
    with torch.no_grad():
        stream = model.stream(x)
        next(stream)
        assert model.encoder._key is None
        assert not torch.equal(model(x), model(x))
        assert len(list(stream)) == 5


@pytest.mark.parametrize("encoder", [Poisson(6), Direct(6)], ids=str)
def test_a_stream_has_the_draws_of_its_call(encoder):
    """Also where it is read after the context, or in another one."""
    model, x = _classifier(encoder), _images(8)
    ids = torch.arange(8) + 100
    with torch.no_grad():
        with draws(model, 3, ids):
            expected, stream = model(x), model.stream(x)
        outside = list(stream)[-1]
        with draws(model, 3, ids):
            stream = model.stream(x)
        with draws(model, 4):
            inside = list(stream)[-1]
        with draws(model, 3, ids):
            stream = model.stream(x)
        taken = [next(stream)]
        with draws(model, 4):
            taken += [next(stream)]
        taken += list(stream)
    for last in (outside, inside, taken[-1]):
        assert torch.equal(last, expected)


class _Jitter(nn.Module):
    """Random, and not ours."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(torch.rand(4))
        return x + self.seen[-1].sum()


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("encoder", [Poisson(4), Direct(4)], ids=str)
def test_random_modules_that_are_not_ours_draw_at_each_step(encoder, keyed):
    jitter = _Jitter()
    model, x = SpikingClassifier(encoder, Sequential(nn.Flatten(), jitter, nn.Linear(16, 3)), MeanOutput()), _images(2)
    for _ in range(2):
        torch.manual_seed(5)
        with draws(model, 1) if keyed else nullcontext():
            stream = model.stream(x)
        list(stream)
    found = torch.stack(jitter.seen)
    assert len(found) == 8
    if keyed or model.encoder.stochastic:  # without a key and draws of its own they are torch's own next ones
        assert torch.equal(found[:4], found[4:])
    assert len(found[:4].unique(dim=0)) == 4


def test_bad_images_are_refused_by_the_call_of_stream():
    with pytest.raises(ValueError, match="x contains NaN"):
        _classifier(Poisson(3)).stream(_images(2) * float("nan"))


@pytest.mark.parametrize(
    "encoder", [Direct, Poisson, Latency, Frames, Delta, LevelCrossing], ids=lambda kind: kind.__name__
)
def test_the_cost_of_a_stream_is_linear_in_time(meter, encoder):
    """Forward and backward; the checks of values included."""
    costs = []
    for T in (16, 32, 64):
        network = Sequential(nn.Flatten(), nn.Linear(6, 5), LIF(0.5), nn.Linear(5, 2))
        model = SpikingClassifier(encoder(T), network, MeanMembrane())
        moving = encoder in (Frames, Delta, LevelCrossing)
        x = torch.rand((3, T, 1, 2, 3) if moving else (3, 1, 2, 3), generator=_generator()).requires_grad_()
        with draws(model, 1):
            with meter() as forward:
                *_, last = model.stream(x)
            with meter() as backward:
                last.sum().backward()
        costs.append(torch.tensor([forward.kernels, forward.bytes, backward.kernels, backward.bytes]))
    assert ((costs[2] - costs[1]) - 2 * (costs[1] - costs[0]) <= 0.02 * costs[0]).all(), costs


def test_a_deterministic_model_leaves_the_generator():
    model, x = _classifier(Direct(4)), _images(3)
    state = torch.get_rng_state()
    model(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_reaches_every_pixel_and_weight():
    model, x = _classifier(Poisson(6), dyadic=False).train(), _images(8).requires_grad_()
    gradient, *others = torch.autograd.grad(model(x).logsumexp(1).sum(), [x, *model.parameters()])
    assert (gradient != 0).all()
    assert all(g.isfinite().all() and (g != 0).any() for g in [gradient, *others])


def test_time_steps_are_the_encoders():
    assert _classifier(Direct(7)).time_steps == 7


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((LIF(), Sequential(), MeanOutput()), "encoder must be a Encoder, got LIF"),
        ((Direct(2), nn.Sequential(), MeanOutput()), "network must be a Temporal, got Sequential"),
        ((Direct(2), Sequential(), LIF()), "readout must be a Readout, got LIF"),
        ((Direct(2), Sequential(), None), "readout must be a Readout, got NoneType"),
    ],
)
def test_bad_parts(parts, message):
    with pytest.raises(TypeError, match=message):
        SpikingClassifier(*parts)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (_images(2) * 255, ValueError, "x must lie in [0, 1], but lies in"),
        (_images(2) - 0.5, ValueError, "x must lie in [0, 1], but lies in"),
        (_images(2) * float("nan"), ValueError, "x contains NaN"),
        (_images(2).to(torch.uint8), TypeError, "x must be floating, got torch.uint8"),
        (_images(2)[:0], ValueError, "x must be a batch [B, ...] that is not empty"),
        (torch.tensor(0.5), ValueError, "x must be a batch [B, ...] that is not empty"),
    ],
)
def test_bad_images(x, error, message):
    model = _classifier(Poisson(3))
    for call in (lambda: model(x), lambda: next(model.stream(x))):
        with pytest.raises(error, match="^" + re.escape(message)):
            call()
