import math

import pytest

from snnrobust.learning_rules.schedule import scheduled


def test_closed_forms():
    for epoch in range(10):
        assert scheduled("constant", 0.3, epoch, 10, 0.4) == 0.3
        assert scheduled("cosine", 0.3, epoch, 10, 0.4) == pytest.approx(0.15 * (1 + math.cos(math.pi * epoch / 10)))
    assert [scheduled("step", 1.0, e, 10, 0.0) for e in range(10)] == [1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]
    assert [scheduled("step", 1.0, e, 3, 0.0) for e in range(3)] == [
        1,
        1,
        0.1,
    ]  # 1.5 of 3 epochs are not over after one
    assert scheduled("step", 1.0, 63, 90, 0.0) == 0.01  # 0.7 * 90 is 62.99999999999999


def test_cyclic_goes_up_and_down_linearly():
    """Over 5 epochs of 4 steps, at the middle of each: the corner is after 8 of 20 steps."""
    found = [scheduled("cyclic", 2.0, e, 5, (i + 0.5) / 4) for e in range(5) for i in range(4)]
    wanted = [2 * (k + 0.5) / 8 if k < 8 else 2 * (19.5 - k) / 12 for k in range(20)]
    assert found == pytest.approx(wanted)
    assert min(found) > 0
    assert scheduled("cyclic", 2.0, 2, 5, 0.0) == pytest.approx(2.0)
