from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct
from snnrobust.hardware import Backend, Chain, GaussianNoise, deploy, on_chips
from snnrobust.layers import Sequential
from snnrobust.models import Conv, Dense, ordinary, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform

LATE = GaussianNoise(multiplicative=0.5, additive=0.2, drawn="chip", at="after_norm")
X = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def ann():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ordinary((Conv(4), Dense(6)), (1, 4, 4), 3).eval()


def snn(norm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return spiking((Conv(4), Dense(6)), (1, 4, 4), 3, Direct(3), LIF(threshold=0.1), norm=norm).eval()


def norms(model):
    return [n for n, m in model.named_modules() if hasattr(m, "momentum")]


class Block(nn.Module):
    """Runs its children in an order that only it knows."""

    def __init__(self):
        super().__init__()
        self.norm, self.dense = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.dense(self.norm(x))


def test_noise_comes_after_the_normalisation_and_nowhere_else():
    model = ann()
    for name in norms(model):
        model.get_submodule(name).running_mean += 0.3
    chip = deploy(model, LATE, seed=1)
    found = {n: m for n, m in chip.named_modules() if type(m).__name__ == "AfterNorm"}
    assert [n.removesuffix(".layer") for n in found] == norms(model)
    i = int(norms(model)[0])
    y = chip[i - 1](X)
    torch.testing.assert_close(y, model[i - 1](X))  # no noise at the product
    other = 2 * y - y.mean()
    clean, noisy = [model[i](part) for part in (y, other)], []
    for part in (y, other):
        chip[i].reset()
        noisy.append(chip[i](part))
    factor = (noisy[1] - noisy[0]) / (clean[1] - clean[0])  # 1 + sigma_m xi, of an element
    assert factor.std(0).max() < 1e-2  # the same for all samples
    assert 0.2 < factor[0].std() < 0.8
    offset = noisy[0] - factor[0] * clean[0]
    torch.testing.assert_close(offset[0], offset[1], atol=1e-2, rtol=1e-2)
    assert 0.1 < offset[0].std() < 0.3


def test_the_last_layer_without_norm_has_its_noise_at_the_product():
    model = ann()
    chip = deploy(model, GaussianNoise(additive=1.0, drawn="chip", at="after_norm"), seed=1)
    x = torch.rand(2, 6)
    pattern = chip[-1](x) - model[-1](x)
    assert pattern.abs().max() > 0.1
    torch.testing.assert_close(pattern[0], pattern[1])


@pytest.mark.parametrize("norm", ["BNTT", "TDBN", "TEBN"])
def test_spiking_networks_stream_as_they_run(norm):
    model = snn(norm)
    chip = deploy(model, GaussianNoise(multiplicative=0.5, at="after_norm"), seed=1)
    with draws(chip, 2):
        whole = chip(X)
        torch.testing.assert_close(list(chip.stream(X))[-1], whole)
    with draws(chip, 3):
        assert not torch.allclose(chip(X), whole)
    ideal = deploy(model, GaussianNoise(at="after_norm"), seed=1)
    torch.testing.assert_close(ideal(X), model(X))


def test_other_effects_of_a_chain_stay_at_the_product():
    model, chain = ann(), Chain(Uniform(bits=3), Chain(GaussianNoise(additive=0.1, drawn="chip"), LATE))
    chip, without = deploy(model, chain, seed=1), deploy(model, Uniform(bits=3), seed=1)
    i = int(norms(model)[0]) - 1
    assert torch.equal(chip[i].layer.array.weight, without[i].layer.array.weight)
    assert not torch.allclose(chip[i](X), without[i](X))


def test_who_cannot_say_which_norm_follows_is_told():
    model = nn.Sequential(Block(), nn.Linear(4, 2))
    deploy(model, GaussianNoise(multiplicative=0.1), seed=0)
    with pytest.raises(TypeError, match=r"0\.dense is not known, since Block is no Sequential: set at='product'"):
        deploy(model, LATE, seed=0)


@pytest.mark.parametrize("model", [ann, lambda: snn("BNTT"), lambda: snn("TDBN")], ids=["ann", "bntt", "tdbn"])
def test_it_is_learnt_where_the_chip_has_it(model):
    model = model().train()
    state, shape = deepcopy(model.state_dict()), str(model)
    chip = deploy(model, LATE, seed=4)
    with on_chips(model, LATE) as make:
        assert list(model.state_dict()) == list(state)
        make(4)
        for m in model.modules():
            if type(m).__name__ == "LearningAfterNorm":
                m._of[0].eval()  # statistics as on the chip
        torch.testing.assert_close(model(X), chip(X))
        model.eval()
        assert not torch.allclose(model(X), chip(X))
    assert str(model) == shape


def test_the_statistics_of_the_norm_are_learnt_through_it():
    model = ann().train()
    name = norms(model)[0]
    before = model.get_submodule(name).running_mean.clone()
    with on_chips(model, LATE) as make:
        make(0)
        model(X).sum().backward()
        assert model.get_submodule(name).weight.grad is not None
    norm = model.get_submodule(name)
    assert not torch.equal(norm.running_mean, before)
    assert norm.num_batches_tracked == 1


def test_a_backend_may_change_neurons():
    class Silent(Backend):
        def neuron(self, neuron):
            return nn.Identity() if isinstance(neuron, nn.ReLU) else LIF(threshold=1e9)

    try:
        chip = deploy(snn("BNTT"), Silent(), seed=0)
        logits = chip(X)
        assert torch.equal(logits[0], logits[1])  # nothing of the image arrives
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        x = torch.randn(3, 4)
        assert torch.equal(deploy(model, Silent(), seed=0)(x), model[0](x))
        assert torch.equal(deploy(model, Silent(), seed=0, layers=["1"])(x), model[0](x))
    finally:
        from snnrobust.hardware import BACKENDS

        BACKENDS.pop("Silent")


def test_sequential_blocks_are_looked_into():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.ReLU(), nn.Linear(4, 2)).eval()
    chip = deploy(model, LATE, seed=0)
    assert type(chip[0][1].layer).__name__ == "AfterNorm"
    time = Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), LIF()).eval()
    assert type(deploy(time, LATE, seed=0)[1]).__name__ == "AfterNorm"
