import itertools
from math import sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from snnrobust.draws import draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.hardware import BACKENDS, Chain, GaussianNoise, LookupTable, deploy, load, on_chips, save
from snnrobust.hardware.lookup import input_codes
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Conv, Dense, SpikingClassifier, spiking
from snnrobust.neurons import LIF


def identity(rows):
    return np.eye(rows + 1).tolist()


def steps_of(rows, to):
    """A table without noise that answers the code ``to(p)`` for the partial sum p."""
    table = np.zeros((rows + 1, rows + 1))
    for p in range(rows + 1):
        table[p, to(p)] = 1.0
    return table.tolist()


def made(module, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module().double()


def bits_of(code, bits):
    """Two's complement by Python's own integers; for an unsigned code the same, with a positive top bit."""
    return [(code % 2**bits) >> i & 1 for i in range(bits)]


def brute_force(x, weight, input_bits, weight_bits, rows, to, signed):
    """One output by loops: ``x`` and ``weight`` are lists of K integers; ``to`` gives the value read for a partial sum."""
    total = 0
    for i, j in itertools.product(range(input_bits), range(weight_bits)):
        place = 2**i * (-1 if signed and i == input_bits - 1 else 1) * 2**j * (-1 if j == weight_bits - 1 else 1)
        for first in range(0, len(x), rows):
            pairs = list(zip(x, weight, strict=True))[first : first + rows]
            total += place * to(sum(bits_of(a, input_bits)[i] * bits_of(w, weight_bits)[j] for a, w in pairs))
    return total


def expected(layer, x, input_bits, weight_bits, rows, to):
    """The layer's output for ``x`` ``[N, *]`` by loops over outputs and positions."""
    weight = layer.weight.detach().flatten(1)
    w_step = weight.abs().max() / (2 ** (weight_bits - 1) - 1)
    w = (weight / w_step).round().int().tolist()
    outputs = []
    for one in x:
        signed, values = bool((one < 0).any()), sorted(set(one.flatten().tolist()) - {0.0})
        bits, largest = input_bits, one.abs().max()
        single = not signed and len(values) <= 1
        top = 1 if single else (2 ** (bits - 1) - 1 if signed else 2**bits - 1)
        if single:
            bits = 1
        codes = (one / (largest / top)).round()
        if isinstance(layer, nn.Conv2d):
            columns = F.unfold(codes[None], layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].T
        else:
            columns = codes[None]
        y = torch.zeros(len(columns), layer.weight.shape[0], dtype=torch.float64)
        share, outs = (
            columns.shape[1] // getattr(layer, "groups", 1),
            layer.weight.shape[0] // getattr(layer, "groups", 1),
        )
        for position, o in itertools.product(range(len(columns)), range(layer.weight.shape[0])):
            group = o // outs
            inputs = columns[position, group * share : (group + 1) * share].int().tolist()
            y[position, o] = brute_force(inputs, w[o], bits, weight_bits, rows, to, signed)
        outputs.append(y * w_step * largest / top)
    y = torch.stack(outputs)
    if isinstance(layer, nn.Conv2d):
        ideal = layer(x)
        return y.mT.reshape(ideal.shape) + layer.bias.detach().view(-1, 1, 1)
    return y[:, 0] + layer.bias.detach()


LAYERS = {
    "linear": (lambda: nn.Linear(11, 3), (11,)),
    "conv": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 4, 5)),
    "dilated": (lambda: nn.Conv2d(2, 2, 2, dilation=2), (2, 3, 4)),
}
MAPS = {"identity": lambda p: p, "saturating": lambda p: min(p, 2), "offset": lambda p: min(p + 1, 4)}


@pytest.mark.parametrize("kind", ["unsigned", "signed", "spikes", "zeros"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("to", MAPS)
def test_it_is_the_loop_over_bits_and_sub_arrays(name, kind, to):
    make, shape = LAYERS[name]
    layer = made(make)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = {"unsigned": x.abs(), "signed": x, "spikes": (x > 0).double() * 0.7, "zeros": x * 0}[kind]
    chip = deploy(nn.Sequential(layer), LookupTable(steps_of(4, MAPS[to]), input_bits=3, weight_bits=3), seed=0)
    y = expected(layer, x, 3, 3, 4, MAPS[to])
    if kind == "zeros":  # is not read, whatever the table has at zero
        y = layer(x).detach()
    assert torch.allclose(chip(x), y, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(2, 8), st.integers(1, 9), st.integers(1, 20), st.booleans(), st.integers(0, 99))
def test_an_identity_table_is_integer_arithmetic(input_bits, weight_bits, rows, k, signed, seed):
    signed = signed and input_bits > 1
    generator = torch.Generator().manual_seed(seed)
    low, high = (1 - 2 ** (input_bits - 1), 2 ** (input_bits - 1)) if signed else (0, 2**input_bits)
    x = torch.randint(low, high, (3, k), generator=generator)
    x[:, 0] = high - 1  # of full range, so that the step is 1
    if signed:
        x[:, -1] = low
    limit = 2 ** (weight_bits - 1) - 1
    w = torch.randint(-limit, limit + 1, (4, k), generator=generator)
    w[0, 0] = limit
    layer = nn.Linear(k, 4, dtype=torch.float64)
    layer.weight.data.copy_(w)
    chip = deploy(
        nn.Sequential(layer), LookupTable(identity(rows), input_bits=input_bits, weight_bits=weight_bits), seed=0
    )
    assert not is_stochastic(chip)
    assert torch.allclose(chip(x.double()) - layer.bias, (x @ w.T).double(), rtol=0, atol=1e-9)


def test_input_codes():
    x = torch.tensor([[0.0, 1.5, 3.0], [0.0, 0.4, 0.4], [-2.0, 1.0, 0.6], [0.0, 0.0, 0.0]], dtype=torch.float64)
    codes, step, signed, single = input_codes(x, 2)
    assert codes.tolist() == [[0, 2, 3], [0, 1, 1], [-1, 0, 0], [0, 0, 0]]  # 1.5 rounds to even
    assert step.tolist() == [1.0, 0.4, 2.0, 0.0]
    assert signed.tolist() == [False, False, True, False]
    assert single.tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="input_bits=1 has no sign"):
        input_codes(x, 1)
    with pytest.raises(ValueError, match="x contains NaN or infinity"):
        input_codes(x / 0, 2)


def test_spikes_are_exact_and_cost_one_slice(monkeypatch):
    layer, seen = made(lambda: nn.Linear(30, 5)), []
    x = (torch.rand(6, 30, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    chip = deploy(nn.Sequential(layer), LookupTable(identity(8), input_bits=8, weight_bits=4), seed=0)
    array = type(chip[0].layer.array)
    of_slice = array._of_slice
    monkeypatch.setattr(array, "_of_slice", lambda self, bit, i, *rest: seen.append(i) or of_slice(self, bit, i, *rest))
    assert torch.allclose(chip(x), F.linear(x, chip[0].layer.array.weight, layer.bias), rtol=0, atol=1e-12)
    assert seen == [0]
    chip(torch.rand(2, 30, dtype=torch.float64))
    assert seen == [0, *range(8)]


# --- draws -------------------------------------------------------------------------------------------------------


def one_bit_chip(table, ones, k, weight=1.0, seed=0, **options):
    """A layer of k inputs whose weights are ``weight`` and 0, and an input with ``ones`` spikes under the weight."""
    layer = nn.Linear(k, 1, bias=False, dtype=torch.float64)
    layer.weight.data.zero_()
    layer.weight.data[0, :ones] = weight
    if ones < k:
        layer.weight.data[0, ones] = 0.0
    chip = deploy(nn.Sequential(layer), LookupTable(table, weight_bits=2, **options), seed=seed)
    return chip


@pytest.mark.parametrize("p", range(1, 6))
def test_codes_come_as_often_as_the_table_says(p):
    """Chi-square at 1e-3: two bits of weights that are 1, so that the sign slice reads P(. | 0), a certain 0 here."""
    generator = torch.Generator().manual_seed(4)
    table = torch.rand(6, 9, generator=generator, dtype=torch.float64) ** 2
    table[0] = torch.eye(9)[0]
    table[:, 3] = 0.0
    table = (table / table.sum(1, keepdim=True)).tolist()
    n = 20_000
    chip = one_bit_chip(table, p, 5, values=list(range(9)))
    with torch.no_grad(), draws(chip, 3):
        y = chip(torch.ones(n, 5, dtype=torch.float64))
    counts = torch.bincount(y.flatten().round().long(), minlength=9)
    probability = np.array(table[p])
    assert counts.sum() == n
    assert (counts.numpy()[probability == 0] == 0).all()
    seen = probability > 0
    assert stats.chisquare(counts.numpy()[seen], n * probability[seen]).pvalue > 1e-3


def moments(table, p):
    values = np.arange(len(table[0]))
    mean = (np.array(table[p]) * values).sum()
    return mean, (np.array(table[p]) * values**2).sum() - mean**2


def test_slices_sub_arrays_and_steps_are_drawn_apart():
    """The variance of an output is the sum of those of its lookups with the squares of their places: z and chi-square at 1e-3."""
    table = [[0.7, 0.3, 0.0], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]]
    layer = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    layer.weight.data[:] = torch.tensor([[3.0, -2.0, 1.0, 0.0]])
    x = torch.tensor([3.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    chip = deploy(nn.Sequential(layer), LookupTable(table, input_bits=2, weight_bits=3), seed=0)
    n, mean, variance = 10_000, 0.0, 0.0
    for i, j, first in itertools.product(range(2), range(3), (0, 2)):
        place = 2**i * 2**j * (-1 if j == 2 else 1)
        bits = [bits_of(int(x[k]), 2)[i] * bits_of(int(layer.weight[0, k]), 3)[j] for k in (first, first + 1)]
        m, v = moments(table, sum(bits))
        mean, variance = mean + place * m, variance + place**2 * v
    with torch.no_grad(), draws(chip, 3):
        y = chip(x.expand(n, 4)).flatten()
    assert abs(float(y.mean()) - mean) < stats.norm.isf(0.0005) * sqrt(variance / n)
    fourth = float(((y - mean) ** 4).mean()) - variance**2
    assert abs(float(((y - mean) ** 2).mean()) - variance) < stats.norm.isf(0.0005) * sqrt(fourth / n)
    # steps: products of the same network at other times are uncorrelated
    snn = deploy(
        SpikingClassifier(Direct(2), Sequential(layer), MeanOutput()),
        LookupTable(table, input_bits=2, weight_bits=3),
        seed=0,
    )
    seen = []
    snn.network[0].register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad(), draws(snn, 3):
        snn((x / 3).expand(n, 4))
    assert abs(torch.corrcoef(seen[0][..., 0])[0, 1]) < stats.norm.isf(0.0005) / sqrt(n)


def test_outputs_and_positions_are_drawn_apart():
    layer = nn.Conv1d(1, 3, 1, bias=False, dtype=torch.float64)
    layer.weight.data[:] = 1.0
    chip = deploy(nn.Sequential(layer), LookupTable([[1.0, 0.0], [0.5, 0.5]], weight_bits=2), seed=0)
    with torch.no_grad(), draws(chip, 1):
        y = chip(torch.ones(4000, 1, 4, dtype=torch.float64)).flatten(1)
    correlation = torch.corrcoef(y.T)[torch.ones(12, 12).triu(1) > 0]
    assert correlation.abs().max() < stats.norm.isf(0.0005 / len(correlation)) / sqrt(4000)


NOISY = {"rows": 4, "input_bits": 2, "weight_bits": 3, "sigma": 0.4, "nonlinearity": 0.3}


def ann():
    return made(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)))


def snn():
    network = lambda: Sequential(nn.Conv2d(1, 3, 3, padding=1), LIF(threshold=0.2), nn.Flatten(), nn.Linear(48, 3))  # noqa: E731
    return made(lambda: SpikingClassifier(Direct(4), network(), MeanOutput()))


def images(n=5):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("make", [ann, snn])
def test_chips_and_draws(make, monkeypatch):
    model, x, ids = make(), images(), torch.arange(5) + 7
    one, again, other = (deploy(model, LookupTable(**NOISY), seed=s) for s in (1, 1, 2))
    with torch.no_grad():
        with draws(one, 7, ids):
            logits = one(x)
        with draws(again, 7, ids):
            assert torch.equal(again(x), logits)
        with draws(one, 8, ids):
            assert not torch.allclose(one(x), logits)
        monkeypatch.setattr("snnrobust.hardware.lookup.CHUNK", 100)  # a sample at a time
        parts = []
        for part, of in zip(x.split(2), ids.split(2), strict=True):
            with draws(one, 7, of):
                parts.append(one(part))
        assert torch.allclose(torch.cat(parts), logits, rtol=0, atol=1e-12)
        if isinstance(model, SpikingClassifier):
            with draws(one, 7, ids):
                *_, streamed = one.stream(x)
            assert torch.allclose(streamed, logits, rtol=0, atol=1e-12)
    assert is_stochastic(one)
    tables = [
        [m.table for m in chip.modules() if hasattr(m, "table") and isinstance(m.table, torch.Tensor)]
        for chip in (one, again, other)
    ]
    assert torch.equal(tables[0][0], tables[1][0])
    assert not torch.equal(tables[0][0], tables[2][0])  # another chip, other converters
    assert not torch.equal(tables[0][0], tables[0][1])  # and each layer has its own
    fixed = [deploy(model, LookupTable(**NOISY, seed=3), seed=s) for s in (1, 2)]
    tables = [
        [m.table for m in chip.modules() if isinstance(getattr(m, "table", None), torch.Tensor)] for chip in fixed
    ]
    assert torch.equal(tables[0][0], tables[1][0])
    assert torch.equal(tables[0][0], tables[0][1])


@pytest.mark.parametrize("make", [ann, snn])
def test_the_gradient_is_that_of_the_quantized_weights(make):
    model, backend = make(), LookupTable(**NOISY)
    chip = deploy(model, backend, seed=1)
    x = images(2).requires_grad_()
    layer = chip[0] if make is ann else chip.network[0]
    with draws(chip, 4):
        y = layer(x) if make is ann else layer(x[None])
    cotangent = torch.rand(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((y * cotangent).sum(), x)
    array = (layer.layer if make is ann else layer).array
    ideal = F.conv2d(x, array.weight, None, padding=1)
    (expected_gradient,) = torch.autograd.grad((ideal * cotangent.reshape(ideal.shape)).sum(), x)
    assert torch.allclose(gradient, expected_gradient, rtol=0, atol=1e-12)
    if make is ann:
        layer.reset()  # or it would be another call of the same forward pass
    with torch.no_grad(), draws(chip, 4):
        assert torch.equal(layer(x) if make is ann else layer(x[None]), y)  # a value does not depend on gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    chip = deploy(nn.Sequential(nn.Linear(4, 3)).to(dtype), LookupTable(**NOISY), seed=0)
    assert chip(torch.rand(2, 4, dtype=dtype)).dtype == dtype


def test_a_wide_linear_layer_with_more_axes():
    layer, x = made(lambda: nn.Linear(5, 3)), images(7).flatten()[:70].view(2, 7, 5)
    chip = deploy(nn.Sequential(layer), LookupTable(identity(3), input_bits=8, weight_bits=8), seed=0)
    assert torch.allclose(chip(x), layer(x), atol=0.02)


def test_tables_from_a_file(tmp_path):
    np.save(tmp_path / "chip.npy", np.array(steps_of(4, MAPS["saturating"])))
    layer, x = made(lambda: nn.Linear(11, 3)), images(3).flatten()[:33].view(3, 11)
    given_path, given_lists = LookupTable(tmp_path / "chip.npy"), LookupTable(steps_of(4, MAPS["saturating"]))
    assert isinstance(given_path.table, str)
    chips = [deploy(nn.Sequential(layer), b, seed=0)(x) for b in (given_path, given_lists)]
    assert torch.equal(*chips)
    assert "rows=4" in repr(given_path)


def test_it_is_registered_and_rebuilt_from_its_arguments():
    names = ("table", "rows", "input_bits", "weight_bits", "values", "codes", "sigma", "offset", "nonlinearity", "seed")
    backend = LookupTable(None, 8, 3, 4, [0.0, 4.0, 8.0], 3, 0.2, 0.1, 0.5, 11)
    again = BACKENDS["LookupTable"](**{name: getattr(backend, name) for name in names})
    model, x = ann(), images()
    results = []
    for b in (backend, again):
        chip = deploy(model, b, seed=0)
        with torch.no_grad(), draws(chip, 1):
            results.append(chip(x))
    assert torch.equal(*results)


def test_noise_can_follow_but_not_another_array():
    model = ann()
    deploy(model, Chain(LookupTable(**NOISY), GaussianNoise(additive=0.1)), seed=0)
    with pytest.raises(TypeError, match=r"LookupTable programs plain weights.* has made a LookupArray"):
        deploy(model, Chain(LookupTable(**NOISY), LookupTable(**NOISY)), seed=0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"input_bits": 0}, ValueError, "input_bits must be at least 1"),
        ({"input_bits": 9}, ValueError, r"input_bits must be in 1..8, got 9"),
        ({"weight_bits": 1}, ValueError, "weight_bits must be at least 2, got 1.*sign"),
        ({"weight_bits": 9}, ValueError, r"must be in 2..8, got 9"),
        ({"rows": 0}, ValueError, "rows must be at least 1"),
        ({"table": [[0.5, 0.5], [0.0, 1.0]], "rows": 4}, ValueError, "must have rows \\+ 1 = 5 rows"),
        ({"table": [[0.5, 0.5], [0.0, 1.0]], "codes": 2}, ValueError, "codes belongs to a synthetic table"),
        ({"table": [[0.5, 0.5], [0.0, 1.0]], "values": [0.0]}, ValueError, "values must have one number for each"),
        ({"table": "missing.npy"}, FileNotFoundError, "there is no file"),
        ({"sigma": -1.0}, ValueError, "sigma"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        LookupTable(**arguments)


def test_weights_and_inputs_that_are_no_numbers_are_refused():
    model = ann()
    chip = deploy(model, LookupTable(**NOISY), seed=0)
    with pytest.raises(ValueError, match="x contains NaN or infinity"):
        chip(images() / 0)
    model[0].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        deploy(model, LookupTable(), seed=0)


@pytest.mark.slow
def test_training_with_the_chips_noise_helps_on_them():
    """Ten seeds; a paired t-test on accuracy over chips that training has not seen, at 1e-3."""
    differences = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        centres = torch.rand(6, 16, generator=generator)
        y = torch.randint(0, 6, (900,), generator=generator)
        x = (centres[y] + 0.25 * torch.randn(900, 16, generator=generator)).clamp(0, 1)
        backend = LookupTable(rows=16, input_bits=2, weight_bits=4, sigma=1.0, offset=0.5)
        accuracies = []
        for noisy in (False, True):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 6))
            optimizer = torch.optim.Adam(model.parameters(), 3e-3)

            def step(model=model, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad()
                F.cross_entropy(model(x[:300]), y[:300]).backward()
                optimizer.step()

            if noisy:
                with on_chips(model, backend) as make:
                    for epoch in range(150):
                        make(1000 + epoch)
                        with draws(model, epoch):
                            step()
            else:
                for _ in range(150):
                    step()
            chips = [deploy(model, backend, seed=s) for s in range(4)]
            correct = []
            with torch.no_grad():
                for chip in chips:
                    with draws(chip, seed):
                        correct.append((chip(x[300:]).argmax(1) == y[300:]).double().mean().item())
            accuracies.append(np.mean(correct))
        differences.append(accuracies[1] - accuracies[0])
    assert stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue < 1e-3


def test_a_chip_is_saved_and_loaded_with_its_table(tmp_path):
    model = spiking((Conv(3), Dense(4)), (1, 4, 4), 3, Direct(2))
    chip, x = deploy(model, LookupTable(**NOISY), seed=5), images().float()
    save(chip, tmp_path / "chip.safetensors")
    again = load(tmp_path / "chip.safetensors")
    with torch.no_grad(), draws(chip, 1), draws(again, 1):
        assert torch.equal(again(x), chip(x))


def test_a_sample_does_not_depend_on_the_kind_of_its_neighbours():
    """Spikes, zeros, signed and unsigned inputs in one batch use different slices: each is what it is alone."""
    chip = deploy(nn.Sequential(made(lambda: nn.Linear(16, 5))), LookupTable(**NOISY), seed=1)
    x = images(4).flatten(1)
    x = torch.stack(((x[0] > 0.5).double(), x[1] * 0, x[2], x[3] - 0.5))
    with torch.no_grad():
        with draws(chip, 2):
            together = chip(x)
        for i in range(4):
            with draws(chip, 2, torch.tensor([i])):
                assert torch.allclose(chip(x[i : i + 1])[0], together[i], rtol=0, atol=1e-12)
    assert torch.equal(together[1], chip[0].layer.bias)
