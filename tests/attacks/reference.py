"""Input gradients of a network of dense layers and LIF neurons written out in loops, in float64, without autograd."""

from math import pi, tan

import torch


def forward(model, x):
    """Potentials at each step before the reset less the threshold, spikes and input currents, a list for each layer."""
    *parts, head = list(model.network)
    flow = [x] * model.time_steps
    layers = []
    for linear, neuron in zip(parts[::2], parts[1::2], strict=True):
        currents = [z @ linear.weight.T + linear.bias for z in flow]
        v, us, spikes = torch.zeros_like(currents[0]), [], []
        for current in currents:
            h = neuron.decay * v + current
            s = (h >= neuron.threshold).to(h.dtype)
            v = h - neuron.threshold * s if neuron.reset == "soft" else h * (1 - s)
            us.append(h - neuron.threshold)
            spikes.append(s)
        layers.append((us, spikes, currents))
        flow = spikes
    logits = sum(s @ head.weight.T + head.bias for s in flow) / model.time_steps
    return layers, logits


@torch.no_grad()
def gradient(model, x, y, through):
    """``through(layer index, neuron, (us, spikes, currents), gradients of spikes) -> gradients of currents``, lists over time."""
    *parts, head = list(model.network)
    layers, logits = forward(model, x)
    error = logits.softmax(1) - torch.nn.functional.one_hot(y, logits.shape[1])
    flow = [error @ head.weight / model.time_steps] * model.time_steps
    for index in reversed(range(len(layers))):
        linear, neuron = parts[2 * index], parts[2 * index + 1]
        flow = [g @ linear.weight for g in through(index, neuron, layers[index], flow)]
    return sum(flow)


def through_time(slopes):
    """Backpropagation through time with ds/du = ``slopes(index, us)``; the spike in the reset counts as a constant."""

    def through(index, neuron, seen, flow):
        us, spikes, _ = seen
        found, later = [], torch.zeros_like(us[0])
        for g, slope, s in reversed(list(zip(flow, slopes(index, us), spikes, strict=True))):
            later = g * slope + neuron.decay * (later if neuron.reset == "soft" else later * (1 - s))
            found.append(later)
        return found[::-1]

    return through


def atan(u, alpha):
    return alpha / 2 / (1 + (pi / 2 * alpha * u) ** 2)


class Sharpness:
    """ASSG for one iteration after the other."""

    def __init__(self, degree=0.4, relaxation=1.5, momentum=0.9):
        self.omega = 2 / pi * tan(pi * degree)
        self.relaxation, self.momentum, self.moments = relaxation, momentum, {}

    def __call__(self, index, us):
        slopes, mu = [], self.momentum
        for t, u in enumerate(us):
            M, D = self.moments.get((index, t), (torch.ones_like(u), torch.zeros_like(u)))
            M = mu * M + (1 - mu) * u.abs()
            D = mu * D + (1 - mu) * (u.abs() - M).abs()
            self.moments[index, t] = M, D
            slopes.append(atan(u, self.omega / (M + self.relaxation * D + 1e-4)))
        return slopes
