"""The victim's own learning signal, and the true gradient of a victim of any rule."""

import pytest
import torch
from torch import nn

from snnrobust import learning_rules
from snnrobust.attacks import EOT, PGD, Backprop, LearningSignal, Linf, Surrogate, TrueTranspose, cross_entropy, margin
from snnrobust.attacks.losses import dlr, targeted
from snnrobust.draws import Stream, draws
from snnrobust.encoders import Direct, Poisson
from snnrobust.learning_rules import BPTT, DFA, FA, LE
from snnrobust.learning_rules.feedback import feedback_weights
from snnrobust.models import Dense, spiking
from snnrobust.neurons.surrogate import ATan

STREAM = Stream(5, torch.arange(6) + 10)


def dense(encoder, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = spiking((Dense(12), Dense(12)), (1, 4, 4), 3, encoder, norm="none").double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2.5)
        return model, torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.arange(6) % 3


def test_of_bptt_it_is_backpropagation():
    model, x, y = dense(Poisson(4))
    found, logits = LearningSignal(BPTT())(model, x, y, cross_entropy, STREAM)
    expected, same = Backprop()(model, x, y, cross_entropy, STREAM)
    assert torch.allclose(found, expected, rtol=1e-10, atol=0)
    assert expected.abs().amax((1, 2, 3)).min() > 0
    assert torch.equal(logits, same)


@pytest.mark.parametrize("how", ["random", "transpose"])
@pytest.mark.parametrize("rule", [FA(seed=3), DFA(seed=3), LE(seed=3)], ids=lambda rule: rule.name)
def test_it_is_the_rules_own_under_the_draws_of_the_stream(rule, how):
    model, x, y = dense(Poisson(4))
    found, logits = LearningSignal(rule, how)(model, x, y, cross_entropy, STREAM)
    with draws(model, STREAM.key, STREAM.sample_ids):
        expected = rule.input_gradient(model, x, y, input_feedback=how)
    with draws(model, STREAM.key, STREAM.sample_ids), torch.no_grad():
        assert torch.equal(logits, model(x))
    assert torch.equal(found, expected)
    other, _ = LearningSignal(rule, how)(model, x, y, cross_entropy, STREAM.fork(1))
    assert not torch.equal(found, other)
    apart = [
        LearningSignal(rule, how)(model, x[i], y[i], cross_entropy, STREAM.select(i))[0]
        for i in torch.arange(6).split(4)
    ]
    assert torch.allclose(torch.cat(apart), found, rtol=0, atol=1e-14)


def test_random_feedback_at_the_input_goes_through_the_matrix_of_the_seed():
    """One hidden layer behind Direct: the error at it, from the transpose, and from it the other by the random matrix."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = spiking((Dense(24),), (1, 4, 4), 3, Direct(3), norm="none").double().eval()
        x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    y = torch.arange(6) % 3
    first = next(m for m in model.modules() if isinstance(m, nn.Linear))
    name = next(n for n, m in model.named_modules() if m is first)
    rule = DFA(seed=9)
    by_weight = LearningSignal(rule, "transpose")(model, x, y, cross_entropy, STREAM)[0].flatten(1)
    by_random = LearningSignal(rule, "random")(model, x, y, cross_entropy, STREAM)[0].flatten(1)
    # 24 unknown errors from 16 numbers: ask for those that explain both at once
    random = feedback_weights(9, name, first.weight)
    both, seen = torch.cat([first.weight, random], 1).T, torch.cat([by_weight, by_random], 1).T
    error = torch.linalg.lstsq(both, seen).solution
    assert torch.allclose(both @ error, seen, atol=1e-12)
    assert error.abs().max() > 1e-3


def test_towards_a_target_the_sign_turns_whatever_the_attack_raises():
    model, x, y = dense(Direct(3))
    source = LearningSignal(DFA(), "transpose")
    away, _ = source(model, x, y, cross_entropy, STREAM)
    assert torch.equal(source(model, x, y, margin, STREAM)[0], away)  # the rule's own loss, not the attack's
    for loss in (cross_entropy, margin, dlr):
        towards, _ = source(model, x, y, targeted(loss), STREAM)
        assert torch.equal(towards, -away)


def test_targeted_attacks_arrive(digits_snn):
    model, x, y = digits_snn
    targets = (y + 1) % 10
    x_adv = PGD(Linf(0.3), steps=10, gradient=LearningSignal(BPTT()))(model, x, y, targets=targets, seed=0)
    before, after = ((model(z).argmax(1) == targets).sum() for z in (x, x_adv))
    assert after > before + 20


def test_what_the_rule_has_learnt_beside_the_model():
    model, x, y = dense(Direct(2))
    rule = LE(readout="learnt", lr=1e-2)
    learnt = rule.fit(model, (x, y), epochs=2, progress=False).learnt
    found, _ = LearningSignal(rule, "transpose", learnt)(model, x, y, cross_entropy, STREAM)
    assert torch.equal(found, rule.input_gradient(model, x, y, input_feedback="transpose", learnt=learnt))
    with pytest.raises(ValueError, match=r"pass learnt=history\.learnt"):
        LearningSignal(rule, "transpose")(model, x, y, cross_entropy, STREAM)


def test_it_composes_with_eot():
    model, x, y = dense(Poisson(4))
    source = LearningSignal(FA(), "random")
    mean, logits = EOT(2, source)(model, x, y, cross_entropy, STREAM)
    each = [source(model, x, y, cross_entropy, STREAM.fork("eot", i)) for i in range(2)]
    assert torch.equal(mean, (each[0][0] + each[1][0]) / 2)
    assert torch.equal(logits, (each[0][1] + each[1][1]) / 2)


def test_what_is_no_rule_or_has_no_gradient_is_named():
    model, x, y = dense(Direct(2))
    for wrong in ("DFA", DFA, None, learning_rules.STDP()):
        with pytest.raises(TypeError, match="rule must be a learning rule with input_gradient"):
            LearningSignal(wrong)
    with pytest.raises(ValueError, match="input_feedback has to be chosen"):
        LearningSignal(DFA())(model, x, y, cross_entropy, STREAM)


@pytest.mark.parametrize("rule", [FA(lr=1e-2), DFA(lr=1e-2), LE(lr=1e-2), BPTT(lr=1e-2)], ids=lambda rule: rule.name)
def test_true_weights_after_any_rule(rule):
    """A network with the same weights that never saw the rule has the same gradient."""
    model, x, y = dense(Direct(3))
    rule.fit(model, (x, y), epochs=2, progress=False)
    fresh, _, _ = dense(Direct(3), seed=4)
    fresh.load_state_dict(model.state_dict())
    found, logits = TrueTranspose()(model, x, y, cross_entropy, STREAM)
    expected, same = Backprop()(fresh, x, y, cross_entropy, STREAM)
    assert torch.equal(found, expected)
    assert torch.equal(logits, same)


def test_true_weights_through_another_surrogate():
    model, x, y = dense(Direct(3))
    found, _ = TrueTranspose(ATan(7.0))(model, x, y, cross_entropy, STREAM)
    expected, _ = Surrogate(ATan(7.0))(model, x, y, cross_entropy, STREAM)
    assert torch.equal(found, expected)
    assert not torch.equal(found, Backprop()(model, x, y, cross_entropy, STREAM)[0])
    with pytest.raises(TypeError, match="surrogate must be a Surrogate"):
        TrueTranspose("atan")
    with pytest.raises(TypeError, match="source must be a function"):
        TrueTranspose(source=3)


def test_true_weights_refuse_a_model_with_other_weights_on_the_way_back():
    model, x, y = dense(Direct(3))
    with (
        FA(seed=2).lend(model, x[:1]),
        pytest.raises(ValueError, match=r"network\.\d.* outside of the context of a learning rule"),
    ):
        TrueTranspose()(model, x, y, cross_entropy, STREAM)
    TrueTranspose()(model, x, y, cross_entropy, STREAM)  # outside it is a plain model again
