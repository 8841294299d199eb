"""Conversion as a function and as a trainer: what comes out, its report, resuming, refusals."""

import itertools
import json
import re

import pytest
import torch
from torch import nn

from snnrobust import data, models
from snnrobust.data import load, take
from snnrobust.encoders import Direct, Latency, Poisson
from snnrobust.layers import BNTT, QCFS, MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.learning_rules import BPTT, RULES, Conversion, convert, quantised
from snnrobust.learning_rules.conversion_ann import folded
from snnrobust.learning_rules.conversion_report import report_steps, suggest
from snnrobust.learning_rules.conversion_scales import neurons
from snnrobust.learning_rules.conversion_twin import twin
from snnrobust.models import ARCHITECTURES, Conv, Dense, Dropout, Normalise, Pool, Residual, SpikingClassifier, spiking
from snnrobust.neurons import IF, LIF, PrechargedIF
from snnrobust.neurons.surrogate import ATan, SpikeTime

TRAIN, TEST = take(load("digits", "train"), 400), take(load("digits", "test"), 200)
ARCHITECTURE = (Conv(4), Pool(), Residual((Conv(4), Dropout(0.2), Conv(8, stride=2))), Dense(16))


def make(architecture=ARCHITECTURE, encoder=None, seed=0, neuron=None, norm="none", readout=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Direct(8) if encoder is None else encoder
        readout = MeanOutput() if readout is None else readout
        return spiking(architecture, (1, 8, 8), 10, encoder, neuron or IF(), norm, readout)


def accuracy(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


# --- the trainer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("encoder", [Direct(8), Poisson(8)], ids=lambda e: type(e).__name__)
def test_the_model_becomes_the_conversion_of_its_twin_in_place(encoder, levels):
    model = make(encoder=encoder, neuron=IF(2.0, surrogate=ATan(3.0), detach_reset=False))
    network, synapse, readout = model.network, model.network[0], model.readout
    history = Conversion(levels=levels, lr=1e-2, initial=0.5).fit(model, TRAIN, TEST, epochs=2, progress=False)
    assert (model.network, model.network[0], model.encoder, model.readout) == (network, synapse, encoder, readout)
    assert not model.training
    found = [n for _, n in neurons(model)]
    assert all(type(n) is PrechargedIF and n.initial == 0.5 and not n.detach_reset for n in found)
    assert [n.surrogate.alpha * n.threshold for n in found] == pytest.approx([3.0] * len(found))
    report = history.conversion
    assert [layer["threshold"] for layer in report["layers"]] == [n.threshold for n in found]
    assert [layer["name"] for layer in report["layers"]] == [name for name, _ in neurons(model)]
    assert len(history.records) == 2
    if isinstance(encoder, Direct):
        assert report["validation_accuracy"] == pytest.approx(accuracy(model, *TEST))
    assert json.loads(json.dumps(report)) == json.loads(json.dumps(history.conversion))


def test_it_is_the_conversion_of_its_twin():
    """Trained apart by the same rule, and converted by the function."""
    rule, model, other = Conversion(lr=1e-2), make(), make()
    rule.fit(model, TRAIN, epochs=1, progress=False)
    ann = twin(other, True, None)
    BPTT(lr=1e-2).fit(ann, TRAIN, epochs=1, progress=False)
    expected, _ = convert(ann, TRAIN, time_steps=8)
    with torch.no_grad():
        assert torch.equal(model(TEST[0]), expected(TEST[0]))
    assert repr(model) == repr(expected)


def test_two_trainings_are_alike_and_a_resumed_one_too(tmp_path):
    class Killed(BaseException):
        pass

    class Limited(torch.utils.data.Dataset):
        left = 500

        def __len__(self):
            return len(TRAIN[0])

        def __getitem__(self, index):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return TRAIN[0][index], TRAIN[1][index]

    rule, endless = Conversion(lr=1e-2, levels=4), Limited()
    endless.left = 10**9
    whole = make()
    history = rule.fit(whole, endless, TEST, epochs=2, progress=False)
    with pytest.raises(Killed):
        rule.fit(make(), Limited(), TEST, epochs=2, progress=False, checkpoint=tmp_path / "c")
    assert (tmp_path / "c").exists()
    resumed = make(seed=9)
    again = rule.fit(resumed, endless, TEST, epochs=2, progress=False, checkpoint=tmp_path / "c")
    assert again.conversion == history.conversion
    with torch.no_grad():
        assert torch.equal(resumed(TEST[0]), whole(TEST[0]))


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_the_same_model_again(initial, tmp_path):
    rule, model = Conversion(lr=1e-2, initial=initial), make()
    settings = {"epochs": 2, "progress": False}
    first = rule.fit(model, TRAIN, TEST, **settings, checkpoint=tmp_path / "c")
    text = repr(model)
    again = rule.fit(model, TRAIN, TEST, **settings, checkpoint=tmp_path / "c")
    assert again == first
    assert repr(model) == text
    assert [n.surrogate.alpha * n.threshold for _, n in neurons(model)] == pytest.approx([2.0] * 4)
    for path in (None, tmp_path / "d"):
        with pytest.raises(ValueError, match=r"was converted already.*start from a new one"):
            rule.fit(model, TRAIN, TEST, **settings, checkpoint=path)


def test_records_say_whose_accuracy_it_is():
    model, ann = make(), twin(make(), True, None)
    history = Conversion(lr=1e-2).fit(model, TRAIN, TEST, epochs=2, progress=False)
    of_ann = BPTT(lr=1e-2).fit(ann, TRAIN, TEST, epochs=2, progress=False)
    assert [r["ann_accuracy"] for r in history.records] == [r["validation_accuracy"] for r in of_ann.records]
    assert [r["validation_accuracy"] for r in history.records] == [None, pytest.approx(accuracy(model, *TEST))]
    without = Conversion().fit(make(), TRAIN, epochs=1, progress=False)
    assert (without.last["validation_accuracy"], without.last["ann_accuracy"]) == (None, None)


def test_nan_in_a_later_batch_is_not_blamed_on_lr():
    x = TRAIN[0].clone()
    x[300, 0, 3, 3] = float("nan")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, TRAIN[1]), batch_size=100)
    with pytest.raises(ValueError, match="inputs of batch 4 in epoch 1 hold NaN or infinity"):
        Conversion().fit(make(), loader, epochs=1, progress=False)


def test_a_converted_model_goes_through_a_checkpoint_and_streams(tmp_path):
    model = make()
    Conversion(lr=1e-2).fit(model, TRAIN, epochs=1, progress=False)
    models.save(model, tmp_path / "m")
    loaded = models.load(tmp_path / "m")
    x = TEST[0][:20]
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        assert repr(loaded) == repr(model)
        *_, last = model.stream(x)
        torch.testing.assert_close(last, model(x), rtol=1e-4, atol=1e-4)
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert (gradient != 0).float().mean() > 0.5  # its surrogates are alive


@pytest.mark.parametrize(("levels", "time_steps", "drop"), [(None, 32, 0.015), (8, 8, 0.03)])
def test_digits(levels, time_steps, drop):
    model = make(ARCHITECTURES["conv-small"], Direct(time_steps))
    history = Conversion(levels=levels, lr=3e-3).fit(
        model, load("digits", "train"), load("digits", "test"), epochs=4, progress=False
    )
    of_ann = history.last["ann_accuracy"]
    assert of_ann > 0.93
    assert history.conversion["validation_accuracy"] > of_ann - drop


def test_the_rate_error_falls_with_time():
    model = make(ARCHITECTURES["conv-small"], Direct(64))
    report = Conversion(lr=3e-3, method="max").fit(model, TRAIN, epochs=3, progress=False).conversion
    assert report["steps"] == (4, 8, 16, 32, 64)
    for layer in report["layers"]:
        errors = layer["rate_errors"]
        assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors))
        assert errors[-1] < 0.06
        assert layer["saturation"] == 0.0
    assert report["agreements"][-1] > 0.98


def test_qcfs_is_better_at_few_steps():
    found = {}
    for levels in (None, 4):
        model = make(ARCHITECTURES["conv-small"], Direct(4))
        report = Conversion(levels=levels, lr=3e-3).fit(model, TRAIN, epochs=3, progress=False).conversion
        found[levels] = [layer["rate_errors"][-1] for layer in report["layers"]]
    assert found[4][0] < 1e-3  # of a constant input it is exact
    assert found[4][1] < 0.7 * found[None][1]


# --- the function and its report ------------------------------------------------------------------------------


def fixed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def test_the_report_against_a_second_computation():
    ann = fixed()
    model, report = convert(ann, TEST, time_steps=10, samples=1000, percentile=97.0, batch_size=64)
    assert report.steps == (4, 8, 10)
    assert report.samples == 200
    with torch.no_grad():
        activation = ann[:3](TEST[0]).double()
        answers = ann(TEST[0]).argmax(1)
        for i, T in enumerate(report.steps):
            short, _ = convert(ann, TEST, time_steps=T, samples=1000, percentile=97.0)
            rates = []
            neurons(short)[0][1].register_forward_hook(lambda _, __, s, rates=rates: rates.append(s.mean(0).double()))
            given = short(TEST[0]).argmax(1)
            error = (rates[0] * report.layers[0].scale - activation).abs().mean() / activation.mean()
            assert report.layers[0].rate_errors[i] == pytest.approx(float(error), rel=1e-4)
            assert report.accuracies[i] == pytest.approx(float((given == TEST[1]).float().mean()))
            assert report.agreements[i] == pytest.approx(float((given == answers).float().mean()))
        assert report.ann_accuracy == pytest.approx(float((answers == TEST[1]).float().mean()))
        above = (activation > report.layers[0].scale).sum() / (activation > 0).sum()
        assert report.layers[0].saturation == pytest.approx(float(above))
    assert 0.02 < report.layers[0].saturation < 0.1
    assert model.time_steps == 10


def test_what_is_suggested():
    ann = fixed()
    answers = ann(TEST[0]).argmax(1)
    _, report = convert(
        ann, (TEST[0], answers), time_steps=256, samples=200, method="max"
    )  # the network is always right
    assert report.ann_accuracy == 1.0
    good = [T for T, a in zip(report.steps, report.accuracies, strict=True) if a >= 0.995]
    assert report.suggested == min(T for T in report.steps if all(s in good for s in report.steps if s >= T))
    assert 4 < report.suggested <= 256
    _, report = convert(ann, (TEST[0], answers), time_steps=2, samples=200, initial=0.0)
    assert report.suggested is None
    assert "suggested: none of these: use more time steps" in report.table()


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ((0.9, 0.9, 0.9), 4),
        ((0.9, 0.8, 0.9), 16),
        ((0.8, 0.895, 0.9), 8),
        ((0.8, 0.894, 0.9), 16),
        ((0.9, 0.9, 0.8), None),
    ],
)
def test_a_suggestion_holds_for_more_steps_too(accuracies, expected):
    assert suggest((4, 8, 16), accuracies, 0.9) == expected


def test_a_network_without_activations_has_a_table():
    _, report = convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), TEST, time_steps=4)
    assert report.layers == ()
    assert "accuracy" in report.table()


def test_the_table():
    _, report = convert(fixed(), TEST, time_steps=16)
    text = report.table()
    assert "network.2" in text
    assert f"{report.accuracies[-1]:.2%}" in text
    assert all(f"T={T}" in text for T in (4, 8, 16))
    assert f"{report.layers[0].rate_errors[0]:.3f}" in text
    assert json.loads(json.dumps(report.to_json()))["layers"][0]["name"] == "network.2"
    assert [report_steps(T) for T in (1, 4, 5, 64)] == [(1,), (4,), (4, 5), (4, 8, 16, 32, 64)]


def test_converting_changes_neither_the_network_nor_the_data():
    ann = quantised(fixed(), 4).train()
    before = {n: t.clone() for n, t in ann.state_dict().items()}
    x = TEST[0].clone()
    convert(ann, (x, TEST[1]), time_steps=4)
    assert ann.training
    assert torch.equal(x, TEST[0])
    assert all(torch.equal(t, before[n]) for n, t in ann.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ann.modules())


def test_samples_are_drawn_by_the_seed():
    """Of data that is sorted by class, too."""
    ann, order = fixed(), TEST[1].argsort()
    pair = TEST[0][order], TEST[1][order]
    first, same, other = (convert(ann, pair, time_steps=4, samples=20, seed=s)[1] for s in (0, 0, 1))
    assert first == same
    assert first.layers[0].scale != other.layers[0].scale
    assert first.samples == 20


def test_the_surrogate_is_as_wide_as_the_threshold():
    model, report = convert(fixed(), TEST, time_steps=4, surrogate=SpikeTime(0.3, 0.01))
    found = neurons(model)[0][1].surrogate
    assert type(found) is SpikeTime
    assert (found.alpha * report.layers[0].threshold, found.beta) == pytest.approx((0.3, 0.01))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"time_steps": 0}, ValueError, "time_steps"),
        ({"method": "best"}, ValueError, "method"),
        ({"percentile": 0.0}, ValueError, "percentile"),
        ({"percentile": 101.0}, ValueError, "percentile"),
        ({"initial": 1.5}, ValueError, "initial"),
        ({"samples": 0}, ValueError, "samples"),
        ({"encoder": Direct(5)}, ValueError, "encoder must be one of 4 time steps"),
        ({"encoder": Latency(4)}, TypeError, "Latency gives another one: use Direct or Poisson"),
        ({"surrogate": 2.0}, TypeError, "surrogate must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        convert(fixed(), TEST, **{"time_steps": 4, **arguments})


def test_normalise_and_poisson():
    ann = models.ordinary((Normalise(0.3, 0.4), Dense(6)), (1, 8, 8), 10)
    convert(ann, TEST, time_steps=4)
    with pytest.raises(ValueError, match="Normalise would normalise the spikes of Poisson"):
        convert(ann, TEST, time_steps=4, encoder=Poisson(4))
    model, _ = convert(ann, TEST, time_steps=512, method="max")
    with torch.no_grad():
        torch.testing.assert_close(model(TEST[0]), folded(ann)(TEST[0]), rtol=0, atol=0.02)


# --- what the trainer refuses ---------------------------------------------------------------------------------


def _shared():
    linear = nn.Linear(16, 16)
    parts = (nn.Flatten(), nn.Linear(64, 16), IF(), linear, IF(), linear, IF(), nn.Linear(16, 10))
    return SpikingClassifier(Direct(4), Sequential(*parts), MeanOutput())


def _parts(*parts):
    layers = (nn.Flatten(), nn.Linear(64, 16), *parts, nn.Linear(16, 10))
    return SpikingClassifier(Direct(4), Sequential(*layers), MeanOutput())


def _without_bias():
    layers = (nn.Flatten(), nn.Linear(64, 16, bias=False), IF(), nn.Linear(16, 10))
    return SpikingClassifier(Direct(4), Sequential(*layers), MeanOutput())


def _frozen():
    model = make()
    model.network[0].weight.requires_grad_(False)
    return model


REFUSED = {
    "ordinary": (fixed, TypeError, "learning_rules.convert(ann, data, time_steps=...) makes one"),
    "encoder": (lambda: make(encoder=Latency(4)), TypeError, "use Direct or Poisson"),
    "readout": (lambda: make(readout=SpikeCount()), ValueError, "use MeanOutput()"),
    "leaky readout": (lambda: make(readout=MeanMembrane(0.9)), ValueError, "use MeanOutput()"),
    "leak": (lambda: make(neuron=LIF(0.9)), ValueError, "use IF(), which has no leak"),
    "reset": (lambda: make(neuron=IF(reset="hard")), ValueError, "soft reset"),
    "refractory": (lambda: make(neuron=IF(refractory=1)), ValueError, "refractory"),
    "norm": (lambda: make(norm="BNTT"), TypeError, "network.1 (BNTT): build the network with norm='none'"),
    "max pooling": (lambda: make((Conv(4), Pool(kind="max"))), TypeError, "network.2 (MaxPool2d): the largest of spikes"),
    "dense": (lambda: make((Conv(4), models.DenseBlock(1, 2))), TypeError, "(Concat)"),
    "converted": (lambda: make(neuron=PrechargedIF()), ValueError, "was converted already"),
    "frozen": (_frozen, ValueError, "network.0.weight is frozen: set requires_grad=True"),
    "shared": (_shared, ValueError, "stands in two places"),
    "no bias": (_without_bias, ValueError, "has no bias: build it with bias=True, or use batch_norm=False"),
    "ends in spikes": (
        lambda: SpikingClassifier(Direct(4), Sequential(nn.Flatten(), nn.Linear(64, 10), IF()), MeanOutput()),
        ValueError,
        "the network ends in",
    ),
    "relu": (lambda: _parts(nn.ReLU()), TypeError, "network.2 (ReLU)"),
    "norm inside": (lambda: _parts(BNTT(16, 4), IF()), TypeError, "network.2 (BNTT)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_come_before_training(case):
    build, error, message = REFUSED[case]
    model = build()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for call in (
        lambda: Conversion().refuse(model, TRAIN[0][:1]),
        lambda: Conversion().fit(model, TRAIN, epochs=1, progress=False),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_refusing_needs_no_weights():
    with torch.device("meta"):
        model = spiking(ARCHITECTURE, (1, 8, 8), 10, Direct(4), IF(), "none", MeanOutput())
    Conversion(levels=4).refuse(model, torch.empty(1, 1, 8, 8, device="meta"))


def test_without_batch_norm_no_bias_is_needed():
    model = _without_bias()
    Conversion(batch_norm=False, initial=0.0).fit(model, TRAIN, epochs=1, progress=False)
    assert model.network[1].bias is None
    assert type(model.network[2]) is IF


def test_its_needs_make_a_model_that_it_trains():
    assert RULES["Conversion"] is Conversion
    needs = Conversion.needs
    assert (needs["norm"], needs["neuron"]["type"], needs["readout"]["type"]) == ("none", "IF", "MeanOutput")
    Conversion().refuse(make(), TRAIN[0][:1])
    with pytest.raises(ValueError, match="QCFS rounds to the nearest"):
        Conversion(levels=4, initial=0.0)
    for wrong in ({"levels": 0}, {"method": "best"}, {"percentile": -1.0}, {"batch_norm": 1}, {"samples": 0}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            Conversion(**wrong)


def test_the_twin_has_the_very_weights():
    model = make()
    ann = twin(model, True, 4)
    own = {id(p) for p in model.parameters()}
    extra = [m for m in ann.modules() if any(id(p) not in own for p in m.parameters(recurse=False))]
    assert {type(m) for m in extra} == {nn.BatchNorm1d, nn.BatchNorm2d, QCFS}
    assert own <= {id(p) for p in ann.parameters()}
    assert sum(isinstance(m, nn.BatchNorm2d) for m in ann.modules()) == 4  # stem, body twice, shortcut


@pytest.mark.slow
def test_mnist_within_half_a_point():
    try:
        train, test = data.load("mnist", "train"), data.load("mnist", "test")
    except FileNotFoundError:
        pytest.skip("MNIST is not there: set SNNROBUST_DATA")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = spiking(ARCHITECTURES["conv-small"], (1, 28, 28), 10, Direct(64), IF(), "none", MeanOutput())
    history = Conversion(batch_size=128, lr=2e-3).fit(model, take(train, 20_000), test, epochs=2, progress=False)
    of_ann = history.last["ann_accuracy"]
    assert of_ann > 0.975
    assert abs(of_ann - history.conversion["validation_accuracy"]) <= 0.005
