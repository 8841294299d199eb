import copy

import pytest
import torch
from torch import nn

from snnrobust import attacks, models
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.energy import count_operations
from snnrobust.hardware import Backend, Chain, Crossbar, GaussianNoise, deploy, on_chips
from snnrobust.layers import Sequential
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF, Recurrent
from snnrobust.quantization import (
    Binary,
    Integer,
    QuantizedMembrane,
    Quantizer,
    SignalQuantizer,
    Ternary,
    calibrate,
    frozen,
    precision,
    precision_table,
    quantize,
    weight_quantizer,
)

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 1, 0])
W4, A8 = Quantizer(Integer(4), axis=0), Quantizer(Integer(8), affine=True)
M8 = Quantizer(Integer(8), "constant", limits=(-1.27, 1.27))
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3),
    "direct": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Direct(4), LIF(threshold=0.1)),
    "poisson": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(4), LIF(threshold=0.1), norm="none"),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]().eval()


def run(model, x=X, key=3):
    with draws(model, key, torch.arange(len(x))):
        return model(x)


def quantized(model, **more):
    membranes = M8 if isinstance(model, models.SpikingClassifier) else None
    return calibrate(quantize(model, weights=W4, inputs=A8, membranes=membranes, **more), X)


def test_the_original_is_untouched(model):
    before, out = copy.deepcopy(model.state_dict()), run(model)
    q = quantized(model)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(run(model), out)
    assert not torch.equal(run(q), out)


def test_weights_are_those_of_the_recipe(model):
    q = quantize(model, weights=W4)
    plain = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert len(plain) >= 3
    for name, weight in plain.items():
        layer = q.get_submodule(name)
        assert torch.equal(layer.weight, W4(weight))
        assert torch.equal(layer.parametrizations.weight.original, weight)


def test_many_bits_are_close_to_the_original(model):
    q = calibrate(
        quantize(model, weights=Quantizer(Integer(16), axis=0), inputs=Quantizer(Integer(16), affine=True)), X
    )
    torch.testing.assert_close(run(q), run(model), rtol=0, atol=0.02 if "Spiking" not in type(model).__name__ else 0.3)


def test_a_saved_model_gives_the_same_outputs_to_the_bit(model, tmp_path):
    q = quantized(model, bits={next(n for n, m in model.named_modules() if isinstance(m, nn.Linear)): 2}).eval()
    models.save(q, tmp_path / "q.safetensors")
    back = models.load(tmp_path / "q.safetensors")
    assert torch.equal(run(back), run(q))
    assert precision(back) == precision(q)


def test_learned_steps_and_relaxation_are_saved(tmp_path):
    q = quantize(MODELS["ann"](), weights=Quantizer(Integer(4), "learned", axis=0)).eval()
    for layer in q.modules():
        if (quantizer := weight_quantizer(layer)) is not None:
            quantizer.relax(0.25)
            quantizer.step.data *= 1.5
    models.save(q, tmp_path / "q.safetensors")
    assert torch.equal(models.load(tmp_path / "q.safetensors")(X), q(X))


def test_frozen_is_equal_and_plain(model):
    q = quantized(model)
    plain = frozen(q)
    assert torch.equal(run(plain), run(q))
    assert not any("parametrizations" in n for n, _ in plain.named_parameters())


def test_input_gradients_are_not_blunt(model):
    q = quantized(model).eval()
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(run(q, x), Y), x)
    assert grad.isfinite().all()
    assert (grad != 0).float().mean() > 0.5
    adversarial = attacks.PGD(attacks.Linf(0.1), steps=3)(q, X, Y, seed=1)
    assert not torch.equal(adversarial, X)


def test_the_gradient_is_that_of_the_original_where_nothing_saturates():
    """Straight through with identity: the gradient of the network with quantized weights and no rounding of inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    x = torch.rand(3, 6, requires_grad=True)
    q = calibrate(quantize(model, weights=W4, inputs=A8), x.detach())
    (found,) = torch.autograd.grad(q(x).sum(), x)
    plain = nn.Sequential(*(q.get_submodule(f"{i}.1") for i in range(2)))
    (expected,) = torch.autograd.grad(plain(x).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", ["minmax", "learned"])
@pytest.mark.parametrize("name", ["ann", "direct"])
def test_quantization_aware_training_learns(name, scale):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]()
    q = quantize(model, weights=Quantizer(Integer(3), scale), inputs=Quantizer(Integer(4, signed=False), scale))
    x = torch.zeros(60, 1, 4, 4)
    with pytest.raises(ValueError, match="calibrate"):
        BPTT().fit(q, torch.utils.data.TensorDataset(x, torch.zeros(60, dtype=torch.int64)), epochs=1, progress=False)
    y = torch.arange(60) % 3
    for i, k in enumerate(y.tolist()):
        x[i, 0, k] = 1.0
    calibrate(q, x)
    rule = BPTT(lr=2e-2, seed=1)
    before = {n: p.detach().clone() for n, p in q.named_parameters()}
    history = rule.fit(q, torch.utils.data.TensorDataset(x, y), epochs=12 if name == "direct" else 40, progress=False)
    assert history.records[-1]["loss"] < history.records[0]["loss"] / 2
    moved = {n for n, p in q.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in before if n.endswith(("original", "step"))} <= moved
    run(q.eval(), x)


def test_composes_with_chips(model):
    q = quantized(model).eval()
    ideal = deploy(q, Backend(), seed=1)
    torch.testing.assert_close(run(ideal), run(q), rtol=1e-5, atol=1e-5)
    for backend in (Chain(Crossbar(), GaussianNoise(multiplicative=0.1)), GaussianNoise(multiplicative=0.2)):
        chip = deploy(q, backend, seed=1)
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(run(chip, x).sum(), x)
        assert (grad != 0).any()
        assert not torch.equal(run(chip), run(q))


def test_trains_through_noisy_chips():
    q = quantize(MODELS["ann"](), weights=Quantizer(Integer(4), "learned"), inputs=A8)
    with on_chips(q, GaussianNoise(multiplicative=0.2)) as make:
        make(1)
        q(X).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in q.parameters())


def test_operations_are_counted(model):
    plain, of_quantized = count_operations(model, X), count_operations(quantized(model), X)
    assert of_quantized.dense_mac == plain.dense_mac
    assert len(of_quantized.layers) == len(plain.layers)
    assert of_quantized.updates == plain.updates


def test_precision(model):
    first, *_, last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    q = quantized(model, bits={last: 8})
    found = precision(q)
    assert list(found) == [n + ".1" for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert (found[first + ".1"].weights, found[first + ".1"].inputs) == (4, 8)
    assert (found[last + ".1"].weights, found[last + ".1"].inputs) == (8, 8)
    weight = model.get_submodule(first).weight
    assert found[first + ".1"].bytes == (weight.numel() * 4 + len(weight) * 32) / 8
    spiking_model = isinstance(model, models.SpikingClassifier)
    assert found[first + ".1"].membranes == (8 if spiking_model else 32)
    assert "all layers" in precision_table(q)
    assert {p.weights for p in precision(model).values()} == {32}


def test_only_the_named_layers(model):
    last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    q = quantize(model, weights=Quantizer(Binary(), "least-squares"), layers=[last])
    assert [weight_quantizer(m) is not None for m in q.modules() if isinstance(m, nn.Linear | nn.Conv2d)].count(
        True
    ) == 1
    assert precision(q)[last].weights == 1


def test_quantized_membranes():
    x = torch.rand(6, 3, 5) * 0.4
    neuron = LIF(decay=0.9)
    module = QuantizedMembrane(neuron, SignalQuantizer(Quantizer(Integer(4), "constant", limits=(-1.4, 1.4))))
    v = module.membrane(x)
    torch.testing.assert_close(v / 0.2, (v / 0.2).round(), rtol=0, atol=1e-5)
    state, expected = torch.zeros(3, 5), []
    for x_t in x:  # by hand
        h = 0.9 * state + x_t
        s = (h >= 1.0).float()
        state = ((h - s) / 0.2).round().clamp(-7, 7) * 0.2
        expected.append(s)
    assert torch.equal(module(x), torch.stack(expected))
    fine = QuantizedMembrane(neuron, SignalQuantizer(Quantizer(Integer(16), "constant", limits=(-4.0, 4.0))))
    assert (fine(x) != neuron(x)).float().mean() < 0.02


def test_the_product_inside_a_recurrent_neuron():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sequential(nn.Linear(4, 6), Recurrent(6, LIF()))
    q = quantize(model, weights=W4, inputs=A8)
    assert torch.equal(q[1].recurrent.weight, W4(model[1].recurrent.weight))
    assert [n for n, m in q.named_modules() if isinstance(m, SignalQuantizer)] == ["0.0"]


def test_calibrate_takes_the_extremes_of_all_batches():
    model = nn.Sequential(nn.Linear(4, 2))
    q = quantize(model, inputs=Quantizer(Integer(8), affine=True))
    calibrate(q, [torch.full((2, 4), 0.5), torch.tensor([[-1.0, 0.0, 2.0, 0.0]])])
    assert (float(q[0][0].low), float(q[0][0].high)) == (-1.0, 2.0)
    calibrate(q, torch.ones(1, 4))
    assert (float(q[0][0].low), float(q[0][0].high)) == (1.0, 1.0)


def test_eval_does_not_depend_on_the_batch(model):
    q = quantized(model).eval()
    whole = run(q)
    for i in range(len(X)):
        with draws(q, 3, torch.tensor([i])):
            torch.testing.assert_close(q(X[i : i + 1])[0], whole[i], rtol=1e-5, atol=1e-5)


def test_relaxation():
    layer = nn.Linear(5, 3)
    original = layer.weight.detach().clone()
    q = quantize(nn.Sequential(layer), weights=Quantizer(Ternary(), "least-squares"))
    quantizer = weight_quantizer(q[0])
    for theta in (0.0, 0.3, 1.0):
        quantizer.relax(theta)
        expected = (1 - theta) * original + theta * Quantizer(Ternary(), "least-squares")(original)
        torch.testing.assert_close(q[0].weight, expected)
        (grad,) = torch.autograd.grad(q[0].weight.sum(), q[0].parametrizations.weight.original)
        assert torch.equal(grad, torch.ones_like(original))
    with pytest.raises(ValueError, match="theta"):
        quantizer.relax(1.1)


SMALL = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_the_range_of_a_signal_follows_the_batches_of_training():
    signal = SignalQuantizer(Quantizer(Integer(8), affine=True))
    for high in (1.0, 3.0, 2.0):
        signal(torch.tensor([0.0, high]))
    assert float(signal.high) == pytest.approx(0.9 * (0.9 * 1.0 + 0.1 * 3.0) + 0.1 * 2.0)
    signal.eval()
    signal(torch.tensor([0.0, 9.0]))
    assert float(signal.high) == pytest.approx(1.28)


def test_silent_layers_can_be_attacked_and_trained():
    """Behind neurons that are silent as yet, quantized inputs have no range: the gradient of the surrogate comes through."""
    torch.manual_seed(0)
    layers = (models.Dense(16), models.Dense(16))
    model = quantize(
        models.spiking(layers, (1, 4, 4), 3, Direct(2), norm="none", neuron=LIF(0.5, threshold=50.0)), inputs=A8
    )
    x = torch.rand(4, 1, 4, 4, requires_grad=True)
    calibrate(model, x.detach(), allow_silent=True)
    for mode in (model.eval(), model.train()):
        (gradient,) = torch.autograd.grad(mode(x)[:, 0].sum(), x)
        assert bool((gradient.flatten(1).abs().sum(1) > 0).all())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: quantize(SMALL), ValueError, "give weights, inputs or membranes"),
        (lambda: quantize(SMALL, weights=Integer(4)), TypeError, r"Quantizer\(Integer\(4\)\)"),
        (lambda: quantize(SMALL, weights=W4, layers=["3"]), ValueError, "layers must be one of 0, 2"),
        (lambda: quantize(SMALL, weights=W4, layers=[]), ValueError, r"such as \['0'\]"),
        (lambda: quantize(SMALL, weights=W4, layers="0"), ValueError, r"such as \['0'\]"),
        (lambda: quantize(SMALL, weights=W4, bits={"1": 2}), ValueError, "bits must be one of 0, 2"),
        (lambda: quantize(SMALL, weights=W4, bits={"0": 0}), ValueError, "at least 1"),
        (lambda: quantize(SMALL, weights=W4, bits={"0": 17}), ValueError, r"bits\['0'\] must be in 1..16, got 17"),
        (lambda: quantize(SMALL, weights=W4, bits=[1]), TypeError, "bits must map names of layers to numbers"),
        (lambda: quantize(SMALL, weights=W4, layers=["0"], bits={"2": 4}), ValueError, "not one of the layers"),
        (lambda: quantize(SMALL, membranes=M8), ValueError, "has no neuron of ours with a potential"),
        (lambda: quantize(SMALL, inputs=Quantizer(axis=0)), ValueError, "axis is for weights"),
        (lambda: quantize(SMALL, inputs=Quantizer(scale="least-squares")), ValueError, "least-squares"),
        (lambda: quantize(quantize(SMALL, weights=W4), weights=W4), TypeError, "quantize the original"),
        (lambda: quantize(quantize(SMALL, inputs=A8), inputs=A8), TypeError, "quantized already"),
        (lambda: quantize(deploy(SMALL, Backend(), seed=1), weights=W4), TypeError, "on a chip already"),
        (lambda: quantize(nn.Sequential(nn.LSTM(3, 4)), weights=W4), TypeError, "recurrent torch layer"),
        (lambda: quantize(SMALL, inputs=A8).eval()(X[:, 0]), RuntimeError, "calibrate"),
        (lambda: calibrate(SMALL, X[:, 0]), ValueError, "nothing to do"),
        (lambda: calibrate(quantize(SMALL, inputs=A8), None), TypeError, "x must be a batch of training data"),
        (lambda: calibrate(quantize(SMALL, inputs=A8), []), ValueError, "needs some of the training data"),
        (lambda: calibrate(quantize(SMALL, inputs=A8), torch.zeros(0, 4)), ValueError, "not empty"),
        (lambda: calibrate(quantize(SMALL, inputs=A8), torch.zeros(2, 4)), ValueError, "0 on all of the data"),
        (lambda: calibrate(quantize(SMALL, inputs=A8), torch.full((2, 4), torch.nan)), ValueError, "x contains NaN"),
    ],
)  # fmt: skip
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()
