"""The standard suite on a model of another library."""

import importlib

import pytest
import torch

from snnrobust import attacks, evaluation, interop
from snnrobust.attacks import BPDA, BluntGradientWarning, Linf, Standard

pytest.importorskip("spikingjelly")
from spikingjelly.activation_based import encoding, layer, neuron, surrogate
from torch import nn


@pytest.fixture(autouse=True)
def small(monkeypatch):
    module = importlib.import_module("snnrobust.attacks.standard")
    for name, value in {"STEPS": 3, "QUERIES": 20, "TARGETS": 2}.items():
        monkeypatch.setattr(module, name, value)


def _jelly(*front):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fire = neuron.LIFNode(v_threshold=0.2, surrogate_function=surrogate.ATan())
        return nn.Sequential(*front, layer.Flatten(), layer.Linear(16, 12), fire, layer.Linear(12, 3)).eval()


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(1)
    return torch.rand(20, 1, 4, 4, generator=g)


def test_its_surrogates_are_swept(images):
    model = interop.wrap(_jelly(), time_axis="step", time_steps=4, decode="mean")
    with torch.no_grad():
        y = model(images).argmax(1)
    found = {s.name: s for s in Standard(Linf(0.2)).stages(model, images)}
    for source in ("own", "ASSG", "ATan(10)", "PDSG"):
        assert found[f"APGD ({source})"].attack is not None
    report = evaluation.evaluate(
        model, (images, y), {"suite": attacks.standard(Linf(0.2))}, progress=False, controls=False
    )
    assert report.accuracy("suite") < report.accuracy("null control")


def test_an_encoder_inside_that_cuts_the_gradient_has_to_be_named(images):
    model = interop.wrap(_jelly(encoding.PoissonEncoder()), time_axis="step", time_steps=4, decode="mean")
    with pytest.warns(BluntGradientWarning, match="no gradient of Wrapped"):
        stages = Standard(Linf(0.2)).stages(model, images)
    assert {s.name for s in stages if s.attack is not None} == {"Square"}
    given = Standard(Linf(0.2), gradient=BPDA("model.0"))
    assert len([s for s in given.stages(model, images) if s.attack is not None]) > 8
