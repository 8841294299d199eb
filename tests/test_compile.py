"""``torch.export`` and ``torch.compile`` take every part and change no number."""

import pytest
import torch
from torch import Tensor, nn

from snnrobust.draws import draws
from snnrobust.encoders import (
    Delta,
    Direct,
    Encoder,
    Frames,
    Latency,
    LevelCrossing,
    Phase,
    Poisson,
    Population,
    Rows,
    SignedPoisson,
)
from snnrobust.models import (
    Architecture,
    Conv,
    DenseBlock,
    Pool,
    Recurrent,
    Residual,
    SpikingClassifier,
    Transition,
    ordinary,
    spiking,
)
from snnrobust.neurons import ALIF, IF, LIF, PLIF, CuBaLIF, LearnableThresholdLIF, Neuron, PrechargedIF

T = 3
TINY = (Conv(2), Pool(4))
BLOCKS = (Conv(2), Pool(), Residual((Conv(2), Conv(2))), DenseBlock(1, 1), Transition())
IMAGES: tuple[Encoder, ...] = (Direct(T), Poisson(T), SignedPoisson(T), Latency(T), Phase(T, 2), Population(T, 2))
SEQUENCES: tuple[Encoder, ...] = (Frames(T), Delta(T), LevelCrossing(T))
NEURONS: tuple[Neuron, ...] = (
    IF(), PrechargedIF(), PrechargedIF([0.5, 0.7]),
    LIF(0.5), LIF(0.5, refractory=1, detach_reset=False, reset="hard"), PLIF(), LearnableThresholdLIF(), ALIF(), CuBaLIF(),
)  # fmt: skip


def _model(
    encoder: Encoder,
    neuron: Neuron | None = None,
    norm: str = "BNTT",
    shape: tuple[int, ...] = (2, 8, 8),
    architecture: Architecture = TINY,
) -> SpikingClassifier:
    torch.manual_seed(0)
    return spiking(architecture, shape, 3, encoder, neuron or LIF(0.5, 0.3), norm).eval()


CASES = [pytest.param(_model(encoder), (2, 8, 8), id=type(encoder).__name__) for encoder in IMAGES]
CASES += [pytest.param(_model(e, shape=(T, 2, 8, 8)), (T, 2, 8, 8), id=type(e).__name__) for e in SEQUENCES]
CASES += [pytest.param(_model(Direct(T), neuron), (2, 8, 8), id=str(neuron)[:45]) for neuron in NEURONS]
CASES += [
    pytest.param(_model(Direct(T), norm=norm), (2, 8, 8), id=norm) for norm in ("TDBN", "TEBN", "BatchNorm", "none")
]
CASES += [
    pytest.param(_model(Rows(T), shape=(2, T, 3), architecture=(Recurrent(5),)), (2, T, 3), id="recurrent"),
    pytest.param(ordinary((Recurrent(5),), (2, T, 3), 3).eval(), (2, T, 3), id="lstm"),
    pytest.param(_model(Direct(T), architecture=BLOCKS), (2, 8, 8), id="blocks"),
    pytest.param(ordinary(BLOCKS, (2, 8, 8), 3).eval(), (2, 8, 8), id="ordinary"),
]


def _images(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))


def _logits_and_gradient(model: nn.Module, x: Tensor, key: int) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with draws(model, key):
        logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]


# torch itself says this of every nn.LSTM that it exports.
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning")
@pytest.mark.parametrize(("model", "shape"), CASES)
def test_export_gives_the_same_logits(model, shape):
    x = _images(shape)
    with torch.no_grad():
        program = torch.export.export(model, (x,)).module()
        once, twice = program(x), program(x)
        if model(x).equal(model(x)):
            assert torch.equal(once, model(x))
        assert once.equal(twice) == model(x).equal(model(x))  # where there are draws, each call has fresh ones


@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights:UserWarning")
@pytest.mark.parametrize(("model", "shape"), CASES)
def test_what_was_exported_runs_where_gradients_are_on(model, shape):
    x = _images(shape)
    program = torch.export.export(model, (x,)).module()
    for given in (x, x.clone().requires_grad_()):
        with draws(model, 1):
            found, expected = program(given), model(x)
        assert found.shape == expected.shape
        if model(x).equal(model(x)):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "encoder", [Direct(T), Poisson(T), SignedPoisson(T), Population(T, 2), Latency(T), Phase(T, 2)], ids=str
)
def test_the_batch_of_an_exported_model_may_vary(encoder):
    model, batch = _model(encoder), torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (_images((2, 8, 8)),), dynamic_shapes=({0: batch},)).module()
    for B in (2, 5, 64):
        x = torch.rand(B, 2, 8, 8, generator=torch.Generator().manual_seed(B))
        logits = program(x)
        assert logits.shape == (B, 3)
        if not encoder.stochastic:
            assert torch.equal(logits, model(x))


def test_an_exported_encoder_has_the_rate_of_its_input():
    x = torch.rand(1, 2000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        spikes = torch.export.export(Poisson(64), (x,)).module()(x)
    deviation = (spikes.mean(0) - x) / (x * (1 - x) / 64).sqrt().clamp(min=1e-3)
    assert deviation.square().mean() == pytest.approx(1.0, abs=0.15)  # standard error 0.032


# torch breaks the graph around nn.LSTM, and says this where it goes on.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("model", "shape"), CASES)
def test_compile_changes_neither_logits_nor_gradients(model, shape):
    torch.compiler.reset()
    whole = not any(isinstance(m, nn.LSTM) for m in model.modules())  # around nn.LSTM torch breaks the graph
    compiled = torch.compile(model, backend="aot_eager", fullgraph=whole)
    x = _images(shape)
    for key in (1, 2):
        want, got = _logits_and_gradient(model, x, key), _logits_and_gradient(compiled, x, key)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    if not torch.equal(model(x), model(x)):
        assert not torch.equal(compiled(x), compiled(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")  # torch's compiler uses it itself
@pytest.mark.parametrize("encoder", [Direct(T), Poisson(T)], ids=lambda e: type(e).__name__)
def test_compile_with_inductor(encoder):
    torch.compiler.reset()
    model, x = _model(encoder), _images((2, 8, 8))
    want, got = _logits_and_gradient(model, x, 1), _logits_and_gradient(torch.compile(model), x, 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_compiled_or_exported_model_still_refuses_bad_input():
    x = _images((2, 8, 8))
    bad = (x.masked_fill(x > 0.9, float("nan")), x + 1)
    model = _model(Direct(T))
    with torch.no_grad():
        for wrapped in (torch.export.export(model, (x,)).module(), torch.compile(model, backend="aot_eager")):
            for wrong in bad:
                with pytest.raises(RuntimeError, match="x contains NaN or values out of range"):
                    wrapped(wrong)
