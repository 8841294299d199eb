import torch
from torch import nn

from snnrobust.attacks import EOT, FGSM, PGD, Linf, Transfer
from snnrobust.attacks.goal import Goal
from snnrobust.draws import Stream

THREAT = Linf("8/255")


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError("the victim's gradient was asked for")


class Guarded(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return _NoBackward.apply(self.model(x))


def test_the_gradient_of_the_victim_is_never_asked_for(victims):
    victim, x, y = victims("ann")
    source, *_ = victims("direct", seed=3)
    x_adv = Transfer(FGSM(THREAT), source)(Guarded(victim), x, y)
    assert torch.equal(x_adv, FGSM(THREAT)(source, x, y))
    try:
        FGSM(THREAT)(Guarded(victim), x, y)
    except AssertionError:
        return
    raise AssertionError("the guard does not guard")


def test_equals_the_inner_attack_on_the_source_with_its_stream(victims):
    victim, x, y = victims("ann")
    source, *_ = victims("poisson", seed=3)
    stream = Stream(7, torch.arange(6) + 10)
    inner = PGD(THREAT, steps=2, step_size="2/255", restarts=2, gradient=EOT(2), selection_draws=3)
    expected = inner.perturb(source, x, Goal(y), stream.fork("transfer"))
    source.train()  # attacked in eval mode all the same
    source.network[2].eval()
    assert torch.equal(Transfer(inner, source).perturb(victim, x, Goal(y), stream), expected)
    assert source.training
    assert source.network[1].training
    assert not source.network[2].training


def test_the_threat_is_that_of_the_inner_attack(victims):
    source, *_ = victims("ann")
    attack = Transfer(FGSM(THREAT), source)
    assert attack.threat == THREAT
    moved = attack.at("1/255")
    assert moved.threat == moved.attack.threat == Linf("1/255")
    assert moved.source is source
