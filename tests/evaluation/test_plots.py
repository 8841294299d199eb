"""The figures show the numbers of the rows: a line for each attack, bands and error bars where they belong."""

import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from snnrobust.evaluation import plots
from snnrobust.evaluation.report import CLEAN, NULL, WORST, RobustnessReport


def row(model: str, chip: str, attack: str, eps: float, accuracy: float, **others: Any) -> dict[str, Any]:
    return {
        "model": model, "chip": chip, "attack": attack, "eps": eps, "n": 200, "accuracy": accuracy, "low": accuracy - 0.04,
        "high": min(1.0, accuracy + 0.03), "accuracy_10": accuracy**2, "selection_draws": 16, "judge_draws": 64,
        "forwards": 1234, "gradients": 987, "seconds": 1.5, **others,
    }  # fmt: skip


def example(shape: tuple[int, ...] = (1, 8, 8), eps: float = 0.1, **others: Any) -> dict[str, Any]:
    clean = np.linspace(0.2, 0.8, int(np.prod(shape))).reshape(shape)
    adversarial = clean.copy()
    adversarial[..., 0] += eps
    adversarial[..., -1] -= eps / 2
    return {
        "model": "snn", "chip": "ideal", "eps": eps, "sample": 3, "label": 6, "clean_prediction": 6, "prediction": 1,
        "clean": clean.tolist(), "adversarial": adversarial.tolist(), **others,
    }  # fmt: skip


ROWS = [
    row("snn", "ideal", CLEAN, 0.0, 0.971),
    *(row("snn", "ideal", a, 0.05, v) for a, v in (("fgsm", 0.873), ("pgd", 0.852), (WORST, 0.856), (NULL, 0.957))),
    *(row("snn", "ideal", a, 0.2, v) for a, v in (("fgsm", 0.164), ("pgd", 0.062), (WORST, 0.063), (NULL, 0.721))),
    row("snn", "noisy", CLEAN, 0.0, 0.941),
    *(row("snn", "noisy", a, 0.05, v) for a, v in (("fgsm", 0.833), ("pgd", 0.811), (WORST, 0.812), (NULL, 0.907))),
    row("ann", "ideal", CLEAN, 0.0, 0.991, judge_draws=1, selection_draws=1),
    row("ann", "ideal", "pgd", 0.05, 0.882, judge_draws=1, selection_draws=1),
    row("ann", "ideal", WORST, 0.05, 0.882, judge_draws=1, selection_draws=1),
    row("ann", "ideal", NULL, 0.05, 0.985, judge_draws=1, selection_draws=1),
]


def drawn(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_a_line_for_each_attack_with_the_values_of_its_rows() -> None:
    snn, ann = plots.accuracy_vs_eps(ROWS).axes
    assert set(drawn(snn)) == {"worst case", "clean", "fgsm", "pgd", "null control"}
    assert set(drawn(ann)) == {"worst case", "clean", "pgd", "null control"}  # fgsm was not run on it
    for attack, values in (
        ("pgd", [97.1, 85.2, 6.2]),
        ("worst case", [97.1, 85.6, 6.3]),
        ("null control", [97.1, 95.7, 72.1]),
    ):
        eps, accuracy = drawn(snn)[attack]
        assert eps == [0.0, 0.05, 0.2]
        assert accuracy == pytest.approx(values)
    assert drawn(snn)["clean"] == ([0.0], pytest.approx([97.1]))


def test_the_band_is_the_interval_of_the_worst_case() -> None:
    snn, _ = plots.accuracy_vs_eps(ROWS).axes
    (band,) = snn.collections
    edges = {(round(float(x), 6), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    assert {(0.05, 81.6), (0.05, 88.6), (0.2, 2.3), (0.2, 9.3), (0.0, 93.1), (0.0, 100.0)} <= edges


def test_another_chip_can_be_shown() -> None:
    (axes,) = plots.accuracy_vs_eps(ROWS, models=["snn"], chip="noisy").axes
    assert drawn(axes)["worst case"] == ([0.0, 0.05], pytest.approx([94.1, 81.2]))


def test_one_attack_at_one_budget() -> None:
    (axes,) = plots.accuracy_vs_eps([r for r in ROWS if r["model"] == "ann"]).axes
    assert drawn(axes)["pgd"] == ([0.0, 0.05], pytest.approx([99.1, 88.2]))


def test_a_report_its_json_and_its_rows_give_the_same_figure() -> None:
    report = RobustnessReport(rows=ROWS)
    for given in (report, report.to_json(), {"report": report.to_json()}):
        assert drawn(plots.accuracy_vs_eps(given).axes[0]) == drawn(plots.accuracy_vs_eps(ROWS).axes[0])


def test_chips_stand_side_by_side_with_their_intervals() -> None:
    (axes,) = plots.accuracy_per_chip(ROWS, models=["snn"]).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["clean", "0.05"]  # 0.2 was tried on one chip only
    bars = {c.get_label(): c for c in axes.containers}
    assert set(bars) == {"ideal", "noisy"}
    points, _, (whiskers,) = bars["noisy"]
    assert list(points.get_ydata()) == pytest.approx([94.1, 81.2])
    assert [tuple(s[:, 1]) for s in whiskers.get_segments()] == [
        pytest.approx((90.1, 97.1)),
        pytest.approx((77.2, 84.2)),
    ]
    assert list(points.get_xdata()) != list(bars["ideal"][0].get_xdata())


def test_two_models_in_one_panel() -> None:
    (axes,) = plots.compare_worst_case(ROWS, {"snn": "honest", "ann": "false"}, null="ann").axes
    lines = drawn(axes)
    assert lines["honest"][1] == pytest.approx([97.1, 85.6, 6.3])
    assert lines["false"][1] == pytest.approx([99.1, 88.2])
    assert lines["null control"][1] == pytest.approx([99.1, 98.5])
    assert len(axes.collections) == 2


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (2, 5, 7), (4, 2, 6, 6), (9, 9), (5, 4, 4), (6,)])
def test_examples_of_any_size(shape: tuple[int, ...]) -> None:
    figure = plots.example_strip([example(shape), example(shape)])
    images = [axes.images[0].get_array() for axes in figure.axes]
    assert len(images) == 6
    assert all(
        i.shape[:2] == ((1, 6) if len(shape) == 1 else shape[-2:]) and 0 <= i.min() <= i.max() <= 1 for i in images
    )
    assert all(i.ndim == (3 if len(shape) > 2 and shape[-3] in (2, 3) else 2) for i in images)


def test_the_change_is_amplified_to_the_full_range() -> None:
    clean, change, adversarial = plots.pictures(example(eps=0.1), plots.largest_change([example(eps=0.1)]))
    assert change.max() == pytest.approx(1.0)
    assert change.min() == pytest.approx(0.25)
    assert change[4, 4] == 0.5
    assert plots.amplification(0.1) == "5"
    assert np.allclose(adversarial - clean, 0.2 * (change - 0.5))


def test_an_attack_that_changed_nothing() -> None:
    still = example() | {"adversarial": example()["clean"]}
    assert plots.largest_change([still]) == 1.0
    assert (plots.pictures(still, 1.0)[1] == 0.5).all()


def test_no_example_fits() -> None:
    with pytest.raises(ValueError, match="no example fits model='ann'"):
        plots.example_strip([example()], model="ann")


def test_training_curves() -> None:
    records = [{"epoch": e, "loss": 1 / e, "accuracy": 1 - 0.5 / e, "validation_accuracy": None} for e in (1, 2, 4)]
    checked = [r | {"validation_accuracy": 0.25 * i} for i, r in enumerate(records)]
    figure = plots.training_curves({"ann": records, "snn": checked})
    ann, snn, ann_loss, _ = figure.axes
    assert drawn(ann) == {"training": ([1, 2, 4], pytest.approx([50, 75, 87.5]))}
    assert drawn(snn)["validation"] == ([1, 2, 4], pytest.approx([0, 25, 50]))
    assert drawn(ann_loss)["training"] == ([1, 2, 4], pytest.approx([1, 0.5, 0.25]))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["training", "validation"]


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"models must be among .*'snn', 'ann'.*got \['rnn'\]"):
        plots.accuracy_vs_eps(ROWS, models=["rnn"])
    with pytest.raises(ValueError, match="models must be among"):
        plots.accuracy_per_chip([])


def test_names_cannot_break_a_figure() -> None:
    names = ["_hidden", r"$\frac{a}$", "a\x00b\x1b", "x" * 200]
    figure = plots.accuracy_vs_eps([row("$m_{$", "ideal", a, 0.1, 0.5) for a in (*names, CLEAN, WORST, NULL)])
    figure.canvas.draw()
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert {"\u200b_hidden", r"$\frac{a}$", "a\ufffdb\ufffd"} <= set(texts)
    assert max(map(len, texts)) <= 32


def test_ticks_keep_their_distance() -> None:
    budgets = [k / 255 for k in (1, 2, 3, 4, 8, 16)]
    (axes,) = plots.accuracy_vs_eps([row("m", "c", a, e, 0.5) for e in budgets for a in ("pgd", WORST, NULL)]).axes
    figure = axes.figure
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in axes.get_xticklabels()]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "4/255", "8/255", "16/255"]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


@pytest.mark.parametrize(
    ("eps", "text"), [(0.05, "0.05"), (8 / 255, "8/255"), (0.2, "0.2"), (1.0, "1"), (0, "0"), (0.123456, "0.1235")]
)
def test_budgets_as_they_were_written(eps: float, text: str) -> None:
    assert plots.eps_text(eps) == text


def test_users_settings_stay_and_do_not_matter() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0, "text.usetex": False, "axes.facecolor": "red"}):
        figure = plots.accuracy_vs_eps(ROWS)
        assert matplotlib.rcParams["font.size"] == 31.0
        assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)
        assert figure.axes[0].xaxis.label.get_fontsize() == plots.TEXT


def test_imports_are_lazy_and_no_figure_goes_through_pyplot() -> None:
    code = """
import sys, snnrobust.evaluation
from snnrobust.evaluation import html, plots
assert not {"matplotlib", "jinja2"} & set(sys.modules)
plots.training_curves({"m": [{"epoch": 1, "loss": 1.0, "accuracy": 0.5}]}).canvas.draw()
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
