import pytest

from snnrobust.hardware.duration import seconds


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (0, 0.0),
        (2.5, 2.5),
        ("1 s", 1.0),
        ("1s", 1.0),
        ("10 min", 600.0),
        ("1.5 h", 5400.0),
        ("1 day", 86_400.0),
        ("2 days", 172_800.0),
        ("2 D", 172_800.0),
        ("1 week", 604_800.0),
        ("1 month", 2_592_000.0),
        ("1 year", 31_536_000.0),
        ("1e-3 seconds", 1e-3),
        (" 3  hours ", 10_800.0),
    ],
)
def test_times(written, expected):
    assert seconds("time", written) == expected


@pytest.mark.parametrize(
    ("written", "error", "words"),
    [
        ("1 fortnight", ValueError, "the unit of time must be one of .*got 'fortnight'"),
        ("1 dya", ValueError, r"the unit of time.*did you mean 'day'"),
        ("day", ValueError, "time must be seconds or a number with a unit such as \"1 day\", got 'day'"),
        ("-1 day", ValueError, "time must be seconds or a number"),
        ("1.2.3 h", ValueError, "time must start with a number"),
        ("1e400 s", ValueError, "time must be finite"),
        (-1.0, ValueError, 'time must be in .*seconds, or a string such as "1 day"'),
        (float("nan"), ValueError, "time must be"),
        (None, TypeError, "time must be a number"),
        (True, TypeError, "time must be a number"),
    ],
)
def test_bad_times_are_named(written, error, words):
    with pytest.raises(error, match=words):
        seconds("time", written)
