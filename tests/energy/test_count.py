"""Counts against FlopCounterMode, against zeroing inputs one by one, and against spike trains that were made by hand."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy import count_operations
from snnrobust.hardware import Chain, GaussianNoise, deploy
from snnrobust.layers import BNTT, MeanOutput, Sequential
from snnrobust.models import ARCHITECTURES, Conv, Dense, Pool, SpikingClassifier, ordinary, smallest_image, spiking
from snnrobust.neurons import LIF, Recurrent
from snnrobust.temporal import Temporal

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
LIVELY = LIF(threshold=0.1)  # untrained layers would not spike at 1
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3),
    "direct": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Direct(4), LIVELY),
    "poisson": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(4), LIVELY),
    "one step": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(1), LIVELY),
    "recurrent": lambda: SpikingClassifier(
        Poisson(4),
        Sequential(nn.Flatten(), nn.Linear(16, 5), Recurrent(5, LIVELY), nn.Linear(5, 3)),
        MeanOutput(),
    ),
}


def make(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]()


@pytest.fixture(params=list(MODELS))
def model(request):
    return make(request.param)


@pytest.fixture
def x():
    return torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def spikes_of(*shape, rate=0.4):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < rate).float()


def test_dense_macs_are_half_the_flops_of_torch(model, x):
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.eval()(x)
    assert count_operations(model, x).dense_mac * len(x) == flops.get_total_flops() / 2


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "densenet40"])
@pytest.mark.parametrize("spikes", [False, True])
def test_dense_macs_of_named_models(name, spikes):
    size = smallest_image(ARCHITECTURES[name])
    arguments = (ARCHITECTURES[name], (1, size, size), 3)
    model, x = spiking(*arguments, Poisson(2), LIVELY) if spikes else ordinary(*arguments), torch.rand(2, 1, size, size)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.eval()(x)
    operations = count_operations(model, x)
    assert operations.dense_mac * len(x) == flops.get_total_flops() / 2
    assert all(bool((layer.events <= layer.dense).all()) for layer in operations.layers)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_dense_macs_of_recurrent_layers(kind):
    model, x = Sequential(kind(5, 7, 2)), torch.rand(3, 2, 5)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(x)
    assert count_operations(model, x).dense_mac * 2 == flops.get_total_flops() / 2


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2),
    st.integers(1, 2), st.integers(0, 1000),
)  # fmt: skip
def test_events_are_the_products_with_a_nonzero_input(groups, outs, kernel, stride, padding, dilation, steps, seed):
    """With weights of one, the sum of the outputs for a binary input is the number of products that it takes part in."""
    conv = nn.Conv2d(
        2 * groups, outs * groups, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
    ).double()
    nn.init.ones_(conv.weight)
    x = (torch.rand(steps, 3, 2 * groups, 6, 5, generator=torch.Generator().manual_seed(seed)) < 0.4).double()
    (layer,) = count_operations(Sequential(conv), x).layers
    expected = conv(x.flatten(0, 1)).flatten(1).sum(1).unflatten(0, (steps, 3))
    assert torch.equal(layer.events.double(), expected.detach())
    assert torch.equal(layer.nonzero.double(), x.flatten(2).sum(2))
    assert layer.kind == "AC"
    assert layer.magnitude == (1.0 if bool(x.any()) else 0.0)


def test_counts_by_hand():
    """Two steps, two samples, three inputs, five outputs."""
    x = torch.tensor([[[1.0, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 1]]])
    operations = count_operations(Sequential(nn.Linear(3, 5), LIF()), x)
    (layer,), (neurons,) = operations.layers, operations.neurons
    assert layer.events.tolist() == [[5, 10], [0, 15]]
    assert layer.nonzero.tolist() == [[1, 2], [0, 3]]
    assert layer.dense.tolist() == [[15, 15], [15, 15]]
    assert layer.inputs.tolist() == [[3, 3], [3, 3]]
    assert neurons.count.tolist() == [[5, 5], [5, 5]]
    assert (layer.name, layer.type, layer.input_shape, layer.output_shape) == ("0", "Linear", (3,), (5,))
    assert (neurons.name, neurons.type, neurons.shape) == ("1", "LIF", (5,))
    assert (operations.samples, operations.time_steps) == (2, 2)
    assert (operations.ac, operations.mac, operations.dense_mac, operations.updates) == (15, 0, 30, 10)


@pytest.mark.parametrize(
    ("values", "kind", "magnitude"),
    [
        ([0, 1], "AC", 1.0), ([-1, 0, 1], "AC", 1.0), ([0, 0.25], "AC", 0.25), ([-0.25, 0.25], "AC", 0.25), ([0, 0], "AC", 0.0),
        ([0, 1, 2], "MAC", None), ([1, -1.5], "MAC", None), ([0, 1, 1 + 2**-20], "MAC", None),
    ],
)  # fmt: skip
def test_an_accumulate_needs_inputs_of_one_magnitude(values, kind, magnitude):
    x = torch.tensor(values, dtype=torch.float32).repeat(2, 3, 1)
    (layer,) = count_operations(Sequential(nn.Linear(len(values), 2)), x).layers
    assert (layer.kind, layer.magnitude) == (kind, magnitude)
    counted = {"AC": layer.ac, "MAC": layer.mac}
    assert float(counted.pop(kind).sum()) == 2 * 2 * sum(v != 0 for v in values)
    assert float(counted.popitem()[1].sum()) == 0


def test_magnitudes_that_differ_between_steps_or_samples_make_macs():
    for x in (torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[1.0], [2.0]]])):
        (layer,) = count_operations(Sequential(nn.Linear(1, 2)), x).layers
        assert layer.kind == "MAC"


def test_average_pooling_makes_macs_and_max_pooling_does_not():
    for pool, kind in ((nn.AvgPool2d(2), "MAC"), (nn.MaxPool2d(2), "AC")):
        network = Sequential(pool, nn.Conv2d(1, 2, 3))
        assert count_operations(network, spikes_of(3, 2, 1, 8, 8)).layers[0].kind == kind


def test_the_layers_of_a_spiking_classifier(x):
    operations = count_operations(make("poisson"), x)
    assert [layer.name for layer in operations.layers] == ["network.0", "network.5", "network.8"]
    assert [layer.kind for layer in operations.layers] == ["AC", "MAC", "AC"]
    assert [n.name for n in operations.neurons] == ["network.2", "network.7"]
    assert operations.updates == 4 * (4 * 16 + 6)
    assert operations.layers[1].input_shape == (16,)


def test_each_step_has_its_own_spikes(x):
    """What folded layers see is unfolded in the right order: time first."""
    model = make("poisson")
    with draws(model, 3):
        operations = count_operations(model, x)
        spikes = model.encoder(x)
    assert torch.equal(operations.layers[0].nonzero, spikes.flatten(2).sum(2).long())


def test_a_layer_inside_a_recurrent_one_sees_the_spikes_of_the_step_before(x):
    model = make("recurrent").eval()
    spikes = []
    model.network[2].register_forward_hook(lambda _, __, output: spikes.append(output))
    with draws(model, 3):
        layers = {layer.name: layer for layer in count_operations(model, x).layers}
    inner = layers["network.2.recurrent"]
    expected = 5 * spikes[0].sum(2).long()
    assert int(expected.sum()) > 0
    assert torch.equal(inner.events, torch.cat([torch.zeros_like(expected[:1]), expected[:-1]]))
    assert inner.kind == "AC"
    assert inner.dense.tolist() == [[25] * 5] * 4


def by_cells(rnn, x):
    """Nonzero inputs of both products of each layer, [T, B] times the rows of their weights, with torch's own cells."""
    cell_type = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN_TANH": nn.RNNCell, "RNN_RELU": nn.RNNCell}[rnn.mode]
    options = {"nonlinearity": "relu"} if rnn.mode == "RNN_RELU" else {}
    events, nonzero = torch.zeros(2, *x.shape[:2]).unbind(0)
    for k in range(rnn.num_layers):
        cell = cell_type(x.shape[2], rnn.hidden_size, **options)
        cell.load_state_dict({n: getattr(rnn, f"{n}_l{k}") for n in cell.state_dict()})
        h, state, outputs = torch.zeros(x.shape[1], rnn.hidden_size), None, []
        for t, x_t in enumerate(x):
            active = (x_t != 0).sum(1) + (h != 0).sum(1)
            nonzero[t] += active
            events[t] += active * len(cell.weight_ih)
            state = cell(x_t, state)
            h = state[0] if rnn.mode == "LSTM" else state
            outputs.append(h)
        x = torch.stack(outputs)
    return events, nonzero


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.GRU, {}),
        (nn.RNN, {}),
        (nn.RNN, {"nonlinearity": "relu"}),
        (nn.LSTM, {"num_layers": 2, "dropout": 0.5}),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_layers_of_torch(kind, options, bias):
    torch.manual_seed(0)
    rnn = kind(5, 4, bias=bias, **options)
    x = spikes_of(6, 3, 5)
    (layer,) = count_operations(Sequential(rnn), x).layers
    reference = kind(5, 4, **options)
    reference.load_state_dict({n: torch.zeros_like(p) for n, p in reference.state_dict().items()} | rnn.state_dict())
    with torch.no_grad():
        events, nonzero = by_cells(reference, x)
    assert torch.equal(layer.events, events.long())
    assert torch.equal(layer.nonzero, nonzero.long())
    rows, depth = len(rnn.weight_ih_l0), rnn.num_layers
    inputs = 5 + 4 + (depth - 1) * 8
    assert layer.dense.tolist() == [[rows * inputs] * 3] * 6
    assert layer.inputs.tolist() == [[inputs] * 3] * 6
    assert layer.kind == "MAC"
    assert (layer.input_shape, layer.output_shape) == ((5,), (4,))


class Classifier(nn.Module):
    """An ordinary sequence classifier."""

    def __init__(self):
        super().__init__()
        self.rnn, self.last = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.rnn(x)[0][:, -1])


def test_a_sequence_is_one_step_of_an_ordinary_network():
    model, x = Classifier(), spikes_of(3, 6, 5)
    first, last = count_operations(model, x).layers
    time_first = nn.LSTM(5, 4)
    time_first.load_state_dict(model.rnn.state_dict())
    whole = count_operations(Sequential(time_first), x.transpose(0, 1))
    assert first.events[0].tolist() == whole.layers[0].events.sum(0).tolist()
    assert first.dense.tolist() == [[6 * 16 * 9] * 3]
    assert first.inputs.tolist() == [[6 * 9] * 3]
    assert last.events.tolist() == [[12] * 3]


def test_a_constant_input_is_known_and_can_be_hoisted(x):
    for name, constant in (
        ("direct", [True, False, False]),
        ("poisson", [False] * 3),
        ("one step", [False] * 3),
        ("ann", [False] * 3),
    ):
        operations = count_operations(make(name), x)
        assert [layer.constant for layer in operations.layers] == constant
        hoisted = operations.hoisted()
        saved = 3 * 4 * 9 * 16 if name == "direct" else 0
        assert operations.dense_mac - hoisted.dense_mac == saved
        assert torch.equal(hoisted.layers[0].events[:1], operations.layers[0].events[:1])
        assert torch.equal(hoisted.layers[1].events, operations.layers[1].events)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "recurrent"])  # deploy refuses it
def test_a_chip_executes_what_the_model_does(name, x):
    model = make(name)
    chip = deploy(model, Chain(), seed=1)
    with draws(model, 3), draws(chip, 3):
        ours, theirs = count_operations(model, x), count_operations(chip, x)
    assert [layer.type for layer in theirs.layers] == ["DeployedLayer"] * 3
    assert [layer.name for layer in theirs.layers] == [layer.name for layer in ours.layers]
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(one.events, other.events)
        assert torch.equal(one.dense, other.dense)
        assert one.kind == other.kind
    assert count_operations(deploy(model, GaussianNoise(multiplicative=0.1), seed=1), x).dense_mac == ours.dense_mac


def test_the_model_is_as_it_was(model, x):
    model.train()
    next(model.modules()).training = True
    list(model.modules())[-1].training = False
    modes = [m.training for m in model.modules()]
    state = deepcopy(model.state_dict())
    torch.manual_seed(5)
    count_operations(model, x)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_the_draws_are_those_of_the_context(x):
    model = make("poisson")
    counts = []
    for key in (3, 3, 4):
        with draws(model, key):
            counts.append(count_operations(model, x).layers[0].events)
    assert torch.equal(counts[0], counts[1])
    assert not torch.equal(counts[0], counts[2])


def test_a_layer_that_stands_twice_counts_twice():
    torch.manual_seed(0)
    linear = nn.Linear(4, 4)
    nn.init.constant_(linear.weight, 1.0)
    twice = count_operations(Sequential(linear, LIF(), linear), spikes_of(3, 2, 4))
    (layer,) = twice.layers
    assert layer.dense.tolist() == [[32] * 2] * 3
    assert layer.inputs.tolist() == [[8] * 2] * 3
    assert layer.kind == "AC"
    (graded,) = count_operations(Sequential(linear, LIF(), linear), 2 * spikes_of(3, 2, 4)).layers
    assert graded.kind == "MAC"  # 2 the first time, 1 the second
    (ann,) = count_operations(nn.Sequential(linear, nn.ReLU(), linear), spikes_of(2, 4)).layers
    assert ann.dense.tolist() == [[32] * 2]


def test_a_layer_that_stands_twice_is_constant_if_it_is_so_in_both_places():
    linear, x = nn.Linear(4, 4), torch.rand(1, 2, 4).expand(3, -1, -1)
    nn.init.constant_(linear.weight, 0.1)
    for network, constant in ((Sequential(linear, linear), True), (Sequential(linear, LIF(), linear), False)):
        assert count_operations(network, x).layers[0].constant == constant
    assert not count_operations(Sequential(nn.RNN(4, 4)), x).layers[0].constant
    made_constant = Sequential(linear, nn.Threshold(1e9, 0.5), linear)
    assert not count_operations(made_constant, spikes_of(3, 2, 4)).layers[0].constant


def test_large_inputs_are_counted_in_chunks(monkeypatch):
    x = spikes_of(4, 3, 2, 6, 6)
    network = Sequential(nn.Conv2d(2, 3, 3, padding=1))
    whole = count_operations(network, x).layers[0]
    monkeypatch.setattr("snnrobust.energy.count._CHUNK", 100)
    parts = count_operations(network, x).layers[0]
    assert torch.equal(whole.events, parts.events)
    assert torch.equal(whole.nonzero, parts.nonzero)


def test_the_axes_of_any_memory_layout():
    x = spikes_of(4, 3, 2, 6, 6)
    network = Sequential(nn.Conv2d(2, 3, 3, padding=1))
    expected = count_operations(network, x).layers[0].events
    strided = x.transpose(3, 4).contiguous().transpose(3, 4)
    assert not strided.is_contiguous()
    assert torch.equal(count_operations(network, strided).layers[0].events, expected)


class Folds(nn.Module):
    """Patches in the batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x):
        return self.linear(x.view(-1, 2)).view(len(x), -1)


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) + super().forward(-x)


class OwnRNN(nn.LSTM):
    def forward(self, x, hx=None):
        return super().forward(x, hx)


class Started(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 3, batch_first=True)

    def forward(self, x):
        return self.rnn(x, torch.ones(1, len(x), 3))[0][:, -1]


class Twice(Temporal):
    """A layer that each step runs twice: its calls do not tell the steps."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def initial_state(self, x_t):
        return None

    def step(self, x_t, state):
        return self.linear(self.linear(x_t)), None


class Streams(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = make("poisson")

    def forward(self, x):
        return list(self.model.stream(x))[-1]


@pytest.mark.parametrize(
    ("model", "x", "error", "message"),
    [
        ("model", torch.ones(2, 4), TypeError, "model must be a torch.nn.Module"),
        (nn.Linear(4, 2), [1.0], TypeError, "x must be a tensor"),
        (nn.Linear(4, 2), torch.ones(2, 4).int(), TypeError, "x must be floating"),
        (nn.Linear(4, 2), torch.ones(0, 4), ValueError, "x must be a batch .* not empty"),
        (nn.Linear(4, 2), torch.tensor(1.0), ValueError, "x must be a batch"),
        (nn.Linear(4, 2), torch.full((2, 4), torch.nan), ValueError, "x contains NaN"),
        (Sequential(nn.Linear(4, 2)), torch.ones(0, 2, 4), ValueError, "x must be .* at least one time step"),
        (Sequential(nn.Linear(4, 2)), torch.ones(2, 0, 4), ValueError, "x must be a batch .* not empty"),
        (nn.Sequential(nn.Threshold(2.0, torch.nan), nn.Linear(4, 2)), torch.ones(2, 4), ValueError, "saw NaN inputs"),
        (nn.Flatten(), torch.ones(2, 4), ValueError, "no synaptic layer of the model ran"),
        (nn.Sequential(nn.Bilinear(4, 4, 2)), torch.ones(2, 4), TypeError, r"0 \(Bilinear\) has weights, but"),
        (nn.Sequential(nn.ConvTranspose1d(4, 4, 2)), torch.ones(2, 4, 4), TypeError, r"ConvTranspose1d\) has weights"),
        (nn.LSTMCell(4, 4), torch.ones(2, 4), TypeError, r"the model \(LSTMCell\) has weights"),
        (nn.MultiheadAttention(4, 2), torch.ones(2, 4), TypeError, r"the model \(MultiheadAttention\) has weights"),
        (nn.Sequential(Own(4, 2)), torch.ones(2, 4), TypeError, r"0 \(Own\) has a forward of its own"),
        (Sequential(OwnRNN(4, 2)), torch.ones(3, 2, 4), TypeError, r"0 \(OwnRNN\) has a forward of its own"),
        (nn.Sequential(nn.LSTM(4, 4, bidirectional=True)), torch.ones(2, 4), TypeError, "bidirectional or has a projection"),
        (nn.Sequential(nn.LSTM(4, 4, proj_size=2)), torch.ones(2, 4), TypeError, "bidirectional or has a projection"),
        (Folds(), torch.ones(3, 4), ValueError, r"linear \(Linear\) saw \(6, 2\) at its call 1"),
        (Twice(), torch.ones(3, 2, 4), ValueError, r"linear \(Linear\) saw \(2, 4\) at its call 4, .* T = 3 steps of B = 2"),
        (Started(), torch.ones(2, 3, 4), ValueError, r"rnn \(GRU\) got an initial state"),
        (nn.Sequential(nn.RNN(4, 3)), torch.ones(2, 4), ValueError, r"0 \(RNN\) must get a batch of sequences of rank 3"),
        (nn.Sequential(nn.RNN(4, 3)), torch.ones(2, 3, 4), ValueError, r"0 \(RNN\) saw 2 steps of 3 samples"),
        (Streams(), torch.ones(2, 1, 4, 4), ValueError, "only stepped its neurons"),
        (nn.ModuleList([Poisson(2), Poisson(3)]), torch.ones(2, 4), ValueError, r"encoders of \[2, 3\] time steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_refused(model, x, error, message):
    with pytest.raises(error, match=message):
        count_operations(model, x)
    if isinstance(model, nn.Module):
        assert not any(m._forward_hooks for m in model.modules())


def test_normalisation_and_neurons_with_parameters_are_no_synapses():
    network = Sequential(nn.Linear(3, 4), BNTT(4, 2), nn.LayerNorm([4]), LIF())
    assert [layer.type for layer in count_operations(network, spikes_of(2, 3, 3)).layers] == ["Linear"]
