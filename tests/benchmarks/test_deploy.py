import os

import pytest
import torch

from benchmarks import deploy
from snnrobust.models import Conv, Dense, ordinary


def test_it_measures_every_row_and_leaves_the_cache_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("SNNROBUST_CACHE", str(tmp_path))
    model = ordinary((Conv(4), Dense(6)), (1, 5, 5), 3)
    rows = deploy.measure(model, (1, 5, 5), 8, 8, batch=2, adc_bits=6)
    assert [row.what for row in rows] == [
        "deploy, nothing solved yet", "deploy again, tiles from disk", "deploy without IR drop",
        "a forward pass of the model, batch 2", "a forward pass of the chip, batch 2",
        "a forward pass of the chip with 6-bit ADCs, batch 2",
    ]  # fmt: skip
    assert all(row.wall > 0 and row.cpu > 0 for row in rows)
    assert os.environ["SNNROBUST_CACHE"] == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_prints_a_table(monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        "sys.argv",
        ["deploy", "--architecture", "lenet5", "--rows", "16", "--columns", "16", "--batch", "1", "--threads", "1"],
    )
    try:
        deploy.main()
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert "lenet5, 1 threads; estimate: " in text
    assert "deploy again, tiles from disk" in text
    assert "goal, 60 s of wall time for VGG9 on two cores: reached" in text


def test_errors_grow_with_the_tile_and_shrink_with_gains():
    found = [deploy.errors(deploy.WIRES["1 kohm terminals, 5 and 10 ohm wires"], size, 32, 2) for size in (8, 16)]
    for small, large in zip(found[0].values(), found[1].values(), strict=True):
        assert max(small) < min(large)
    for by_gain in found:
        assert max(by_gain["column"]) < min(by_gain["tile"]) < max(by_gain["tile"]) < min(by_gain["none"])


def test_errors_as_a_table():
    table = deploy.error_table((4, 8), width=6, seeds=2)
    assert table.row_count == 2 * len(deploy.WIRES)
    assert [str(column.header) for column in table.columns][2:] == ["gain none", "gain tile", "gain column"]


@pytest.mark.parametrize("name", ["nothing"])
def test_an_architecture_that_is_none(monkeypatch, capsys, name):
    monkeypatch.setattr("sys.argv", ["deploy", "--architecture", name])
    with pytest.raises(SystemExit):
        deploy.main()
    assert "invalid choice" in capsys.readouterr().err
