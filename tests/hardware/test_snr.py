from math import inf, log10

import pytest
import torch
from torch import nn

from snnrobust.encoders import Direct
from snnrobust.hardware import Chain, GaussianNoise, deploy, signal_to_noise
from snnrobust.models import Conv, Dense, spiking
from snnrobust.neurons import LIF


def wide():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(50, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Linear(400, 300)).eval()


X = torch.rand(64, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0])
def test_multiplicative_noise_has_the_ratio_of_its_sigma(sigma):
    """The mean of n squared normal numbers has a relative deviation of sqrt(2 / n), weighted by y^2; n > 19,000 here."""
    for backend in (
        GaussianNoise(sigma),
        GaussianNoise(snr_db=-20 * log10(sigma)),
        GaussianNoise(sigma, at="after_norm"),
    ):
        found = signal_to_noise(deploy(wide(), backend, seed=1), X)
        if backend.at == "after_norm":
            assert found.pop("0") == inf
        assert len(found) == 2
        assert all(abs(ratio + 20 * log10(sigma)) < 0.25 for ratio in found.values())


def test_additive_noise_has_that_of_the_signal():
    model = wide()
    found = signal_to_noise(deploy(model, GaussianNoise(additive=0.3), seed=1), X)
    power = float(model[0](X).detach().square().mean())
    assert abs(found["0"] - 10 * log10(power / 0.09)) < 0.25


def test_an_ideal_chip_has_no_noise_and_silence_has_no_signal():
    model = wide()
    assert signal_to_noise(deploy(model, Chain(), seed=1), X) == {"0": inf, "3": inf}
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    chip = deploy(model, GaussianNoise(additive=0.3), seed=1)
    assert signal_to_noise(chip, X)["0"] == -inf
    assert "read" not in vars(chip[0].layer.backend)


def test_spiking_networks_too():
    model = spiking((Conv(4), Dense(6)), (1, 4, 4), 3, Direct(3), LIF(threshold=0.1))
    chip = deploy(model, GaussianNoise(snr_db=20.0), seed=1)
    found = signal_to_noise(chip, torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert set(found) == {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert (
        abs(next(iter(found.values())) - 20) < 0.4
    )  # over 12,288 products; the last layer has 576, in few of which there is much
    assert all(abs(ratio - 20) < 2 for ratio in found.values())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="the model is on no chip"):
        signal_to_noise(wide(), X)
    with pytest.raises(ValueError, match="give multiplicative or snr_db, not both"):
        GaussianNoise(0.1, snr_db=20.0)
    with pytest.raises(ValueError, match="snr_db must be finite"):
        GaussianNoise(snr_db=inf)
    assert "(14.0 dB)" in repr(GaussianNoise(0.2))
