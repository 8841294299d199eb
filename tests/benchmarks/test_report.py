"""Tables of made-up results, and the page that they are written into."""

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.harness import OURS
from benchmarks.report import BEGIN, END
from benchmarks.targets import Target


def _text(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _line(text, name):
    return next(line for line in text.splitlines() if line.strip().startswith(name)).split()


def test_a_missing_reference_leaves_the_ratio_empty(made_up):
    result = made_up(peer=None, snnrobust=[0.002], other="it is not built")
    assert result.speed(OURS) is None
    text = _text(report.table(result))
    assert _line(text, "peer") == ["peer", "not", "measured"]
    assert _line(text, "snnrobust")[-1] == "-"
    assert report.remarks(result) == ["peer: not installed.", "other: it is not built."]
    assert report.slower(result) == []
    assert result.record()["contenders"]["peer"] == "not installed"


def test_the_table_has_medians_ratios_and_the_share_of_the_limit(made_up):
    text = _text(report.table(made_up(limits=("floor",), snnrobust=[0.002], peer=[0.005], floor=[0.0005])))
    assert _line(text, "snnrobust") == ["snnrobust", "2", "2", "–", "2", "20", "0", "2.50x", "0.25x"]


def test_the_table_of_peaks_has_their_ratio(made_up):
    text = _text(report.table(made_up("peak", snnrobust=[0.006], peer=[0.002])))
    assert _line(text, "snnrobust") == ["snnrobust", "6", "6", "–", "6", "3.00x"]


def test_slower_tells_every_contender_that_beats_ours_but_not_the_limit(made_up):
    result = made_up(
        limits=("floor",), snnrobust=[4.0, 4.0], peer=[2.0, 2.0], close=[3.0, 4.5], slow=[9.0], floor=[1.0]
    )
    assert report.slower(result) == [
        "case: snnrobust has 0.50 times the speed of peer",
        "case: snnrobust has 0.94 times the speed of close (the quartiles overlap)",
    ]
    assert report.slower(made_up("peak", snnrobust=[4.0], peer=[2.0])) == []


def test_bf16_is_compared_with_our_bf16(made_up):
    times = {OURS: [4.0], f"{OURS}, bf16": [3.0], "peer": [5.0], "peer, bf16": [2.0]}
    assert report.slower(made_up(**times)) == ["case: snnrobust, bf16 has 0.67 times the speed of peer, bf16"]
    del times[f"{OURS}, bf16"]
    assert report.slower(made_up(**times)) == ["case: snnrobust has 0.50 times the speed of peer, bf16"]


TARGETS = (Target("fast", OURS, "peer", 2.0, aim=5.0), Target("small", OURS, "peer", 0.1, most=True))


def test_the_summary_has_target_and_ratio_side_by_side(made_up):
    text = _text(report.summary([made_up(targets=TARGETS, snnrobust=[1.0, 1.0], peer=[4.0, 4.0])]))
    assert _line(text, "fast") == ["fast", "snnrobust", "peer", ">=", "2x", ">=", "5x", "4x", "4", "–", "4", "reached"]
    expected = ["small", "snnrobust", "peer", "<=", "0.10x", "0.25x", "0.25", "–", "0.25", "missed", "by", "150", "%"]
    assert _line(text, "small") == expected


def test_a_page_is_rewritten_between_its_markers(made_up, tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "performance-rates.png").touch()
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    results = [made_up(name="a|b", targets=TARGETS, snnrobust=[1.0, 1.0], peer=[4.0, 4.0], other=None)]
    for _ in range(2):
        report.write(page, results, {"processor": "Z80", "allocator": {"MALLOC_X": "1"}, "date": "2026-11-24T10:00:00"})
    text = page.read_text()
    assert text.startswith(
        f"before\n{BEGIN}\nMeasured 2026-11-24. processor: Z80; allocator: MALLOC_X=1; load while it ran: 0.5"
    )
    assert text.endswith(f"over the spike rate.](images/performance-rates.png)\n{END}\nafter\n")
    assert "| fast | snnrobust | peer | >= 2x | >= 5x | 4x | 4 – 4 | reached |" in text
    assert "**a\\|b**" in text
    assert "| other | not measured |  |  |" in text
    assert "old" not in text


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_markers_is_an_error(made_up, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must have the line"):
        report.write(page, [], {})
    assert page.read_text() == text
