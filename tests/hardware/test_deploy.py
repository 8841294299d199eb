from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snnrobust import hardware
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.hardware import Chain, GaussianNoise, deploy
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Conv, Dense, Pool, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform, uniform
from snnrobust.temporal import Temporal

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
IDEAL, NOISY = Chain(), Chain(Uniform(bits=4), GaussianNoise(multiplicative=0.2, drawn="chip"))
LIVELY = LIF(threshold=0.1)  # untrained layers would not spike at 1
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3),
    "direct": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Direct(4), LIVELY),
    "poisson": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(4), LIVELY),
    "without norm": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(4), LIVELY, norm="none"),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]()


@pytest.fixture
def x():
    return torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def run(model, x, key=3):
    with torch.no_grad(), draws(model, key):
        return model(x)


def test_the_original_is_untouched_and_an_ideal_chip_is_it_bit_for_bit(model, x):
    run(model.train(), x)
    state, generator, shape = deepcopy(model.state_dict()), torch.get_rng_state(), str(model)
    ideal, noisy = deploy(model, IDEAL, seed=7), deploy(model, NOISY, seed=7)
    run(noisy.train(), x)  # not even its running statistics are shared
    assert model.training
    assert not ideal.training
    assert str(model) == shape
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert torch.equal(run(ideal, x), run(model.eval(), x))
    assert not torch.allclose(run(noisy.eval(), x), run(model, x))


def test_the_seed_is_the_chip(model, x):
    one, again, other = (run(deploy(model, NOISY, seed=seed), x) for seed in (7, 7, 8))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_chips_of_one_recipe_are_independent_of_it(x):
    backend, model = GaussianNoise(multiplicative=0.2, drawn="chip"), MODELS["ann"]()
    one = deploy(model, backend, seed=1)
    before = run(one, x)
    deploy(model, backend, seed=2)
    backend.multiplicative = 0.9
    assert torch.equal(run(one, x), before)
    assert torch.equal(run(deepcopy(one), x), before)


def test_a_chip_stores_what_the_quantizer_says(model, x):
    chip = deploy(model, Uniform(bits=3), seed=0)
    by_hand = deepcopy(model).eval()
    for layer in by_hand.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data = uniform(layer.weight.data, 3)
    assert torch.equal(run(chip, x), run(by_hand, x))
    assert not torch.equal(run(chip, x), run(model.eval(), x))


def test_only_the_layers_that_are_named_are_deployed(model, x):
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(names) == 3
    chip = deploy(model, Uniform(bits=3), seed=0, layers=[names[1]])
    left = [name for name, m in chip.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert left == [names[0], names[2]]
    assert not torch.equal(run(chip, x), run(model.eval(), x))
    assert torch.equal(run(deploy(model, NOISY, seed=0, layers=names), x), run(deploy(model, NOISY, seed=0), x))


@pytest.mark.parametrize("layers", ["0", "", (), []])
def test_a_string_or_nothing_is_no_collection_of_layers(layers):
    with pytest.raises(ValueError, match="layers must be a collection of names"):
        deploy(MODELS["ann"](), IDEAL, seed=0, layers=layers)


def test_an_unknown_layer_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"layers must be one of .*got 'network.00' \(did you mean 'network.0'"):
        deploy(MODELS["direct"](), IDEAL, seed=0, layers=["network.00"])
    with pytest.raises(ValueError, match=r"layers must be one of .*got 'network.1'"):  # a BNTT is not synaptic
        deploy(MODELS["direct"](), IDEAL, seed=0, layers=["network.1"])


def test_a_layer_used_twice_is_deployed_in_both_places(x):
    shared = nn.Linear(16, 16)
    model = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared)
    chip = deploy(model, Uniform(bits=2), seed=0)
    assert not [m for m in chip.modules() if isinstance(m, nn.Linear)]
    quantized = deepcopy(model)
    quantized[1].weight.data = uniform(shared.weight.data, 2)
    assert torch.equal(run(chip, x), run(quantized, x))


def test_deploying_twice_is_an_error(model):
    with pytest.raises(TypeError, match="on a chip already: deploy the original model"):
        deploy(deploy(model, IDEAL, seed=0), IDEAL, seed=0)


class Weird(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


class OwnForward(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class HidesTime(Temporal):
    """A temporal module with a layer inside, which would be shown one step after the other as if each were the first."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 4)

    def initial_state(self, x_t):
        return 0

    def step(self, x_t, state):
        return self.inside(x_t), state


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.inside(x)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (nn.LSTMCell(4, 4), r"1 \(LSTMCell\) has weights that deploy cannot put on a chip"),
        (nn.Embedding(4, 4), r"1 \(Embedding\) has weights"),
        (nn.Bilinear(4, 4, 4), r"1 \(Bilinear\) has weights"),
        (nn.ConvTranspose1d(4, 4, 1), r"1 \(ConvTranspose1d\) has weights"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (Weird(), r"1 \(Weird\) has weights"),
        (OwnForward(4, 4), r"1 \(OwnForward\) has a forward of its own"),
    ],
)
def test_layers_out_of_reach_are_an_error(part, words):
    with pytest.raises(TypeError, match=words):
        deploy(nn.Sequential(nn.Linear(4, 4), part), IDEAL, seed=0)


@pytest.mark.parametrize("part", [HidesTime(), Plain()])
def test_a_layer_that_does_not_see_time_is_an_error(part):
    model = SpikingClassifier(Direct(3), Sequential(nn.Linear(4, 4), part), MeanOutput())
    with pytest.raises(TypeError, match=r"network\.1\.inside does not see time"):
        deploy(model, IDEAL, seed=0)
    assert deploy(nn.Sequential(Plain()), IDEAL, seed=0)(torch.ones(2, 4)).shape == (
        2,
        4,
    )  # where there is no time, it may


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (nn.Sequential(nn.ReLU()), ValueError, "no nn.Linear, nn.Conv"),
        (nn.Linear(2, 2), TypeError, "wrap it in nn.Sequential"),
    ],
)
def test_models_without_a_place_for_a_chip_are_an_error(model, error, words):
    with pytest.raises(error, match=words):
        deploy(model, IDEAL, seed=0)


@pytest.mark.parametrize(
    ("backend", "seed", "error", "words"),
    [
        (GaussianNoise, 0, TypeError, "backend must be a hardware Backend"),
        (None, 0, TypeError, "backend must be a hardware Backend"),
        (IDEAL, -1, ValueError, "seed"),
        (IDEAL, 0.5, TypeError, "seed"),
    ],
)
def test_bad_arguments_are_named(backend, seed, error, words):
    with pytest.raises(error, match=words):
        deploy(MODELS["ann"](), backend, seed=seed)


@st.composite
def convolutions(draw):
    """A convolution of any kind, and an input that it can take."""
    dimensions = draw(st.sampled_from([1, 2, 3]))
    groups = draw(st.sampled_from([1, 2]))
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    layer = kind(
        2 * groups,
        3 * groups,
        kernel_size=draw(st.integers(1, 3)),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
    )
    return layer, torch.rand(3, 2 * groups, *[draw(st.integers(5, 6)) for _ in range(dimensions)])


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_a_convolution_on_an_ideal_chip_is_the_convolution(case):
    layer, x = case
    chip = deploy(nn.Sequential(layer), IDEAL, seed=0)
    assert torch.equal(run(chip, x), run(layer, x))
    folded = deploy(SpikingClassifier(Direct(2), Sequential(layer, nn.Flatten()), MeanOutput()), IDEAL, seed=0)
    assert torch.allclose(run(folded, x), run(layer, x).flatten(1), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (3, 7, 4), (2, 3, 5, 4)])
def test_a_linear_layer_takes_any_shape_of_batch(shape):
    layer = nn.Linear(4, 2)
    x = torch.rand(shape)
    assert torch.equal(run(deploy(nn.Sequential(layer), IDEAL, seed=0), x), run(layer, x))


def test_a_chip_moves_to_another_dtype(model, x):
    chip = deploy(model, Chain(Uniform(bits=4)), seed=0)
    assert run(chip.double(), x.double()).dtype == torch.float64
    assert torch.allclose(run(chip, x.double()), run(chip.float(), x).double(), atol=1e-4)


def test_a_layer_called_twice_meets_fresh_noise_and_each_forward_begins_anew():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return torch.stack([self.fc(x), self.fc(x)])

    chip = deploy(Twice(), GaussianNoise(0.5), seed=1)
    x = torch.rand(4, 3)
    with draws(chip, 5):
        first, again = chip(x), chip(x)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_a_fleet_is_chips_of_consecutive_seeds(model, x):
    fleet = hardware.fleet(model, NOISY, 3, seed=5)
    logits = [run(chip, x) for chip in fleet]
    assert len(logits) == 3
    assert all(torch.equal(y, run(deploy(model, NOISY, seed=5 + i), x)) for i, y in enumerate(logits))
    assert not torch.equal(logits[0], logits[1])
    for wrong in ({"n": 0}, {"n": 2, "seed": -1}):
        with pytest.raises(ValueError, match="must be"):
            hardware.fleet(model, NOISY, **wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    with torch.no_grad():
        model[1].weight_hh_l0[0, 0] = value
    with pytest.raises(ValueError, match=r"1 \(LSTM\): weight_hh_l0 contains NaN or infinity"):
        deploy(model, IDEAL, seed=0)
