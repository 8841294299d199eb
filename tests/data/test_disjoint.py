import pytest
import torch

from snnrobust.data.disjoint import demand_disjoint, sample_digests

X = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def test_samples_in_any_order_are_found():
    demand_disjoint(X[:3], X[3:], "chose")
    for judge in (
        X[:3],
        X[:3].flip(0),
        torch.cat([X[3:], X[1:2]]),
        X[2:5].transpose(2, 3).contiguous().transpose(2, 3),
    ):
        with pytest.raises(
            ValueError, match=r"judge must be other samples than data: [13] are in both, and they chose"
        ):
            demand_disjoint(X[:3], judge, "they chose")
    with pytest.raises(ValueError, match="must be of one shape"):
        demand_disjoint(X, X[:, 0], "chose")


def test_digests_tell_samples_apart():
    assert len(set(sample_digests(X))) == 6
    assert sample_digests(X) == sample_digests(X.clone())
