"""The gradient of Sharmin et al. against one written out by hand, and against backpropagation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust.attacks import BPDA, EOT, PGD, Backprop, Linf, Sharmin, TimeSummed, cross_entropy
from snnrobust.draws import Stream, draws
from snnrobust.encoders import Direct, Latency, Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Conv, Dense, Normalise, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import LIF, Recurrent
from snnrobust.neurons.surrogate import ATan

STREAM = Stream(5, torch.arange(6) + 10)
SHAPE = (1, 4, 4)


def victim(encoder, *layers, seed=0, norm="none"):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = spiking(layers or (Conv(4), Dense(8)), SHAPE, 3, encoder, norm=norm).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2.0)
        return model, torch.rand(6, *SHAPE, dtype=torch.float64), torch.arange(6) % 3


def test_by_hand():
    """Conv, LIF, Linear: the membranes' errors step by step, their sum, and the convolution with the turned kernel."""
    torch.manual_seed(0)
    conv, last = nn.Conv2d(1, 3, 3, padding=1).double(), nn.Linear(48, 3).double()
    decay, alpha, steps = 0.8, 2.0, 5
    neuron = LIF(decay=decay, threshold=0.3, surrogate=ATan(alpha))
    model = (
        SpikingClassifier(Poisson(steps), Sequential(conv, neuron, nn.Flatten(), last), MeanOutput()).double().eval()
    )
    x, y = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.arange(6) % 3
    found, logits = TimeSummed()(model, x, y, cross_entropy, STREAM)

    with draws(model, STREAM.key, STREAM.sample_ids), torch.no_grad():
        spikes = model.encoder(x)
    v, us, outputs = torch.zeros(6, 3, 4, 4, dtype=torch.float64), [], []
    for t in range(steps):
        h = decay * v + conv(spikes[t])
        s = (h >= 0.3).double()
        us.append(h - 0.3)
        outputs.append(s)
        v = h - 0.3 * s
    mean = torch.stack([last(s.flatten(1)) for s in outputs]).mean(0)
    assert torch.allclose(mean, logits, atol=1e-12)
    through_output = ((mean.softmax(1) - F.one_hot(y, 3)) / steps @ last.weight).view(6, 3, 4, 4)
    total, later = torch.zeros_like(v), torch.zeros_like(v)
    for t in reversed(range(steps)):
        slope = (alpha / 2) / (1 + (torch.pi / 2 * alpha * us[t]) ** 2)
        error = through_output * slope + decay * later  # the reset is not differentiated
        total, later = total + error, error
    turned = conv.weight.flip(2, 3).transpose(0, 1)
    assert torch.allclose(found, F.conv2d(total, turned, padding=1), rtol=1e-9, atol=1e-15)
    assert found.abs().max() > 1e-4


@pytest.mark.parametrize("layers", [(), (Dense(8),), (Conv(4), Conv(4))])
@pytest.mark.parametrize("encoder", [Direct(5), Poisson(5)])
def test_where_the_encoder_is_straight_through_it_is_backpropagation_without_any_factor(encoder, layers):
    model, x, y = victim(encoder, *layers)
    found, logits = TimeSummed()(model, x, y, cross_entropy, STREAM)
    expected, same = Backprop()(model, x, y, cross_entropy, STREAM)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-16)
    assert found.abs().max() > 1e-3
    assert torch.equal(logits, same)


def test_an_encoder_that_passes_no_gradient_is_skipped():
    model, x, y = victim(Latency(5))
    found, _ = TimeSummed()(model, x, y, cross_entropy, STREAM)
    approximated, _ = BPDA("encoder")(model, x, y, cross_entropy, STREAM)
    assert torch.allclose(found, approximated, rtol=1e-10, atol=1e-16)
    model.encoder.forward = (lambda encode: lambda x: encode(x).detach())(model.encoder.forward)
    with pytest.raises(ValueError, match="do not depend on x"):
        Backprop()(model, x, y, cross_entropy, STREAM)
    assert torch.equal(TimeSummed()(model, x, y, cross_entropy, STREAM)[0], found)


def test_what_stands_before_the_first_layer_passes_it_unchanged():
    model, x, y = victim(Direct(4), Normalise((0.5,), (0.25,)), Conv(4))
    found, _ = TimeSummed()(model, x, y, cross_entropy, STREAM)
    expected, _ = Backprop()(model, x, y, cross_entropy, STREAM)
    assert torch.allclose(4 * found, expected, rtol=1e-10, atol=1e-16)


def test_ordinary_networks_and_recurrent_layers():
    torch.manual_seed(0)
    ann = ordinary((Conv(4),), SHAPE, 3).double().eval()
    x, y = torch.rand(6, *SHAPE, dtype=torch.float64), torch.arange(6) % 3
    network = Sequential(nn.Flatten(), nn.Linear(16, 8), Recurrent(8, LIF(threshold=0.2)), nn.Linear(8, 3))
    recurrent = SpikingClassifier(Direct(4), network, MeanOutput()).double().eval()
    for model in (ann, recurrent):
        found, _ = TimeSummed()(model, x, y, cross_entropy, STREAM)
        expected, _ = Backprop()(model, x, y, cross_entropy, STREAM)
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)
        assert found.any()


def test_a_step_at_a_time():
    """A model that calls its layers once a step."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x):
            v = total = 0.0
            for t in range(3):
                v = 0.5 * v + self.first((t + 1.0) * x.flatten(1)).tanh()
                total = total + self.last(v)
            return total

    torch.manual_seed(0)
    model = Loop().double()
    x, y = torch.rand(6, *SHAPE, dtype=torch.float64), torch.arange(6) % 3
    found, _ = TimeSummed()(model, x, y, cross_entropy, STREAM)
    leaves = [((t + 1.0) * x.flatten(1)).requires_grad_() for t in range(3)]
    v = total = 0.0
    for leaf in leaves:
        v = 0.5 * v + model.first(leaf).tanh()
        total = total + model.last(v)
    each = torch.autograd.grad(cross_entropy(total, y).sum(), leaves)
    assert torch.allclose(found.flatten(1), sum(each))


def test_refusals_and_no_traces(victims):
    events, x, y = victims("events")
    with pytest.raises(ValueError, match="which is no sequence of inputs"):
        TimeSummed()(events, x, y, cross_entropy, STREAM)
    with pytest.raises(ValueError, match="no first layer"):
        TimeSummed()(nn.Flatten(), x[:, 0, 0, 0, :3], y, cross_entropy, STREAM)
    model, x, y = victims("poisson")
    with pytest.raises(ValueError, match="do not depend on x"):
        TimeSummed()(model, x, y, lambda z, y: z.detach().sum(1), STREAM)
    with pytest.raises(ValueError, match="samples has NaN"):
        TimeSummed()(model, x, y, lambda z, y: (z * torch.nan).sum(1), STREAM)
    for m in (events, model):
        assert all(not part._forward_pre_hooks for part in m.modules())
        assert all(p.requires_grad for p in m.parameters())


def test_sharmin_by_hand():
    model, x, y = victim(Poisson(5))
    threat = Linf("8/255")
    x_adv = Sharmin(threat)(model, x, y, seed=3)
    seen = []

    def recorded(model, x, y, loss, stream):
        seen.append(x.clone())
        return TimeSummed()(model, x, y, loss, stream)

    assert torch.equal(Sharmin(threat, gradient=recorded)(model, x, y, seed=3), x_adv)
    assert len(seen) == 7
    moves = [(b - a).abs().max() for a, b in zip(seen, [*seen[1:], x_adv], strict=True)]
    assert max(moves) <= 2 / 255 + 1e-12
    assert max(moves) > 1.99 / 255
    assert (seen[0] - x).abs().max() > 4 / 255  # a random start
    once = Sharmin(threat, "fgsm")(model, x, y, seed=3)
    inside = (x > 8 / 255) & (x < 1 - 8 / 255)
    gradient = TimeSummed()(model, x, y, cross_entropy, Stream(0, torch.arange(6)))[0]
    assert ((once - x).abs()[inside & (gradient != 0)] - 8 / 255).abs().max() < 1e-9


def test_sharmin_finds_what_a_blind_gradient_does_not(digits_snn):
    model, x, y = digits_snn
    encode = model.encoder.forward
    model.encoder.forward = lambda x: encode(x).detach()
    try:
        attack = Sharmin(Linf(0.1), gradient=EOT(1, TimeSummed()))
        clean, left = (int((model(z).argmax(1) == y).sum()) for z in (x, attack(model, x, y, seed=0)))
        assert left < clean - 10
        with pytest.raises(ValueError, match="do not depend on x"):
            PGD(Linf(0.1))(model, x, y)
    finally:
        del model.encoder.forward


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threat": 0.1}, "steps by signs, in Linf"),
        ({"method": "bim"}, "method must be"),
        ({"steps": 0}, "steps must be"),
        ({"gradient": 3}, "gradient must be a function"),
        ({"loss": "ce"}, "loss must be a function"),
    ],
)
def test_bad_arguments_of_sharmin(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Sharmin(**{"threat": Linf(0.1), **arguments})
