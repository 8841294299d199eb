"""Masks with keys: of a sample, and of a time step or of the whole sequence."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust import models
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import Chunked, Dropout, MeanOutput, OrdinaryDropout, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

T, B, F = 4, 6, 10
X = torch.rand(T, B, F, generator=torch.Generator().manual_seed(0)) + 0.1
IDS = torch.tensor([40, 7, 3, 12, 9, 1])
KINDS = {
    "sequence": lambda p=0.4: Dropout(p),
    "step": lambda p=0.4: Dropout(p, drawn="step"),
    "ordinary": lambda p=0.4: OrdinaryDropout(p),
}


def given(kind):
    return X[0] if kind == "ordinary" else X


def dropped(layer, x, key=1, ids=IDS):
    with draws(layer, key, ids):
        return layer(x)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_scaled_and_the_rest_is_zero(kind):
    x, y = given(kind), dropped(KINDS[kind](), given(kind))
    kept = y != 0
    assert torch.equal(y[kept], (x * (1 / torch.tensor(0.6)))[kept])
    assert 0.2 < kept.float().mean() < 0.9
    alike = (kept == kept[:1]).all()
    assert alike == (kind == "sequence")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_mean_and_variance_are_those_of_the_equation(kind, p):
    """y = m x / (1 - p) has the mean x, and E[y^2] = x^2 / (1 - p); limits are five standard errors."""
    n = 20_000
    x = torch.ones(n, 1) if kind == "ordinary" else torch.ones(1, n, 1)
    y = dropped(KINDS[kind](p), x, 3, None).double()
    error = math.sqrt(p / (1 - p) / n)
    assert abs(y.mean() - 1) < 5 * error
    assert abs(y.square().mean() - 1 / (1 - p)) < 5 * error / (1 - p)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_of_the_sample_and_of_the_key(kind):
    layer, x = KINDS[kind](), given(kind)
    batch = x.dim() - 2
    y = dropped(layer, x)
    order = torch.tensor([3, 0, 5])
    some = dropped(layer, x.index_select(batch, order), ids=IDS[order])
    assert torch.equal(some, y.index_select(batch, order))
    assert torch.equal(dropped(layer, x), y)
    assert not torch.equal(dropped(layer, x, key=2), y)
    assert not torch.equal(dropped(layer, x, ids=IDS + 1), y)
    assert not torch.equal(layer(x), layer(x))  # without a key, fresh ones


def test_samples_have_masks_of_their_own():
    y = dropped(Dropout(0.5), torch.ones(2, 100, 40), ids=torch.arange(100))
    assert len({tuple(row) for row in y[0].tolist()}) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_eval_mode_changes_nothing_and_draws_nothing(kind):
    layer, x = KINDS[kind]().eval(), given(kind)
    state = torch.get_rng_state()
    assert layer(x) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(KINDS[kind](0.0)(x), x)
    assert (KINDS[kind](1.0)(x) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_goes_through_the_mask(kind):
    x = given(kind).clone().double().requires_grad_()
    layer = KINDS[kind]()
    weight = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (grad,) = torch.autograd.grad((dropped(layer, x) * weight).sum(), x)
    mask = dropped(layer, torch.ones_like(x)).detach()
    assert torch.allclose(grad, mask * weight, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_dtype_is_that_of_the_input(kind, dtype):
    layer, x = KINDS[kind](), given(kind).to(dtype)
    y = dropped(layer, x)
    assert y.dtype == dtype
    assert torch.equal(y != 0, dropped(layer, given(kind)) != 0)


@pytest.mark.parametrize("drawn", ["sequence", "step"])
def test_pieces_and_steps_are_the_whole(drawn):
    layer = Dropout(0.4, drawn)
    with draws(layer, 1, IDS):
        whole = layer(X)
        state, steps = layer.initial_state(X[0]), []
        for x_t in X:
            y_t, state = layer.step(x_t, state)
            steps.append(y_t)
        first, state = layer.advance(X[:3], layer.initial_state(X[0]))
        rest, _ = layer.advance(X[3:], state)
        alike = layer.shown(X[0], T), layer(X[0].expand(T, B, F))
    assert torch.equal(torch.stack(steps), whole)
    assert torch.equal(torch.cat([first, rest]), whole)
    assert torch.equal(*alike)


def classifier(drawn, encoder=None):
    torch.manual_seed(0)
    network = Sequential(
        *(nn.Linear(F, 8), LIF(0.5, 0.25), Dropout(0.5, drawn), nn.Linear(8, 8), LIF(0.5, 0.25)),
        *(Dropout(0.25, drawn), nn.Linear(8, 3)),
    )
    for p in network.parameters():
        p.data.copy_((p.data * 64).round() / 64)  # sums are exact
    return SpikingClassifier(encoder or Direct(T), network, MeanOutput()).train()


@pytest.mark.parametrize("encoder", [Direct(T), Poisson(T)], ids=str)
@pytest.mark.parametrize("drawn", ["sequence", "step"])
def test_a_stream_equals_forward_in_train_mode(drawn, encoder):
    model, x = classifier(drawn, encoder).double(), ((X[0] * 64).round() / 64).double().clamp(max=1)
    with draws(model, 5, IDS), torch.no_grad():
        *_, last = model.stream(x)
        assert (last - model(x)).abs().max() < 1e-9
        assert torch.equal(model.network(model.encoder(x)), Chunked(model.network, 3)(model.encoder(x)))
    with draws(model.eval(), 5, IDS), torch.no_grad():
        assert (last - model(x)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_compile_changes_no_draw(kind):
    torch.compiler.reset()
    layer = KINDS[kind]()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for key in (1, 2):
        found = []
        for call in (layer, compiled):
            x = given(kind).clone().requires_grad_()
            with draws(layer, key, IDS):
                y = call(x)
            found.append((y.detach(), torch.autograd.grad(y.square().sum(), x)[0]))
        torch.testing.assert_close(found[1], found[0])
    assert not torch.equal(compiled(given(kind)), compiled(given(kind)))


@pytest.mark.parametrize("drawn", ["sequence", "step"])
def test_an_exported_model_has_no_dropout(drawn):
    model, x = classifier(drawn).eval(), X[0].clamp(max=1)
    with torch.no_grad():
        assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_it(kind, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(F, 4), OrdinaryDropout(0.3)) if kind == "ordinary" else classifier(kind)
    models.save(model, tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    assert repr(loaded) == repr(model)
    assert list(loaded.state_dict()) == list(model.state_dict())  # no state of its own
    x = X[0].clamp(max=1)
    with draws(model.train(), 1, IDS), draws(loaded.train(), 1, IDS):
        assert torch.equal(loaded(x), model(x))


def test_a_copy_has_no_key():
    layer = Dropout(0.4)
    with draws(layer, 1, IDS):
        copy = deepcopy(layer)
    assert not torch.equal(copy(X), copy(X))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Dropout(-0.1), ValueError, r"p must be in \[0, 1\]"),
        (lambda: OrdinaryDropout(1.1), ValueError, r"p must be in \[0, 1\]"),
        (lambda: OrdinaryDropout("0.5"), TypeError, "p must be a number"),
        (lambda: Dropout(0.5, "batch"), ValueError, "drawn must be one of sequence, step"),
        (lambda: Dropout(0.5)(X[0, 0]), ValueError, r"x must be \[T, B"),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
