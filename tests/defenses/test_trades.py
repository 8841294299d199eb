from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from snnrobust.defenses import TRADES
from snnrobust.draws import Stream, draws
from snnrobust.learning_rules import BPTT


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def kl(p, q):
    return np.array([sum(a * np.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)])


def step(rule, model, x, y, key=5):
    ids = torch.arange(20, 20 + len(x))
    model.train().zero_grad()
    with rule.lend(model, x[:1]) as lent:
        lent.before(Stream(key, ids), ids)
        with draws(model, key, ids):
            loss, logits = lent.backward(x, y, 1.0)
    return loss, logits, lent


def inputs(digits, n=12):
    return digits[0][:n].double(), digits[1][:n]


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_the_loss_is_the_published_one(beta, make, digits):
    """Cross-entropy and KL written out, at the examples that were found."""
    (x, y), model = inputs(digits), make("mlp").double()
    rule = TRADES(eps=0.1, beta=beta, steps=3)
    loss, logits, lent = step(rule, model, x, y)
    found = [p.grad.clone() for p in model.parameters()]
    x_adv, _ = rule.ascend(model, x, y, Stream(5, torch.arange(20, 32)).fork("inner"))
    z, far = model(x).detach().numpy(), model(x_adv).detach().numpy()
    expected = np.mean(-np.log(softmax(z)[np.arange(12), y.numpy()])) + beta * np.mean(kl(softmax(z), softmax(far)))
    assert abs(float(loss) - expected) < 1e-12
    assert np.allclose(logits.numpy(), z)
    assert lent.tally == {
        "adversarial_accuracy": [float((torch.from_numpy(far).argmax(1) == y).sum()), 12.0], "unmoved": [0.0, 12.0]
    }  # fmt: skip

    def written_out(p):
        """The loss as a function of one weight, for its derivative by differences: through both answers."""
        before = model[3].bias.data[2].clone()
        model[3].bias.data[2] += p
        z, far = model(x).detach().numpy(), model(x_adv).detach().numpy()
        model[3].bias.data[2] = before
        return np.mean(-np.log(softmax(z)[np.arange(12), y.numpy()])) + beta * np.mean(kl(softmax(z), softmax(far)))

    h = 1e-5
    assert abs(float(found[3][2]) - (written_out(h) - written_out(-h)) / (2 * h)) < 1e-8


def test_the_ascent_is_the_published_one(make, digits):
    """Sign steps on KL from a Gaussian start, with the gradient by the chain rule: (q - p) through the network."""
    (x, y), model = inputs(digits), make("mlp").double()
    rule, stream = TRADES(eps=0.1, steps=4, step_size=0.03), Stream(3, torch.arange(12))
    at, moved = rule.ascend(model, x, y, stream)
    assert moved.all()
    w1, b1, w2, b2 = (p.detach().numpy() for p in model.parameters())

    def forward(a):
        h = a.reshape(12, 64) @ w1.T + b1
        return h, softmax(np.maximum(h, 0) @ w2.T + b2)

    clean = x.numpy()
    p = forward(clean)[1]
    a, _ = TRADES(eps=0.1, steps=1, step_size=1e-300).ascend(model, x, y, stream)
    a = a.numpy()
    climbed = [kl(p, forward(a)[1]).mean()]
    for _ in range(4):
        h, q = forward(a)
        g = (((q - p) @ w2) * (h > 0)) @ w1
        a = np.clip(np.clip(a + 0.03 * np.sign(g).reshape(a.shape), clean - 0.1, clean + 0.1), 0, 1)
        climbed.append(kl(p, forward(a)[1]).mean())
    assert np.allclose(at.numpy(), a, rtol=0, atol=1e-12)
    assert climbed[-1] > 100 * climbed[0]  # KL has risen
    assert sorted(climbed[:3]) == climbed[:3]


def test_the_start_is_gaussian_around_x_and_its_own_for_each_sample(make):
    x, y = torch.full((200, 1, 8, 8), 0.5), torch.zeros(200, dtype=torch.int64)
    start = TRADES(eps=0.1, start=0.01, steps=1, step_size=1e-6)
    at, _ = start.ascend(make("mlp"), x, y, Stream(3, torch.arange(200)))
    noise = ((at - x) / 0.01).flatten()
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
    assert len(at.flatten(1).unique(dim=0)) == 200


def test_both_answers_have_the_same_draws(make, digits):
    """With next to no budget x' is x, so that without a difference of draws KL is next to nothing."""
    x, y = digits[0][:10], digits[1][:10]
    rule = TRADES(eps=1e-7, start=1e-9, beta=1.0)
    model, reference = make("poisson"), make("poisson")
    for m in (*model.modules(), *reference.modules()):  # statistics of the second pass are those of the first
        m.momentum = 0.0
    loss, _, _ = step(rule, model, x, y)
    ids = torch.arange(20, 30)
    with BPTT().lend(reference, x[:1]) as lent, draws(reference.train(), 5, ids):
        plain, _ = lent.backward(x, y, 1.0)
    assert abs(loss - plain) < 1e-3


def test_without_the_second_term_it_is_backpropagation(model, digits):
    x, y = digits[0][:10], digits[1][:10]
    reference = deepcopy(model)
    _, logits, _ = step(TRADES(eps=0.1, beta=0.0, steps=1, start=0.02), model, x, y)
    with BPTT().lend(reference, x[:1]) as lent, draws(reference.train(), 5, torch.arange(20, 30)):
        _, expected = lent.backward(x, y, 1.0)
    assert torch.equal(logits, expected)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-7)


def test_samples_without_a_gradient_are_counted(digits):
    """A step function in front: a sample that crosses none of its edges has no gradient."""

    class Coarse(nn.Module):
        def forward(self, x):
            return (x > 0.5) + 0.0 * x + torch.relu(x - 0.5)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), Coarse(), nn.Linear(64, 10)).double()
    x, y = inputs(digits)
    x = x * 0.4  # all below the edge
    x[:5, 0, 3, 3] = 0.9
    _, _, lent = step(TRADES(eps=0.01, steps=2), model, x, y)
    assert lent.tally["unmoved"] == [7.0, 12.0]


def test_the_mean_answer_over_draws(make, digits):
    """Of three draws: the clean answer that KL is taken from is their mean, as probabilities."""
    x, y, model, stream = digits[0][:6], digits[1][:6], make("poisson").eval(), Stream(3, torch.arange(6))
    found = TRADES(eot=3)._clean(model, x, y, stream)
    answers = []
    for i in range(3):
        with torch.no_grad(), draws(model, stream.fork("eot", i).key, stream.sample_ids):
            answers.append(model(x).softmax(1))
    assert torch.allclose(found.exp(), sum(answers) / 3, atol=1e-6)


@pytest.mark.parametrize(
    "bad", [{"beta": -1.0}, {"steps": 0}, {"start": 0.0}, {"step_size": 0.0}, {"step_size": "1/0"}]
)
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TRADES(**bad)
