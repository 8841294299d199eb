import pytest
import torch
from torch import nn

from snnrobust import data, hardware
from snnrobust.draws import draws, keyed
from snnrobust.encoders import Direct, Poisson, Rows
from snnrobust.layers import EventLinear, MeanOutput
from snnrobust.learning_rules import BPTT, FA, RULES, alignment
from snnrobust.models import ARCHITECTURES, Conv, Dense, Pool, Residual, ordinary, spiking
from snnrobust.neurons import IF, LIF

SHAPE = (2, 6, 6)


def fresh(make, seed=0):
    with keyed(seed):
        return make()


def conv1d():
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(2, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4), nn.ReLU(),
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3),
    )  # fmt: skip


CNN = (Conv(4), Conv(6, stride=2), Pool(), Dense(8))
MODELS = {
    "ordinary": lambda: ordinary(CNN, SHAPE, 3),
    "ordinary, residual": lambda: ordinary((Conv(3), Residual((Conv(4, stride=2), Conv(4)))), SHAPE, 3),
    "conv1d": conv1d,
    "mlp": lambda: spiking((Dense(9), Dense(8)), SHAPE, 3, Direct(4), LIF(0.9, threshold=0.3), "none"),
    "mlp, hard reset": lambda: spiking((Dense(9), Dense(8)), SHAPE, 3, Poisson(4), LIF(0.8, threshold=0.3, reset="hard"), "none"),
    "cnn": lambda: spiking(CNN, SHAPE, 3, Direct(3), LIF(0.9, threshold=0.5), "BNTT"),
    "cnn, Poisson": lambda: spiking(CNN, SHAPE, 3, Poisson(4), LIF(0.9, threshold=0.3), "BNTT", MeanOutput()),
    "residual": lambda: spiking((Conv(3), Residual((Conv(4, stride=2), Conv(4)))), SHAPE, 3, Direct(3), IF(0.3), "TDBN"),
    "recurrent": lambda: spiking(ARCHITECTURES["recurrent"], SHAPE, 3, Rows(6), LIF(0.9, threshold=0.3), "none"),
}  # fmt: skip


def batch(size=5):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(size, *SHAPE, generator=generator).double(), torch.arange(size) % 3


def gradients(rule, model, x, y, scale=1.0):
    """By parameter, and the loss, in train mode under fixed draws."""
    model.train().zero_grad()
    with rule.lend(model, x[:1]) as lent, draws(model, 9):
        loss, logits = lent.backward(x, y, scale)
    assert not logits.requires_grad
    return {name: p.grad.clone() for name, p in model.named_parameters()}, loss


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("loss", ["cross_entropy", "tet"])
def test_with_the_transpose_for_feedback_it_is_bptt(kind, loss):
    if loss == "tet" and kind in ("ordinary", "ordinary, residual", "conv1d"):
        pytest.skip("has no time")
    x, y = batch()
    model = fresh(MODELS[kind]).double()
    true, its_loss = gradients(BPTT(loss=loss), model, x, y)
    found, own_loss = gradients(FA(loss=loss, feedback="transpose"), model, x, y, 2.0)
    torch.testing.assert_close(own_loss, its_loss, rtol=1e-12, atol=0)
    for name, gradient in true.items():
        assert gradient.norm() > 0, name
        torch.testing.assert_close(found[name], 2 * gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("feedback", ["random", "sign"])
def test_feedback_turns_the_gradient_of_all_but_the_last_layer(kind, feedback):
    x, y = batch()
    model = fresh(MODELS[kind]).double()
    true, _ = gradients(BPTT(), model, x, y)
    found, _ = gradients(FA(feedback=feedback), model, x, y)
    *early, last_weight, last_bias = true  # the classifier is the last
    for name in (last_weight, last_bias):
        torch.testing.assert_close(found[name], true[name], rtol=1e-9, atol=1e-13)
    for name in early:
        assert not torch.allclose(found[name], true[name], rtol=1e-3), name


def test_recurrent_weights_have_feedback_of_their_own():
    x, y = batch()
    model = fresh(MODELS["recurrent"]).double()
    rule = FA()
    assert "network.1.recurrent" in rule.matrices(model)
    through_own = {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, nn.Linear)}

    def first_layer(**changed):
        class Given(FA):
            def matrices(self, model):
                return super().matrices(model) | changed

        return gradients(Given(), model, x, y)[0]["network.0.weight"]

    name = "network.1.recurrent"
    assert not torch.allclose(first_layer(), first_layer(**{name: through_own[name]}))
    all_own = first_layer(**through_own)
    torch.testing.assert_close(all_own, gradients(BPTT(), model, x, y)[0]["network.0.weight"], rtol=1e-9, atol=1e-13)


def test_sign_feedback_has_the_signs_of_the_weights_as_they_are_and_the_magnitudes_of_the_seed():
    x, y = batch()
    model, rule = fresh(MODELS["mlp"]).double(), FA(feedback="sign")

    class Given(FA):
        def matrices(self, model):
            weights = dict(model.named_parameters())
            return {n: m.abs() * weights[f"{n}.weight"].detach().sign() for n, m in super().matrices(model).items()}

    with rule.lend(model, x[:1]) as lent:
        for turn in (1, -1):
            model.network[3].weight.data.mul_(turn)  # the feedback turns with it
            expected, _ = gradients(Given(), model, x, y)
            model.zero_grad()
            with draws(model, 9):
                lent.backward(x, y, 1.0)
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("feedback", ["sign", "transpose"])
def test_random_input_feedback_is_random_whatever_the_others_are(feedback):
    """Through one linear layer: (e B), of the seed."""
    model, (x, y), rule = nn.Linear(72, 3).double(), batch(), FA(feedback=feedback, seed=4)
    x = x.flatten(1)
    error = model(x).softmax(1) - nn.functional.one_hot(y, 3)
    found = rule.input_gradient(model, x, y, input_feedback="random")
    torch.testing.assert_close(found, error.detach() @ rule.matrices(model)[""], rtol=1e-9, atol=1e-13)


def test_the_first_layer_stays_as_it_is():
    x, _ = batch()
    model = fresh(MODELS["cnn"]).double()
    with FA().lend(model, x[:1]):
        lent = {name for name, m in model.named_modules() if "forward" in vars(m)}
    assert lent == set(FA().matrices(model)) - {"network.0"}


def test_matrices_are_those_of_the_seed():
    model = fresh(MODELS["cnn"])
    one, again, other = (FA(seed=seed).matrices(model) for seed in (0, 0, 1))
    assert set(one) == {name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for name, matrix in one.items():
        assert torch.equal(matrix, again[name])
        assert not torch.equal(matrix, other[name])
        assert matrix.shape == model.get_submodule(name).weight.shape


@pytest.mark.parametrize("feedback", ["random", "sign"])
def test_training_aligns_the_gradient_with_the_true_one(feedback):
    """Random feedback starts at right angles to the truth, with the signs of the weights it does not."""
    train, test = data.load("digits", "train"), data.load("digits", "test")
    x, y = data.take(test, 200)
    model = fresh(lambda: spiking((Dense(64), Dense(64)), (1, 8, 8), 10, Direct(4)))
    rule = FA(lr=5e-3, feedback=feedback)
    hidden = ("network.1", "network.4")
    before = alignment(rule, model, x, y)
    history = rule.fit(model, train, test, epochs=4, progress=False)
    after = alignment(rule, model, x, y)
    assert list(after) == [*hidden, "network.7"]
    assert after["network.7"] < 1e-3
    assert history.last["validation_accuracy"] > 0.93
    for name in hidden:
        if feedback == "random":
            assert before[name] > 75
        assert after[name] < 70


def test_trains_in_16_bits_and_in_parts():
    train = data.take(data.load("digits", "train"), 256)
    model = fresh(lambda: spiking((Conv(4), Dense(16)), (1, 8, 8), 10, Direct(3)))
    history = FA(lr=1e-2, precision="bfloat16", accumulate=2).fit(model, train, epochs=4, progress=False)
    assert history.last["loss"] < 0.8 * history.records[0]["loss"]


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_event_driven_layers_are_trained_too():
    x, y = batch()
    model = fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 3))).double()
    true, _ = gradients(FA(), model, x, y)
    model[3] = EventLinear(model[3])
    for name, gradient in gradients(FA(), model, x, y)[0].items():
        torch.testing.assert_close(gradient, true[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ordinary(ARCHITECTURES["lstm"], SHAPE, 3), r"network.0 \(LSTM\) holds weights of another kind"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 1, 1), nn.Flatten(), nn.Linear(36, 3)), r"0 \(ConvTranspose2d\)"),
        (lambda: nn.Sequential(nn.Flatten(), Doubled(72, 3)), r"1 \(Doubled\)"),
        (lambda: nn.Flatten(), "no nn.Linear or nn.Conv layer to train"),
        (lambda: hardware.deploy(ordinary((Dense(4),), SHAPE, 3), hardware.GaussianNoise(0.1), seed=0), "no nn.Linear"),
    ],
)  # fmt: skip
def test_a_model_that_it_has_no_feedback_for_is_refused(make, message):
    model = fresh(make)
    with pytest.raises(TypeError, match=message):
        FA().refuse(model, torch.rand(1, *SHAPE))


def test_bad_settings():
    with pytest.raises(ValueError, match="feedback must be one of random, sign, transpose"):
        FA(feedback="transposed")
    with pytest.raises(ValueError, match="loss must be one of"):
        FA(loss="mse")
    with pytest.raises(ValueError, match="loss 'tet' is of outputs over time"):
        FA(loss="tet").refuse(fresh(MODELS["ordinary"]), torch.rand(1, *SHAPE))
    assert RULES["FA"] is FA
