"""Energy by hand, and what holds of any network."""

import json
from dataclasses import dataclass, replace

import matplotlib.image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy import CMOS45, Operations, PrecisionScalable, count_operations, estimate
from snnrobust.layers import BNTT, MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import IF, LIF

UNIT = CMOS45(1.0, 1.0, 1.0, 1.0, 1.0, 32, 1.0, 1.0, 1.0)
"""One pJ for each operation of floats and each word."""
T = 4


def by_what(report, name=None):
    return {part.what: part.pj for part in report.parts if name in (None, part.name)}


def spikes(*shape, rate=0.4):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < rate).float()


def snn(encoder=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Sequential(nn.Linear(6, 5), BNTT(5, T), LIF(0.9, 0.2), nn.Linear(5, 3), IF(0.1))
    return SpikingClassifier(encoder or Poisson(T), network, MeanOutput())


@pytest.fixture
def counted():
    model, x = snn(), torch.rand(7, 6, generator=torch.Generator().manual_seed(1))
    with draws(model, 3):
        return count_operations(model, x)


def test_an_ordinary_layer_by_hand():
    """Three inputs, two of them not zero, four outputs."""
    operations = count_operations(nn.Sequential(nn.Linear(3, 4)), torch.tensor([[0.5, 0.0, 0.25]]))
    skipped, dense = estimate(operations), estimate(operations, event_driven=False)
    assert skipped.usual == pytest.approx(8 * 4.6)
    assert dense.usual == pytest.approx(12 * 4.6)
    assert by_what(skipped) == pytest.approx({"MAC": 36.8, "weights": 8 * 5, "inputs": 2 * 3 * 5, "biases": 4 * 0.9})
    assert by_what(dense)["weights"] == 12 * 5
    assert skipped.forgotten == pytest.approx(3.6)


def test_a_convolution_by_hand():
    """Two kernels of 3 x 3, stride 2, padding 1, on 4 x 4 ones: the four windows hold 4, 6, 6 and 9 pixels."""
    operations = count_operations(
        Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1, bias=False)), torch.ones(1, 1, 1, 4, 4)
    )
    synapses = 2 * (4 + 6 + 6 + 9)
    report = estimate(operations)
    assert by_what(report) == pytest.approx(
        {"AC": synapses * 0.9, "weights": synapses * 5, "inputs": 2 * 16 * 5 / 32, "biases": 0}
    )
    assert estimate(operations, event_driven=False).usual == pytest.approx(2 * 4 * 9 * 0.9)
    assert by_what(estimate(operations, reuse=True))["weights"] == 18 * 5


def test_a_spiking_network_by_hand():
    """Inputs of one step at a time: 1 0, 1 1, 0 0. With weights of 1 and threshold 1.5: potentials 1; 3 -> 1.5; 1.5 -> 0."""
    linear = nn.Linear(2, 1, bias=False)
    nn.init.ones_(linear.weight)
    x = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
    operations = count_operations(Sequential(linear, IF(threshold=1.5), nn.Linear(1, 4)), x)
    report = estimate(operations, UNIT)
    assert by_what(report, "0") == pytest.approx({"AC": 3, "weights": 3, "inputs": 2 * 6 / 32, "biases": 0})
    # a charge and a comparison at each of three steps, two soft resets; a read and a write of one state at each
    assert by_what(report, "1") == {"leaks": 0, "updates": 3 * 2 + 2, "membranes": 6}
    assert by_what(report, "2") == pytest.approx({"AC": 2 * 4, "weights": 8, "inputs": 2 * 3 / 32, "biases": 3 * 4})
    assert (report.usual, report.forgotten) == (11, 8 + 6 + 12)
    leaky = estimate(count_operations(Sequential(linear, LIF(0.5, reset="hard")), x), UNIT)
    assert by_what(leaky, "1") == {"leaks": 3, "updates": 6, "membranes": 6}


def test_signed_spikes_have_two_bits():
    operations = count_operations(Sequential(nn.Linear(3, 1)), torch.tensor([[[1.0, -1.0, 0.0]]]))
    assert by_what(estimate(operations, UNIT))["inputs"] == pytest.approx(2 * 3 * 2 / 32)


def test_what_is_left_out_usually(counted):
    """BNTT is a MAC an element, Poisson a comparison an input."""
    report = estimate(counted, UNIT)
    assert report.of("network.1", what="normalisation") == 2 * T * 5
    assert report.of("encoder") == T * 6
    direct = estimate(count_operations(snn(Direct(T)), torch.rand(3, 6)), UNIT)
    assert direct.of("encoder") == 0
    assert report.of(group="usual") == report.usual == pytest.approx(counted.ac)
    assert report.usual + report.traffic + report.forgotten == pytest.approx(report.total)


def test_the_first_layer_of_direct_code_multiplies():
    operations = count_operations(snn(Direct(T)), torch.rand(3, 6) + 0.1)
    report = estimate(operations)
    assert report.of(what="MAC") == pytest.approx(T * 30 * 4.6)
    assert report.usual == pytest.approx(operations.mac * 4.6 + operations.ac * 0.9)
    assert estimate(operations.hoisted()).of(what="MAC") == pytest.approx(30 * 4.6)


def test_mixed_precision_by_hand():
    operations = count_operations(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(1, 3) + 0.1)
    bits = {"0": (8, 4, 32)}
    report = estimate(operations, bits=bits)
    assert by_what(report, "0") == pytest.approx(
        {"MAC": 12 * (3.1 * 32 / 1024 + 0.1), "weights": 12 * 5 / 4, "inputs": 6 * 5 / 8, "biases": 4 * 0.1}
    )
    assert report.of("2") == estimate(operations).of("2")
    floats = estimate(operations, bits={"0": (8, 32, 32)})  # a float input makes a float product
    assert floats.of("0", what="MAC") == estimate(operations).of("0", what="MAC")
    scalable = estimate(operations, PrecisionScalable(), bits=bits)
    assert by_what(scalable, "0") == pytest.approx(
        {"MAC": 12 * (3.1 * 8 / 32 + 0.1), "weights": 12 * 20, "inputs": 6 * 10, "biases": 4 * 0.1}
    )


def test_spikes_stay_spikes_and_membranes_follow_their_layer(counted):
    report = estimate(counted, bits={"network.0": (4, 8, 16)})
    first = {part.what: part for part in report.parts if part.name == "network.0"}
    assert first["AC"].pj == pytest.approx(0.1 * first["AC"].count)
    assert first["inputs"].bits == 1
    assert report.of("network.2", what="membranes") == pytest.approx(2 * T * 5 * 5 / 2)
    assert report.of("network.4", what="membranes") == pytest.approx(2 * T * 3 * 5)
    assert report.of("network.2", what="leaks") == pytest.approx(T * 5 * 3.1 / 4)
    named = estimate(counted, bits={"network.0": (4, 8, 16), "network.2": (32, 32, 8)})
    assert named.of("network.2", what="membranes") == pytest.approx(2 * T * 5 * 5 / 4)


def test_an_entry_of_a_precision_report_does_as_well(counted):
    @dataclass(frozen=True)
    class LayerPrecision:
        weights: int = 4
        inputs: int = 8
        membranes: int = 16

    bits = {"network.0": (4, 8, 16)}
    assert estimate(counted, bits={"network.0": LayerPrecision()}).parts == estimate(counted, bits=bits).parts


class Rounded(nn.Module):
    def forward(self, weight):
        return torch.round(weight * 4) / 4


def test_a_parametrized_network_costs_what_its_plain_copy_does():
    made, plain = snn(), snn()
    for layer in (made.network[0], made.network[3]):
        parametrize.register_parametrization(layer, "weight", Rounded())
    with torch.no_grad():
        for layer in (plain.network[0], plain.network[3]):
            layer.weight.copy_(Rounded()(layer.weight))
    x = torch.rand(4, 6)
    reports = []
    for model in (made, plain):
        with draws(model, 1):
            reports.append(estimate(count_operations(model, x)))
    assert reports[0].parts == reports[1].parts
    assert {part.type for part in reports[0].parts} == {"Linear", "LIF", "IF", "BNTT", "Poisson"}


def test_early_exit(counted):
    exits = torch.tensor([1, 4, 2, 2, 3, 1, 4])
    stopped = estimate(counted.upto(exits))
    singles = [estimate(_sample(counted, i).upto(int(exits[i]))).total for i in range(7)]
    assert stopped.total == pytest.approx(sum(singles) / 7)
    assert estimate(counted.upto(T)).parts == estimate(counted).parts
    assert stopped.of(what="membranes") == pytest.approx(2 * 8 * 5 * float(exits.double().mean()))


def _sample(operations, i):
    def cut(of):
        return replace(of, **{k: v[:, i : i + 1] for k, v in vars(of).items() if isinstance(v, torch.Tensor)})

    parts = operations.layers, operations.neurons, operations.elementwise
    return Operations(1, operations.time_steps, *(tuple(map(cut, part)) for part in parts))


def test_batches_join(counted):
    halves = Operations.join([_sample(counted, i) for i in range(7)])
    for one, other in zip(estimate(halves, reuse=True).parts, estimate(counted, reuse=True).parts, strict=True):
        assert one == other


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 32)] * 3), st.integers(0, 2), st.sampled_from([CMOS45(), PrecisionScalable()]), st.booleans(),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_more_bits_cost_more_and_layers_add_up(widths, grown, costs, event_driven, reuse, real):
    x = spikes(3, 2, 4)
    network = Sequential(nn.Linear(4, 3), LIF(), nn.Linear(3, 2))
    nn.init.constant_(network[0].weight, 0.6)
    operations = count_operations(network, x * torch.tensor([0.5, 1, 1, 2]) if real else x)
    more = tuple(min(32, b + (i == grown)) for i, b in enumerate(widths))
    small, large = (
        estimate(operations, costs, bits={"0": b}, event_driven=event_driven, reuse=reuse) for b in (widths, more)
    )
    for one, other in zip(small.parts, large.parts, strict=True):
        assert one.pj <= other.pj + 1e-12
    names = {part.name for part in small.parts}
    assert sum(small.of(name) for name in names) == pytest.approx(small.total)
    steps = [
        estimate(operations.upto(t), costs, bits={"0": widths}, event_driven=event_driven, reuse=reuse).total
        for t in (1, 2, 3)
    ]
    assert steps == sorted(steps)
    assert steps[-1] == small.total
    frugal = estimate(operations, costs, bits={"0": widths}, event_driven=True, reuse=True)
    assert frugal.total <= small.total + 1e-12


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"operations": 3}, TypeError, "operations must come from count_operations"),
        ({"costs": CMOS45}, TypeError, r"costs must be an instance such as CMOS45\(\)"),
        ({"costs": 4.6}, TypeError, "costs must be an instance"),
        (
            {"bits": {"conv": (8, 8, 8)}},
            ValueError,
            "bits names 'conv', which did not run: the layers are 'network.0', 'network.3'",
        ),
        (
            {"bits": {"network.0": (8, 8)}},
            TypeError,
            r"bits\['network.0'\] must be \(weight bits, input bits, membrane bits\)",
        ),
        ({"bits": {"network.0": 8}}, TypeError, r"bits\['network.0'\] must be"),
        (
            {"bits": {"network.0": (8, 8, 33)}},
            ValueError,
            r"bits\['network.0'\] must be a number of bits from 1 to 32, got 33",
        ),
        ({"bits": {"network.0": (0, 8, 8)}}, ValueError, r"bits\['network.0'\] must be at least 1, got 0"),
        ({"bits": {"network.0": (8.0, 8, 8)}}, TypeError, r"bits\['network.0'\] must be an integer"),
        ({"event_driven": 1}, TypeError, "event_driven must be True or False"),
        ({"reuse": "yes"}, TypeError, "reuse must be True or False"),
    ],
)
def test_bad_input(counted, change, error, message):
    arguments = {"operations": counted, **change}
    with pytest.raises(error, match=message):
        estimate(**arguments)


def test_the_table(counted):
    report = estimate(counted, UNIT)
    lines = report.table().splitlines()
    assert lines[0].split() == [
        "layer",
        "type",
        "operations",
        "bits",
        "usual",
        "nJ",
        "traffic",
        "nJ",
        "forgotten",
        "nJ",
    ]
    assert [line.split()[0] for line in lines[2:8]] == [
        "network.0",
        "network.3",
        "network.2",
        "network.4",
        "encoder",
        "network.1",
    ]
    assert lines[2].split()[1:5] == ["Linear", f"{float(counted.layers[0].ac.sum()):,.0f}", "AC", "32"]
    assert lines[9].split()[:2] == ["all", "layers"]
    assert float(lines[9].split()[-1]) == pytest.approx(report.forgotten / 1e3, rel=1e-3)
    assert lines[10].startswith(
        "per sample, mean of 7, T = 4; CMOS45; zeros skipped, a weight is read for each operation"
    )
    assert lines[11].startswith("forgotten: biases ")
    assert "dense, a weight is read once a step" in estimate(counted, event_driven=False, reuse=True).table()


def test_files(counted, tmp_path):
    report = estimate(counted)
    report.save(tmp_path / "energy.json")
    read = json.loads((tmp_path / "energy.json").read_text())
    assert read == json.loads(json.dumps(report.to_json()))
    assert read["costs"]["type"] == "CMOS45"
    assert read["costs"]["float_add"] == 0.9
    assert sum(part["pj"] for part in read["parts"]) == pytest.approx(read["total"])
    report.plot(tmp_path / "energy.png")
    assert matplotlib.image.imread(tmp_path / "energy.png").ndim == 3
