import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from snnrobust.encoders import Direct
from snnrobust.hardware import PCM, deploy
from snnrobust.hardware.aihwkit import to_aihwkit
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier


def ann():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture
def fake(monkeypatch):
    """A stand-in with the names of aihwkit 1.x, which records how it is called."""
    calls = []

    def module(name, **members):
        made = ModuleType(name)
        made.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, made)

    def convert_to_analog(model, rpu_config):
        calls.append(("convert", model, rpu_config))
        return nn.Sequential(model)

    module("aihwkit")
    module("aihwkit.nn")
    module("aihwkit.nn.conversion", convert_to_analog=convert_to_analog)
    module("aihwkit.simulator")
    module("aihwkit.simulator.configs", InferenceRPUConfig=SimpleNamespace)
    module(
        "aihwkit.inference",
        PCMLikeNoiseModel=lambda g_max: ("PCM", g_max),
        GlobalDriftCompensation=lambda: "global",
        program_analog_weights=lambda model, noise: calls.append(("program", model.training, torch.rand(1).item())),
        drift_analog_weights=lambda model, t: calls.append(("drift", t)),
    )
    return calls


def test_the_calls_that_it_makes(fake):
    model = ann()
    analog = to_aihwkit(model)
    assert analog.training
    ((kind, given, config),) = fake
    assert (kind, given) == ("convert", model)
    assert (config.noise_model, config.drift_compensation) == (("PCM", 25.0), "global")
    fake.clear()
    state = torch.get_rng_state()
    analog = to_aihwkit(model, "mine", time="1 h", seed=3)
    to_aihwkit(model, "mine", time=3600, seed=3)
    to_aihwkit(model, "mine", time=3600, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert not analog.training
    assert fake[0] == ("convert", model, "mine")
    assert fake[1][:2] == ("program", False)
    assert fake[2] == ("drift", 3600.0) == fake[5]
    assert fake[1] == fake[4]  # the same seed, the same draws
    assert fake[4] != fake[7]


def test_what_it_refuses(fake):
    spiking = SpikingClassifier(Direct(2), Sequential(nn.Linear(6, 3)), MeanOutput())
    with pytest.raises(TypeError, match=r"sees time, which aihwkit does not know: use hardware.PCM"):
        to_aihwkit(spiking)
    with pytest.raises(ValueError, match="time must be in"):
        to_aihwkit(ann(), time=-1)
    with pytest.raises(TypeError, match="model must be"):
        to_aihwkit("model")
    assert fake == []


def test_without_aihwkit_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aihwkit", None)
    monkeypatch.setitem(sys.modules, "aihwkit.nn.conversion", None)
    with pytest.raises(ImportError, match=r"to_aihwkit needs aihwkit \(pip install aihwkit\)"):
        to_aihwkit(ann())


@pytest.mark.slow
def test_beside_aihwkit():
    """Where it is installed: the weight error after a day is ours within a half, as these are few numbers."""
    pytest.importorskip("aihwkit")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(200, 100))
    x = torch.rand(500, 200)
    with torch.no_grad():
        ours, theirs = deploy(model, PCM("1 day"), seed=0)(x), to_aihwkit(model, time="1 day").eval()(x)
        exact = model(x)
    assert (theirs - exact).std() == pytest.approx((ours - exact).std(), rel=0.5)
