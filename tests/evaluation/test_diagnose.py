"""Models that hide their gradient are named, sound ones are not."""

import pytest
import torch
from torch import Tensor, nn

from snnrobust import data, evaluation, learning_rules, models
from snnrobust.attacks import L2, Linf, RandomSign, Surrogate
from snnrobust.draws import keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.neurons.surrogate import ATan

THREAT = Linf(0.1)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    x, y = data.load("digits", "test").tensors
    return x[:120], y[:120]


def trained(model: nn.Module) -> nn.Module:
    rule = learning_rules.BPTT(lr=3e-3, schedule="cosine")
    rule.fit(model, data.load("digits", "train"), epochs=8, progress=False)
    return model


@pytest.fixture(scope="module")
def ann() -> nn.Module:
    with keyed(0):
        return trained(models.ordinary(models.ARCHITECTURES["conv-small"], (1, 8, 8), 10))


@pytest.fixture(scope="module")
def snn() -> nn.Module:
    with keyed(0):
        return trained(models.spiking(models.ARCHITECTURES["conv-small"], (1, 8, 8), 10, Poisson(4)))


@pytest.fixture(scope="module")
def direct() -> nn.Module:
    with keyed(0):
        return trained(models.spiking(models.ARCHITECTURES["conv-small"], (1, 8, 8), 10, Direct(4)))


def statuses(report: evaluation.MaskingReport) -> dict[str, str]:
    return {c.name: c.status for c in report.checks}


def test_a_sound_ann_is_consistent(ann: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = evaluation.diagnose(ann, digits, THREAT, n=60, progress=False)
    assert report.verdict == "consistent", str(report)
    assert len(report.checks) >= 20
    assert set(statuses(report).values()) <= {"passed", "not run"}
    assert statuses(report)["transfer is not stronger than white box"] == "not run"


@pytest.mark.slow
def test_sound_spiking_networks_are_not_masked(
    ann: nn.Module, snn: nn.Module, direct: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    for victim in (snn, direct):
        report = evaluation.diagnose(victim, digits, THREAT, source=ann, draws=16, progress=False)
        # on images of 64 pixels 500 queries find a few points more than one PGD does, which is said and is no masking
        assert report.verdict != "masked", str(report)
        assert "failed" not in statuses(report).values(), str(report)
        assert set(report.reasons) <= {"no gradient at all is not stronger"}
        assert statuses(report)["transfer is not stronger than white box"] == "passed"


@pytest.mark.slow
def test_an_encoder_without_gradient_is_masked_and_named(
    ann: nn.Module, snn: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with keyed(0):
        blind = models.spiking(models.ARCHITECTURES["conv-small"], (1, 8, 8), 10, Poisson(4, gradient="none"))
    blind.load_state_dict(snn.state_dict())
    report = evaluation.diagnose(blind, digits, THREAT, source=ann, draws=16, progress=False)
    assert report.verdict == "masked"
    failed = {name for name, status in statuses(report).items() if status == "failed"}
    assert failed >= {
        "the input gradient is alive",
        "PGD-40 is stronger than random signs",
        "the whole box breaks what swapping images breaks",
        "transfer is not stronger than white box",
        "the encoder passes the gradient on",
    }
    assert "zero for 100.0% of samples" in str(report)
    assert "Poisson (encoder) leaves a gradient of zero for 100.0% of samples, bypassed for 0.0%" in str(report)


def test_a_gradient_of_the_wrong_sign_is_masked(ann: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """Alive and large, and it leads the wrong way: zero-gradient checks alone would miss it."""

    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return -grad

    class Liar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ann

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(Reversed.apply(x))

    chosen = ["noise", "fidelity", "active test", "transfer"]
    report = evaluation.diagnose(Liar(), digits, THREAT, source=ann, checks=chosen, progress=False)
    assert report.verdict == "masked"
    assert statuses(report)["the input gradient is alive"] == "passed"
    for name in (
        "PGD-40 is stronger than random signs",
        "the gradient points where the margin rises",
        "the attack finds a planted adversarial",
        "transfer is not stronger than white box",
    ):
        assert statuses(report)[name] == "failed", str(report)


def test_a_path_that_is_cut_is_named(ann: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ann

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x * 16).round().detach() / 16)

    report = evaluation.diagnose(Cut(), digits, Linf(0.2), progress=False)
    assert report.verdict == "masked"
    assert "differentiable path" in report["the input gradient is alive"].found
    assert report["no gradient at all is not stronger"].status == "failed", str(report)


def test_nan_gradients_are_counted(digits: tuple[Tensor, Tensor]) -> None:
    class Root(nn.Module):
        """sqrt(0) has an infinite slope; times zero it is NaN."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x * 0).sqrt().flatten(1) + x.flatten(1))

    report = evaluation.diagnose(Root(), digits, THREAT, checks=["gradient", "fidelity"], progress=False)
    assert report.verdict == "masked"
    assert "120 of 120 samples has NaN" in str(report)


@pytest.mark.slow
def test_too_sharp_a_surrogate_is_masked(direct: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """Everything about the model is right but the surrogate that the attacker differentiates."""
    report = evaluation.diagnose(
        direct, digits, THREAT, gradient=Surrogate(ATan(1e4)), n=60, checks=["sweep", "neurons"], progress=False
    )
    assert report.verdict == "masked", str(report)
    assert report["no other surrogate finds far more"].status == "failed"
    assert "the training surrogate" in report["no other surrogate finds far more"].found
    assert report["potentials lie within the surrogate's reach"].status == "failed"


def test_two_flags_of_a_sharp_surrogate_are_a_verdict(direct: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = evaluation.diagnose(
        direct, digits, THREAT, gradient=Surrogate(ATan(1e4)), n=50, checks=["fidelity", "neurons"], progress=False
    )
    assert report.verdict == "masked", str(report)
    assert set(report.reasons) >= {
        "the gradient points where the margin rises",
        "potentials lie within the surrogate's reach",
    }


def test_few_samples_or_no_skill_is_inconclusive(ann: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    few = evaluation.diagnose(ann, (x[:20], y[:20]), THREAT, checks=["skill", "noise"], progress=False)
    assert few.verdict == "inconclusive"
    with keyed(3):
        untrained = models.ordinary(models.ARCHITECTURES["conv-small"], (1, 8, 8), 10)
    assert evaluation.diagnose(untrained, digits, THREAT, checks=["skill"], progress=False).verdict == "inconclusive"


def test_same_seed_same_report(snn: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    chosen = ["noise", "determinism"]
    a, b, c = (
        evaluation.diagnose(snn, digits, THREAT, n=12, draws=4, seed=s, checks=chosen, progress=False).to_json()
        for s in (0, 0, 1)
    )
    assert a == b
    assert a["checks"] != c["checks"]


def test_one_class_only_is_refused(ann: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits
    with pytest.raises(ValueError, match="one class only"):
        evaluation.diagnose(ann, (x, torch.zeros(len(x), dtype=torch.int64)), THREAT, progress=False)


def test_few_samples_cannot_say_masked(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    with keyed(0):
        linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    report = evaluation.diagnose(linear, (x[:4], y[:4]), THREAT, progress=False)
    assert report.verdict == "inconclusive", str(report)


@pytest.mark.parametrize(
    ("threat", "error", "words"), [(Linf(0.0), ValueError, "eps must be positive"), (0.1, TypeError, "threat must be")]
)
def test_what_is_no_threat(
    threat: object, error: type[Exception], words: str, digits: tuple[Tensor, Tensor], ann: nn.Module
) -> None:
    with pytest.raises(error, match=words):
        evaluation.diagnose(ann, digits, threat, progress=False)  # type: ignore[arg-type]


def test_a_model_left_in_training_mode_is_left_as_it_was(digits: tuple[Tensor, Tensor]) -> None:
    with keyed(0):
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10)
        )
    before = {k: v.clone() for k, v in model.train().state_dict().items()}
    report = evaluation.diagnose(model, digits, THREAT, n=20, progress=False)
    assert report.settings["draws"] == 1
    judged = evaluation.evaluate(model, digits, {"noise": RandomSign(THREAT)}, n=20, progress=False)
    assert {r["judge_draws"] for r in judged.rows} == {1}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_another_norm_has_its_own_noise_and_its_own_whole_box(ann: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    report = evaluation.diagnose(ann, digits, L2(1.0), checks=["noise", "orderings"], progress=False)
    assert report.verdict == "consistent", str(report)
    assert "PGD-40 is stronger than random noise" in statuses(report)
    assert "PGD-40 at eps = 8," in str(report)  # the diagonal of 64 pixels
    assert "eps = 1 in L2, n = 120" in report.caption()
    with pytest.raises(ValueError, match="diagnose needs one eps for all samples"):
        evaluation.diagnose(ann, digits, L2(torch.ones(120)), progress=False)
