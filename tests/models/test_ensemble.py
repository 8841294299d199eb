"""The mean of logits, and members that draw apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snnrobust.attacks import PGD, Linf
from snnrobust.draws import draws
from snnrobust.encoders import Poisson
from snnrobust.layers import MeanOutput, OrdinaryDropout, Sequential
from snnrobust.models import Ensemble, SpikingClassifier, load, save

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))


def test_the_mean_of_the_logits():
    members = [nn.Linear(6, 3) for _ in range(3)]
    ensemble = Ensemble(*members)
    assert torch.allclose(ensemble(X), sum(m(X) for m in members) / 3)
    assert len(ensemble) == 3
    assert list(ensemble) == members
    assert ensemble[1] is members[1]
    assert torch.equal(Ensemble(members[0])(X), members[0](X))


def test_members_draw_apart_and_a_call_has_one_key():
    ensemble = Ensemble(*(OrdinaryDropout(0.5) for _ in range(2)))
    with draws(ensemble, 1):
        first, second = (member(X) for member in ensemble)
    assert not torch.equal(first, second)
    assert not torch.equal(ensemble(X), ensemble(X))
    spiking = Ensemble(*(SpikingClassifier(Poisson(3), Sequential(nn.Linear(6, 2)), MeanOutput()) for _ in range(2)))
    with draws(spiking, 5):
        once = spiking(X)
    with draws(spiking, 5):
        assert torch.equal(spiking(X), once)


def test_attacked_and_saved(tmp_path):
    ensemble = Ensemble(nn.Linear(6, 3), nn.Linear(6, 3)).eval()
    y = ensemble(X).argmax(1)
    assert (PGD(Linf(0.3), steps=5)(ensemble, X, y, seed=0) != X).any()
    save(ensemble, tmp_path / "e.safetensors")
    assert torch.equal(load(tmp_path / "e.safetensors")(X), ensemble(X))


def test_bad_members():
    with pytest.raises(ValueError, match="an Ensemble needs at least one model"):
        Ensemble()
    with pytest.raises(TypeError, match=r"member 1 must be a torch.nn.Module"):
        Ensemble(nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match=r"member 1 gives logits \(4, 2\) and member 0 \(4, 3\)"):
        Ensemble(nn.Linear(6, 3), nn.Linear(6, 2))(X)
