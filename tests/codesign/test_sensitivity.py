"""ANS against closed forms and against passes through the layers by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnrobust.attacks import FGSM, Linf, RandomNoise
from snnrobust.codesign import activation_density, adversarial_noise_sensitivity
from snnrobust.codesign.activations import activations, plain_names
from snnrobust.draws import derive, draws, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Dense, SpikingClassifier, ordinary, spiking
from snnrobust.neurons import LIF, Recurrent
from snnrobust.quantization import Integer, Quantizer, calibrate, quantize

ATTACK = FGSM(Linf(0.1))


def made(*layers, dtype=torch.float64):
    return nn.Sequential(*layers).to(dtype)


def samples(n=20, shape=(6,), classes=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, *shape, generator=generator, dtype=dtype), torch.arange(n) % classes


def crafted(model, x, y, attack=ATTACK, seed=0):
    return attack(model, x, y, seed=derive(seed, "sensitivity attack") >> 1, sample_ids=torch.arange(len(x)))


def ratio(change, a):
    return float((change.norm() / a.norm()).detach())


@pytest.fixture
def linear():
    with keyed(0):
        return made(nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False))


def test_linear_layers_have_the_closed_form(linear):
    x, y = samples()
    delta = crafted(linear, x, y) - x
    assert delta.abs().max() > 0.05
    w1, w2 = linear[0].weight, linear[1].weight @ linear[0].weight
    found = adversarial_noise_sensitivity(linear, (x, y), ATTACK)
    assert found.ans["0"] == pytest.approx(ratio(delta @ w1.T, x @ w1.T), rel=1e-9)
    assert found.ans["1"] == pytest.approx(ratio(delta @ w2.T, x @ w2.T), rel=1e-9)
    assert list(found.ans) == ["0", "1"]
    assert found.n == 20
    at_input = adversarial_noise_sensitivity(linear, (x, y), ATTACK, where="input").ans
    assert at_input["0"] == pytest.approx(ratio(delta, x), rel=1e-9)
    assert at_input["1"] == pytest.approx(found.ans["0"], rel=1e-12)


def test_where_and_what_is_an_activation():
    with keyed(1):
        model = made(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    x, y = samples(shape=(2, 6, 6))
    model.eval().requires_grad_(False)
    x_adv = crafted(model, x, y)
    outputs = [(model[:k](x_adv) - model[:k](x), model[:k](x)) for k in range(7)]
    expected = {"output": (1, 6), "activation": (3, 6), "input": (0, 5)}
    for where, (first, last) in expected.items():
        found = adversarial_noise_sensitivity(model, (x, y), ATTACK, where=where).ans
        assert found == pytest.approx({"0": ratio(*outputs[first]), "5": ratio(*outputs[last])}, rel=1e-9)
    found = adversarial_noise_sensitivity(model, (x, y), ATTACK, normalised=False)
    over_channels = outputs[3][0].square().sum(1).sqrt().mean()
    assert found.ans["0"] == pytest.approx(float(over_channels), rel=1e-9)
    assert found.ans["5"] == pytest.approx(float(outputs[6][0].square().sum(1).sqrt().mean()), rel=1e-9)


def test_spikes_of_a_spiking_network():
    with keyed(0):
        model = spiking((Dense(12), Dense(8)), (6,), 3, Direct(5), LIF(threshold=0.3), norm="none")
    x, y = samples(dtype=torch.float32)
    x_adv = crafted(model, x, y)
    network = list(model.network)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]

    def spikes(images):
        a, found = images.expand(5, *images.shape), []
        for module in network:
            a = module(a) if isinstance(module, LIF) else module(a.flatten(0, 1)).unflatten(0, (5, len(images)))
            if isinstance(module, LIF):
                found.append(a)
        return [*found, a]

    found = adversarial_noise_sensitivity(model, (x, y), ATTACK)
    by_hand = {n: ratio(a - b, b) for n, a, b in zip(names, spikes(x_adv), spikes(x), strict=True)}
    assert found.ans == pytest.approx(by_hand, rel=1e-5)
    density = activation_density(model, (x, y))
    assert density == pytest.approx({n: float((a != 0).double().mean()) for n, a in zip(names, spikes(x), strict=True)})
    assert 0 < density[names[0]] < 1
    assert activation_density(model, (x, y), where="input")[names[1]] == density[names[0]]


def test_a_layer_that_is_stepped_counts_all_its_steps():
    with keyed(0):
        model = SpikingClassifier(
            Direct(4), Sequential(nn.Linear(6, 8), Recurrent(8, LIF(threshold=0.2)), nn.Linear(8, 3)), MeanOutput()
        )
    x, y = samples(dtype=torch.float32)
    found = adversarial_noise_sensitivity(model, (x, y), ATTACK, where="input")
    x_adv = crafted(model, x, y)
    (cell,) = [name for name in found.ans if "recurrent" in name]
    spikes = []
    for images in (x, x_adv):
        current = model.network[0](images).expand(4, -1, -1)
        out = model.network[1](current)
        spikes.append(torch.cat([torch.zeros_like(out[:1]), out[:-1]]))
    assert found.ans[cell] == pytest.approx(ratio(spikes[1] - spikes[0], spikes[0]), rel=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
def test_no_perturbation_has_no_sensitivity_even_under_random_encoders(normalised):
    with keyed(0):
        model = spiking((Dense(12),), (6,), 3, Poisson(5), LIF(threshold=0.3), norm="none")
    found = adversarial_noise_sensitivity(model, samples(dtype=torch.float32), FGSM(Linf(0.0)), normalised=normalised)
    assert set(found.ans.values()) == {0.0}
    assert set(found.intervals.values()) == {(0.0, 0.0)}
    assert found.settings["draws"] == 4


def test_random_models_are_averaged_over_keyed_draws():
    with keyed(0):
        model = spiking((Dense(12),), (6,), 3, Poisson(5), LIF(threshold=0.3), norm="none")
    x, y = samples(dtype=torch.float32)
    found = adversarial_noise_sensitivity(model, (x, y), ATTACK, draws_each=3, where="input")
    x_adv, ids = crafted(model, x, y), torch.arange(len(x))
    moved = size = 0.0
    for k in range(3):
        seen = []
        for images in (x, x_adv):
            with draws(model, derive(0, "sensitivity", k), ids):
                seen.append(model.encoder(images))
        moved += float((seen[1] - seen[0]).square().sum())
        size += float(seen[0].square().sum())
    first = next(iter(found.ans))
    assert found.ans[first] == pytest.approx((moved / size) ** 0.5, rel=1e-6)
    state = torch.get_rng_state()
    again = adversarial_noise_sensitivity(model, (x, y), ATTACK, draws_each=3, where="input", batch_size=7)
    assert again.ans == pytest.approx(found.ans, rel=1e-12)
    for name, ends in found.intervals.items():
        assert again.intervals[name] == pytest.approx(ends, rel=1e-12)
    assert torch.equal(state, torch.get_rng_state())
    assert adversarial_noise_sensitivity(model, (x, y), ATTACK, draws_each=3, where="input", seed=1).ans != found.ans


def test_the_scale_of_weights_cancels(linear):
    x, y = samples()
    model = made(linear[0], nn.ReLU(), linear[1])
    before = adversarial_noise_sensitivity(model, (x, y), ATTACK).ans
    plain = adversarial_noise_sensitivity(model, (x, y), ATTACK, normalised=False).ans
    with torch.no_grad():
        model[0].weight.mul_(4.0)  # exact, so that FGSM's signs stay
        model[2].weight.div_(4.0)
    assert adversarial_noise_sensitivity(model, (x, y), ATTACK).ans == pytest.approx(before, rel=1e-9)
    after = adversarial_noise_sensitivity(model, (x, y), ATTACK, normalised=False).ans
    assert after == pytest.approx({"0": 4 * plain["0"], "2": plain["2"]}, rel=1e-9)


def test_quantized_layers_keep_their_plain_names(linear):
    x, y = samples(dtype=torch.float32)
    model = made(linear[0], nn.ReLU(), linear[1], dtype=torch.float32)
    assert plain_names(model) == {"0": "0", "2": "2"}
    quantized = calibrate(
        quantize(model, weights=Quantizer(Integer(3)), inputs=Quantizer(Integer(4), affine=True)), x
    ).eval()
    assert plain_names(quantized) == {"0.1": "0", "2.1": "2"}
    found = adversarial_noise_sensitivity(quantized, (x, y), ATTACK)
    x_adv = crafted(quantized, x, y)
    hidden = [quantized[:2](images) for images in (x, x_adv)]
    assert found.ans["0"] == pytest.approx(ratio(hidden[1] - hidden[0], hidden[0]), rel=1e-6)
    assert quantized.state_dict().keys() == calibrate(quantized, x).state_dict().keys()
    only = adversarial_noise_sensitivity(quantized, (x, y), ATTACK, layers=["0"])
    assert only.ans == {"0": found.ans["0"]}


def test_layers_that_are_not_watched_do_not_lend_their_activation(linear):
    x, y = samples()
    model = made(linear[0], nn.Linear(5, 5), nn.ReLU(), linear[1])
    found = adversarial_noise_sensitivity(model, (x, y), ATTACK, layers=["0"]).ans
    assert found == adversarial_noise_sensitivity(model, (x, y), ATTACK, layers=["0"], where="output").ans


def test_intervals_are_of_the_samples(linear):
    x, y = samples(n=400)
    few = adversarial_noise_sensitivity(linear, (x, y), ATTACK, n=25)
    many = adversarial_noise_sensitivity(linear, (x, y), ATTACK)
    for name in ("0", "1"):
        for found in (few, many):
            low, high = found.intervals[name]
            assert low <= found.ans[name] <= high
        widths = [found.intervals[name][1] - found.intervals[name][0] for found in (few, many)]
        assert widths[1] < 0.5 * widths[0]  # 4 times as narrow, but for chance
    one = adversarial_noise_sensitivity(linear, (x, y), ATTACK, n=1)
    assert one.intervals["0"] == (pytest.approx(one.ans["0"]),) * 2


def test_bootstrap_of_a_ratio_by_scipy(linear):
    from scipy import stats

    x, y = samples(n=60)
    delta = crafted(linear, x, y) - x
    moved, size = ((v @ linear[0].weight.T).square().sum(1).detach().numpy() for v in (delta, x))
    expected = stats.bootstrap(
        (moved, size), lambda a, b, axis: (a.sum(axis) / b.sum(axis)) ** 0.5, paired=True, vectorized=True,
        method="percentile", n_resamples=20_000, rng=1,
    ).confidence_interval  # fmt: skip
    low, high = adversarial_noise_sensitivity(linear, (x, y), ATTACK).intervals["0"]
    width = expected.high - expected.low
    assert abs(low - expected.low) < 0.1 * width
    assert abs(high - expected.high) < 0.1 * width


def test_the_model_is_left_as_it_was(linear):
    x, y = samples()
    model = made(linear[0], nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), linear[1])
    model[3].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    first = adversarial_noise_sensitivity(model, (x, y), ATTACK).to_json()
    assert first == adversarial_noise_sensitivity(model, (x, y), ATTACK).to_json()
    assert [m.training for m in model] == [True, True, True, False, True]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_noise_is_a_control(linear):
    x, y = samples(n=200)
    attacked = adversarial_noise_sensitivity(linear, (x, y), ATTACK)
    noise = adversarial_noise_sensitivity(linear, (x, y), RandomNoise(Linf(0.1)))
    assert noise.ans["1"] < attacked.ans["1"]


def test_table_plot_and_json(linear, tmp_path):
    found = adversarial_noise_sensitivity(linear, samples(), ATTACK)
    lines = found.table().splitlines()
    assert lines[1].split()[:2] == ["0", f"{found.ans['0']:.4f}"]
    assert "20 samples, FGSM(" in lines[-1]
    found.plot(tmp_path / "ans.png")
    assert (tmp_path / "ans.png").stat().st_size > 2000
    assert found.to_json()["ans"] == found.ans
    assert not adversarial_noise_sensitivity(linear, samples(), ATTACK, normalised=False).settings["normalised"]


def test_density_by_hand():
    model = made(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, -2.0]]))
        model[2].weight.fill_(1.0)
    x = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
    # hidden: (1, 0, 0, 1), (0.5, 0, 0.5, 0), zeros; logits: not 0 for the first two
    y = torch.zeros(3, dtype=torch.int64)
    assert activation_density(model, (x, y)) == {"0": 4 / 12, "2": 4 / 6}
    assert activation_density(model, (x, y), where="input", batch_size=2) == {"0": 3 / 6, "2": 4 / 12}
    assert activation_density(model, (x, y), n=1, layers=["0"]) == {"0": 0.5}


class Sideways(nn.Module):
    """A layer that is never called, and one whose input is not a batch."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.used(x)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(torch.cat([x, x[:1]]))[:-1]


def test_bad_input(linear):
    pair = samples()
    measure = adversarial_noise_sensitivity
    with pytest.raises(TypeError, match="attack must be an attack such as FGSM"):
        measure(linear, pair, FGSM)
    with pytest.raises(ValueError, match="where must be one of activation, input, output"):
        measure(linear, pair, ATTACK, where="weights")
    with pytest.raises(ValueError, match="layers must be one of 0, 1"):
        measure(linear, pair, ATTACK, layers=["3"])
    with pytest.raises(ValueError, match="layers must be a collection of names"):
        measure(linear, pair, ATTACK, layers="0")
    with pytest.raises(ValueError, match="draws_each must be at least 1"):
        measure(linear, pair, ATTACK, draws_each=0)
    with pytest.raises(TypeError, match="model must be"):
        measure(F.relu, pair, ATTACK)
    with pytest.raises(ValueError, match=r"unused did not run .* leave it out, layers=\['used'\]"):
        measure(Sideways().double(), pair, ATTACK)
    with pytest.raises(ValueError, match=r"layer saw \(21, 3\) in a pass of 20 samples"):
        measure(Odd().double(), pair, ATTACK)
    with pytest.raises(ValueError, match="no nn\\.Linear"), activations(nn.ReLU(), 2):
        pass


def test_a_silent_layer_has_no_relative_change():
    with keyed(0):
        model = ordinary((Dense(4),), (6,), 3).double()
    layer = next(m for m in model if isinstance(m, nn.BatchNorm1d))
    with torch.no_grad():
        layer.bias.fill_(-100.0)
    pair = samples()
    with (
        pytest.warns(UserWarning, match="exactly zero"),
        pytest.raises(ValueError, match=r"activations of all 20 clean samples are 0.*normalised=False"),
    ):
        adversarial_noise_sensitivity(model, pair, ATTACK)
    with pytest.warns(UserWarning, match="exactly zero"):
        found = adversarial_noise_sensitivity(model, pair, ATTACK, normalised=False)
    assert next(iter(found.ans.values())) == 0.0
