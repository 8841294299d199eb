"""Which cells a chip has: device variation and stuck cells are drawn once, for each cell by itself."""

import math
import subprocess
import sys

import torch
from scipy import stats
from torch import nn

from snnrobust.draws import draws
from snnrobust.hardware import Crossbar, deploy

NOISY = {"variation": 0.1, "stuck_on": 0.01, "stuck_off": 0.02}


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return nn.Sequential(layer).to(weight.dtype)


def stored(model, backend, seed=3, layer=0):
    """The effective weight of a layer on a chip."""
    return deploy(model, backend, seed=seed).get_submodule(f"{layer}.layer").array.weight


def some_weight(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_seed_is_the_chip(model, x):
    one, again, other = (deploy(model, Crossbar(5, 4, **NOISY), seed=seed)(x) for seed in (7, 7, 8))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_chip_stays_as_it_is(model, x):
    backend = Crossbar(5, 4, **NOISY)
    assert backend.drawn == "chip"
    assert Crossbar().drawn is None
    chip = deploy(model, backend, seed=7)
    assert not any(m.stochastic for m in chip.modules() if hasattr(m, "stochastic"))
    outputs = []
    for key in (1, 2):
        with draws(chip, key):
            outputs.append(chip(x))
    assert torch.equal(*outputs)
    torch.testing.assert_close(chip(x[2:3])[0], outputs[0][2])


def test_variation_faults_and_arrays_are_independent():
    """Of a layer of zeros: pairs differ by their variation alone; tiles and the two arrays have draws of their own."""
    crossbar = Crossbar(16, 16, variation=0.1, distribution="gaussian", ir_drop=False)
    on_chip = deploy(linear(torch.zeros(64, 64, dtype=torch.float64)), crossbar, seed=5)[0].layer
    g, scale = on_chip.backend.tiles(on_chip.array.operation.matrix(on_chip.array.programmed))
    assert g.shape == (2, 1, 4, 4, 16, 16)
    assert scale == 0
    z = ((g * crossbar.r_off - 1) / 0.1).flatten(0, 3).flatten(1).numpy()
    assert stats.kstest(z.flatten(), "norm").pvalue > 1e-3
    correlation = [[stats.pearsonr(z[a], z[b]).pvalue for b in range(a)] for a in range(1, 32)]
    assert min(min(row) for row in correlation) > 1e-3 / (31 * 16)  # Bonferroni


def test_how_many_cells_are_stuck_and_where():
    """Binomial counts, and stuck cells whose variation would have been like that of the others (z-tests at 1e-3)."""
    weight = some_weight(100, 100)
    net = linear(weight)
    faulty = Crossbar(10, 10, stuck_on=0.05, stuck_off=0.1, variation=0.2, ir_drop=False)
    varied = Crossbar(10, 10, variation=0.2, ir_drop=False)
    g, plain = (conductances_of(deploy(net, c, seed=5)) for c in (faulty, varied))
    on, off = g == 1 / 20e3, g == 1 / 200e3
    for count, share in ((int(on.sum()), 0.05), (int(off.sum()), 0.1)):
        assert stats.binomtest(count, g.numel(), share).pvalue > 1e-3
    assert torch.equal(g[~(on | off)], plain[~(on | off)])
    low = torch.stack([weight.T.clamp(max=0), (-weight.T).clamp(max=0)]) < 0  # programmed off: known mean
    relative = plain[low_cells(low)] * 200e3
    stuck = on[low_cells(low)]
    difference = relative[stuck].mean() - relative[~stuck].mean()
    assert abs(difference) < stats.norm.isf(5e-4) * 0.2 * math.sqrt(1 / int(stuck.sum()) + 1 / int((~stuck).sum()))


def low_cells(low):
    return low.unflatten(-1, (10, 10)).unflatten(-3, (10, 10)).transpose(-3, -2)[:, None]


def conductances_of(chip):
    layer = chip[0].layer
    return layer.backend.tiles(layer.array.operation.matrix(layer.array.programmed))[0]


def test_stuck_everywhere():
    weight = some_weight(5, 6)
    assert torch.equal(stored(linear(weight), Crossbar(4, 4, stuck_off=1.0)), torch.zeros_like(weight))
    assert torch.equal(stored(linear(weight), Crossbar(4, 4, stuck_on=1.0)), torch.zeros_like(weight))


def test_disconnected_cells_stay_so():
    crossbar = Crossbar(4, 4, padding="open", variation=0.5, stuck_on=0.5)
    g = conductances_of(deploy(linear(some_weight(5, 6)), crossbar, seed=0))
    assert int((g > 0).sum()) == 2 * 5 * 6


def test_layers_of_one_model_draw_their_own():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight.data = net[0].weight.data.clone()
    chip = deploy(net, Crossbar(4, 4, variation=0.1), seed=0)
    assert not torch.equal(chip[0].layer.array.weight, chip[2].layer.array.weight)


SCRIPT = """
import torch
from torch import nn
from snnrobust.hardware import Crossbar, deploy

net = nn.Sequential(nn.Linear(9, 7))
net[0].weight.data = torch.arange(63.0).view(7, 9) - 30
net[0].bias.data.zero_()
chip = deploy(net, Crossbar(4, 4, variation=0.1, stuck_on=0.1, adc_bits=6, dac_bits=6), seed=11)
result = repr(chip(torch.arange(18.0).view(2, 9)).tolist())
"""


def test_the_same_in_a_fresh_process():
    command = [sys.executable, "-c", SCRIPT + "print(result)"]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = {}
    exec(SCRIPT, here)
    assert here["result"] == fresh
