"""Activation scales against numpy, thresholds and weights against a network written out with thresholds of 1."""

import numpy as np
import pytest
import torch
from torch import nn

from snnrobust.data import Batch
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import QCFS, MeanOutput
from snnrobust.learning_rules import convert
from snnrobust.learning_rules.conversion_ann import folded
from snnrobust.learning_rules.conversion_scales import activation_scales, balanced_scales, neurons, spiking_network
from snnrobust.models import Conv, Dense, GlobalPool, Pool, Residual, SpikingClassifier, ordinary
from snnrobust.neurons import IF, PrechargedIF

RESNET = (Conv(4), Residual((Conv(4), Conv(4))), Pool(), Residual((Conv(6, stride=2), Conv(6))), GlobalPool())


def make(architecture=RESNET, shape=(1, 8, 8), seed=0, batch_norm=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ann = ordinary(architecture, shape, 3).double()
        for m in ann.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                m.running_mean.uniform_(-0.2, 0.2)
                m.running_var.uniform_(0.05, 0.2)
                nn.init.uniform_(m.bias, -0.3, 0.6)
        return ann.eval(), torch.rand(6, *shape, dtype=torch.float64)


def data(x):
    return x, torch.zeros(len(x), dtype=torch.long)


@pytest.mark.parametrize("percentile", [100.0, 99.9, 99.0, 90.0, 80.3])
@pytest.mark.parametrize("parts", [1, 3])
def test_percentiles_are_those_of_numpy(percentile, parts):
    ann, x = make()
    whole, seen = folded(ann), []
    for m in whole.modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_hook(lambda _, __, y: seen.append(y.numpy().ravel()))
    with torch.no_grad():
        whole(x)
    expected = [np.percentile(values, percentile) for values in seen]
    assert len(expected) == 5
    assert activation_scales(whole, x.tensor_split(parts), percentile) == pytest.approx(expected, rel=1e-12)


def test_qcfs_has_its_own():
    ann = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), QCFS(4, 2.5), nn.Linear(3, 2)).double()
    assert activation_scales(folded(ann), [torch.rand(9, 1, 2, 2).double()], 50.0) == pytest.approx([2.5])


def test_qcfs_has_its_own_under_balancing_too():
    ann = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 3), QCFS(4, 2.5), nn.Linear(3, 3), QCFS(4, 0.5), nn.Linear(3, 2)
    ).double()
    for layer in ann[1::2]:
        nn.init.constant_(layer.weight, 0.3)
    _, report = convert(ann, data(torch.rand(9, 1, 2, 2).double()), time_steps=4, method="balancing")
    assert [layer.scale for layer in report.layers] == pytest.approx([2.5, 0.5])
    assert [layer.threshold for layer in report.layers] == pytest.approx([2.5, 0.2])


def test_a_dead_layer_is_no_scale():
    ann = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.constant_(ann[3].bias, -100.0)
    x = torch.rand(9, 1, 2, 2)
    nn.init.ones_(ann[1].weight)
    for method in ("max", "percentile", "balancing"):
        with pytest.raises(
            ValueError, match=r"activation 2 of 2 is at most .* no threshold can be found: calibrate on more"
        ):
            convert(ann, data(x), time_steps=4, method=method)
    nn.init.zeros_(ann[3].bias)
    nn.init.ones_(ann[3].weight)
    nn.init.zeros_(ann[1].bias)
    with torch.no_grad():
        ann[1].weight[1:] = -1.0  # two of three neurons are silent
    with pytest.raises(ValueError, match="percentile 50 of activation 1 of 2 is 0: raise it, or use method='max'"):
        convert(ann, data(x), time_steps=4, percentile=50.0)


def written_out(whole, scales, x, T, initial):
    """Rueckauer's form, every threshold 1: W scale_in / scale_out and b / scale_out, neuron by neuron, step by step."""
    scales = iter(scales)

    def layer(synapse, scale_in, scale_out):
        weight, bias = synapse.weight * scale_in / scale_out, synapse.bias / scale_out
        if isinstance(synapse, nn.Linear):
            return lambda v: v @ weight.T + bias
        return lambda v: nn.functional.conv2d(v, weight, bias, synapse.stride, synapse.padding)

    def fire(currents):
        v, spikes = torch.full_like(currents[0], initial), []
        for current in currents:
            v = v + current
            s = (v >= 1).double()
            v = v - s
            spikes.append(s)
        return spikes

    stem, _, block, _, pool, second, _, average, flatten, head = whole
    a = next(scales)
    s = fire([layer(stem, 1.0, a)(x)] * T)
    for residual, shrink in ((block, None), (second, pool)):
        s = s if shrink is None else [shrink(v) for v in s]
        inner, out = next(scales), next(scales)
        inside = fire([layer(residual.body[0], a, inner)(v) for v in s])
        body = [layer(residual.body[2], inner, out)(v) for v in inside]
        skip = residual.shortcut
        through = [v * (a / out) if skip is None else layer(skip[0], a, out)(v) for v in s]
        s, a = fire([b + t for b, t in zip(body, through, strict=True)]), out
    logits = layer(head, a, 1.0)
    return torch.stack([logits(flatten(average(v))) for v in s]).mean(0)


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_a_residual_network_written_out(initial):
    ann, x = make()
    model, report = convert(ann, data(x), time_steps=7, method="max", initial=initial)
    assert [type(n) for _, n in neurons(model)] == [PrechargedIF if initial else IF] * 5
    scales = [layer.scale for layer in report.layers]
    assert len(set(scales)) == 5
    expected = written_out(folded(ann), scales, x, 7, initial)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


ARCHITECTURES = {
    "chain": (Conv(4), Pool(), Dense(6)),
    "weights in a row": (Conv(4), Conv(4, activated=False), Conv(4), GlobalPool()),
    "resnet": RESNET,
    "projection first": (Residual((Conv(4), Conv(4))), Dense(5)),
}


@pytest.mark.parametrize("method", ["max", "balancing"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_logits_come_to_those_of_the_ordinary_network(name, method):
    ann, x = make(ARCHITECTURES[name])
    errors, spread = [], float(ann(x).detach().std())
    for T in (16, 64, 256):
        model, _ = convert(ann, data(x), time_steps=T, method=method)
        with torch.no_grad():
            errors.append(float((model(x) - ann(x)).abs().mean()) / spread)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


def test_poisson_in_the_mean():
    ann, x = make(ARCHITECTURES["chain"])
    model, _ = convert(ann, data(x), time_steps=3000, encoder=Poisson(3000), method="max")
    assert isinstance(model.encoder, Poisson)
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(model(x), ann(x), rtol=0, atol=0.25 * float(ann(x).detach().std()))


@pytest.mark.parametrize("T", [1, 4, 16])
def test_one_hidden_layer_is_off_by_half_a_spike_at_most(T):
    ann, x = make((Dense(7),))
    model, report = convert(ann, data(x), time_steps=T, method="percentile", percentile=95.0)
    scale, whole = report.layers[0].scale, folded(ann)
    (name, neuron), rates = neurons(model)[0], []
    assert name == report.layers[0].name == "network.2"
    neuron.register_forward_hook(lambda _, __, s: rates.append(s.mean(0)))
    with torch.no_grad():
        model(x)
        activation = whole[:3](x).clamp(0, scale)
    assert 0 < report.layers[0].saturation < 0.2
    assert (rates[0] * scale - activation).abs().max() <= scale * 0.5 / T + 1e-9
    assert (rates[0] * scale - activation).abs().max() > 0.1 * scale / T


def test_balancing_takes_the_largest_input_while_layers_before_spike():
    ann, x = make((Dense(7), Dense(6)))
    whole, T = folded(ann), 5
    batch = [Batch(part, torch.zeros(len(part), dtype=torch.long), torch.arange(len(part))) for part in x.split(4)]
    found = balanced_scales(whole, Direct(T), batch, seed=0)
    first, second = whole[1], whole[3]
    flat = x.flatten(1)
    with torch.no_grad():
        theta = float(first(flat).max())
        v, largest = torch.zeros(6, 7, dtype=torch.float64), 0.0
        for _ in range(T):
            v = v + first(flat)
            s = (v >= theta).double()
            v = v - theta * s
            largest = max(largest, float((s @ second.weight.T + second.bias / theta).max()))
    assert found == pytest.approx([theta, theta * largest])
    network = spiking_network(whole, found, lambda _, threshold: IF(threshold))
    assert [n.threshold for _, n in neurons(network)] == pytest.approx([theta, largest])
    assert SpikingClassifier(Direct(T), network, MeanOutput())(x).shape == (6, 3)
