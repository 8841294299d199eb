"""The gradient of one model, the logits of another."""

import pytest
import torch

from snnrobust.attacks import ASSG, EOT, PGD, Backprop, FromModel, Linf, Surrogate, Transfer, begin, cross_entropy
from snnrobust.draws import Stream, draws
from snnrobust.neurons.surrogate import ATan

STREAM = Stream(5, torch.arange(6))


def test_gradient_of_the_source_and_logits_of_the_victim(victims):
    victim, x, y = victims("poisson")
    source, _, _ = victims("direct", 1)
    source.train()  # and it is asked in eval mode
    found, logits = FromModel(source)(victim, x, y, cross_entropy, STREAM)
    assert source.training
    expected, _ = Backprop()(source.eval(), x, y, cross_entropy, STREAM)
    assert torch.equal(found, expected)
    with torch.no_grad(), draws(victim, STREAM.key, STREAM.sample_ids):
        assert torch.equal(logits, victim(x))


def test_without_early_stop_it_is_a_transfer_by_other_means(victims):
    victim, x, y = victims("ann")
    source, _, _ = victims("ann", 1)
    attack = PGD(Linf(0.1), steps=5, random_start=False)
    theirs = Transfer(attack, source)(victim, x, y, seed=0)
    ours = PGD(Linf(0.1), steps=5, random_start=False, gradient=FromModel(source))(victim, x, y, seed=0)
    assert torch.equal(ours, theirs)


def test_composes(victims):
    victim, x, y = victims("poisson")
    source, _, _ = victims("poisson", 1)
    mean, _ = FromModel(source, EOT(2, Surrogate(ATan(4.0))))(victim, x, y, cross_entropy, STREAM)
    inner, _ = EOT(2, Surrogate(ATan(4.0)))(source, x, y, cross_entropy, STREAM.fork("from model"))
    assert torch.equal(mean, inner)
    run = begin(FromModel(source, ASSG()))
    twice = [run(victim, x, y, cross_entropy, STREAM)[0] for _ in range(2)]
    assert not torch.equal(*twice)


def test_bad_arguments_are_named(victims):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        FromModel("ann")
    with pytest.raises(TypeError, match="source must be a function"):
        FromModel(victims("ann")[0], 3)
