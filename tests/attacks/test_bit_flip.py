"""The bit-flip attack against enumeration of all single flips, and what it must leave alone."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from snnrobust.attacks import BitFlipAttack, BluntGradientWarning, cross_entropy
from snnrobust.attacks.bit_flip import hinge, wrong_probability
from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.hardware import GaussianNoise, deploy
from snnrobust.hardware.bits import from_words, store, to_words
from snnrobust.layers import MeanOutput, Sequential
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF
from snnrobust.neurons.surrogate import ATan, Rectangle, StraightThrough
from snnrobust.quantization import Uniform, uniform

CLASSES = 3
LOSSES = (cross_entropy, wrong_probability, hinge)
BFA = partial(BitFlipAttack, loss=cross_entropy)


def ann():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, CLASSES))


def snn(encoder=None):
    network = Sequential(nn.Flatten(), nn.Linear(4, 3), LIF(threshold=0.5), nn.Linear(3, CLASSES))
    return SpikingClassifier(Direct(3) if encoder is None else encoder, network, MeanOutput())


def conv():
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, CLASSES))


MODELS = {"ann": ann, "snn": snn, "conv": conv, "poisson": lambda: snn(Poisson(3))}


def case(kind, n=12):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[kind]().double()
        x = torch.rand(2 * n, 1, 2, 2, dtype=torch.float64)
        with torch.no_grad(), draws(model, 0):
            y = model(x).argmax(1)
        y[::4] = torch.arange(len(y[::4])) % CLASSES
    return model, (x[:n], y[:n]), (x[n:], y[n:])


def mean_loss(model, x, y):
    with torch.no_grad():
        return float(cross_entropy(model(x), y).mean())


def quantized(model, bits=8):
    model = deepcopy(model)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Linear | nn.Conv2d):
                m.weight.copy_(uniform(m.weight, bits))
    return model


def all_single_flips(model, x, y, bits=8):
    """{(layer, index, bit): loss}, computed with Python's integers."""
    losses = {}
    for name, m in model.named_modules():
        if not isinstance(m, nn.Linear | nn.Conv2d):
            continue
        for i in range(m.weight.numel()):
            for bit in range(bits):
                changed = quantized(model, bits)
                w = changed.get_submodule(name).weight
                step = float(m.weight.detach().abs().max()) / (2 ** (bits - 1) - 1)
                word = round(float(w.detach().flatten()[i]) / step) & ((1 << bits) - 1)
                word ^= 1 << bit
                value = word - (1 << bits) if word >> (bits - 1) else word
                with torch.no_grad():
                    w.view(-1)[i] = value * step
                where = tuple(int(v) for v in torch.unravel_index(torch.tensor(i), w.shape))
                losses[name, where, bit] = mean_loss(changed, x, y)
    return losses


@pytest.mark.parametrize("kind", ["ann", "snn", "conv"])
def test_exact_search_finds_the_best_single_flip(kind):
    model, data, judge = case(kind)
    losses = all_single_flips(model, *data)
    result = BFA(flips=1, exact=True, candidates=1000, stop_at=0.0, random_runs=0)(model, data, judge)
    (flip,) = result.flips
    best = max(losses.values())
    assert result.selection.loss[1] == pytest.approx(best, abs=1e-12)
    assert losses[flip.layer, flip.index, flip.bit] == pytest.approx(best, abs=1e-12)
    assert result.selection.loss[0] == pytest.approx(mean_loss(quantized(model), *data), abs=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["ann", "conv"])
def test_the_first_order_choice_is_that_of_the_formula(kind, per_channel):
    """In each layer the bit of the largest gradient times change, and of the layers the one whose true loss is larger."""
    model, data, judge = case(kind)
    axis = 0 if per_channel else None
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    steps = {name: store(m.weight, 8, axis).step.expand(m.weight.shape) for name, m in layers.items()}
    victim = deepcopy(model)
    with torch.no_grad():
        for name, m in layers.items():
            victim.get_submodule(name).weight.copy_(store(m.weight, 8, axis).values())
    cross_entropy(victim(data[0]), data[1]).mean().backward()
    proposed = {}
    for name in layers:
        w, gains = victim.get_submodule(name).weight, {}
        for where in np.ndindex(*w.shape):
            step = float(steps[name][where])
            word = round(float(w.detach()[where]) / step) & 255
            for bit in range(8):
                change = (-1 if word >> bit & 1 else 1) * (-128 if bit == 7 else 1 << bit) * step
                gains[where, bit] = float(w.grad[where]) * change, change
        where, bit = max(gains, key=lambda pair: gains[pair][0])
        with torch.no_grad():
            w[where] += gains[where, bit][1]
            proposed[name, where, bit] = mean_loss(victim, *data)
            w[where] -= gains[where, bit][1]
    result = BFA(flips=1, stop_at=0.0, random_runs=0, per_channel=per_channel)(model, data, judge)
    (flip,) = result.flips
    assert (flip.layer, flip.index, flip.bit) == max(proposed, key=proposed.__getitem__)
    assert result.selection.loss[1] == pytest.approx(max(proposed.values()), abs=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
def test_gains_are_in_units_of_the_loss(per_channel):
    """A row of small weights has small steps, where each row has its own."""
    model, _, _ = case("ann")
    with torch.no_grad():
        model[1].weight[0] *= 0.01
    memory = BFA(flips=1, per_channel=per_channel)._memory(model)
    gradient = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, gain = memory.best("1", gradient, 1000)
    stored = memory.stored["1"]
    for index, bit, value in zip(found.index.tolist(), found.bit.tolist(), gain.tolist(), strict=True):
        one = stored.flip(torch.tensor([index]), torch.tensor([bit]))
        change = float(((one.values() - stored.values()) * gradient).sum())
        assert value == pytest.approx(change, rel=1e-9)
    assert gain.tolist() == sorted(gain.tolist(), reverse=True)


def test_no_bit_is_flipped_twice_however_much_it_would_gain():
    model, _, _ = case("ann")
    memory = BFA(flips=1)._memory(model)
    gradient = torch.zeros_like(memory.weights["3"])
    gradient[1, 2] = -1.0
    best, gain = memory.best("3", gradient, 1000)
    assert len(best.index) == 8 * 9
    top = int(best.index[0]), int(best.bit[0])
    memory.commit("3", best.index[:1], best.bit[:1])
    again, gain = memory.best("3", -gradient, 1000)
    assert len(again.index) == 8 * 9 - 1
    assert top not in set(zip(again.index.tolist(), again.bit.tolist(), strict=True))
    assert gain.tolist() == sorted(gain.tolist(), reverse=True)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["ann", "snn", "conv"])
def test_the_result_is_the_model_with_those_flips_and_no_others(kind, bits, per_channel):
    model, data, judge = case(kind)
    before = deepcopy(model.state_dict())
    model.train()
    result = BFA(flips=5, bits=bits, per_channel=per_channel, stop_at=0.0, random_runs=1)(model, data, judge)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in (*model.parameters(), *result.model.parameters()))
    assert len({(f.layer, f.index, f.bit) for f in result.flips}) == len(result.flips) == 5
    stored = {
        name: store(m.weight, bits, axis=0 if per_channel else None)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d)
    }
    for f in result.flips:
        codes = stored[f.layer].codes
        assert int(codes[f.index]) == f.before
        assert f.after == int(from_words(to_words(torch.tensor([f.before]), bits) ^ (1 << f.bit), bits))
        flat = int(torch.arange(codes.numel()).view(codes.shape)[f.index])
        stored[f.layer] = stored[f.layer].flip(torch.tensor([flat]), torch.tensor([f.bit]))
    for name, memory in stored.items():
        assert torch.equal(result.model.get_submodule(name).weight, memory.values())
    for trajectory, (x, y) in ((result.selection, data), (result.judgement, judge)):
        assert trajectory.flips == (0, 1, 2, 3, 4, 5)
        assert trajectory.loss[-1] == pytest.approx(mean_loss(result.model, x, y), abs=1e-12)
        assert trajectory.accuracy[-1] == float((result.model(x).argmax(1) == y).double().mean())
        assert trajectory.accuracy[0] <= trajectory.interval(0)[1]
    if not per_channel:
        chip = deploy(model, Uniform(bits), seed=0)
        assert result.judgement.loss[0] == pytest.approx(mean_loss(chip, *judge), abs=1e-12)
    assert list(result.selection.loss) == sorted(result.selection.loss)


@pytest.mark.parametrize("kind", ["snn", "poisson"])
def test_same_seed_same_result_whatever_the_batch_size(kind):
    model, data, judge = case(kind)
    state = torch.random.get_rng_state()
    first, again, batched = (
        BFA(flips=4, draws=3, judge_draws=5, stop_at=0.0, batch_size=size)(model, data, judge, seed=5)
        for size in (256, 256, 5)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    for other in (again, batched):
        assert other.flips == first.flips
        assert torch.equal(other.judgement.shares, first.judgement.shares)
        assert other.judgement.loss == pytest.approx(first.judgement.loss, abs=1e-12)
        assert all(torch.equal(a.shares, b.shares) for a, b in zip(first.random, other.random, strict=True))
    assert not torch.equal(first.random[0].shares, first.random[1].shares)
    if kind == "poisson":
        other = BFA(flips=4, draws=3, judge_draws=5, stop_at=0.0)(model, data, judge, seed=6)
        assert not torch.equal(other.judgement.shares, first.judgement.shares)


def test_a_random_model_is_chosen_on_some_draws_and_judged_on_others():
    model, data, judge = case("poisson")
    result = BFA(flips=2, draws=4, judge_draws=10, random_runs=1, stop_at=0.0)(model, data, judge)
    assert result.settings["draws"] == 4
    assert result.settings["judge_draws"] == 10
    shares = result.judgement.shares
    assert torch.equal(shares, (shares * 10).round() / 10)
    assert ((shares > 0) & (shares < 1)).any()
    low, high = result.judgement.interval()
    assert low < result.judgement.accuracy[-1] < high
    # once for each draw: 1 + 2 recordings; for each flip: before, a gradient, two layers (one n: the loss rose)
    assert result.gradients == 2 * 4 * 12
    assert result.forwards >= (3 + 2 * 3) * 4 * 12


def test_positions_and_layers_bound_the_attack():
    model, data, judge = case("ann")
    result = BFA(flips=3, positions=(2, 5), layers=["3"], stop_at=0.0)(model, data, judge)
    assert {f.bit for f in result.flips} <= {2, 5}
    assert {f.layer for f in result.flips} == {"3"}
    assert result.settings["memory"] == 2 * 9
    assert torch.equal(result.model[1].weight, uniform(model[1].weight, 8))


def test_more_bits_at_once():
    model, data, judge = case("ann")
    result = BFA(flips=7, at_once=3, stop_at=0.0, random_runs=2)(model, data, judge)
    assert result.selection.flips == (0, 3, 6, 7)
    assert all(t.flips == (0, 3, 6, 7) for t in result.random)


def test_n_grows_while_no_layer_raises_the_loss():
    """Two inputs that must be wrong together: |w1 - w2| is what counts, and either flip alone lowers the loss."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1, bias=False)
            with torch.no_grad():
                self.layer.weight.copy_(torch.tensor([[1.0, 1.0]]))

        def forward(self, x):
            a = self.layer(x * torch.tensor([1.0, 0.0]))[:, 0]
            b = self.layer(x * torch.tensor([0.0, 1.0]))[:, 0]
            slope = 0.01 * (a + b)
            # far from where it started the loss falls, and rises again only when both have moved
            return torch.stack(
                [slope + 10 * ((a - 1).abs() - (b - 1).abs()).abs().clamp(max=1), torch.zeros_like(a)], 1
            )

    x, y = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    model = Both()
    result = BFA(flips=2, stop_at=0.0, random_runs=0, positions=(7,))(model, (x, y), (0.5 * x, y))
    assert result.selection.flips == (0, 2)
    assert {f.index for f in result.flips} == {(0, 0), (0, 1)}
    one = BFA(flips=1, stop_at=0.0, random_runs=0, positions=(7,))(model, (x, y), (0.5 * x, y))
    assert one.flips == ()
    assert one.stopped == "no flips that were tried raise the loss"


def test_several_surrogates_are_never_worse_in_the_first_flip():
    model, data, judge = case("snn")
    options = (None, ATan(5.0), StraightThrough())
    alone = [
        BFA(flips=1, surrogate=s, stop_at=0.0, random_runs=0)(model, data, judge).selection.loss[-1] for s in options
    ]
    together = BFA(flips=1, surrogate=options, stop_at=0.0, random_runs=0)(model, data, judge)
    assert together.selection.loss[-1] == pytest.approx(max(alone), abs=1e-12)
    assert together.gradients == 3 * 12


def test_a_masked_layer_is_named_and_reached_through_another_surrogate_or_exactly():
    model, data, judge = case("snn")
    model.network[2].surrogate = Rectangle(1e-9)
    masked = BFA(flips=2, stop_at=0.0, random_runs=0)(model, data, judge)
    assert masked.blind == ("network.1",)
    assert "no gradient at the start in network.1" in str(masked)
    assert {f.layer for f in masked.flips} == {"network.3"}
    sound = BFA(flips=2, stop_at=0.0, random_runs=0, surrogate=(None, ATan(2.0)))(model, data, judge)
    assert sound.blind == ()
    exact = BFA(flips=1, stop_at=0.0, random_runs=0, exact=True, candidates=1000)(model, data, judge)
    assert exact.selection.loss[1] == pytest.approx(max(all_single_flips(model, *data).values()), abs=1e-12)


def test_no_gradient_at_all_is_said():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x.flatten(1)).round()

    _, data, judge = case("ann")
    model = Cut().double()
    attack = BFA(flips=2, stop_at=0.0, random_runs=1)
    with pytest.warns(BluntGradientWarning, match="exactly zero"):
        result = attack(model, data, judge)
    assert result.flips == ()
    assert result.stopped == "no bit has a gain"


def test_it_stops_at_chance(digits_ann):
    model, x, y = digits_ann
    result = BFA(flips=200, at_once=10, candidates=20, random_runs=1)(model, (x[:100], y[:100]), (x[100:], y[100:]))
    assert len(result.flips) < 200
    assert result.stopped == "stopped at 10 % on the attacker's data"
    assert result.selection.accuracy[-1] <= 0.1 < result.selection.accuracy[-2]


@pytest.mark.parametrize("kind", ["digits_ann", "digits_snn"])
def test_chosen_flips_do_more_than_random_ones(kind, request, tmp_path):
    model, x, y = request.getfixturevalue(kind)
    half = len(x) // 2
    result = BitFlipAttack(flips=16)(model, (x[:half], y[:half]), (x[half:], y[half:]), seed=1)
    assert len(result.random) == 3
    assert result.judgement.accuracy[-1] < 0.6
    assert all(t.accuracy[-1] > result.judgement.accuracy[-1] + 0.2 for t in result.random)
    assert result.flips_to(0.6) <= 16
    tried = dict(result.searches)
    assert tried[result.settings["loss"]] == min(tried.values()) == result.selection.accuracy[-1]
    assert result.flips_to(0.0) is None
    text = str(result)
    assert f"accuracy before quantization {100 * result.float_accuracy:.1f} %" in text
    assert len(text.splitlines()) == 6 + len(result.judgement.flips)
    result.plot(tmp_path / "flips.png")
    assert (tmp_path / "flips.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_of_several_losses_the_strongest_search_is_kept(kind):
    model, data, judge = case(kind)
    result = BitFlipAttack(flips=4, stop_at=0.0)(model, data, judge, seed=1)
    alone = {f.__name__: BitFlipAttack(flips=4, stop_at=0.0, loss=f)(model, data, judge, seed=1) for f in LOSSES}
    assert dict(result.searches) == {name: r.selection.accuracy[-1] for name, r in alone.items()}
    winner = alone[result.settings["loss"]]
    assert winner.selection.accuracy[-1] == min(r.selection.accuracy[-1] for r in alone.values())
    assert winner.flips == result.flips
    assert winner.selection.loss == result.selection.loss
    assert winner.judgement.loss == result.judgement.loss
    assert torch.equal(winner.random[1].shares, result.random[1].shares)
    assert result.forwards == sum(r.forwards for r in alone.values())
    assert result.gradients == sum(r.gradients for r in alone.values())


def test_a_loss_that_fails_leaves_the_generator_as_it_was():
    model, data, judge = case("poisson")

    def broken(logits, y):
        raise ZeroDivisionError

    state = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError) as caught:  # it keeps the frames alive
        BFA(flips=1, loss=broken)(model, data, judge)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert caught.value is not None


def test_losses_that_a_wrong_sample_cannot_raise_for_ever():
    z = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 2])
    torch.testing.assert_close(wrong_probability(z, y), 1 - torch.exp(-cross_entropy(z, y)))
    assert hinge(z, y).tolist() == [-1.0, 0.0, 0.0]


def test_random_flips_are_different_bits_of_those_allowed():
    model, _, _ = case("ann")
    attack = BFA(flips=18, positions=(2, 5), layers=["3"], stop_at=0.0)
    for memory in (attack._memory(model), BFA(flips=1, positions=(2, 5), layers=["3"])._memory(model)):
        for count in (1, 18):
            chosen = memory.pick(count, torch.Generator().manual_seed(0))
            assert len(set(chosen)) == count
            assert {name for name, _, _ in chosen} == {"3"}
            assert {bit for _, _, bit in chosen} <= {2, 5}
    everything = BFA(flips=1)._memory(model)
    seen = {everything._bit(number) for number in range(everything.size)}
    assert len(seen) == everything.size == 8 * (12 + 9)
    many = [everything.pick(5, torch.Generator().manual_seed(seed)) for seed in range(400)]
    counts = torch.bincount(
        torch.tensor([8 * i + b for picks in many for name, i, b in picks if name == "1"]), minlength=96
    )
    assert counts.min() > 0
    assert 0.4 < sum(name == "1" for picks in many for name, _, _ in picks) / 2000 < 0.75


def test_a_shared_weight_is_one_memory():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.out(self.b(self.a(x.flatten(1)).relu()).relu())

    _, data, judge = case("ann")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tied().double()
    result = BFA(flips=3, stop_at=0.0, random_runs=0)(model, data, judge)
    assert result.settings["memory"] == 8 * (16 + 12)
    assert result.model.a.weight is result.model.b.weight
    assert result.judgement.loss[-1] == pytest.approx(mean_loss(result.model, *judge), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"flips": 0}, ValueError, "flips must be at least 1"),
        ({"bits": 9}, ValueError, r"bits must be in 2\.\.8"),
        ({"candidates": 0}, ValueError, "candidates must be at least 1"),
        ({"at_once": 11}, ValueError, "at_once must be at most candidates, got 11 of 10"),
        ({"positions": (8,)}, ValueError, r"positions must be a tuple of different bits in 0\.\.7"),
        ({"positions": ()}, ValueError, "positions must be a tuple"),
        ({"positions": (1, 1)}, ValueError, "positions must be a tuple"),
        ({"surrogate": "ATan"}, TypeError, "surrogate must be None, a Surrogate"),
        ({"surrogate": ()}, TypeError, "surrogate must be None, a Surrogate"),
        ({"loss": ()}, ValueError, "loss must be a function or a tuple of at least one"),
        ({"loss": "ce"}, TypeError, "loss must be a function"),
        ({"exact": 1}, TypeError, "exact must be True or False"),
        ({"stop_at": 1.5}, ValueError, "stop_at must be in"),
        ({"random_runs": -1}, ValueError, "random_runs must be at least 0"),
        ({"flips": 1000}, ValueError, "flips must be at most the 168 bits that may be flipped, got 1000"),
        ({"layers": ["2"]}, ValueError, "layers must be one of 1, 3"),
        ({"layers": "1"}, ValueError, "layers must be a collection of names"),
        ({"surrogate": ATan(2.0)}, ValueError, "has no surrogate to override"),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    model, data, judge = case("ann")
    with pytest.raises(error, match=match):
        BFA(**arguments)(model, data, judge)


def test_bad_models_and_data_are_named():
    model, (x, y), judge = case("ann")
    attack = BFA(flips=1)
    with pytest.raises(ValueError, match="judge must be other samples than data"):
        attack(model, (x, y), (x[:5], y[:5]))
    with pytest.raises(ValueError, match=r"y must lie in 0\.\.2, got 0\.\.3"):
        attack(model, (x, torch.full_like(y, 3).index_fill(0, torch.tensor([0]), 0)), judge)
    with pytest.raises(ValueError, match="data contains NaN"):
        attack(model, (torch.full_like(x, torch.nan), y), judge)
    with pytest.raises(ValueError, match="judge contains infinity"):
        attack(model, (x, y), (judge[0] / 0, judge[1]))
    with pytest.raises(ValueError, match=r"no nn\.Linear or nn\.Conv layer"):
        attack(nn.Flatten(), (x, y), judge)
    with pytest.raises(ValueError, match="run the model once before"):
        attack(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), (x, y), judge)
    with pytest.raises(TypeError, match="on a chip already"):
        attack(deploy(model, GaussianNoise(0.1), seed=0), (x, y), judge)
    with pytest.raises(TypeError, match="parametrization"):
        attack(
            nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3).double())), (x, y), judge
        )
    with pytest.raises(ValueError, match=r"torch\.no_grad\(\) instead"), torch.inference_mode():
        attack(model, (x, y), judge)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        attack(lambda x: x, (x, y), judge)
