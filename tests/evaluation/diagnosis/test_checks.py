"""Each check against a closed form, or a defect that is planted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snnrobust import evaluation, hardware, models
from snnrobust.attacks import EOT, L0, L2, Backprop, FromModel, GradientSource, Linf, Surrogate
from snnrobust.attacks.losses import Loss
from snnrobust.attacks.selection import Measurement
from snnrobust.attacks.threat import normal_like
from snnrobust.draws import Stream, evaluating, is_stochastic, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.evaluation.diagnosis import ablation, active, alive, fidelity, orderings, output, stronger, validity
from snnrobust.evaluation.diagnosis.check import Check, settled
from snnrobust.evaluation.diagnosis.comparison import compared, progress
from snnrobust.evaluation.diagnosis.subject import Subject, innermost
from snnrobust.neurons.surrogate import ATan, Rectangle

N = 64
X = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        with keyed(0):
            self.head = nn.Linear(16, 4)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(x.flatten(1) - 0.5)


class Noise:
    """A gradient that knows nothing."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        g, z = Backprop()(model, x, y, loss, stream)
        return normal_like(x, stream.fork("noise")) + 1e-3 * g, z


class OwnLoss:
    """Follows a loss of its own, as the signal of a learning rule does."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, stream: Stream) -> tuple[Tensor, Tensor]:
        return Backprop()(model, x, y, lambda z, y: -z[:, 0], stream)


def subject(
    model: nn.Module | None = None,
    gradient: GradientSource | None = None,
    eps: float = 0.1,
    x: Tensor = X,
    draws: int = 4,
) -> Subject:
    model = (Linear() if model is None else model).eval()
    with torch.no_grad(), keyed(0):
        y = model(x).argmax(1)
    random = is_stochastic(model, x[:8])
    return Subject(model, x, y, Linf(eps), gradient or Backprop(), 0, draws if random else 1, random)


def one(checks: list[Check]) -> Check:
    (check,) = settled(checks)
    return check


class Const(nn.Module):
    def __init__(self, z: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.z = z

    def forward(self, x: Tensor) -> Tensor:
        return self.z(x.flatten(1)[:, :4])


@pytest.mark.parametrize(
    ("z", "name", "status", "words"),
    [
        (lambda x: x.softmax(1), "the outputs are logits", "failed", "probabilities"),
        (lambda x: x.log_softmax(1), "the outputs are logits", "passed", "no row"),
        (lambda x: x * 0 + 0.25, "the outputs tell classes apart", "failed", "all outputs equal for 100.0%"),
        (lambda x: 1e5 * x, "the outputs tell classes apart", "failed", "exactly 0 for"),
        (lambda x: (3 * x).round(), "the outputs tell classes apart", "inconclusive", "first place tied for"),
        (lambda x: x, "the outputs tell classes apart", "passed", "tied for 0.0%"),
    ],
)
def test_outputs(z: Callable[[Tensor], Tensor], name: str, status: str, words: str) -> None:
    checks = {c.name: c for c in output.output(subject(Const(z)))}
    assert checks[name].status == status
    assert words in checks[name].found


def test_ties_and_denominators_are_counted() -> None:
    z = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = output._speaks(z.double(), torch.zeros(4, dtype=torch.int64)).found
    assert "tied for 75.0% of samples, all outputs equal for 25.0%; the denominator of DLR is 0 for 50.0%" in found


def test_eot_is_counted_through_sources() -> None:
    assert output._eot(EOT(3, Surrogate(ATan(5.0), EOT(2)))) == 6
    assert output._eot(Backprop()) == 1


def poisson(gradient: str = "straight_through") -> nn.Module:
    with keyed(1):
        encoder = Poisson(2, gradient=gradient)  # type: ignore[arg-type]
        return loud(models.spiking(models.ARCHITECTURES["mlp"], (1, 4, 4), 4, encoder, norm="none"))


def loud(model: nn.Module) -> nn.Module:
    """With weights so large that untrained neurons fire."""
    for m in model.modules():
        if isinstance(m, nn.Linear) and m.out_features > 4:
            m.weight.data.mul_(5.0)
    return model


def test_a_random_model_without_eot_is_inconclusive() -> None:
    without = one(output.determinism(subject(poisson(), Backprop(), draws=16)))
    assert without.status == "inconclusive"
    assert "no EOT" in without.found
    assert one(output.determinism(subject(poisson(), EOT(2), draws=16))).status == "passed"
    assert "deterministic" in one(output.determinism(subject())).found


@pytest.mark.parametrize(("sign", "value"), [(1.0, 1.0), (-1.0, -1.0)])
def test_fidelity_of_a_linear_model_is_one_after_correction(sign: float, value: float) -> None:
    class Signed:
        def __call__(self, *arguments: object) -> tuple[Tensor, Tensor]:
            g, z = Backprop()(*arguments)  # type: ignore[arg-type]
            return sign * g, z

    check = one(fidelity.fidelity(subject(gradient=Signed(), eps=0.01)))
    found = float(check.found.split()[1])
    assert found == pytest.approx(value, abs=0.06)
    assert check.status == ("passed" if sign > 0 else "failed")


def test_a_gradient_of_noise_has_no_fidelity() -> None:
    check = one(fidelity.fidelity(subject(gradient=Noise())))
    assert check.status == "failed"
    assert check.topic == "fidelity"


def test_spearmans_correction() -> None:
    """Two estimates g + e of equal noise: the correction recovers the cosine to g, in high dimensions."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(400, 2000))
    a, b = g + 2 * rng.normal(size=g.shape), g + 2 * rng.normal(size=g.shape)
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)  # noqa: E731
    own = g + 0.5 * rng.normal(size=g.shape)
    true = float((unit(own) * unit(g)).sum(1).mean())
    cosines, halves = (unit(own) * unit(unit(a) + unit(b))).sum(1), (unit(a) * unit(b)).sum(1)
    assert fidelity.disattenuated(cosines, halves) == pytest.approx(true, abs=0.01)
    assert cosines.mean() < 0.8 * true
    assert np.isnan(fidelity.disattenuated(cosines, -halves))


def test_an_estimate_that_says_nothing_is_inconclusive() -> None:
    check = one(fidelity.fidelity(subject(Const(lambda x: x * 0))))
    assert check.status == "inconclusive"


def test_what_is_planted_is_there_and_noise_does_not_find_it() -> None:
    s = subject()
    decision, planted, sure = active.plant(s, 32)
    s.threat.validate(s.x[:32], planted)
    assert sure.float().mean() > 0.9
    with torch.no_grad():
        assert (decision(s.model(planted), s.y[:32])[sure] > 0).all()
        assert (decision(s.model(s.x[:32]), s.y[:32])[sure] < 0).all()


def test_a_fit_attack_finds_it_and_noise_does_not() -> None:
    fit, unfit = one(active.active(subject())), one(active.active(subject(gradient=Noise())))
    assert (fit.status, unfit.status) == ("passed", "failed")
    assert "found for 100%" in fit.found


class Noisy(Linear):
    """The linear model with noise on its logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.noise(x)

    def noise(self, x: Tensor) -> Tensor:
        return 0.05 * torch.randn(len(x), 4, dtype=x.dtype)


def test_planting_works_for_random_models() -> None:
    """A decision over the mean of the draws, which a fit attack reaches and noise does not."""
    s = subject(Noisy())
    assert s.random
    decision, planted, sure = active.plant(s, 32)
    assert sure.float().mean() > 0.8
    with torch.no_grad():
        mean = torch.stack([s.model(planted) for _ in range(200)]).mean(0)
    assert (decision(mean, s.y[:32])[sure] > 0).double().mean() > 0.9
    fit, unfit = one(active.active(s)), one(active.active(subject(Noisy(), Noise())))
    assert (fit.status, unfit.status) == ("passed", "failed")


def test_nothing_is_planted_where_there_is_only_noise() -> None:
    class Deaf(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            return self.noise(x) + 0 * Linear.forward(self, x)

    _, _, sure = active.plant(subject(Deaf()), 50)
    assert sure.float().mean() < 0.2


def test_a_gradient_that_follows_its_own_loss_is_not_asked_for_another() -> None:
    check = one(active.active(subject(gradient=OwnLoss())))
    assert check.status == "not run"
    assert "loss of its own" in check.found


def test_planting_repeats_rows_as_query_batches_do() -> None:
    decision = active.Planted(torch.eye(2).double(), torch.tensor([0.5, 1.0]).double())
    z = torch.tensor([[1.0, 9.0], [9.0, 1.0], [0.0, 9.0], [9.0, 3.0]])
    assert decision(z, torch.zeros(4)).tolist() == [0.5, 0.0, -0.5, 2.0]


def snn(surrogate: ATan | Rectangle) -> nn.Module:
    with keyed(1):
        model = loud(models.spiking(models.ARCHITECTURES["mlp"], (1, 4, 4), 4, Direct(2), norm="none"))
    for m in model.modules():
        if hasattr(m, "surrogate"):
            m.surrogate = surrogate
    return model


def test_the_reach_of_a_surrogate_is_the_share_of_potentials_in_it() -> None:
    model = snn(Rectangle(0.4))
    seen: list[Tensor] = []

    class Spy(Rectangle, registered=False):
        def derivative(self, u: Tensor) -> Tensor:
            seen.append(u.clone())
            return super().derivative(u)

    s = subject(model)
    check = alive.neurons(s)[1]
    Surrogate(Spy(0.4))(s.model, s.x, s.y, lambda z, y: z[:, 0], s.stream("gradient"))
    truth = [100 * float((u.abs() <= 0.2).double().mean()) for u in seen]
    said = [float(part.split(": ")[1].rstrip("%")) for part in check.found.split(", ")]
    assert sorted(said) == pytest.approx(sorted(truth), abs=0.06)


def test_a_surrogate_out_of_reach_is_flagged() -> None:
    assert alive.neurons(subject(snn(ATan(2.0))))[1].status == "passed"
    assert alive.neurons(subject(snn(ATan(1e4))))[1].status == "failed"
    assert alive.neurons(subject(snn(ATan(2.0)), Surrogate(ATan(1e4))))[1].status == "failed"
    assert alive.neurons(subject())[1].status == "not run"


def test_a_silent_layer_is_flagged() -> None:
    model = snn(ATan(2.0))
    assert alive.neurons(subject(model))[0].status == "passed"
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Linear):
                m.weight.mul_(0.0)
                m.bias.fill_(-1.0)
    check = alive.neurons(subject(model))[0]
    assert check.status == "failed"
    assert "100% silent" in check.found


def test_zero_gradients_are_counted() -> None:
    class Half:
        def __call__(self, *arguments: object) -> tuple[Tensor, Tensor]:
            g, z = Backprop()(*arguments)  # type: ignore[arg-type]
            g[: len(g) // 2] = 0
            return g, z

    check = one(alive.alive(subject(gradient=Half())))
    assert (check.status, check.evidence) == ("failed", "proof")
    assert "zero for 50.0%" in check.found


def measurement(correct: int, margin: float, n: int = N) -> Measurement:
    right = torch.zeros(n, dtype=torch.int64)
    right[:correct] = 1
    return Measurement(right, torch.full((n,), margin, dtype=torch.float64), right)


def against(own: tuple[int, float], other: tuple[int, float]) -> Check:
    """Noise leaves all right, at a margin of -10."""
    s = subject()
    s.measured |= {"noise": measurement(N, -10.0), "PGD-40": measurement(*own)}
    assert float(progress(s, s.examined()).mean()) == pytest.approx(min(own[1], 0) + 10)
    return one([compared(s, "name", {"other": measurement(*other)}, "meaning", "remedy", "topic")])


@pytest.mark.parametrize(
    ("own", "other", "status"),
    [
        ((60, -9.0), (30, -3.0), "failed"),  # goes a seventh of the way, and leaves half of the samples more
        ((40, -5.0), (30, -3.0), "inconclusive"),  # weaker, but goes far more than half the way
        ((60, -5.0), (30, -3.0), "failed"),  # which does not excuse a difference of 20 points
        ((32, -9.0), (30, -3.0), "passed"),  # two samples are no difference that matters
        ((30, -3.0), (60, -9.0), "passed"),
        ((60, -9.0), (30, 50.0), "failed"),  # beyond the boundary nothing counts
        ((40, 50.0), (30, -3.0), "inconclusive"),
    ],
)
def test_what_is_far_stronger(own: tuple[int, float], other: tuple[int, float], status: str) -> None:
    assert against(own, other).status == status


def test_the_true_weights_expose_another_gradient() -> None:
    found = one(stronger.own_rule(subject(gradient=Noise(), eps=0.3)))
    assert found.status == "failed"
    assert "cosine of the two gradients" in found.found
    for gradient in (Backprop(), EOT(2, Surrogate(ATan(5.0)))):
        assert one(stronger.own_rule(subject(gradient=gradient))).status == "not run"
    with keyed(5):
        other, same = Linear(), Linear()
        other.head.reset_parameters()
    assert one(stronger.own_rule(subject(gradient=FromModel(other), eps=0.3))).status == "failed"
    assert one(stronger.own_rule(subject(gradient=FromModel(same), eps=0.3))).status == "passed"


def test_queries_expose_a_gradient_of_noise() -> None:
    assert one(stronger.gradient_free(subject(gradient=Noise(), eps=0.3))).status == "failed"
    assert one(stronger.gradient_free(subject(eps=0.3))).status == "passed"


def test_a_budget_of_pixels_has_a_search_of_its_own() -> None:
    s = replace(subject(), threat=L0(2))
    assert "SparseRS" in one(stronger.gradient_free(s)).found
    assert orderings._budgets(s, 16.0) == [1.0, 2.0, 4.0]


def test_the_sweep_needs_spikes() -> None:
    assert one(stronger.sweep(subject())).status == "not run"


@pytest.mark.filterwarnings("ignore::snnrobust.attacks.BluntGradientWarning")
def test_an_encoder_that_cuts_the_gradient_is_named() -> None:
    assert one(ablation.encoder(subject())).status == "not run"
    s = subject(poisson("none"), EOT(2), eps=0.4, draws=8)
    alive.alive(s)
    check = one(ablation.encoder(s))
    assert "Poisson (encoder) leaves a gradient of zero for 100.0% of samples, bypassed for 0.0%" in check.found
    assert check.status == "failed"


@pytest.mark.parametrize(
    "backend", [hardware.GaussianNoise(additive=0.2), hardware.PCM("1 year", programming_noise=False, drift=False)]
)
def test_noise_that_is_frozen_or_off(backend: hardware.Backend) -> None:
    with keyed(0):
        chip = hardware.deploy(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), backend, seed=0)
    s = subject(chip, EOT(2), draws=8)
    check = one(ablation.noise_ablation(s))
    assert check.status == "passed"
    assert "noise of the hardware off" in check.found
    stream = s.stream("a")
    _, silent = ablation.NoiseOff(Backprop())(chip, X, s.y, lambda z, y: z[:, 0], stream)
    layer = chip[1].layer  # type: ignore[index, union-attr]
    torch.testing.assert_close(silent, X.flatten(1) @ layer.array.weight.T + layer.bias)
    assert is_stochastic(chip)
    assert one(ablation.noise_ablation(subject())).status == "not run"


def test_a_stored_input_outside_the_budget_is_found() -> None:
    s = subject()
    s.noise()
    assert one(validity.validity(s)).status == "passed"
    threat, x_adv = s.stored["noise"]
    inside = (x_adv > 0.01) & (x_adv < 0.99)
    s.stored["noise"] = (threat, x_adv + 1e-6 * inside * (x_adv - s.x).sign())
    check = one(validity.validity(s))
    assert check.status == "failed"
    assert "noise (1.0000" in check.found
    s.stored["noise"] = (threat, s.x - 1.0)
    assert "outside the box" in one(validity.validity(s)).found


def test_another_class_is_the_next_one_of_another_label() -> None:
    x, y = torch.arange(5)[:, None], torch.tensor([0, 0, 1, 1, 0])
    assert orderings.another_class(x, y)[:, 0].tolist() == [2, 2, 4, 4, 2]


def test_an_ordering_that_is_broken_fails_if_it_matters() -> None:
    s = subject()
    broken = orderings._ordering(s, "a", measurement(60, -1), measurement(30, -1), ("a", "b"), "eps", "", "")
    slight = orderings._ordering(s, "a", measurement(32, -1), measurement(30, -1), ("a", "b"), "eps", "", "")
    assert (broken.status, slight.status) == ("failed", "passed")
    assert broken.p_value is not None
    assert broken.p_value < 0.01


def test_the_last_link_of_a_source_is_replaced() -> None:
    nested = innermost(EOT(4, Surrogate(ATan(5.0))), lambda inner: FromModel(Linear(), inner))
    assert isinstance(nested, EOT)
    assert isinstance(nested.source, Surrogate)
    assert isinstance(nested.source.source, FromModel)


def test_chosen_checks() -> None:
    model = Linear()
    y = model(X).argmax(1)
    report = evaluation.diagnose(model, (X, y), Linf(0.1), checks=["validity", "noise"], progress=False)
    names = [c.name for c in report.checks[3:]]
    assert names == [
        "the input gradient is alive",
        "PGD-40 is stronger than random signs",
        "stored adversarials are legal",
    ]
    with pytest.raises(ValueError, match="checks must be one of"):
        evaluation.diagnose(model, (X, y), Linf(0.1), checks=["swep"], progress=False)
    with pytest.raises(TypeError, match="checks must be names"):
        evaluation.diagnose(model, (X, y), Linf(0.1), checks="sweep", progress=False)


def test_every_check_runs_in_another_norm() -> None:
    model = Linear()
    y = model(X).argmax(1)
    with evaluating(model):
        report = evaluation.diagnose(model, (X, y), L2(0.5), progress=False)
    assert report.verdict == "consistent", str(report)
