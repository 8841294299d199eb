"""Which ordinary networks can be converted; batch normalisation folded into weights."""

import re

import pytest
import torch
from torch import nn

from snnrobust.layers import QCFS, Normalise, OrdinaryConcat, OrdinaryDropout, OrdinaryResidual
from snnrobust.learning_rules import convert, quantised
from snnrobust.learning_rules.conversion_ann import BATCH_NORMS, check_ann, folded
from snnrobust.models import ARCHITECTURES, Conv, Dense, GlobalPool, Pool, Residual, ordinary
from snnrobust.neurons import LIF

RESNET = (Conv(4), Residual((Conv(4), Conv(4))), Pool(), Residual((Conv(6, stride=2), Conv(6))), GlobalPool())


def filled(ann, seed=0):
    """``ann`` in eval mode with weights and statistics that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    for m in ann.modules():
        if isinstance(m, BATCH_NORMS):
            m.running_mean.uniform_(-0.5, 0.5, generator=generator)
            m.running_var.uniform_(0.5, 2.0, generator=generator)
            if m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5, generator=generator)
                nn.init.uniform_(m.bias, -0.5, 0.5, generator=generator)
    return ann.double().eval()


CASES = {
    "resnet": lambda: (ordinary(RESNET, (2, 8, 8), 3), (2, 8, 8)),
    "vgg and dense": lambda: (ordinary((Conv(4), Pool(), Conv(4), Dense(5)), (2, 8, 8), 3), (2, 8, 8)),
    "1d, no bias, no affine": lambda: (
        nn.Sequential(
            nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4, affine=False, eps=0.1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        ),
        (2, 8),
    ),
    "3d, twice, groups": lambda: (
        nn.Sequential(
            nn.Sequential(nn.Conv3d(2, 4, 3, groups=2), nn.BatchNorm3d(4), nn.BatchNorm3d(4)),
            nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3),
        ),
        (2, 4, 4, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_folding_is_exact(case):
    ann, shape = CASES[case]()
    filled(ann)
    before = {n: t.clone() for n, t in ann.state_dict().items()}
    whole, x = folded(ann), torch.rand(5, *shape, dtype=torch.float64)
    assert not any(isinstance(m, BATCH_NORMS) for m in whole.modules())
    torch.testing.assert_close(whole(x), ann(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(t, before[n]) for n, t in ann.state_dict().items())
    with torch.no_grad():
        for p in whole.parameters():
            p.zero_()
    assert all(torch.equal(t, before[n]) for n, t in ann.state_dict().items())  # a copy


@pytest.mark.parametrize(
    "name", ["mlp", "conv-small", "lenet5", "vgg5", "vgg9", "vgg11", "vgg16", "resnet18", "resnet20"]
)
def test_named_architectures_are_accepted(name):
    with torch.device("meta"):
        check_ann(ordinary(ARCHITECTURES[name], (3, 32, 32), 10))


def _net(*parts):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), *parts, nn.Linear(8, 3))


BAD = {
    "not a Sequential": (lambda: nn.Linear(4, 3), TypeError, "nn.Sequential, such as models.ordinary"),
    "no weights": (lambda: nn.Sequential(nn.ReLU()), ValueError, "no nn.Linear or nn.Conv"),
    "max pooling": (lambda: ordinary((Conv(4), Pool(kind="max")), (1, 8, 8), 3), TypeError, "use average pooling"),
    "tanh": (lambda: _net(nn.Tanh()), TypeError, "2 (Tanh) cannot be converted: rates of integrate-and-fire neurons"),
    "gelu": (lambda: _net(nn.GELU()), TypeError, "use nn.ReLU or QCFS"),
    "lstm": (lambda: _net(nn.LSTM(8, 8)), TypeError, "a recurrent layer has no rate"),
    "spiking": (lambda: _net(LIF()), TypeError, "the network spikes already"),
    "dense": (lambda: _net(OrdinaryConcat(nn.Linear(8, 8))), TypeError, "dense connections"),
    "layer norm": (lambda: _net(nn.LayerNorm(8)), TypeError, "2 (LayerNorm) cannot be converted: use layers such as"),
    "norm later": (lambda: _net(nn.ReLU(), nn.BatchNorm1d(8)), ValueError, "3 (BatchNorm1d) cannot be folded"),
    "densenet": (lambda: ordinary(ARCHITECTURES["densenet40"], (1, 16, 16), 3), TypeError, "use a vgg or resnet"),
    "no statistics": (lambda: _net(nn.BatchNorm1d(8, track_running_stats=False)), ValueError, "no running statistics"),
    "ends in ReLU": (lambda: nn.Sequential(*_net(), nn.ReLU()), ValueError, "the network ends in 3 (ReLU)"),
    "body ends in ReLU": (
        lambda: _net(OrdinaryResidual(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))),
        ValueError,
        "2.body ends in 2.body.1 (ReLU)",
    ),
    "norm in a body": (
        lambda: _net(OrdinaryResidual(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8)))),
        ValueError,
        "2.body.1 (BatchNorm1d) cannot be folded",
    ),
    "normalise later": (lambda: _net(nn.ReLU(), Normalise(0.1, 0.2)), ValueError, "3 (Normalise) must come before"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals_name_the_layer_and_the_remedy(case):
    make, error, message = BAD[case]
    data = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.long)
    with pytest.raises(error, match=re.escape(message)):
        convert(make(), data, time_steps=4)


def test_quantised_replaces_every_relu():
    ann = ordinary((*RESNET, Dense(4)), (1, 8, 8), 3)
    made = quantised(ann, 5, 2.0)
    relus = [n for n, m in ann.named_modules() if isinstance(m, nn.ReLU)]
    assert relus == [n for n, m in made.named_modules() if isinstance(m, QCFS)]
    assert len({id(m) for m in made.modules() if isinstance(m, QCFS)}) == len(relus) == 6
    assert not any(isinstance(m, nn.ReLU) for m in made.modules())
    assert all(m.levels == 5 and m.start == 2.0 for m in made.modules() if isinstance(m, QCFS))
    assert isinstance(quantised(nn.ReLU()), QCFS)
    with pytest.raises(ValueError, match=r"no nn\.ReLU"):
        quantised(nn.Linear(2, 2))


def test_dropout_is_off_in_the_folded_network():
    ann = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), OrdinaryDropout(0.5), nn.Linear(8, 3)).train()
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(folded(ann)(x), ann.eval()(x))
