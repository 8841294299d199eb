from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.hardware import BACKENDS, Array, Backend, Chain, GaussianNoise, deploy, on_chips
from snnrobust.layers import EventLinear
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform, uniform

ARCHITECTURE, LIVELY = (Conv(4), Pool(), Dense(6)), LIF(threshold=0.1)
MODELS = {
    "ann": lambda: ordinary(ARCHITECTURE, (1, 4, 4), 3),
    "direct": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Direct(4), LIVELY, norm="none"),
    "poisson": lambda: spiking(ARCHITECTURE, (1, 4, 4), 3, Poisson(4), LIVELY),
    "tied": lambda: tied(),
}
NOISY = {
    "step": GaussianNoise(multiplicative=0.2),
    "inference": GaussianNoise(multiplicative=0.2, additive=0.1, drawn="inference"),
    "chip": GaussianNoise(multiplicative=0.2, drawn="chip"),
    "chain": Chain(Uniform(bits=4), GaussianNoise(multiplicative=0.2), GaussianNoise(additive=0.1, drawn="chip")),
}
X, Y = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 1, 0])


def tied():
    shared = nn.Linear(16, 16)
    return nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(params=list(MODELS))
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]()


def calm(model):
    """Normalisation as in eval mode, so that train and eval mode differ in the chip alone."""
    for m in model.modules():
        if hasattr(m, "momentum"):
            m.eval()
    return model


def run(model, key=3, x=X):
    ids = torch.arange(10, 10 + len(x))
    with draws(model, key, ids):
        return model(x)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", NOISY)
def test_its_forward_pass_is_that_of_the_deployed_model_to_the_bit(model, kind):
    """With the draws of the same key, for chips of several seeds and after the weights have changed."""
    backend, copy = NOISY[kind], deepcopy(model)
    with on_chips(model, backend) as make:
        for seed in (7, 8):
            make(seed)
            given = run(calm(model.train()))
            copy.load_state_dict(model.state_dict())
            assert torch.equal(given, run(deploy(copy, backend, seed=seed)))
            assert not torch.allclose(given, run(copy.eval()))
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.1)


def test_without_noise_gradients_are_those_without_a_chip(model):
    reference = deepcopy(model)
    with on_chips(model, GaussianNoise(multiplicative=0.0)) as make:
        make(3)
        found = gradients(model, F.cross_entropy(run(model.train()), Y))
    expected = gradients(reference, F.cross_entropy(run(reference.train()), Y))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert any(g.abs().max() > 1e-3 for g in found)


def test_the_gradient_passes_programming_straight_through():
    """By hand: of a quantized layer it is that at the quantized weights; noise multiplies it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x = X.double()
    with on_chips(model, Uniform(bits=3)) as make:
        make(0)
        found = gradients(model, F.cross_entropy(run(model.train(), x=x), Y))
    stored = uniform(model[1].weight.detach(), 3).requires_grad_()
    bias = model[1].bias.detach().clone().requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(x.flatten(1) @ stored.T + bias, Y), (stored, bias))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_the_gradient_of_read_is_exact():
    """The derivative of a noisy loss by a weight, by differences under the same draws."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = X.double()
    with on_chips(model, NOISY["inference"]) as make:
        make(5)

        def loss():
            return F.cross_entropy(run(model.train(), x=x), Y)

        found = gradients(model, loss())[0][2, 6]
        losses = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                model[1].weight[2, 6] += h
                make(5)
                losses.append(loss())
                model[1].weight[2, 6] -= h
    assert abs(found - (losses[0] - losses[1]) / 2e-5) < 1e-8


class Halves(Array):
    """Two tiles whose products are added."""

    def product(self, x, bias, start):
        half, folded = self.weight / 2, x.flatten(0, 1)
        return (self.operation(folded, half, bias) + self.operation(folded, half, None)).unflatten(0, x.shape[:2])


class Tiled(Backend):
    def program(self, array):
        return Halves(array.weight, array.operation)


BACKENDS.pop("Tiled")


def test_arrays_with_a_product_of_their_own_learn_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    reference, x = deepcopy(model), X.double()
    with on_chips(model, Tiled()) as make:
        make(0)
        given = run(model.train(), x=x)
        found = gradients(model, F.cross_entropy(given, Y))
    assert torch.equal(given, run(deploy(reference, Tiled(), seed=0), x=x))
    expected = gradients(reference, F.cross_entropy(reference(x), Y))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_names_parameters_and_state_are_those_outside(model):
    before = deepcopy(model.state_dict())
    parameters = [(name, id(p)) for name, p in model.named_parameters()]
    children = {name: id(m) for name, m in model.named_modules(remove_duplicate=False)}
    with on_chips(model, NOISY["chain"]) as make:
        make(1)
        run(calm(model.train()))
        inside = model.state_dict()
        assert list(inside) == list(before)
        assert all(torch.equal(inside[name], before[name]) for name in before)
        assert [(name, id(p)) for name, p in model.named_parameters()] == parameters
        model.load_state_dict({name: t + 1 for name, t in before.items()})
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name] + 1) for name in before)
    assert {name: id(m) for name, m in model.named_modules(remove_duplicate=False)} == children
    assert not model._forward_pre_hooks


def test_in_eval_mode_there_is_no_chip(model):
    expected = run(model.eval())
    with on_chips(model, NOISY["chain"]) as make:
        make(1)
        assert torch.allclose(run(model.eval()), expected, rtol=0, atol=1e-6)
        assert not torch.allclose(run(calm(model.train())), expected, rtol=0, atol=1e-3)


def test_modes_that_are_set_inside_stay():
    model = MODELS["ann"]().eval()
    with on_chips(model, Backend()):
        model.train()
    assert all(m.training for m in model.modules())


def test_an_error_inside_takes_the_chips_away(model):
    shape, inside = str(model), []

    def fail():
        with on_chips(model, NOISY["chain"]):
            inside.append(str(model))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside != [shape]
    assert str(model) == shape


def test_the_recipe_is_not_changed():
    backend = NOISY["chain"]
    with on_chips(MODELS["ann"](), backend) as make:
        make(1)
    assert all(b._chip is None for b in backend.modules() if isinstance(b, Backend))


def test_weights_computed_from_others_learn_on_chips():
    """As quantized ones are: the gradient goes through the parametrization, and names stay."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 3)))
    x, names = torch.rand(4, 16), [n for n, _ in victim.named_parameters()]
    expected = torch.autograd.grad(victim(x).square().sum(), list(victim.parameters()))
    with on_chips(victim, Backend()) as make:
        make(1)
        assert sorted(n for n, _ in victim.named_parameters()) == sorted(names)
        found = torch.autograd.grad(victim(x).square().sum(), list(victim.parameters()))
    assert [n for n, _ in victim.named_parameters()] == names
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


class Learned(Backend):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


BACKENDS.pop("Learned")


@pytest.mark.parametrize(
    ("victim", "backend", "error", "words"),
    [
        (lambda: nn.Linear(16, 3), Backend(), TypeError, "single layer"),
        (lambda: nn.Sequential(nn.Flatten()), Backend(), ValueError, "no nn.Linear, nn.Conv or recurrent layer"),
        (lambda: nn.Sequential(nn.Bilinear(2, 2, 2), nn.Linear(2, 2)), Backend(), TypeError, "0 .*Bilinear"),
        (
            lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(16, 3), "weight", 2)),
            Backend(),
            TypeError,
            "0 .*prune.remove",
        ),
        (MODELS["ann"], 0.3, TypeError, "backend must be a hardware Backend"),
        (MODELS["ann"], Learned(), TypeError, "Learned has parameters of its own"),
    ],
)
def test_what_cannot_learn_on_a_chip_is_refused(victim, backend, error, words):
    with pytest.raises(error, match=words), on_chips(victim(), backend):
        pass


def test_a_bad_seed_is_named():
    with on_chips(MODELS["ann"](), Backend()) as make, pytest.raises(ValueError, match="seed"):
        make(-1)


def test_layers_that_skip_zeros_learn_too():
    model = nn.Sequential(nn.Flatten(), EventLinear(nn.Linear(16, 3)))
    with on_chips(model, GaussianNoise(multiplicative=0.1)) as make:
        make(0)
        assert all(g.abs().sum() > 0 for g in gradients(model, F.cross_entropy(run(model.train()), Y)))


def test_going_on_from_a_state_is_the_whole():
    """In pieces, as truncated backpropagation takes them, noise of each step is that of the step."""
    model = spiking((Dense(6),), (1, 4, 4), 3, Poisson(6), LIVELY, norm="none")
    with on_chips(model, GaussianNoise(multiplicative=0.2)) as make, torch.no_grad():
        make(2)
        with draws(model.train(), 3):
            whole, spikes = model.outputs(X), model.encoder(X)
            first, state = model.network.advance(spikes[:2], model.network.initial_state(spikes[0]))
            rest, _ = model.network.advance(spikes[2:], state)
            running = list(model.stream(X))
            readout = model.readout(whole)
    assert torch.allclose(torch.cat([first, rest]), whole, atol=1e-6)
    assert torch.allclose(running[-1], readout, atol=1e-6)
