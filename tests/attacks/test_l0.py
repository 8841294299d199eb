"""Counting pixels."""

import math

import pytest
import torch

from snnrobust.attacks import FGSM, L0, PGD, RandomNoise
from snnrobust.draws import Stream


def stream(n, key=3):
    return Stream(key, torch.arange(n))


def test_random_starts_in_l0_choose_pixels_evenly_and_colours_uniformly():
    x = torch.full((2000, 3, 2, 4), 0.5, dtype=torch.float64)
    start = L0(3).random_start(x, stream(2000))
    changed = (start != x).any(1)
    assert (changed.flatten(1).sum(1) == 3).all()
    assert (changed.double().mean(0) - 3 / 8).abs().max() < 5 * math.sqrt(15 / 64 / 2000)
    colours = start[(start != x)].sort().values
    assert (colours - torch.linspace(0, 1, len(colours))).abs().max() < 1.63 / math.sqrt(len(colours))


def test_noise_in_l0_is_salt_and_pepper():
    x = torch.rand(20, 2, 5, 5, generator=torch.Generator().manual_seed(0)).round(decimals=0)
    x[:, :, :2] = 0.5
    noise = L0(10).boundary(x, stream(20))
    changed = noise != x
    assert torch.equal(changed.any(1), changed.all(1))  # a pixel changes in all channels
    assert set(noise[changed].tolist()) == {0.0, 1.0}
    shares = (noise[:, :, :2][changed[:, :, :2]]).mean()
    assert 0.35 < shares < 0.65


def test_what_l0_counts():
    x = torch.zeros(1, 2, 3, 2, 2)  # [B, T, C, H, W]
    x_adv = x.clone()
    x_adv[0, 0, :, 0, 0] = 1
    x_adv[0, 1, 0, 0, 0] = 1
    assert L0(2).distance(x, x_adv).tolist() == [2]
    assert L0(4, unit="element").distance(x, x_adv).tolist() == [4]
    assert L0(0).largest(x) == 8
    assert L0(0, unit="element").largest(x) == 24
    assert L0(0).distance(x[:, 0, 0], x_adv[:, 0, 0]).tolist() == [1]  # [B, T, F]: no channels
    for unit, name in (("pixel", "L0 (pixels)"), ("element", "L0 (elements)")):
        assert L0(1, unit=unit).name == name
    with pytest.raises(ValueError, match=r"within eps=1 of x in L0 \(pixels\), but it reaches 2"):
        L0(1).validate(x, x_adv)


@pytest.mark.parametrize("eps", ["8/255", 0.5, torch.tensor([1.0, 1.5])])
def test_l0_counts_whole_pixels(eps):
    with pytest.raises(ValueError, match="eps must be a whole number, of pixels"):
        L0(eps)


def test_pgd_in_l0_is_stronger_than_its_first_step_and_than_noise(digits_ann):
    model, x, y = digits_ann
    threat = L0(4)
    with torch.no_grad():
        noise, fgsm, pgd = (
            (model(attack(model, x, y, seed=0)).argmax(1) == y).double().mean()
            for attack in (RandomNoise(threat), FGSM(threat), PGD(threat, steps=20, restarts=2))
        )
    assert pgd < fgsm - 0.02
    assert fgsm < noise - 0.2
