"""Small networks as users of SpikingJelly and snnTorch write them, and the loops that those libraries' tutorials run them in."""

import snntorch as snn
import torch
from snntorch import spikegen
from spikingjelly.activation_based import encoding, functional, layer, neuron
from spikingjelly.activation_based import surrogate as jelly
from torch import nn

T, FEATURES, CLASSES = 4, 6, 3


class Linear(layer.Linear):
    """With weights that make neurons fire."""

    def reset_parameters(self):
        super().reset_parameters()
        with torch.no_grad():
            self.weight.mul_(3.0)


def lif(**settings):
    return neuron.LIFNode(tau=2.0, v_threshold=0.2, surrogate_function=jelly.ATan(), **settings)


def jelly_steps():
    """One time step a call."""
    return nn.Sequential(Linear(FEATURES, 8), lif(), Linear(8, CLASSES), lif(v_reset=None, detach_reset=True))


def jelly_sequence():
    """``[T, B, F] -> [T, B, K]``."""
    model = jelly_steps()
    functional.set_step_mode(model, "m")
    return model


class JellyAll(nn.Module):
    """Images to rates, as in the tutorial: resets itself at the end, or not."""

    def __init__(self, resets_itself):
        super().__init__()
        self.network, self.resets_itself = jelly_sequence(), resets_itself

    def forward(self, x):
        rate = self.network(x.unsqueeze(0).repeat(T, 1, 1)).mean(0)
        if self.resets_itself:
            functional.reset_net(self)
        return rate


class JellyPoisson(nn.Module):
    """A Poisson encoder without gradient, in a loop."""

    def __init__(self):
        super().__init__()
        self.encoder, self.network = encoding.PoissonEncoder(), jelly_steps()

    def forward(self, x):
        return torch.stack([self.network(self.encoder(x)) for _ in range(T)])


class TorchLoop(nn.Module):
    """``init_hidden=False``: states made inside forward, records returned as in the tutorial."""

    def __init__(self, neuron=snn.Leaky, **settings):
        super().__init__()
        self.fc1, self.lif1 = Linear(FEATURES, 8), neuron(beta=0.8, threshold=0.2, **settings)
        self.fc2, self.lif2 = Linear(8, CLASSES), neuron(beta=0.7, threshold=0.3, **settings)

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(T):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class TorchForgets(TorchLoop):
    """The same, but nothing resets the states that the neurons keep."""

    def forward(self, x):
        spikes, membranes = [], []
        for _ in range(T):
            spk1, _ = self.lif1(self.fc1(x))
            spk2, mem2 = self.lif2(self.fc2(spk1))
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


class TorchRate(TorchLoop):
    """A rate code without gradient in front."""

    def forward(self, x):
        shown = spikegen.rate(x, num_steps=T)
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        total = 0
        for x_t in shown:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total = total + spk2
        return total


def torch_steps():
    """``init_hidden=True``: one step a call, spikes and membrane returned."""
    return nn.Sequential(
        Linear(FEATURES, 8),
        snn.Leaky(beta=0.8, threshold=0.2, init_hidden=True),
        Linear(8, CLASSES),
        snn.Leaky(beta=0.7, threshold=0.3, init_hidden=True, output=True),
    )


class Accumulator(nn.Module):
    """A neuron of one's own, which no library knows: a membrane as a plain attribute."""

    def __init__(self, inplace=False):
        super().__init__()
        self.membrane, self.inplace = None, inplace

    def forward(self, x):
        if self.membrane is None or self.membrane.shape != x.shape:
            self.membrane = torch.zeros_like(x)
        if self.inplace:
            self.membrane.mul_(0.5).add_(x.detach())
        else:
            self.membrane = 0.5 * self.membrane + x
        return self.membrane
