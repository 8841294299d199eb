"""Peak memory of a call."""

import mmap

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.lif import NAIVE, peaks_of

needs_proc = pytest.mark.skipif(not memory._CLEAR.exists(), reason="needs /proc")


@needs_proc
def test_growth_is_the_highest_point_not_the_last():
    size = 2**26

    def call():
        held = mmap.mmap(-1, size)  # malloc may have as much at hand, which is resident already
        np.frombuffer(held, np.uint8)[:] = 1
        held.close()

    call()
    assert 0.98 * size < memory.growth(call) < 1.2 * size
    assert memory.growth(lambda: None) < 0.2 * size


@needs_proc
@pytest.mark.slow
def test_a_process_of_its_own():
    call = memory.measured(peaks_of, NAIVE, 4, 64, 4096)
    tensor = 4 * 4 * 64 * 4096
    assert 4 * tensor < call() < 12 * tensor


@needs_proc
@pytest.mark.slow
def test_what_goes_wrong_in_the_process_is_told():
    with pytest.raises(RuntimeError, match=r"(?s)could not be measured.*KeyError"):
        memory.measured(peaks_of, "nobody", 3)()


def test_without_proc_there_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing")
    assert memory.measured(peaks_of, NAIVE) == "peak memory needs Linux"
