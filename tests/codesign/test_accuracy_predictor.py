"""Ridge against scikit-learn and against its own definition; errors on planted data."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from snnrobust.codesign import accuracy_predictor
from snnrobust.codesign.accuracy_predictor import Standard, ridge


def planted(n=60, features=200, noise=0.01, seed=0):
    """Accuracies that follow three directions of the signature."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 3))
    x = hidden @ rng.normal(size=(3, features)) + 0.1 * rng.normal(size=(n, features))
    return x, np.clip(0.8 + hidden @ [0.03, -0.02, 0.01] + noise * rng.normal(size=n), 0, 1)


@pytest.mark.parametrize("features", [5, 200])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 100.0])
def test_ridge_is_that_of_scikit_learn_and_of_the_normal_equations(features, alpha):
    x, y = planted(features=features)
    w, b, chosen = ridge(x, y, (alpha,))
    assert chosen == alpha
    peer = Ridge(alpha=alpha * features, solver="svd").fit(x, y)
    np.testing.assert_allclose(w, peer.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(b, peer.intercept_, rtol=1e-6, atol=1e-9)
    xc = x - x.mean(0)
    np.testing.assert_allclose(xc.T @ (y - y.mean()), (xc.T @ xc + alpha * features * np.eye(features)) @ w, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_penalty_is_the_best_of_leaving_out_one_by_one(seed):
    """By brute force, on a fine grid and few chips, where an intercept that is not left out too would choose another."""
    x, y = planted(n=6, features=3, noise=0.05, seed=seed)
    alphas = tuple(np.logspace(-3, 2, 60))
    errors = []
    for alpha in alphas:
        left_out = []
        for i in range(6):
            rest = np.delete(np.arange(6), i)
            w, b, _ = ridge(x[rest], y[rest], (alpha,))
            left_out.append((x[i] @ w + b - y[i]) ** 2)
        errors.append(np.mean(left_out))
    assert ridge(x, y, alphas)[2] == alphas[int(np.argmin(errors))]


def test_a_neuron_that_was_almost_always_silent_does_not_run_away():
    x, y = planted()
    x[:, 0] = 0.0
    x[0, 0] = 1e-3  # one chip of sixty
    standard = Standard(x)
    fresh = x.copy()
    fresh[:, 0] = 1.0  # thousands of standard deviations
    assert np.array_equal(standard(fresh)[:, 0], np.full(60, 3.0))
    assert (
        np.abs(standard(x)[:, 1:] - (x - x.mean(0))[:, 1:] / x.std(0)[1:])[np.abs(standard(x)[:, 1:]) < 3].max() < 1e-12
    )
    predictor = accuracy_predictor(x, y)
    assert np.abs(predictor.predict(fresh) - predictor.predict(x)).max() < 0.1


def test_several_targets_are_as_many_regressions():
    x, y = planted()
    both = np.stack([y, 1 - 2 * y], 1)
    w, b, _ = ridge(x, both, (0.1,))
    one, intercept, _ = ridge(x, y, (0.1,))
    np.testing.assert_allclose(w[:, 0], one, atol=1e-12)
    np.testing.assert_allclose(w[:, 1], -2 * one, atol=1e-12)
    np.testing.assert_allclose(b, [intercept, 1 - 2 * intercept], atol=1e-12)


@pytest.mark.parametrize("kind", ["ridge", "gp"])
def test_a_planted_relation_is_found_and_its_error_on_new_chips_is_the_one_reported(kind):
    x, y = planted(n=260)
    predictor = accuracy_predictor(x[:60], y[:60], kind=kind)
    fresh = np.abs(predictor.predict(x[60:]) - y[60:]).mean()
    assert predictor.r2 > 0.8
    assert fresh < 0.02  # the noise has a mean magnitude of 0.008
    assert 0.5 < predictor.error / fresh < 2
    assert predictor.chips == 60


def test_noise_is_not_predicted():
    rng = np.random.default_rng(0)
    predictor = accuracy_predictor(rng.normal(size=(40, 300)), rng.uniform(0.5, 1.0, 40))
    assert predictor.r2 < 0.1


def test_predictions_are_accuracies_and_constant_features_do_no_harm():
    x, y = planted()
    x[:, 3] = 7.0
    predictor = accuracy_predictor(x, y)
    told = predictor.predict(1000 * x)
    assert told.min() >= 0
    assert told.max() <= 1
    x[:, 3] = 1e9
    np.testing.assert_allclose(predictor.predict(x), predictor.predict(np.where(np.arange(200) == 3, 7.0, x)))


def test_the_same_seed_gives_the_same_error():
    x, y = planted(noise=0.05)
    first, again, other = (accuracy_predictor(x, y, seed=seed) for seed in (0, 0, 1))
    assert (first.error, first.r2) == (again.error, again.r2)
    assert first.error != other.error


def test_errors_name_the_remedy():
    x, y = planted()
    with pytest.raises(ValueError, match=r"all 60 chips have the accuracy 0.9.*more images"):
        accuracy_predictor(x, np.full(60, 0.9))
    with pytest.raises(ValueError, match=r"9 chips are too few for 5 folds: give at least 10"):
        accuracy_predictor(x[:9], y[:9])
    with pytest.raises(ValueError, match=r"got shapes \(60, 200\) and \(59,\)"):
        accuracy_predictor(x, y[1:])
    with pytest.raises(ValueError, match="within"):
        accuracy_predictor(x, 100 * y)
    with pytest.raises(ValueError, match="kind"):
        accuracy_predictor(x, y, kind="forest")
    with pytest.raises(ValueError, match=r"\[n, 200\]"):
        accuracy_predictor(x, y).predict(x[:, 1:])
