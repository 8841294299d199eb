"""Figures of made-up results."""

from benchmarks import events, plots, steps
from benchmarks.harness import OURS
from benchmarks.targets import Target


def test_every_figure_is_drawn_from_what_there_is(made_up, tmp_path):
    target = (Target("row", OURS, "peer", 2.0, aim=3.0), Target("other", OURS, "missing", 2.0))
    whole, chunked = [[steps._name(t, c) for t in (8, 16)] for c in (False, True)]
    at = {name: t for names in (whole, chunked) for name, t in zip(names, (8, 16), strict=True)}
    rates = [
        made_up(reference=events.DENSE, figure="rates", at={OURS: rate}, **{
            OURS: [rate], events.DENSE: [0.1], events.LAST: [0.2], events.BF16: [0.05]
        })
        for rate in (0.01, 0.05, 0.5)
    ]  # fmt: skip
    results = [
        made_up(targets=target, snnrobust=[1.0, 1.1], peer=[2.5, 2.0], missing=None),
        made_up(name="LIF [8, 2], x", limits=("floor",), figure="lif", snnrobust=[1.0], peer=[2.0], floor=[0.5]),
        made_up(reference=whole[0], figure="steps", at=at, **{key: [1.0] for key in whole}, **{key: [1.3] for key in chunked}),
        made_up("peak", reference=whole[0], figure="steps memory", at=at, **{key: [1.0] for key in whole},
                **dict.fromkeys(chunked, "not built")),
        *rates,
    ]  # fmt: skip
    files = plots.draw(results, tmp_path)
    assert [file.name for file in files] == list(plots.FIGURES)
    assert all(file.stat().st_size > 1000 for file in files)


def test_nothing_is_drawn_from_nothing(tmp_path):
    assert plots.draw([], tmp_path) == []
