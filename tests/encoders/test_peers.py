"""Parity with other libraries' encoders; and what README and demo say of their Poisson encoders: no gradient passes."""

import pytest
import torch

from snnrobust.encoders import Delta, Latency, LevelCrossing, Phase, Poisson, Population


def test_spikingjelly_cuts_the_path() -> None:
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding")
    spikes = encoding.PoissonEncoder()(torch.rand(3, 4, requires_grad=True))
    assert not spikes.requires_grad


def test_snntorch_passes_a_gradient_of_exactly_zero() -> None:
    spikegen = pytest.importorskip("snntorch.spikegen")
    x = torch.rand(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(spikegen.rate(x, num_steps=5).sum(), x)
    assert (gradient == 0).all()


@pytest.mark.parametrize(("gradient", "slope"), [("straight_through", 5.0), ("none", 0.0)])
def test_ours_passes_what_it_declares(gradient: str, slope: float) -> None:
    x = torch.rand(3, 4, requires_grad=True)
    (found,) = torch.autograd.grad(Poisson(5, gradient)(x).sum(), x)  # type: ignore[arg-type]
    assert (found == slope).all()


def _whole(encoder: torch.nn.Module, x: torch.Tensor, steps: int) -> torch.Tensor:
    """SpikingJelly's stateful encoders give a step a call."""
    return torch.stack([encoder(x) for _ in range(steps)])


@pytest.mark.parametrize(("theirs", "ours"), [("linear", "linear"), ("log", "logarithmic")])
@pytest.mark.parametrize("time_steps", [2, 7, 16])
def test_latency_is_spikingjellys(theirs: str, ours: str, time_steps: int) -> None:
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding")
    x = torch.rand(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, :2] = torch.tensor([0.0, 1.0])
    expected = _whole(encoding.LatencyEncoder(time_steps, theirs), x, time_steps)
    assert torch.equal(Latency(time_steps, ours)(x), expected)  # type: ignore[arg-type]


def test_linear_latency_is_spikingjellys_at_ties_too() -> None:
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding")
    x = torch.arange(257)[None] / 256
    assert torch.equal(Latency(9)(x), _whole(encoding.LatencyEncoder(9), x, 9))


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_phase_is_spikingjellys_without_the_weights(bits: int) -> None:
    """Its "weighted" spikes have height 1, it takes no value above 1 - 2^-K, and it repeats itself after K steps."""
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding")
    x = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)).clamp(max=1 - 2.0**-bits)
    expected = _whole(encoding.WeightedPhaseEncoder(bits), x, 2 * bits + 1)
    assert torch.equal(Phase(2 * bits + 1, bits, weighted=False)(x), expected)
    weights = torch.tensor([2.0 ** -(1 + t % bits) for t in range(2 * bits + 1)]).view(-1, 1, 1)
    assert torch.equal(Phase(2 * bits + 1, bits)(x), expected * weights)


@pytest.mark.parametrize(("padding", "before"), [(False, "zero"), (True, "first")])
def test_delta_is_snntorchs(padding: bool, before: str) -> None:
    """It is time first, and has no channels for ON and OFF: without ``off_spike`` it has the ON channel only."""
    spikegen = pytest.importorskip("snntorch.spikegen")
    x = torch.rand(12, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    batch_first = x.movedim(0, 1)
    expected = spikegen.delta(x, threshold=0.25, padding=padding, off_spike=True)
    assert torch.equal(Delta(12, 0.25, before)(batch_first), expected)  # type: ignore[arg-type]
    on, _ = Delta(12, 0.25, before, "channels")(batch_first).split(3, 2)  # type: ignore[arg-type]
    assert torch.equal(on, spikegen.delta(x, threshold=0.25, padding=padding))


def test_one_level_in_one_step_is_delta() -> None:
    """Where a signal moves by the threshold or stays, both encoders say the same."""
    moves = torch.randint(-1, 2, (5, 20, 3), generator=torch.Generator().manual_seed(0))
    x = moves.cumsum(1) * 0.125
    assert torch.equal(LevelCrossing(20, 0.125)(x), Delta(20, 0.125)(x))


def test_population_has_the_receptive_fields_of_spikingjelly() -> None:
    """Its spikes are other draws, so the rates are compared: the mean of its spikes, to five standard errors."""
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding")
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        spikes = encoding.PopSpikeEncoderRandom(3, 5, 20_000, (0.0, 1.0), 0.2)(x)
    rates = Population(1, 5, 0.2)._rates(x)
    error = (rates * (1 - rates) / len(spikes)).sqrt() + 1e-4
    assert ((spikes.mean(0) - rates).abs() <= 5 * error).all()
