import pytest
import torch
from torch import nn

from snnrobust.draws import draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.layers import READOUTS, LastOutput, MeanMembrane, MeanOutput, Sequential, SpikeCount
from snnrobust.learning_rules.losses import LOSSES, Answer, answer, cross_entropy, spike_count, tet
from snnrobust.models import SpikingClassifier
from snnrobust.neurons import LIF

T, B, K = 5, 4, 3
Y = torch.tensor([2, 0, 1, 2])


def outputs(seed=0):
    return torch.randn(T, B, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def given(out, readout=None):
    return Answer((readout or MeanOutput())(out), out)


def test_tet_is_the_mean_cross_entropy_of_the_steps():
    """Deng et al. 2022: the mean over t of CE(O(t), y), written out; the gradient by hand is (softmax - one-hot) / (T B)."""
    out = outputs()
    total = 0.0
    for t in range(T):
        for b in range(B):
            e = [float(v) for v in out[t, b].detach().exp()]
            total -= torch.tensor(e[Y[b]] / sum(e), dtype=torch.float64).log() / (T * B)
    loss = tet(given(out), Y)
    assert abs(loss.detach() - total) < 1e-12
    (grad,) = torch.autograd.grad(loss, out)
    hand = (out.detach().softmax(2) - nn.functional.one_hot(Y, K)) / (T * B)
    assert (grad - hand).abs().max() < 1e-12


def test_tet_is_no_less_than_the_loss_of_the_mean():
    """By Jensen's inequality; equal where all steps are alike."""
    out = outputs()
    assert tet(given(out), Y) > cross_entropy(given(out), Y)
    alike = out[:1].detach().expand(T, B, K)
    assert abs(tet(given(alike), Y) - cross_entropy(given(alike), Y)) < 1e-12


@pytest.mark.parametrize("readout", [MeanOutput(), MeanMembrane(0.7), SpikeCount(), LastOutput()], ids=str)
def test_where_every_step_is_right_all_readouts_are(readout):
    """So tet needs no readout of its own. Every readout is in the list."""
    assert {type(r) for r in (MeanOutput(), MeanMembrane(), SpikeCount(), LastOutput())} == {
        kind for kind in READOUTS.values() if kind.__module__ == "snnrobust.layers.readout"
    }
    out = outputs().detach()
    out = out.scatter(2, Y.expand(T, B)[..., None], out.amax(2, keepdim=True) + 0.01)
    assert torch.equal(readout(out).argmax(1), Y)


def spikes():
    return (outputs(1).detach() > 0).double().requires_grad_()


def test_spike_count_is_the_squared_distance_of_rates():
    out = spikes()
    total = sum(
        (float(out[:, b, k].detach().sum()) / T - (1.0 if k == Y[b] else 0.0)) ** 2 / (B * K)
        for b in range(B)
        for k in range(K)
    )
    assert abs(spike_count(given(out), Y).detach() - total) < 1e-12
    right = nn.functional.one_hot(Y, K).double().expand(T, B, K)
    assert spike_count(given(right), Y) == 0


def test_spike_count_is_that_of_snntorch():
    functional = pytest.importorskip("snntorch.functional")
    out, theirs = spikes(), spikes()
    mine, other = spike_count(given(out), Y), functional.mse_count_loss(1.0, 0.0)(theirs.float(), Y)
    assert T * mine.item() == pytest.approx(other.item(), rel=1e-6)
    (a,), (b,) = torch.autograd.grad(mine, out), torch.autograd.grad(other, theirs)
    assert (T * a - b).abs().max() < 1e-6


def test_16_bit_outputs_are_averaged_in_32():
    out = torch.ones(1000, B, K, dtype=torch.bfloat16)
    assert spike_count(Answer(out[0], out), Y).item() == pytest.approx((K - 1) / K)  # a sum in 16 bits ends at 256


@pytest.mark.parametrize("name", ["tet", "spike_count"])
def test_networks_without_time_have_no_loss_over_time(name):
    with pytest.raises(ValueError, match=f"loss '{name}' is of the outputs over time.*cross_entropy"):
        LOSSES[name](answer(nn.Linear(2, K), torch.zeros(B, 2)), Y)


@pytest.mark.parametrize("name", LOSSES)
def test_labels_are_checked(name):
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 0\.\.5"):
        LOSSES[name](given(outputs()), torch.tensor([0, 1, 5, 2]))
    with pytest.raises(TypeError, match="labels must be int64"):
        LOSSES[name](given(outputs()), Y.float())


@pytest.mark.parametrize("encoder", [Direct(T), Poisson(T)], ids=str)
def test_the_answer_is_that_of_the_model(encoder):
    torch.manual_seed(0)
    network = Sequential(nn.Linear(6, 8), LIF(0.8, 0.2), nn.Linear(8, K))
    model, x = SpikingClassifier(encoder, network, MeanMembrane()), torch.rand(B, 6)
    with draws(model, 3):
        logits, out = answer(model, x)
        assert torch.equal(logits, model(x))
    assert out.shape == (T, B, K)
    assert torch.equal(model.readout(out), logits)
    plain = nn.Linear(6, K)
    assert torch.equal(answer(plain, x).logits, plain(x))
    assert answer(plain, x).outputs is None


def test_an_answer_without_a_key_takes_one_for_all_its_parts():
    """As the model's own forward does, so one seed of torch gives one answer."""
    network = Sequential(nn.Linear(6, 8), LIF(0.8, 0.2), nn.Linear(8, K))
    model, x = SpikingClassifier(Poisson(T), network, MeanOutput()), torch.rand(B, 6)
    found = []
    for call in (lambda: answer(model, x).logits, lambda: model(x)):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            found.append(call())
    assert torch.equal(*found)
