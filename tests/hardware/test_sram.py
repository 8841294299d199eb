"""Error rates against the law and tables, fault maps against binomial statistics and exclusive or, drawing rules, gradients."""

from itertools import pairwise
from math import log10

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from snnrobust import attacks
from snnrobust.attacks.losses import cross_entropy
from snnrobust.draws import Stream, draws, is_stochastic
from snnrobust.encoders import Direct
from snnrobust.hardware import BACKENDS, SRAM, Chain, GaussianNoise, bit_error_rate, deploy, load, on_chips, save
from snnrobust.hardware.bits import store
from snnrobust.hardware.sram import six_t_positions
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import Conv, Dense, SpikingClassifier, ordinary
from snnrobust.neurons import LIF
from snnrobust.quantization import Uniform

ALPHA = 1e-3
TABLE = [[0.7, 1e-1], [0.8, 1e-2], [0.9, 1e-5]]


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def ann(features=12):
    return seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, features)))


def snn(steps=4):
    network = seeded(lambda: Sequential(nn.Conv2d(1, 3, 3), LIF(threshold=0.2), nn.Flatten(), nn.Linear(12, 5)))
    return SpikingClassifier(Direct(steps), network, MeanOutput())


MODELS = {"ann": ann, "snn": snn}


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


def inputs(n=3, seed=1):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def run(chip, x, key=3, ids=None):
    with torch.no_grad(), draws(chip, key, ids):
        return chip(x)


def arrays(chip):
    return [m for m in chip.modules() if type(m).__name__ in ("StoredArray", "TransientArray")]


def big(n=200_000):
    return seeded(lambda: nn.Sequential(nn.Linear(n // 100, 100, bias=False)))


# --- error rates ----------------------------------------------------------------------------------------------


def test_the_law_goes_through_its_two_points_and_is_exponential():
    assert bit_error_rate(0.83) == pytest.approx(1e-2, rel=1e-12)
    assert bit_error_rate(1 - 1e-12) == pytest.approx(1e-6, rel=1e-6)
    assert bit_error_rate(0.83 * 0.7, v_min=0.7) == pytest.approx(1e-2, rel=1e-12)
    assert bit_error_rate(1 - 1e-12, at_v_min=1e-4) == pytest.approx(1e-4, rel=1e-6)
    logs = [log10(bit_error_rate(v)) for v in (0.80, 0.85, 0.90, 0.95)]
    steps = [b - a for a, b in pairwise(logs)]
    assert steps == pytest.approx([-4 / 0.17 * 0.05] * 3, rel=1e-9)


def test_from_v_min_on_nothing_is_wrong_and_never_more_than_half():
    assert bit_error_rate(1.0) == bit_error_rate(1.4) == bit_error_rate(0.8, v_min=0.8) == 0.0
    assert bit_error_rate(0.3) == 0.5


def test_between_the_points_of_a_table_the_logarithm_is_linear():
    for v, ber in TABLE:
        assert bit_error_rate(v, TABLE) == pytest.approx(ber, rel=1e-9)
    assert bit_error_rate(0.75, TABLE[::-1]) == pytest.approx(10**-1.5, rel=1e-9)
    assert bit_error_rate(0.85, TABLE) == pytest.approx(10**-3.5, rel=1e-9)
    assert bit_error_rate(0.95, TABLE, extrapolate=True) == pytest.approx(10**-6.5, rel=1e-9)
    assert bit_error_rate(0.1, TABLE, extrapolate=True) == 0.5


def test_towards_a_point_without_errors_the_rate_is_linear():
    table = [[0.7, 1e-1], [0.8, 1e-2], [0.9, 0.0], [1.0, 0.0]]
    assert bit_error_rate(0.85, table) == pytest.approx(5e-3)
    assert bit_error_rate(0.95, table) == bit_error_rate(2.0, table, extrapolate=True) == 0.0


@settings(deadline=None)
@given(st.floats(0.01, 3), st.floats(0.01, 3), st.floats(1e-12, 1e-2))
def test_rates_are_probabilities_and_fall_with_the_voltage(v, w, at_v_min):
    low, high = sorted((v, w))
    for arguments in ({"at_v_min": at_v_min}, {"table": TABLE, "extrapolate": True}):
        assert 0.5 >= bit_error_rate(low, **arguments) >= bit_error_rate(high, **arguments) >= 0


def test_which_bits_are_six_t():
    assert six_t_positions(8) == tuple(range(8))
    assert six_t_positions(8, ratio="5:3") == six_t_positions(8, ratio="5/3") == (0, 1, 2)
    assert six_t_positions(8, ratio="8:0") == six_t_positions(8, []) == ()
    assert six_t_positions(4, [3, 1]) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"voltage": 0.0}, ValueError, "voltage must be above 0, got 0"),
        ({"voltage": float("nan")}, ValueError, "voltage"),
        ({"voltage": 0.95, "table": TABLE}, ValueError, r"voltage must lie in the table, 0.7..0.9, got 0.95: .*extrapolate"),
        ({"voltage": 0.8, "table": [[0.8, 0.1]]}, ValueError, "at least two points"),
        ({"voltage": 0.8, "table": [[0.8, 0.1], [0.9, 0.2]]}, ValueError, "do not rise with the voltage"),
        ({"voltage": 0.8, "table": [[0.8, 0.1], [0.8, 0.1]]}, ValueError, "different voltages"),
        ({"voltage": 0.8, "table": [[0.8, 0.7], [0.9, 0.1]]}, ValueError, r"rates in 0..0.5"),
        ({"voltage": 0.8, "table": [0.8, 0.1]}, TypeError, "table must be pairs"),
        ({"voltage": 0.8, "v_min": -1.0}, ValueError, "v_min must be above 0"),
        ({"voltage": 0.8, "at_v_min": 0.1}, ValueError, "at_v_min must be above 0 and at most 0.01"),
        ({"voltage": 0.8, "ratio": "4:3"}, ValueError, "ratio must be 'p:q'"),
        ({"voltage": 0.8, "ratio": "half"}, ValueError, "ratio must be 'p:q'"),
        ({"voltage": 0.8, "ratio": "4:4", "six_t_bits": [0]}, ValueError, "six_t_bits or ratio, not both"),
        ({"voltage": 0.8, "six_t_bits": [8]}, ValueError, r"six_t_bits must be different bits in 0..7"),
        ({"voltage": 0.8, "six_t_bits": [1, 1]}, ValueError, "six_t_bits must be different"),
        ({"voltage": 0.8, "six_t_bits": 3}, ValueError, "six_t_bits"),
        ({"voltage": 0.8, "bits": 9}, ValueError, r"bits must be in 2..8"),
        ({"voltage": 0.8, "drawn": "step"}, ValueError, "drawn must be one of"),
        ({"voltage": 0.8, "axis": 0.5}, TypeError, "axis"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        SRAM(**arguments)


def test_the_arguments_are_attributes_from_which_it_can_be_built_again():
    given = {
        "voltage": 0.8, "six_t_bits": [0, 2], "ratio": None, "bits": 6, "drawn": "inference", "table": TABLE, "axis": 0,
        "v_min": 1.0, "at_v_min": 1e-6, "extrapolate": False,
    }  # fmt: skip
    made = SRAM(**given)
    assert {name: getattr(made, name) for name in given} == given
    assert BACKENDS["SRAM"] is SRAM
    assert "ber=0.01, 6T bits: 0, 2 of 6" in repr(made)
    assert made.rates == pytest.approx((1e-2, 0, 1e-2, 0, 0, 0))


# --- fault maps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", ["chip", "inference"])
@pytest.mark.parametrize(("arguments", "positions"), [({"ratio": "4:4"}, range(4)), ({"six_t_bits": [1, 7]}, (1, 7))])
def test_six_t_bits_fail_at_their_rate_and_eight_t_bits_never(drawn, arguments, positions):
    """Chi-square over the 6T positions; significance 0.001."""
    chip = deploy(big(), SRAM(voltage=0.83, drawn=drawn, **arguments), seed=0)
    (array,) = arrays(chip)
    if drawn == "chip":
        wrong = array.faults
    else:
        codes = (array.read(torch.tensor([1, 2])).double() / array.stored.step).round().to(torch.int16)
        wrong = (codes & 255).to(torch.uint8) ^ array.words
    counts = torch.tensor([int(((wrong >> b) & 1).sum()) for b in range(8)])
    others = [b for b in range(8) if b not in positions]
    assert counts[others].sum() == 0
    n, p = array.words.numel(), 1e-2
    z = (counts[list(positions)].double() - n * p) / (n * p * (1 - p)) ** 0.5
    assert stats.chi2.sf(float((z**2).sum()), len(positions)) > ALPHA


def test_zeros_and_ones_fail_alike():
    chip = deploy(big(), SRAM(voltage=0.8), seed=1)
    (array,) = arrays(chip)
    table = [[0, 0], [0, 0]]
    for b in range(8):
        bit, wrong = (array.words >> b) & 1, (array.faults >> b) & 1
        for value in (0, 1):
            table[value][0] += int((wrong[bit == value] == 1).sum())
            table[value][1] += int((wrong[bit == value] == 0).sum())
    assert stats.chi2_contingency(table).pvalue > ALPHA


def test_the_mean_square_error_is_that_of_independent_flips():
    """Of words: p sum of 4^b, and the products of pairs cancel on average over stored bits of either value."""
    chip = deploy(big(), SRAM(voltage=0.83, ratio="4:4"), seed=0)
    (array,) = arrays(chip)
    written = store(big()[0].weight, 8)
    changes = (array.weight.double() - written.values()) / written.step
    expected = 1e-2 * sum(4.0**b for b in range(4))
    squares = changes**2
    deviation = float(squares.std()) / squares.numel() ** 0.5
    assert abs(float(squares.mean()) - expected) < 4 * deviation
    assert float(changes.abs().max()) <= 15 + 1e-9


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("axis", [None, 0])
def test_weights_are_those_of_the_words(bits, axis):
    layer = big(5000)
    chip = deploy(layer, SRAM(voltage=0.8, bits=bits, axis=axis), seed=0)
    (array,) = arrays(chip)
    written = store(layer[0].weight, bits, axis)
    assert torch.equal(array.words, written.words)
    assert torch.equal(array.stored.words, written.words ^ array.faults)
    assert torch.equal(array.stored.codes * array.stored.step, array.stored.codes * written.step)
    assert torch.equal(array.weight, array.stored.values(torch.float32))
    assert 0 < int((array.faults != 0).sum()) < array.faults.numel()
    assert int(array.faults.max()) < 1 << bits


@pytest.mark.parametrize("voltage", [1.0, 1.3])
@pytest.mark.parametrize("drawn", ["chip", "inference"])
def test_at_a_sufficient_voltage_a_chip_is_its_quantized_model(model, voltage, drawn):
    x = inputs()
    chip, ideal = deploy(model, SRAM(voltage=voltage, drawn=drawn), seed=0), deploy(model, Uniform(8), seed=0)
    assert torch.equal(run(chip, x), run(ideal, x))
    assert not is_stochastic(chip)
    eight_t = deploy(model, SRAM(voltage=0.5, ratio="8:0", drawn=drawn), seed=0)
    assert torch.equal(run(eight_t, x), run(ideal, x))


# --- when maps are drawn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", ["chip", "inference"])
def test_when_maps_are_drawn(model, drawn):
    x, backend = inputs(), SRAM(voltage=0.78, drawn=drawn)
    chip = deploy(model, backend, seed=0)
    assert torch.equal(run(chip, x, 1), run(chip, x, 1))
    assert torch.equal(run(chip, x, 1), run(chip, x, 2)) == (drawn == "chip")
    assert torch.equal(chip(x), chip(x)) == (drawn == "chip")  # without a key each pass has its own
    assert is_stochastic(chip) == backend.stochastic == (drawn == "inference")
    assert torch.equal(run(deploy(model, backend, seed=0), x), run(chip, x))
    assert torch.equal(run(deploy(model, backend, seed=1), x), run(chip, x)) == (drawn == "inference")


@pytest.mark.parametrize("drawn", ["chip", "inference"])
def test_a_map_does_not_depend_on_the_batch_or_on_sample_ids(model, drawn):
    chip, x = deploy(model.double(), SRAM(voltage=0.78, drawn=drawn), seed=0), inputs(7).double()
    whole = run(chip, x, 1)
    parts = [run(chip, part, 1, ids) for part, ids in zip(x.split(3), (torch.arange(7) + 50).split(3), strict=True)]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("drawn", ["chip", "inference"])
def test_a_map_holds_for_all_time_steps_and_streaming_meets_the_same(drawn):
    model, x = snn(5).double(), inputs().double()
    chip, seen = deploy(model, SRAM(voltage=0.78, drawn=drawn), seed=0), []
    hook = chip.network[0].register_forward_hook(lambda module, given, y: seen.append(y))
    with torch.no_grad(), draws(chip, 3):
        logits = chip(x)
        hook.remove()
        *_, last = chip.stream(x)
    assert all(torch.allclose(y, seen[0][0], rtol=0, atol=1e-12) for y in seen[0])
    assert torch.allclose(last, logits, rtol=0, atol=1e-9)


def test_layers_and_memories_of_a_chain_have_maps_of_their_own():
    shared = nn.Linear(50, 50)
    chip = deploy(nn.Sequential(shared, nn.Identity(), shared), SRAM(voltage=0.8), seed=0)
    one, two = arrays(chip)
    assert torch.equal(one.words, two.words)
    assert not torch.equal(one.faults, two.faults)


def test_each_draw_of_expectation_over_transformation_meets_another_map():
    """EOT's gradient is the mean of those of single draws, which differ."""
    chip, x, y = deploy(ann(), SRAM(voltage=0.78, drawn="inference"), seed=0), inputs(), torch.tensor([0, 1, 2])
    stream = Stream(5, torch.arange(3))
    single = [attacks.Backprop()(chip, x, y, cross_entropy, stream.fork("eot", i))[0] for i in range(3)]
    mean, _ = attacks.EOT(3)(chip, x, y, cross_entropy, stream)
    torch.testing.assert_close(mean, sum(single) / 3)
    assert not torch.allclose(single[0], single[1])
    assert not torch.allclose(single[1], single[2])


# --- gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", ["chip", "inference"])
def test_the_input_gradient_is_exact_for_what_is_read(drawn):
    chip = deploy(ann(3).double(), SRAM(voltage=0.78, drawn=drawn), seed=0)

    def logits(x):
        with draws(chip, 5):
            return chip(x)

    assert torch.autograd.gradcheck(logits, (inputs(2).double().requires_grad_(),))


@pytest.mark.parametrize("drawn", ["chip", "inference"])
def test_training_through_chips_passes_straight_to_the_weight(drawn):
    """The gradient by the weight is that of the product with what was read."""
    model = nn.Sequential(nn.Linear(6, 4)).train()
    x, g = torch.rand(5, 6), torch.rand(5, 4)
    with on_chips(model, SRAM(voltage=0.78, drawn=drawn)) as make:
        make(3)
        with draws(model, 1):
            y = model(x)
        y.backward(g)
    torch.testing.assert_close(model[0].weight.grad, g.T @ x)
    chip = deploy(model, SRAM(voltage=0.78, drawn=drawn), seed=3)
    if drawn == "chip":
        torch.testing.assert_close(y, chip(x))
    assert not torch.allclose(y, F.linear(x, model[0].weight, model[0].bias))


def test_a_state_dict_carries_the_chip():
    model, x = ann(), inputs()
    one, two = (deploy(model, SRAM(voltage=0.78), seed=seed) for seed in (0, 1))
    assert not torch.equal(run(one, x), run(two, x))
    two.load_state_dict(one.state_dict())
    assert torch.equal(run(one, x), run(two, x))
    assert torch.equal(arrays(one)[0].stored.words, arrays(two)[0].stored.words)


def test_it_composes_and_says_where_it_must_stand():
    chip = deploy(ann(), Chain(Uniform(4), SRAM(voltage=0.8), GaussianNoise(multiplicative=0.1)), seed=0)
    assert is_stochastic(chip)
    with pytest.raises(TypeError, match=r"SRAM stores the weights themselves, .*StoredArray: put SRAM before"):
        deploy(ann(), Chain(SRAM(voltage=0.8), SRAM(voltage=0.8)), seed=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_weight_is_kept(dtype):
    for drawn in ("chip", "inference"):
        chip = deploy(ann().to(dtype), SRAM(voltage=0.8, drawn=drawn), seed=0)
        assert chip(inputs().to(dtype)).dtype == dtype


def test_recurrent_layers_are_stored_too():
    model = seeded(lambda: nn.LSTM(4, 6, batch_first=True))
    wrapped = nn.ModuleDict({"lstm": model})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = wrapped["lstm"]

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    chip = deploy(Net(), SRAM(voltage=0.78, drawn="inference"), seed=0)
    x = torch.rand(2, 5, 4)
    assert torch.equal(run(chip, x, 1), run(chip, x, 1))
    assert not torch.equal(run(chip, x, 1), run(chip, x, 2))


@pytest.mark.parametrize("drawn", ["chip", "inference"])
def test_a_chip_is_saved_and_loaded(tmp_path, drawn):
    model = seeded(lambda: ordinary((Conv(3), Dense(6)), (1, 4, 4), 3)).eval()
    backend = SRAM(0.78, six_t_bits=[0, 3, 5], drawn=drawn, table=[[0.7, 0.2], [0.9, 1e-3]], axis=0)
    chip = deploy(model, backend, seed=2)
    save(chip, tmp_path / "chip")
    again = load(tmp_path / "chip")
    assert torch.equal(run(again, inputs(), 5), run(chip, inputs(), 5))
    assert torch.equal(arrays(again)[0].stored.words, arrays(chip)[0].stored.words)
