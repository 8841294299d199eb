"""Models that are no function of their input are caught, and named."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from snnrobust import evaluation, models
from snnrobust.attacks import Linf
from snnrobust.draws import Stochastic, evaluating, keyed
from snnrobust.encoders import Direct, Poisson
from snnrobust.evaluation.diagnosis.check import Check
from snnrobust.evaluation.diagnosis.hygiene import BATCH, LEFT, REPEATS, hygiene, restored

X = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 10


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with keyed(0):
            self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class Unreset(Net):
    """A leaky sum over calls, as of a neuron that nobody resets."""

    state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        kept = torch.zeros_like(z) if self.state is None else self.state
        self.state = (0.9 * kept + z).detach()
        return z + 0.9 * kept


class UnresetBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("membrane", torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x) + self.membrane
        self.membrane = 0.5 * self.membrane + z.mean(0).detach()
        return z


class RunningMaximum(Net):
    """Remembers nothing that the same batch would reveal."""

    top: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        size = x.flatten(1).amax(1).mean().detach()
        self.top = size if self.top is None else torch.maximum(self.top, size)
        return super().forward(x) * self.top


class Mutated(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class MutatedWeights(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.head.weight.mul_(1.0 + 1e-7)
        return super().forward(x)


class Wakes(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.train()
        return super().forward(x)


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        x.data.mul_(0.5).add_(0.25)
        return z


class Reseeds(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().forward(x + 0.1 * torch.rand_like(x))


class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand(x.shape, generator=self.generator))


class BatchStatistics(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class BatchNoise(Net):
    """Noise as large as the logits of the batch spread (as in some noisy networks)."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z + z.std() * torch.randn_like(z)


class SharedNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(10)


class ForeignNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((torch.rand_like(x) < x).to(x.dtype))


class KeyedNoiseOfTheBatch(Net):
    class Noise(Stochastic):
        def forward(self, z: Tensor) -> Tensor:
            return z + z.std() * self.normal((1, *z.shape))[0]

    def __init__(self) -> None:
        super().__init__()
        self.noise = self.Noise()

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(super().forward(x))  # type: ignore[no-any-return]


class BatchSize(Net):
    """State of a size: another batch does not fit."""

    state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.state is None:
            self.state = torch.zeros(len(x), 10)
        return super().forward(x) + self.state


def found(model: nn.Module) -> dict[str, Check]:
    with evaluating(model):
        return {c.name: c for c in hygiene(model, X.clone(), Y, seed=0)}


def spiking(encoder: Direct | Poisson) -> nn.Module:
    with keyed(0):
        return models.spiking(models.ARCHITECTURES["conv-small"], (1, 8, 8), 10, encoder)


@pytest.mark.parametrize(
    "model", [Net(), spiking(Direct(4)), spiking(Poisson(4)), nn.Sequential(Net(), nn.Dropout(0.5))]
)
def test_what_is_sound_passes(model: nn.Module) -> None:
    assert {name: c.status for name, c in found(model).items()} == {REPEATS: "passed", LEFT: "passed", BATCH: "passed"}


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (Unreset, REPEATS, "unreset state in state: a second call"),
        (UnresetBuffer, REPEATS, "unreset state in membrane"),
        (RunningMaximum, REPEATS, "unreset state in top"),
        (OwnGenerator, REPEATS, "generator: a random generator of its own"),
        (BatchSize, BATCH, "unreset state? the model does not take x"),
        (Mutated, LEFT, "mutated buffers: calls"),
        (MutatedWeights, LEFT, "mutated parameters: head.weight"),
        (Wakes, LEFT, "modes: the model, head"),
        (InPlace, LEFT, "its input, in place"),
        (Reseeds, LEFT, "torch's generator, which it reseeds"),
        (BatchStatistics, BATCH, "batch-dependent outputs: other logits for 100% of samples"),
        (BatchNoise, BATCH, "batch-dependent noise: beside other inputs its size changes by"),
        (KeyedNoiseOfTheBatch, BATCH, "batch-dependent noise: beside other inputs its size changes by"),
    ],
)
def test_each_trap_is_caught_and_named(kind: Callable[[], nn.Module], name: str, words: str) -> None:
    check = found(kind())[name]
    assert (check.status, check.evidence) == ("failed", "proof"), check
    assert words in check.found


def test_noise_that_a_batch_shares_is_a_flag() -> None:
    check = found(SharedNoise())[BATCH]
    assert (check.status, check.evidence) == ("failed", "flag")
    assert "all samples of a batch share one draw" in check.found


def test_noise_without_keys_is_no_fault_but_said() -> None:
    check = found(ForeignNoise())[BATCH]
    assert check.status == "passed"
    assert "not keyed by sample" in check.found


def test_what_keeps_state_is_masked_and_nothing_else_is_asked() -> None:
    report = evaluation.diagnose(Unreset(), (X, Y), Linf(0.1), progress=False)
    assert report.verdict == "masked"
    assert report.reasons == [REPEATS]
    assert [c.name for c in report.checks] == [REPEATS, LEFT]


def test_a_model_that_changes_itself_is_masked_and_put_back() -> None:
    model = Mutated()
    report = evaluation.diagnose(model, (X, Y), Linf(0.1), checks=["skill"], progress=False)
    assert report.verdict == "masked"
    assert float(model.calls) == 0.0


def test_restored_puts_parameters_back_after_an_error() -> None:
    model = Net()
    before = model.head.weight.clone()
    with pytest.raises(RuntimeError, match="stop"), restored(model):  # noqa: PT012
        model.head.weight.data.zero_()
        raise RuntimeError("stop")
    assert torch.equal(model.head.weight, before)


def test_torchs_generator_stays() -> None:
    before = torch.get_rng_state()
    found(ForeignNoise())
    assert torch.equal(torch.get_rng_state(), before)
