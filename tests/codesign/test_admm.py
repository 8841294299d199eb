import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from snnrobust.codesign import ADMM, ADMMWarning, Convergence, Masked
from snnrobust.codesign.admm import Split
from snnrobust.defenses import PGDTraining
from snnrobust.encoders import Direct
from snnrobust.learning_rules import BPTT, DFA
from snnrobust.models import Dense, ordinary, spiking
from snnrobust.neurons import LIF
from snnrobust.quantization import Filters, Keep, NearestLevel, pair_levels


def box(w, operation):
    return w.clamp(-0.2, 0.3)


def ball(w, operation):
    return w * min(1.0, 0.5 / max(float(w.norm()), 1e-9))


def toy(seed=0, n=60):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 4, generator=generator, dtype=torch.float64)
    return x, (3 * x[:, 0] + x[:, 1] - 2 * x[:, 2] + torch.randn(n, generator=generator)).gt(1.0).long()


def linear():
    model = nn.Sequential(nn.Linear(4, 2, bias=False)).double()
    model[0].weight.data.zero_()
    return model


def quiet(rule, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ADMMWarning)
        return rule.fit(*arguments, progress=False, **options)


def loss_of(w, x, y):
    return nn.functional.cross_entropy(x @ w.reshape(2, 4).T, y)


@pytest.mark.parametrize("rho", [0.05, 0.5])
@pytest.mark.parametrize("project", [box, ball])
def test_a_convex_problem_is_solved(project, rho):
    """Logistic regression with weights in a box or a ball, against scipy."""
    x, y = toy()

    def objective(w):
        w = torch.tensor(w, requires_grad=True)
        loss = loss_of(w, x, y)
        loss.backward()
        return loss.item(), w.grad.numpy()

    limits = {"bounds": [(-0.2, 0.3)] * 8} if project is box else {
        "constraints": {"type": "ineq", "fun": lambda w: 0.25 - w @ w, "jac": lambda w: -2 * w}
    }  # fmt: skip
    expected = minimize(
        objective, np.zeros(8), jac=True, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500}, **limits
    )
    assert expected.success
    model = linear()
    rule = BPTT(lr=1.0, optimizer="sgd", momentum=0.0, batch_size=len(x))  # a W-step of ten full gradient steps
    admm = ADMM(rule=rule, projections={"0": project}, rho=rho, growth=1.0, every=10, tolerance=1e-4)
    history = admm.fit(model, (x, y), epochs=1200, progress=False)  # would warn
    found = model[0].weight.detach().flatten()
    torch.testing.assert_close(found, torch.tensor(expected.x), rtol=0, atol=2e-4)
    assert float(loss_of(found, x, y)) == pytest.approx(expected.fun, abs=1e-5)
    assert float(loss_of(torch.zeros(8).double(), x, y)) > expected.fun + 0.02
    convergence = Convergence.of(history, 1e-4)
    assert convergence.converged
    assert convergence.missed() == ""
    assert len(convergence.rounds) == 120


def test_by_hand_with_an_exact_w_step():
    r"""min 1/2 |w - a|^2 in the box: the W-step is (a + rho (z - u)) / (1 + rho), and the end is the clipped a."""
    a = torch.tensor([[1.0, 0.1, -3.0]], dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    split = Split({"0": model[0]}, {"0": box})
    z, u, rho = model[0].weight.detach().clamp(-0.2, 0.3), torch.zeros(1, 3).double(), 0.7
    for _ in range(40):
        w = (a + rho * (z - u)) / (1 + rho)
        model[0].weight.data.copy_(w)
        model[0].weight.grad = w - a  # the gradient of the objective; with the pull it has to vanish
        split.pull(rho)
        assert model[0].weight.grad.abs().max() < 1e-12
        new = (w + u).clamp(-0.2, 0.3)
        u = u + w - new
        primal, dual = split.update()
        assert primal == pytest.approx(float((w - new).norm()) / max(float(w.norm()), float(new.norm())), abs=1e-12)
        assert dual == pytest.approx(float((new - z).norm() / new.norm()), abs=1e-12)
        z = new
        (found,) = [(z_, u_) for _, z_, u_ in split]
        torch.testing.assert_close(found, (z, u))
    torch.testing.assert_close(w, a.clamp(-0.2, 0.3), atol=1e-6, rtol=0)


def test_the_multiplier_is_kept_when_rho_changes():
    model = linear()
    model[0].weight.data.normal_(generator=torch.Generator().manual_seed(0))
    split = Split({"0": model[0]}, {"0": box})
    split.update()
    before = [u.clone() for _, _, u in split]
    split.rescale(4.0)
    assert all(torch.equal(4 * u, old) for (_, _, u), old in zip(split, before, strict=True))
    admm = ADMM(rule=BPTT(), projections={"0": box}, rho=0.1, growth=2.0, most=0.5)
    assert [admm.rho_at(i) for i in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]


@pytest.mark.parametrize("parts", [1, 4])
def test_one_w_step_by_hand(parts):
    x, y = toy()
    model = linear()
    model[0].weight.data.normal_(generator=torch.Generator().manual_seed(0))
    start = model[0].weight.detach().clone()
    loss_of(model[0].weight, x, y).backward()
    expected = start - 0.3 * (model[0].weight.grad + 0.7 * (start - box(start, None)))
    rule = BPTT(lr=0.3, optimizer="sgd", momentum=0.0, batch_size=len(x), accumulate=parts)
    model.zero_grad()
    quiet(ADMM(rule=rule, projections={"0": box}, rho=0.7), model, (x, y), epochs=1)
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-10, atol=1e-12)


def network(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "ordinary":
            return ordinary((Dense(12),), (4,), 2).double()
        return spiking((Dense(12),), (4,), 2, Direct(3), norm="BNTT").double()


def hidden(model):
    return next(name for name, m in model.named_modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("what", ["filters", "levels"])
@pytest.mark.parametrize("rule", [BPTT, PGDTraining, DFA])
@pytest.mark.parametrize("kind", ["ordinary", "spiking"])
def test_the_weights_arrive(kind, rule, what):
    """Whatever the rule: with a rho that grows the weights end in their set."""
    model = network(kind)
    if rule is DFA and kind == "spiking":
        model = spiking((Dense(12),), (4,), 2, Direct(3), LIF(threshold=0.2), norm="none").double()
    name = hidden(model)
    projection = (
        Keep(Filters(), 0.5)
        if what == "filters"
        else NearestLevel(pair_levels((0, 1))).fitted(model.get_submodule(name).weight)
    )
    extra = {"steps": 1, "eps": 0.02} if rule is PGDTraining else {}
    inner = rule(lr=1e-2, batch_size=12, schedule="cosine", **extra)
    admm = ADMM(rule=inner, projections={name: projection}, rho=0.1, growth=2.0, every=8)
    rounds = Convergence.of(quiet(admm, model, toy(), epochs=64), 0.05).rounds
    assert rounds[-1].primal < 0.1
    assert rounds[-1].primal < 0.5 * max(r.primal for r in rounds)
    assert [r.epoch for r in rounds] == list(range(8, 65, 8))
    assert rounds[3].rho == pytest.approx(0.1 * 2.0**3)


def test_it_keeps_masks():
    model = network("ordinary")
    name = hidden(model)
    mask = torch.ones(12, 4, dtype=torch.bool)
    mask[:5] = False
    rule = Masked(rule=BPTT(lr=1e-2, batch_size=12), masks={f"{name}.weight": mask})
    quiet(ADMM(rule=rule, projections={name: NearestLevel(pair_levels((0, 1)), 0.3)}), model, toy(), epochs=2)
    assert (model.get_submodule(name).weight[:5] == 0).all()


def test_a_miss_is_told_with_its_size():
    model = linear()
    admm = ADMM(rule=BPTT(lr=1e-3), projections={"0": box}, tolerance=1e-9)
    with pytest.warns(ADMMWarning, match=r"after 2 rounds: .*residual .* times the tolerance of 1e-09"):
        admm.fit(model, toy(), epochs=2, progress=False)
    history = quiet(admm, linear(), toy(), epochs=2)
    convergence = Convergence.of(history, 1e-9)
    assert not convergence.converged
    assert convergence.missed() in convergence.table()
    assert "above the tolerance of 0" in Convergence.of(history, 0.0).missed()
    assert Convergence.of(history, 1e9).table().endswith("at most 1e+09")
    assert convergence.to_json()["rounds"][0]["epoch"] == 1
    with pytest.raises(ValueError, match="no round of ADMM"):
        Convergence.of(BPTT().fit(linear(), toy(), epochs=1, progress=False), 0.1)


def test_a_training_goes_on_where_it_stopped(tmp_path):
    x = toy()
    admm = ADMM(rule=BPTT(lr=1e-2, batch_size=12), projections={"0": box}, every=2, growth=2.0)
    whole, again = linear(), linear()
    history = quiet(admm, whole, x, epochs=6)
    quiet(admm, linear(), x, epochs=2, checkpoint=tmp_path / "state")
    resumed = quiet(admm, again, x, epochs=6, checkpoint=tmp_path / "state")
    assert torch.equal(whole[0].weight, again[0].weight)
    assert [(r["rho"], r["primal"], r["dual"]) for r in resumed.records] == [
        (r["rho"], r["primal"], r["dual"]) for r in history.records
    ]
    assert [r["rho"] for r in history.records] == [None, 0.01, None, 0.02, None, 0.04]
    with pytest.raises(ValueError, match="another training"):
        quiet(replace(admm, rho=0.5), linear(), x, epochs=6, checkpoint=tmp_path / "state")


def test_a_set_of_zeros():
    model = linear()
    model[0].weight.data.fill_(0.1)
    split = Split({"0": model[0]}, {"0": lambda w, operation: torch.zeros_like(w)})
    primal, dual = split.update()
    assert (primal, dual) == (1.0, 0.0)
    split = Split({"0": model[0]}, {"0": lambda w, operation: w.clone()})
    assert split.update() == (0.0, 0.0)
    model[0].weight.data.zero_()
    assert split.update() == (0.0, math.inf)  # Z moved, and has no size to compare with


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"projections": {}}, TypeError, "projections must map"),
        ({"projections": {"0": 0.5}}, TypeError, "projection of 0"),
        ({"rho": 0.0}, ValueError, "rho"),
        ({"growth": 0.5}, ValueError, "growth"),
        ({"most": 1e-5}, ValueError, "most"),
        ({"every": 0}, ValueError, "every"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
        ({"rule": BPTT(keep="best")}, ValueError, "keep"),
    ],
)
def test_bad_settings(arguments, error, says):
    with pytest.raises(error, match=says):
        ADMM(**{"rule": BPTT(), "projections": {"0": box}, **arguments})


def test_bad_models():
    with pytest.raises(ValueError, match="a layer in projections"):
        quiet(ADMM(rule=BPTT(), projections={"7": box}), linear(), toy(), epochs=1)
    with pytest.raises(ValueError, match="multiple of every=3"):
        quiet(ADMM(rule=BPTT(), projections={"0": box}, every=3), linear(), toy(), epochs=4)
    with pytest.raises(TypeError, match="shape"):
        quiet(ADMM(rule=BPTT(), projections={"0": lambda w, o: w[:1]}), linear(), toy(), epochs=1)
    frozen = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad=False"):
        quiet(ADMM(rule=BPTT(), projections={"0": box}), frozen, toy(), epochs=1)
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)).double()
    with pytest.raises(TypeError, match="other parameters"):
        quiet(ADMM(rule=BPTT(), projections={"0": box}), nn.Sequential(computed), toy(), epochs=1)
