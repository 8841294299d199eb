import pytest

from benchmarks import libraries

pytest.importorskip("foolbox")


@pytest.mark.slow
def test_single_attacks_are_no_weaker_than_those_of_other_libraries(capsys):
    found = libraries.main(["-n", "40", "--steps", "5", "--queries", "60"])
    assert {"PGD, foolbox", "CW, foolbox", "DeepFool L2, foolbox", "DeepFool Linf, foolbox"} <= set(found)
    assert "largest difference" in capsys.readouterr().out
    assert max(found[name] for name in found if "foolbox" in name) <= 2.5  # one image of 40
    assert max(found.values()) <= 7.5
