import pytest
import torch

from snnrobust.attacks import ASSG, EOT, PGD, RGA, Backprop, Linf, Mixed, Surrogate, begin, cross_entropy
from snnrobust.draws import Stream
from snnrobust.neurons.surrogate import ATan

STREAM = Stream(5, torch.arange(6))


def test_is_the_mean_of_the_directions(victims):
    model, x, y = victims("poisson")
    sources = (Backprop(), RGA(), Surrogate(ATan(9.0)))
    found, logits = Mixed(sources)(model, x, y, cross_entropy, STREAM)
    expected = torch.zeros_like(x)
    for source in sources:
        g, z = source(model, x, y, cross_entropy, STREAM)
        length = g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        expected += torch.where(length > 0, g / length, 0.0) / 3
        assert torch.equal(z, logits)  # the same draws
    assert (found - expected).abs().max() < 1e-12


def test_scales_do_not_matter_and_silence_is_no_vote(victims):
    model, x, y = victims("direct")

    def loud(*arguments):
        gradient, logits = Backprop()(*arguments)
        return 1e9 * gradient, logits

    def silent(*arguments):
        gradient, logits = Backprop()(*arguments)
        return torch.zeros_like(gradient), logits

    plain = Mixed((Backprop(), RGA()))(model, x, y, cross_entropy, STREAM)[0]
    assert (Mixed((loud, RGA()))(model, x, y, cross_entropy, STREAM)[0] - plain).abs().max() < 1e-12
    half = Mixed((Backprop(), silent))(model, x, y, cross_entropy, STREAM)[0]
    assert torch.equal(half.sign(), Backprop()(model, x, y, cross_entropy, STREAM)[0].sign())


def test_what_the_sources_learn_they_keep_for_a_run(victims):
    model, x, y = victims("direct")
    mixed = Mixed((ASSG(), RGA()))
    run = begin(mixed)
    twice = [run(model, x, y, cross_entropy, STREAM)[0] for _ in range(2)]
    assert not torch.equal(*twice)
    first = [mixed(model, x, y, cross_entropy, STREAM)[0] for _ in range(2)]
    assert torch.equal(*first)
    assert torch.equal(first[0], twice[0])
    still = run.again()
    assert torch.equal(*(still(model, x, y, cross_entropy, STREAM)[0] for _ in range(2)))


def test_composes(victims):
    model, x, y = victims("poisson")
    x_adv = PGD(Linf(0.1), steps=3, gradient=EOT(2, Mixed((ASSG(), Backprop()))))(model, x, y, seed=0)
    Linf(0.1).validate(x, x_adv)


@pytest.mark.parametrize(
    ("sources", "error", "words"),
    [
        ([Backprop(), RGA()], ValueError, "sources must be a tuple"),
        ((Backprop(),), ValueError, "at least two"),
        ((Backprop(), 3), TypeError, r"sources\[1\] must be a function"),
    ],
)
def test_bad_arguments_are_named(sources, error, words):
    with pytest.raises(error, match=words):
        Mixed(sources)
