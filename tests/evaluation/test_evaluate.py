"""The evaluation follows its protocol: selection and judgement apart, controls, stored cells, no draw by batch size."""

from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snnrobust import attacks, evaluation, hardware, models
from snnrobust.attacks import FGSM, L1, L2, PGD, Linf, RandomNoise, RandomSign
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.selection import Measurement, measure
from snnrobust.draws import Stochastic, Stream, keyed
from snnrobust.encoders import Poisson
from snnrobust.evaluation.report import CLEAN, COLUMNS, NULL, WORST, RobustnessReport, resubmitted
from snnrobust.models.checkpoint import read_tensors, write_tensors


class Coin(Stochastic):
    """Right with probability p for every input, afresh at each forward."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        right = self.uniform((1, len(x), 1), device=x.device)[0] < self.p
        return torch.cat([right.to(x.dtype), 0.5 + 0 * right], 1) + 0 * x.flatten(1)[:, :1]


class PixelCoin(Coin):
    """Right with probability p for every input, but inputs that differ by little have other draws."""

    def forward(self, x: Tensor) -> Tensor:
        shift = 1e4 * (x.flatten(1).double() @ torch.arange(1.0, 17.0).double().sqrt())
        right = (self.uniform((1, len(x), 1))[0].double() + shift[:, None]) % 1 < self.p
        return torch.cat([right.to(x.dtype), torch.full((len(x), 1), 0.5)], 1)


@dataclass(frozen=True)
class Nothing(Attack):
    threat: Linf

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        return x


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(40, 1, 6, 6, generator=g), torch.randint(0, 3, (40,), generator=g)


@pytest.fixture(scope="module")
def ann() -> nn.Module:
    with keyed(1):
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3)).double().float()


@pytest.fixture(scope="module")
def snn() -> nn.Module:
    with keyed(1):
        return models.spiking(models.ARCHITECTURES["mlp"], (36,), 3, Poisson(3)).eval()


def record_crafting(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Attack, int, Tensor]]:
    """Each attack that is called from now on, with its seed and what it made."""
    crafted = []
    original = Attack.__call__

    def spy(attack: Attack, *arguments: Tensor, seed: int, **named: Tensor) -> Tensor:
        x_adv = original(attack, *arguments, seed=seed, **named)
        crafted.append((attack, seed, x_adv))
        return x_adv

    monkeypatch.setattr(Attack, "__call__", spy)
    return crafted


def quick(
    model: nn.Module, data: tuple[Tensor, Tensor], named: dict[str, Attack], **options: object
) -> RobustnessReport:
    defaults: dict[str, object] = {"selection_draws": 4, "judge_draws": 12, "progress": False}
    return evaluation.evaluate(model, data, named, **{**defaults, **options})  # type: ignore[arg-type]


def test_attacks_that_change_nothing_take_nothing_from_a_random_model(tmp_path: Path) -> None:
    """PROTOCOL's story: every candidate has other draws and the same p, so the draws that select it look far worse."""
    x = torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y, p = torch.zeros(400, dtype=torch.int64), 0.9
    named: dict[str, Attack] = {f"nudge {i}": RandomSign(Linf(1e-3)) for i in range(14)}
    report = quick(PixelCoin(p), (x, y), named, selection_draws=8, judge_draws=32, folder=tmp_path)
    error = np.sqrt(p * (1 - p) / (400 * 32))
    for attack in (CLEAN, WORST, NULL):
        assert report.accuracy(attack) == pytest.approx(p, abs=4 * error)
    cells = [read_tensors(path, "evaluation cell")[0] for path in tmp_path.iterdir()]
    seen = torch.stack([cell["selection.correct"] for cell in cells]).amin(0).double().mean() / 8
    assert seen < p - 0.1  # what judging on the selection draws would report


def test_crafting_selection_and_judgement_draw_from_keys_of_their_own(
    images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted, measured = record_crafting(monkeypatch), []

    def spy(model: nn.Module, x: Tensor, y: Tensor, stream: Stream, n: int) -> Measurement:
        measured.append((n, stream.key))
        return measure(model, x, y, stream, n)

    monkeypatch.setattr("snnrobust.evaluation.cell.measure", spy)
    named: dict[str, Attack] = {f"nothing {i}": Nothing(Linf(0.1)) for i in range(3)}
    quick(Coin(0.5), (images[0], images[1] % 2), named, batch_size=25)
    assert len(measured) == 2 * 2 * 7  # two batches of clean input, three candidates and three of the null control
    selection, judgement = ({key for n, key in measured if n == draws} for draws in (4, 12))
    assert len(selection) == len(judgement) == 1  # the same for all, so that candidates are compared on equal terms
    crafting = {seed for _, seed, _ in crafted}
    assert len(crafting) == 6  # each candidate has one for its two batches
    assert not selection & judgement
    assert not crafting & (selection | judgement)


def test_the_null_control_has_as_many_random_candidates_as_there_are_attacks(
    ann: nn.Module, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted = record_crafting(monkeypatch)
    x, y = images
    report = quick(ann, images, {f"nothing {i}": Nothing(Linf(0.1)) for i in range(5)}, eps=[0.1, 0.4])
    noise = [(attack, seed, x_adv) for attack, seed, x_adv in crafted if isinstance(attack, RandomNoise)]
    assert len({seed for _, seed, _ in noise}) == len(noise) == 2 * 5
    for eps in (0.1, 0.4):
        mine = [x_adv for attack, _, x_adv in noise if attack.threat.eps == eps]
        assert len(mine) == 5
        assert not any(torch.equal(a, b) for a, b in combinations(mine, 2))
        assert all(0 < (x_adv - x).abs().max() <= eps + 1e-6 for x_adv in mine)
        right = torch.stack([ann(x_adv).argmax(1) == y for x_adv in (x, *mine)])
        assert report.accuracy(NULL, eps=eps) == pytest.approx(float(right.all(0).float().mean()))


def test_rows_are_the_means_of_their_samples(ann: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    report = quick(ann, images, {"pgd": PGD(Linf(0.1), steps=5), "noise": RandomSign(Linf(0.1))}, eps=[0.05, "0.2"])
    table = [dict(zip(COLUMNS, row, strict=True)) for row in report.samples]
    assert len(report.rows) == 1 + 2 * 4
    for row in report.rows:
        mine = [s for s in table if (s["attack"], s["eps"], s["chip"]) == (row["attack"], row["eps"], row["chip"])]
        assert len(mine) == row["n"] == 40
        assert row["accuracy"] == pytest.approx(np.mean([s["correct"] for s in mine]))
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert max(s["distance"] for s in mine) <= row["eps"]
        for s in mine:
            assert s["correct"] == (s["prediction"] == s["label"])  # one draw: the model has no randomness


def test_worst_case_is_the_per_sample_minimum_for_a_model_without_randomness(
    ann: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    report = quick(ann, images, {"pgd": PGD(Linf(0.1), steps=5), "noise": RandomSign(Linf(0.1))})
    shares = {a: np.array([r[9] for r in report.samples if r[2] == a]) for a in ("pgd", "noise", CLEAN, WORST)}
    assert np.array_equal(shares[WORST], np.minimum.reduce([shares["pgd"], shares["noise"], shares[CLEAN]]))
    assert report.accuracy(WORST) < report.accuracy(CLEAN)


def test_counts_of_forwards_and_gradients(ann: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    report = quick(ann, images, {"pgd": PGD(Linf(0.1), steps=5)})
    row = next(r for r in report.rows if r["attack"] == "pgd")
    assert row["gradients"] == 5 * 40
    assert row["forwards"] == 5 * 40
    assert next(r for r in report.rows if r["attack"] == WORST)["gradients"] == 5 * 40


def test_batch_size_changes_nothing(snn: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images[0].flatten(1).double(), images[1]
    model = snn.double()
    named: dict[str, Attack] = {"pgd": PGD(Linf(0.2), steps=3, gradient=attacks.EOT(2), restarts=2)}
    a, b = (quick(model, (x, y), named, batch_size=size) for size in (7, 64))
    model.float()
    assert a.samples == b.samples


def test_a_chip_is_attacked_on_itself(snn: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    data = (images[0].flatten(1), images[1])
    chip = hardware.deploy(snn, hardware.GaussianNoise(2.0), seed=1)
    report = quick(snn, data, {"pgd": PGD(Linf(0.1), steps=2)}, chips={"ideal": None, "noisy": chip}, seed=3)
    alone = quick(chip, data, {"pgd": PGD(Linf(0.1), steps=2)}, chips={"noisy": None}, seed=3)
    mine = [r[3:] for r in report.samples if r[1] == "noisy"]
    assert mine == [r[3:] for r in alone.samples]
    assert mine != [r[3:] for r in report.samples if r[1] == "ideal"]


def test_finished_cells_are_read_back(ann: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    named: dict[str, Attack] = {"pgd": PGD(Linf(0.1), steps=3)}
    first = quick(ann, images, named, folder=tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = quick(ann, images, named, folder=tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == stamps
    assert again.to_json() == first.to_json()
    assert again.samples == first.samples


@pytest.mark.parametrize("change", ["weights", "steps", "seed", "samples", "source"])
def test_a_cell_is_computed_again_when_anything_it_depends_on_changes(
    change: str, ann: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    with keyed(5):
        model, source = (nn.Sequential(nn.Flatten(), nn.Linear(36, 3)) for _ in range(2))
    x, y = images
    named: dict[str, Attack] = {"transfer": attacks.Transfer(PGD(Linf(0.1), steps=2), source)}
    options: dict[str, object] = {"folder": tmp_path, "seed": 0}
    quick(model, (x, y), named, **options)
    before = len(list(tmp_path.iterdir()))
    with torch.no_grad():
        if change == "weights":
            model[1].weight[0, 0] += 1e-3
        elif change == "source":
            source[1].weight[0, 0] += 1e-3
    if change == "steps":
        named = {"transfer": attacks.Transfer(PGD(Linf(0.1), steps=3), source)}
    options |= {"seed": 1} if change == "seed" else {}
    quick(model, (x[1:], y[1:]) if change == "samples" else (x, y), named, **options)
    new = len(list(tmp_path.iterdir())) - before
    assert new == {"steps": 1, "source": 1}.get(change, 3)  # else the clean and the null cell too


def test_a_stored_input_outside_the_budget_is_refused(
    ann: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    quick(ann, images, {"pgd": PGD(Linf(0.1), steps=1)}, folder=tmp_path)
    for path in tmp_path.iterdir():
        tensors, content = read_tensors(path, "evaluation cell")
        tensors["x_adv"] = 1 - images[0]
        write_tensors(path, "evaluation cell", tensors, content)
    with pytest.raises(ValueError, match="x_adv must stay within eps"):
        quick(ann, images, {"pgd": PGD(Linf(0.1), steps=1)}, folder=tmp_path)


def test_ten_resubmissions_in_closed_form() -> None:
    assert resubmitted(np.array([128, 64, 9]), 128) == pytest.approx((1 + comb(64, 10) / comb(128, 10) + 0) / 3)
    assert resubmitted(np.array([1, 0]), 1) == 0.5
    assert resubmitted(np.array([4, 8]), 8) is None


def test_misclassified_samples_stay_in_the_denominator(images: tuple[Tensor, Tensor]) -> None:
    always_zero = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    nn.init.zeros_(always_zero[1].weight)
    with torch.no_grad():
        always_zero[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    report = quick(always_zero, images, {"noise": RandomSign(Linf(0.1))})
    assert report.accuracy(WORST) == pytest.approx(float((images[1] == 0).float().mean()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks": {}}, "attacks must map names"),
        ({"attacks": {WORST: RandomSign(Linf(0.1))}}, "must not be named"),
        ({"eps": []}, "eps must hold at least one"),
        ({"eps": [-0.1]}, "eps must be in"),
        ({"n": 41}, "41 samples are asked for, but the data has only 40"),
        ({"judge_draws": 0}, "judge_draws must be at least 1"),
        ({"data": (torch.full((4, 1, 6, 6), 1.5), torch.zeros(4).long())}, r"inputs must lie in \[0, 1\]"),
        ({"data": (torch.zeros(0, 1, 6, 6), torch.zeros(0).long())}, "the data is empty"),
        ({"data": (torch.zeros(4, 1, 6, 6), torch.tensor([0, 1, 2, 3]))}, r"must lie in 0..2, got 0..3"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str, ann: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    arguments: dict[str, object] = {"data": images, "attacks": {"pgd": PGD(Linf(0.1), steps=1)}, **change}
    data, named = arguments.pop("data"), arguments.pop("attacks")
    with pytest.raises((ValueError, TypeError), match=message):
        quick(ann, data, named, **arguments)  # type: ignore[arg-type]


def test_saved_report(ann: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    report = quick(ann, images, {"pgd": PGD(Linf(0.1), steps=1)})
    page = report.save(tmp_path / "mine")
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    lines = (tmp_path / "mine" / "samples.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + 4 * 40


def test_summary_shows_every_attack_of_the_first_chip(ann: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    text = quick(ann, images, {"pgd": PGD(Linf(0.1), steps=1)}, eps=[0.1, 0.2], name="my model").summary()
    for word in ("my model", "ideal", CLEAN, "pgd", WORST, NULL, "eps 0.1", "eps 0.2", "n = 40 samples"):
        assert word in text


def test_reports_of_different_settings_do_not_join() -> None:
    with pytest.raises(ValueError, match="different settings"):
        RobustnessReport({"n": 1}).extend(RobustnessReport({"n": 2}))


def test_another_norm_has_its_own_noise_distances_and_name(
    ann: nn.Module, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crafted = record_crafting(monkeypatch)
    named: dict[str, Attack] = {"pgd": PGD(L2(0), steps=5), "fgm": FGSM(L2(0))}
    report = quick(ann, images, named, eps=[0.3, 0.9], folder=tmp_path)
    noise = [(attack, x_adv) for attack, _, x_adv in crafted if isinstance(attack, RandomNoise)]
    assert len(noise) == 4
    for attack, x_adv in noise:
        spent = (x_adv - images[0]).double().flatten(1).norm(dim=1)
        assert (spent - attack.threat.eps).abs().max() < 1e-5  # float32 rounds each change towards x
        assert (spent <= attack.threat.eps).all()
    table = [dict(zip(COLUMNS, row, strict=True)) for row in report.samples]
    assert max(s["distance"] - s["eps"] for s in table) <= 0
    assert max(s["distance"] for s in table) > 0.89
    assert report.accuracy(WORST, eps=0.9) < report.accuracy(NULL, eps=0.9)
    assert report.settings["norm"] == "L2"
    assert "eps in L2; n = 40" in report.summary()
    assert "in L2" in report.save(tmp_path / "report").read_text()

    crafted.clear()
    again = quick(ann, images, named, eps=[0.3, 0.9], folder=tmp_path)
    assert crafted == []  # all cells were read back, and validated in L2
    assert again.samples == report.samples
    other = quick(ann, images, {"pgd": PGD(L1(0), steps=5), "fgm": FGSM(L1(0))}, eps=[0.3, 0.9], folder=tmp_path)
    assert len(crafted) == 8  # none of L2's was taken for L1's
    with pytest.raises(ValueError, match="different settings"):
        report.extend(other)


def test_stored_adversarials_of_another_norm_are_validated_in_it(
    ann: nn.Module, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    quick(ann, images, {"pgd": PGD(L2(0.3), steps=2)}, folder=tmp_path)
    for path in tmp_path.iterdir():
        tensors, numbers = read_tensors(path, "evaluation cell")
        if tensors["distance"].max() > 0:
            tensors["x_adv"] = (images[0] + 0.06).clamp(0, 1)  # every pixel well within 0.3, all together not
            write_tensors(path, "evaluation cell", tensors, numbers)
    with pytest.raises(ValueError, match=r"within eps=0\.29.* of x in L2"):
        quick(ann, images, {"pgd": PGD(L2(0.3), steps=2)}, folder=tmp_path)


@pytest.mark.parametrize(
    ("named", "options", "words"),
    [
        ({"a": PGD(L2(0.3)), "b": PGD(Linf(0.3))}, {}, r"must share one threat.*'a': L2\(.*'b': Linf\("),
        ({"a": PGD(L2(0.3)), "b": PGD(Linf(0.1))}, {"eps": [0.3]}, "must share one threat"),
        (
            {"a": PGD(L2((0.3,) * 40))},
            {},
            r"evaluate needs one eps for all samples, got one for each of 40: use eps = \[...\]",
        ),
        ({"a": PGD(L2(0.3))}, {"eps": [0.3, 6.1]}, "eps must be at most 6, the largest L2 distance"),
    ],
)
def test_threats_that_do_not_fit_are_named(
    named: dict[str, Attack], options: dict[str, object], words: str, ann: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(ValueError, match=words):
        quick(ann, images, named, **options)
