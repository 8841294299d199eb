"""Backends that change neurons: which neurons they reach, and who refuses them."""

import pytest
import torch
from torch import nn

from snnrobust.defenses import NoiseTraining
from snnrobust.encoders import Direct
from snnrobust.hardware import (
    Chain,
    DeadNeurons,
    GaussianNoise,
    NeuronVariation,
    SpikeLoss,
    StuckNeurons,
    deploy,
    on_chips,
)
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))


def network(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second, last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    if kind == "ann":
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).eval()
    parts = Sequential(first, LIF(threshold=0.1), second, LIF(threshold=0.1), last)
    return SpikingClassifier(Direct(3), parts, MeanOutput()).eval()


def changed(chip, model):
    """Names of the modules of ``model`` that are others on the chip."""
    return {name for name, m in model.named_modules() if name and type(chip.get_submodule(name)) is not type(m)}


CHANGING = [
    DeadNeurons(0.1),
    SpikeLoss(0.1),
    StuckNeurons(0.1),
    NeuronVariation(threshold=0.1),
    Chain(GaussianNoise(multiplicative=0.1), DeadNeurons(0.1)),
]


@pytest.mark.parametrize("backend", CHANGING, ids=lambda b: type(b).__name__)
def test_training_through_chips_refuses_them(backend):
    model = network("snn")
    name = "DeadNeurons" if isinstance(backend, Chain) else type(backend).__name__
    with pytest.raises(TypeError, match=f"{name} changes neurons, .* leave it out"), on_chips(model, backend):
        pass
    y = torch.zeros(len(X), dtype=torch.int64)
    with pytest.raises(TypeError, match=f"{name} changes neurons"):
        NoiseTraining(backend=backend).fit(model, (X, y), epochs=1, progress=False)
    assert not changed(model, network("snn"))


@pytest.mark.parametrize("backend", [DeadNeurons(1.0), Chain(GaussianNoise(), DeadNeurons(1.0))])
def test_a_model_without_neurons_is_refused(backend):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(
        ValueError, match=r"DeadNeurons changes neurons, but the model has no nn\.ReLU .* it would do nothing"
    ):
        deploy(model, backend, seed=0)
    deploy(model, GaussianNoise(multiplicative=0.1), seed=0)


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_layers_name_the_neurons_that_change(kind):
    """Dead neurons are those of the layer named: what comes after them hears zeros, the other neurons are as they were."""
    model, prefix = network(kind), "" if kind == "ann" else "network."
    for place in (1, 3):
        chip = deploy(model, DeadNeurons(1.0), seed=0, layers=[f"{prefix}{place}"])
        assert changed(chip, model) == {f"{prefix}{place}"}  # and no synaptic layer is on the chip
        silent = network(kind)
        silent.get_submodule(f"{prefix}{place + 1}").weight.data.zero_()
        torch.testing.assert_close(chip(X), silent(X))
        assert not torch.allclose(chip(X), model(X))
    both = deploy(model, DeadNeurons(1.0), seed=0, layers=[f"{prefix}0", f"{prefix}3"])
    assert changed(both, model) == {f"{prefix}0", f"{prefix}3"}
    with pytest.raises(
        ValueError, match="DeadNeurons changes neurons, but layers names none of them: it would do nothing"
    ):
        deploy(model, DeadNeurons(1.0), seed=0, layers=[f"{prefix}0"])
    with pytest.raises(ValueError, match="layers must be one of"):
        deploy(model, DeadNeurons(1.0), seed=0, layers=[f"{prefix}9"])
    with pytest.raises(ValueError, match="layers must be one of"):  # neurons are named only where they are changed
        deploy(model, GaussianNoise(), seed=0, layers=[f"{prefix}1"])
