from copy import deepcopy

import pytest
import torch
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.hardware import Crossbar, GaussianNoise, calibrate_adc, deploy, load, recalibrate, save
from snnrobust.models import Conv, Dense, Pool, ordinary, spiking
from snnrobust.neurons import LIF

ARCHITECTURE = (Conv(4), Pool(), Dense(6))
LOSSY = Crossbar(5, 4, r_driver=5e3, r_sense=5e3)
NORMS = ["BatchNorm", "BNTT", "TDBN", "TEBN"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNROBUST_CACHE", str(tmp_path))


@pytest.fixture
def x():
    return torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def network(norm, encoder=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if norm == "ann":
            return ordinary(ARCHITECTURE, (1, 4, 4), 3).eval()
        return spiking(ARCHITECTURE, (1, 4, 4), 3, encoder or Direct(4), LIF(threshold=0.1), norm=norm).eval()


def norms(model):
    return [m for m in model.modules() if hasattr(m, "running_mean")]


@pytest.mark.parametrize("norm", ["ann", *NORMS])
def test_one_batch_gives_what_training_on_it_gives(norm, x):
    """The reference: the layers themselves, in train mode, with all the weight on the newest batch."""
    chip = deploy(network(norm), LOSSY, seed=0)
    before = deepcopy(chip.state_dict())
    fitted = recalibrate(chip, x)
    assert all(torch.equal(before[k], v) for k, v in chip.state_dict().items())  # the chip is as it was
    assert not any(m.training for m in fitted.modules())
    trained = deepcopy(chip)
    for m in norms(trained):
        m.train()
        m.momentum = 1.0
    trained(x)
    assert norms(fitted)
    for mine, theirs, old in zip(norms(fitted), norms(trained), norms(chip), strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.running_var, theirs.running_var, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(mine.running_mean, old.running_mean)
        assert mine.momentum == old.momentum
    kept = {k for k, v in chip.state_dict().items() if torch.equal(v, fitted.state_dict()[k])}
    assert chip.state_dict().keys() - kept == {k for k in before if k.endswith(("running_mean", "running_var"))}


def test_several_batches_are_one_population(x):
    """Law of total variance, by hand, at the first normalisation: what reaches it does not depend on the batch."""
    chip = deploy(network("ann"), LOSSY, seed=0)
    first = next(m for m in chip.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    with torch.no_grad():
        chip(x)
    handle.remove()
    fitted = recalibrate(chip, [x[:4], (x[4:], torch.zeros(8))])
    parts = [seen[0][:4], seen[0][4:]]
    means = [p.mean((0, 2, 3)) for p in parts]
    mean = (4 * means[0] + 8 * means[1]) / 12
    variance = sum(
        n * (p.var((0, 2, 3), unbiased=True) + (m - mean) ** 2) for n, p, m in zip((4, 8), parts, means, strict=True)
    )
    mine = next(m for m in fitted.modules() if isinstance(m, nn.BatchNorm2d))
    torch.testing.assert_close(mine.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.running_var.double(), variance / 12, rtol=1e-4, atol=1e-6)


def test_it_undoes_a_gain():
    """A chip that halves every product, without bias: normalised anew, its outputs are those of the model that was normalised."""

    class Half(GaussianNoise):
        def read(self, y, start):
            return y / 2

    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-12), nn.ReLU(), nn.Flatten()).double()
    x = torch.rand(64, 1, 5, 5, dtype=torch.float64)
    chip = deploy(net, Half(), seed=0)
    torch.testing.assert_close(recalibrate(chip, x)(x), recalibrate(net, x)(x), rtol=1e-6, atol=1e-9)


def test_steps_that_are_not_reached_keep_their_statistics(x):
    net = network("BNTT", Direct(2))
    for m in net.modules():
        if hasattr(m, "truncate") and hasattr(m, "running_mean"):
            long = type(m)(m.features, 5)
            long.running_mean += 3.0
            m.__dict__.update(long.__dict__)
    fitted = recalibrate(deploy(net, LOSSY, seed=0), [x[:6], x[6:]])
    for m in norms(fitted):
        assert torch.equal(m.running_mean[2:], torch.full_like(m.running_mean[2:], 3.0))
        assert torch.equal(m.running_var[2:], torch.ones_like(m.running_var[2:]))
        assert not (m.running_mean[:2] == 3).any()


def test_what_is_drawn_meanwhile_comes_from_the_seed(x):
    chip = deploy(network("BNTT", Poisson(4)), GaussianNoise(additive=0.3), seed=0)
    state = torch.get_rng_state()
    one, again, other = (recalibrate(chip, x, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(norms(one), norms(again), norms(other), strict=True):
        assert torch.equal(a.running_mean, b.running_mean)
        assert not torch.equal(a.running_mean, c.running_mean)


def test_a_recalibrated_chip_is_saved(x, tmp_path):
    fitted = recalibrate(deploy(network("BNTT"), LOSSY, seed=0), x)
    save(fitted, tmp_path / "chip")
    assert torch.equal(load(tmp_path / "chip")(x), fitted(x))


def test_nothing_to_fit(x):
    with pytest.raises(
        ValueError, match=r"no batch normalisation with running statistics to fit: use Crossbar\(output_gain"
    ):
        recalibrate(deploy(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), LOSSY, seed=0), x)


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batches(batches):
    with pytest.raises(ValueError, match="batches is empty"):
        recalibrate(deploy(network("ann"), LOSSY, seed=0), batches)


@pytest.mark.parametrize(
    ("batches", "given"), [(["a"], "str"), ([torch.zeros(0, 1, 4, 4)], "shape"), ([()], "tuple"), ([3], "int")]
)
def test_batches_of_something_else(batches, given):
    with pytest.raises(
        ValueError, match=f"batches must hold tensors of inputs, or tuples that begin with one, got {given}"
    ):
        recalibrate(deploy(network("ann"), LOSSY, seed=0), batches)


def test_inputs_that_are_not_finite(x):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="not finite: look for NaN in the inputs"):
        recalibrate(deploy(net, LOSSY, seed=0), x * float("nan"))


# --- converters -----------------------------------------------------------------------------------------------


def test_the_range_of_an_adc_is_the_largest_partial_sum():
    weight = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(10, 3).double())
    net[0].weight.data = weight
    chip = deploy(net, Crossbar(4, 4, ir_drop=False, adc_bits=6), seed=0)
    x = torch.rand(7, 10, dtype=torch.float64) * torch.linspace(0, 3, 7).unsqueeze(1)
    before = chip[0].layer.array.top.clone()
    fitted = calibrate_adc(chip, [x[:3], x[3:]])
    largest = max(
        float((x[n, a : a + 4] * weight[j, a : a + 4]).sum().abs() / x[n].max())
        for n in range(1, 7)
        for a in range(0, 10, 4)
        for j in range(3)
    )
    assert float(fitted[0].layer.array.top) == pytest.approx(largest, rel=1e-9)
    assert torch.equal(chip[0].layer.array.top, before)
    exact = net(x)
    assert (fitted(x) - exact).abs().max() < (chip(x) - exact).abs().max()


def test_all_converters_are_ideal_meanwhile(x):
    model = network("ann")
    fine, coarse = (deploy(model, Crossbar(5, 4, ir_drop=False, adc_bits=b), seed=0) for b in (16, 2))
    tops = [[float(m.top) for m in calibrate_adc(chip, x).modules() if hasattr(m, "top")] for chip in (fine, coarse)]
    assert len(tops[0]) == 3
    assert tops[0] == pytest.approx(tops[1], rel=1e-6)


def test_calibrated_converters_help_a_spiking_network(x):
    model = network("BNTT")
    chip = deploy(model, Crossbar(5, 4, ir_drop=False, adc_bits=7), seed=0)
    fitted = calibrate_adc(chip, x)
    with draws(model, 0):
        ideal = model(x)
    assert (fitted(x) - ideal).abs().mean() < (chip(x) - ideal).abs().mean()


def test_a_layer_without_input_keeps_its_range(x):
    chip = deploy(network("ann"), Crossbar(5, 4, adc_bits=6), seed=0)
    fitted = calibrate_adc(chip, torch.zeros_like(x))
    first = [next(m for m in c.modules() if hasattr(m, "top")) for c in (chip, fitted)]
    assert torch.equal(first[0].top, first[1].top)
    assert first[1].observed is None


def test_no_adc(x):
    with pytest.raises(
        ValueError, match=r"no layer of the chip has an ADC to calibrate: deploy it on a Crossbar\(adc_bits"
    ):
        calibrate_adc(deploy(network("ann"), LOSSY, seed=0), x)
