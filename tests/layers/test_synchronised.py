"""Normalisation over the batches of two processes is that of both batches together."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from snnrobust.layers import BNTT, TDBN, TEBN
from snnrobust.layers.synchronised import synchronised

SCRIPT = Path(__file__).with_name("synchronised_layers.py")
spec = importlib.util.spec_from_file_location("synchronised_layers", SCRIPT)
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synchronised")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, SCRIPT, folder], timeout=300, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", layers.LAYERS)
def test_two_halves_are_the_whole(name, dtype, found):
    """Outputs and input gradients lie side by side, gradients of parameters add up, statistics are everywhere the same."""
    expected = layers.passed(name, *layers.made(name, dtype))
    one, two = (process[f"{name}, {dtype}"] for process in found)
    assert one.keys() == expected.keys()
    for key, value in expected.items():
        if key in ("y", "x"):
            given = torch.cat([one[key], two[key]])
        elif key.startswith("gradient"):
            given = one[key] + two[key]
        else:
            given = one[key]
            assert torch.equal(one[key], two[key])
        assert given.dtype == value.dtype
        scale = max(1.0, float(value.abs().max()))
        assert (given.double() - value.double()).abs().max() < TOLERANCE[dtype] * scale, key


@pytest.mark.parametrize("name", ["BNTT", "TEBN", "BatchNorm2d"])
def test_a_process_that_goes_along_counts_for_nothing(name, found):
    expected = layers.passed(name, *layers.made(name, torch.float64))
    one, two = (process[f"{name}, along"] for process in found)
    for key, value in expected.items():
        assert (one[key] - value).abs().max() < 1e-12 * max(1.0, float(value.abs().max())), key
        if key.startswith("gradient") or key == "x":
            assert (two[key] == 0).all()
        elif key != "y":
            assert torch.equal(two[key], one[key])


def test_one_value_in_all_is_an_error_in_each(found):
    assert {process["one value"] for process in found} == {
        "batch normalisation needs more than one value a channel in training: use larger batches"
    }


def test_without_processes_nothing_is_changed():
    model = nn.Sequential(BNTT(3, 2), nn.BatchNorm1d(3))
    before = [dict(vars(m)) for m in model.modules()]
    with synchronised(model):
        assert [dict(vars(m)) for m in model.modules()] == before


@pytest.mark.parametrize("kind", ["BatchNorm", "BNTT", "TDBN", "TEBN"])
def test_a_layer_in_eval_mode_inside_is_as_outside(kind, monkeypatch):
    """As an attack in the midst of a training has it: running statistics are used and left alone, and nothing is summed."""
    layer, x = {
        "BatchNorm": (torch.nn.BatchNorm1d(3), torch.randn(8, 3)),
        "BNTT": (BNTT(3, 4), torch.randn(4, 8, 3)),
        "TDBN": (TDBN(3), torch.randn(8, 3)),
        "TEBN": (TEBN(3, 4), torch.randn(4, 8, 3)),
    }[kind]
    layer.train()(x)
    expected, before = layer.eval()(x), {name: t.clone() for name, t in layer.state_dict().items()}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: pytest.fail("processes were asked"))
    with synchronised(layer.train()):
        assert torch.equal(layer.eval()(x), expected)
        with pytest.raises(pytest.fail.Exception, match="processes were asked"):
            layer.train()(x)
    assert all(torch.equal(t, layer.state_dict()[name]) for name, t in before.items() if name != "num_batches_tracked")
    assert "forward" not in vars(layer)
