"""A training that was killed goes on bit for bit as if it had not been."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from snnrobust import data, models
from snnrobust.encoders import Direct, Poisson
from snnrobust.learning_rules import BPTT
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

N, VALIDATION = 100, 50


class Killed(BaseException):
    pass


class Digits(Dataset):
    """Kills whoever asks for more than ``limit`` samples."""

    def __init__(self, limit=None):
        self.x, self.y = data.take(data.load("digits", "train"), N)
        self.left = limit

    def __len__(self):
        return N

    def __getitem__(self, index):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return self.x[index], self.y[index]


MODELS = {
    "poisson and BNTT": lambda: spiking((Conv(4), Pool(), Dense(16)), (1, 8, 8), 10, Poisson(4)),
    "batch norm": lambda: ordinary((Dense(16),), (1, 8, 8), 10),
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)),
}


def fresh(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def records(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


def same(a, b):
    return all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("epochs_before", [0.5, 2.5])
def test_resuming_is_bit_for_bit(kind, loader, schedule, epochs_before, tmp_path):
    rule, path = BPTT(lr=1e-2, batch_size=32, weight_decay=0.01, schedule=schedule), tmp_path / "state.safetensors"
    validation = data.take(data.load("digits", "test"), VALIDATION)

    def fit(model, limit=None, **settings):
        given = Digits(limit)
        given = DataLoader(given, batch_size=32, shuffle=True) if loader else given
        return rule.fit(model, given, validation, epochs=4, progress=False, **settings)

    whole = fresh(MODELS[kind])
    expected = fit(whole)
    with pytest.raises(Killed):
        fit(fresh(MODELS[kind]), int(epochs_before * N) + 40, checkpoint=path)
    assert path.exists() == (epochs_before > 1)
    resumed = fresh(MODELS[kind], seed=99 if path.exists() else 0)  # all weights come from the file
    torch.rand(5)
    history = fit(resumed, int((4 - int(epochs_before)) * N) + 40, checkpoint=path)  # only the epochs that are left
    assert records(history) == records(expected)
    assert same(whole.state_dict(), resumed.state_dict())
    assert not any(m.training for m in resumed.modules())


def test_a_finished_training_is_read_and_more_epochs_go_on(tmp_path):
    path, rule, make = tmp_path / "deep" / "state", BPTT(lr=1e-2), MODELS["batch norm"]
    whole, part, again = fresh(make), fresh(make), fresh(make, 5)
    expected = rule.fit(whole, Digits(), epochs=3, progress=False)
    first = rule.fit(part, Digits(), epochs=2, progress=False, checkpoint=path)
    done = rule.fit(again, Digits(50), epochs=2, progress=False, checkpoint=str(path))  # 50 samples: none is trained on
    assert done == first
    assert same(part.state_dict(), again.state_dict())
    assert not again.training
    more = rule.fit(again, Digits(), epochs=3, progress=False, checkpoint=path)
    assert records(more) == records(expected)
    assert same(whole.state_dict(), again.state_dict())
    with pytest.raises(ValueError, match="already at epoch 3, past epochs=2"):
        rule.fit(fresh(make), Digits(), epochs=2, progress=False, checkpoint=path)


def neurons(decay):
    return lambda: spiking((Dense(8),), (1, 8, 8), 10, Direct(2), LIF(decay=decay), norm="none")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("training") / "state"
    BPTT().fit(fresh(neurons(0.9)), Digits(), epochs=1, progress=False, checkpoint=path)
    return path


REMEDY = "another checkpoint path, or remove the file"


@pytest.mark.parametrize(
    ("rule", "make", "words"),
    [
        (BPTT(lr=1e-2), neurons(0.9), rf"another training \(lr differ\).*{REMEDY}"),
        (BPTT(seed=1, batch_size=8), neurons(0.9), rf"another training \(batch_size, seed differ\).*{REMEDY}"),
        (BPTT(schedule="cosine"), neurons(0.9), rf"another training \(epochs, schedule differ\).*{REMEDY}"),
        (BPTT(), neurons(0.8), rf"\(model differ\).*{REMEDY}"),
        (BPTT(), MODELS["batch norm"], rf"\(model differ\).*{REMEDY}"),
        (BPTT(), MODELS["poisson and BNTT"], rf"\(model differ\).*{REMEDY}"),
    ],
)
def test_the_state_of_another_training_or_model_is_an_error(rule, make, words, checkpoint):
    model = fresh(make)
    before, content = deepcopy(model.state_dict()), checkpoint.read_bytes()
    with pytest.raises(ValueError, match=words):
        rule.fit(model, Digits(), epochs=2, progress=False, checkpoint=checkpoint)
    assert same(model.state_dict(), before)
    assert checkpoint.read_bytes() == content


def write_model(path):
    models.save(fresh(neurons(0.9)), path)


def write_pickle(path):
    torch.save({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "truncated or not a safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "truncated or not a safetensors file"),
        (lambda path: path.write_bytes(b""), "truncated or not a safetensors file"),
        (lambda path: path.write_bytes(b"\0" * 500), "truncated or not a safetensors file"),
        (write_pickle, "truncated or not a safetensors file"),
        (write_model, "is not a training state .*: it holds a model"),
    ],
)
def test_a_file_that_is_damaged_or_not_ours_is_an_error(damage, words, checkpoint, tmp_path):
    path = tmp_path / "state"
    path.write_bytes(checkpoint.read_bytes())
    damage(path)
    model = fresh(neurons(0.9))
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        BPTT().fit(model, Digits(), epochs=2, progress=False, checkpoint=path)
    assert same(model.state_dict(), before)


def test_a_state_whose_shapes_do_not_fit_changes_nothing(tmp_path):
    """The same description, another shape: a module that does not say its size."""

    class Silent(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.first = nn.Parameter(torch.zeros(64, 10))
            self.second = nn.Parameter(torch.zeros(features))

        def forward(self, x):
            return x.flatten(1) @ self.first + self.second[:1]

    path = tmp_path / "state"
    BPTT().fit(Silent(2), Digits(), epochs=1, progress=False, checkpoint=path)
    other = Silent(3)
    with pytest.raises(ValueError, match=rf"another model: .*{REMEDY}"):
        BPTT().fit(other, Digits(), epochs=2, progress=False, checkpoint=path)
    assert (other.first == 0).all()


def test_constants_per_channel_tell_trainings_apart(tmp_path):
    """They are many, so a model's ``str`` leaves them out."""

    def per_channel(threshold):
        return lambda: spiking((Dense(2),), (1, 8, 8), 10, Direct(2), LIF(0.9, threshold), norm="none")

    for make in (per_channel([5.0, 7.0]), per_channel([5.0, 7.0])):
        BPTT().fit(fresh(make), Digits(), epochs=1, progress=False, checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match=r"another training \(model differ\)"):
        BPTT().fit(fresh(per_channel([1.0, 1.0])), Digits(), epochs=2, progress=False, checkpoint=tmp_path / "state")
