"""Event-driven layers: the same function as the plain ones, and the choice among them."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnrobust import attacks, energy, hardware
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.kernels import native
from snnrobust.layers import EventConv2d, EventLinear, MeanOutput, Sequential, event_driven
from snnrobust.models import SpikingClassifier, build, describe
from snnrobust.neurons import IF, LIF

needs_kernels = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


def _spikes(*shape: int, rate: float = 0.1) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < rate).float()


def _network(channels_last: bool = False, encoder: Any = None) -> SpikingClassifier:
    """With dyadic weights, thresholds and leaks, so that every sum is exact in any order."""
    torch.manual_seed(0)
    network = Sequential(
        nn.Conv2d(2, 8, 3, padding=1), IF(), nn.Conv2d(8, 20, 3, stride=2, padding=1, bias=False), LIF(0.5, 0.5), nn.Flatten(),
        nn.Linear(20 * 16, 24), LIF(0.5, 0.5), nn.Linear(24, 5),
    )  # fmt: skip
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randint(-16, 17, p.shape) / 32)
    model = SpikingClassifier(encoder or Poisson(4), network, MeanOutput()).eval()
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _images(n: int = 6) -> Tensor:
    return torch.randint(0, 17, (n, 2, 8, 8), generator=torch.Generator().manual_seed(2)) / 64


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_has_the_same_logits_bit_for_bit(channels_last: bool) -> None:
    model, x = _network(channels_last), _images()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    events, report = event_driven(model, x, by="rate", break_even=1.0)
    if native.available():
        assert [c.event_driven for c in report.layers] == [True] * 4
    with torch.no_grad():
        for key in range(3):
            with draws(model, key):
                expected = model(x)
            with draws(events, key):
                assert torch.equal(events(x), expected)
            with draws(events, key):
                assert torch.equal(list(events.stream(x))[-1], expected)
    assert model.state_dict().keys() == events.state_dict().keys()
    assert not any(isinstance(m, EventConv2d | EventLinear) for m in model.modules())


def test_gradients_and_an_attack() -> None:
    model, x, y = _network(encoder=Direct(3)), _images(), torch.arange(6) % 5
    events, _ = event_driven(model, x, by="rate", break_even=1.0)
    gradients = []
    for m in (model, events):
        leaf = x.clone().requires_grad_()
        F.cross_entropy(m(leaf), y).backward()
        gradients.append([leaf.grad, *(p.grad for p in m.parameters())])
    for ours, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-6)
    pgd = attacks.FGSM(attacks.Linf("4/64"))
    plain, adversarial = (pgd(m, x, y, seed=0) for m in (model, events))
    # A gradient that is zero but for rounding may have either sign.
    assert (plain - adversarial).abs().gt(0).float().mean() < 0.01


@pytest.mark.parametrize("change", ["in place", "data", "load", "assign", "optimizer"])
def test_weights_are_never_stale(change: str) -> None:
    conv, linear = nn.Conv2d(3, 5, 3), nn.Linear(6, 4)
    events = nn.ModuleList([EventConv2d(conv, 1.0), EventLinear(linear, 1.0)])
    images, rows = _spikes(2, 3, 6, 6), _spikes(9, 6, rate=0.5)
    events[0](images), events[1](rows)
    with torch.no_grad():
        if change == "in place":
            for p in events.parameters():
                p.mul_(-2)
        elif change == "data":
            for p in conv, linear:
                p.weight.data.add_(1)
        elif change in ("load", "assign"):
            other = {name: torch.randn_like(p) for name, p in events.state_dict().items()}
            events.load_state_dict(other, assign=change == "assign")
    if change == "optimizer":
        optimizer = torch.optim.Adam(events.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (events[0](images).square().sum() + events[1](rows).square().sum()).backward()
            optimizer.step()
    torch.testing.assert_close(events[0](images), F.conv2d(images, events[0].weight, events[0].bias))
    torch.testing.assert_close(events[1](rows), F.linear(rows, events[1].weight, events[1].bias))
    if change != "assign":
        torch.testing.assert_close(events[0](images), conv(images))


def test_parameters_are_shared_and_states_have_the_same_names() -> None:
    conv, linear = nn.Conv2d(3, 5, 3, stride=2, padding=1, dilation=2, bias=False), nn.Linear(6, 4)
    event_conv, event_linear = EventConv2d(conv), EventLinear(linear)
    assert event_conv.weight is conv.weight
    assert event_conv.bias is None
    assert event_linear.weight is linear.weight
    assert event_linear.bias is linear.bias
    assert event_conv.state_dict().keys() == conv.state_dict().keys()
    assert "break_even=0.35" in repr(event_conv)
    copy = deepcopy(event_conv)
    x = _spikes(2, 3, 9, 9)
    assert torch.equal(copy(x), event_conv(x))
    torch.testing.assert_close(event_conv(x), conv(x))
    torch.testing.assert_close(event_conv(x[0]), conv(x[0]))
    torch.testing.assert_close(event_conv.double()(x.double()), conv(x.double()))


def test_what_does_not_fit_is_refused() -> None:
    for conv in (
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ):
        with pytest.raises(TypeError, match="conv must be a plain"):
            EventConv2d(conv)
    with pytest.raises(TypeError, match="no event-driven Conv1d"):
        EventConv2d(nn.Conv1d(3, 3, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="linear must be"):
        EventLinear(nn.Conv2d(3, 3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="break_even"):
        EventLinear(nn.Linear(3, 3), 1.5)
    with pytest.raises(ValueError, match="has no nn"):
        event_driven(nn.Sequential(nn.ReLU()), _images())
    with pytest.raises(ValueError, match="by must be"):
        event_driven(_network(), _images(), by="guess")


@needs_kernels
def test_rates_and_choices() -> None:
    hooked = nn.Linear(8, 8)
    hooked.register_forward_hook(lambda *_: None)
    tied = nn.Linear(8, 8)
    model = nn.Sequential(
        nn.Linear(8, 8), tied, nn.ReLU(), tied, hooked, nn.Unflatten(1, (8, 1)), nn.Conv1d(8, 8, 1), nn.Flatten(),
    )  # fmt: skip
    model.append(nn.Identity())
    model[-1].unused = nn.Linear(8, 8)
    x = torch.zeros(50, 8)
    x[:, :2] = 1
    events, report = event_driven(model, x, by="rate", break_even=0.3)
    rows = {c.name: c for c in report.layers}
    assert rows["0"].rate == 0.25
    assert rows["0"].event_driven
    assert rows["0"].break_even == 0.3
    assert isinstance(events[0], EventLinear)
    assert not rows["1"].event_driven  # its input is not sparse
    assert rows["4"].note == "it has hooks, which would be lost"
    assert rows["6"].note == "there is no event-driven Conv1d"
    assert rows["8.unused"].note == "it did not run"
    table = report.table()
    assert "25.0%" in table
    assert table.endswith("chosen by rate")
    assert len(table.splitlines()) == 2 + len(report.layers)
    events, _ = event_driven(model, x, by="rate", break_even=1.0)
    assert isinstance(events[1], EventLinear)
    assert events[1] is events[3]
    torch.testing.assert_close(events(x), model(x))
    single, _ = event_driven(nn.Linear(8, 8), x, by="rate")
    assert isinstance(single, EventLinear)


@needs_kernels
def test_choice_by_time() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 2, 1, bias=False))
    x = _spikes(8, 64, 16, 16, rate=0.01)
    events, report = event_driven(model, x, repeats=3)
    sparse, dense = report.layers
    assert sparse.event_driven
    assert isinstance(events[0], EventConv2d)
    assert sparse.dense_ms is not None
    assert sparse.event_ms is not None
    assert sparse.event_ms < sparse.dense_ms
    assert sparse.break_even is not None
    assert 0.01 < sparse.break_even <= 1
    assert dense.rate is not None
    assert dense.rate > 0.99
    assert report.by == "time"
    assert "ms" in report.table()


def test_without_kernels_all_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    model, x = _network(), _images()
    events, report = event_driven(model, x)
    assert {c.note for c in report.layers} == {"no compiled kernels"}
    assert not any(isinstance(m, EventConv2d | EventLinear) for m in events.modules())


def test_deployed_counted_and_not_saved() -> None:
    model, x = _network(encoder=Direct(3)), _images()
    events = deepcopy(model)
    for index in (0, 2):
        setattr(events.network, str(index), EventConv2d(events.network[index], 1.0))
    for index in (5, 7):
        setattr(events.network, str(index), EventLinear(events.network[index], 1.0))
    counted, plain = energy.count_operations(events, x), energy.count_operations(model, x)
    for ours, theirs in zip(counted.layers, plain.layers, strict=True):
        assert (ours.type, ours.kind) == (f"Event{theirs.type}", theirs.kind)
        assert torch.equal(ours.events, theirs.events)
        assert torch.equal(ours.dense, theirs.dense)
    noise = hardware.GaussianNoise(multiplicative=0.1)
    chips = [hardware.deploy(m, noise, seed=3) for m in (model, events)]
    logits = []
    for chip in chips:
        with draws(chip, 0):
            logits.append(chip(x))
    assert torch.equal(*logits)
    with pytest.raises(TypeError, match="save the original"):
        describe(events)
    rebuilt = build(describe(model))
    rebuilt.load_state_dict(events.state_dict())
    assert torch.equal(rebuilt.eval()(x), model(x))


@needs_kernels
def test_compiled_and_exported() -> None:
    conv = EventConv2d(nn.Conv2d(3, 5, 3, padding=1), 1.0)
    model, x = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), EventLinear(nn.Linear(5 * 36, 4), 1.0)), _spikes(7, 3, 6, 6)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)
    (ours,) = torch.autograd.grad(compiled(x).square().sum(), conv.weight)
    (eager,) = torch.autograd.grad(model(x).square().sum(), conv.weight)
    torch.testing.assert_close(ours, eager)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(x[:5]), model(x[:5]))
