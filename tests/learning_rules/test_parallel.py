"""Several processes train as one does with the same batches."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from snnrobust.learning_rules import BPTT

SCRIPT = Path(__file__).with_name("parallel.py")


def _trainings():
    spec = importlib.util.spec_from_file_location("parallel_trainings", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trainings = _trainings()


def _ran(folder, processes, *command):
    """What each process gave."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, *command, SCRIPT, str(processes), folder]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def _compare(found):
    """With the same trainings in this process."""
    for kind, rule in trainings.CASES:
        _same(f"float64, {kind}, {rule}", trainings.in_float64(kind, rule), found, 1e-10)
    for kind in trainings.MODELS:
        _same(f"float32, {kind}, plain", trainings.in_float32(kind, "plain"), found, 1e-5)
    messages = {process["not finite"] for process in found}
    assert messages == {
        "the loss is nan in epoch 1: lower lr (0.001), or limit the gradient with clip; True, True"
    }  # in train mode as before, and without the step of that loss


def _same(name, expected, found, tolerance):
    values, records = expected
    for process in found:
        theirs, their_records = process[name]
        assert theirs.keys() == values.keys()
        for key, value in values.items():
            assert (theirs[key] - value).abs().max() < tolerance, (name, key)
            assert torch.equal(theirs[key], found[0][name][0][key])  # all processes have one model
        for mine, other in zip(records, their_records, strict=True):
            assert abs(mine["loss"] - other["loss"]) < tolerance
            for key in ("accuracy", "validation_accuracy", "rates", "spike_rate", "lr"):
                assert mine[key] == other[key], (name, key)


def test_two_processes_train_as_one_does(tmp_path):
    """Normalisation, draws, accumulation, clipping and a last batch of two; a loss that is not finite stops both."""
    found = _ran(tmp_path, 2)
    _compare(found)
    model = trainings.make("BNTT, Poisson").double()
    x, y = trainings.samples(30)
    BPTT(batch_size=14).fit(model, (x.double(), y), epochs=2, progress=False)
    for process in found:
        for name, value in model.state_dict().items():
            assert (process["resumed 2"][0][name] - value).abs().max() < 1e-10


@pytest.mark.slow
def test_three_processes_of_which_some_have_no_sample_of_a_batch(tmp_path):
    _compare(_ran(tmp_path, 3))


@pytest.mark.slow
def test_torchrun(tmp_path):
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    _compare(_ran(tmp_path, 2, *command))


def _linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_fabric_of_several_processes_has_to_be_launched():
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    with pytest.raises(ValueError, match=r"for 2 processes and not launched: call fabric.launch\(\) first"):
        BPTT().fit(_linear(), trainings.samples(4), epochs=1, progress=False, fabric=fabric)


def test_float64_is_that_of_the_model():
    """A double model needs no fabric; one of 64-true refuses another model instead of converting it."""
    x, y = trainings.samples(8)
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    models = []
    for given in (None, fabric):
        torch.manual_seed(0)
        models.append(_linear().double())
        BPTT().fit(models[-1], (x.double(), y), epochs=1, progress=False, fabric=given)
    assert models[0][1].weight.dtype == torch.float64
    assert torch.equal(models[0][1].weight, models[1][1].weight)
    with pytest.raises(ValueError, match=r"call model.double\(\)"):
        BPTT().fit(_linear(), (x, y), epochs=1, progress=False, fabric=fabric)
    with pytest.raises(ValueError, match=r"does not take inputs of shape .* and torch.float32"):
        BPTT().fit(_linear().double(), (x, y), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("rule", "precision", "words"),
    [
        (BPTT(precision="bfloat16"), "bf16-mixed", "a fabric has its own"),
        (BPTT(), "16-mixed", "fabric has precision '16-mixed': use '32-true' or 'bf16-mixed'"),
        (BPTT(), "bf16-true", "fabric has precision 'bf16-true'"),
    ],
)
def test_precisions_that_would_train_otherwise_are_refused(rule, precision, words, monkeypatch):
    fabric = Fabric(accelerator="cpu", devices=1)
    monkeypatch.setattr(fabric._precision, "precision", precision)
    with pytest.raises(ValueError, match=words):
        rule.fit(_linear(), trainings.samples(8), epochs=1, progress=False, fabric=fabric)
