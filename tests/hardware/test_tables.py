import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy import stats

from snnrobust.hardware.tables import alias_table, checked_table, code_values, read_table, synthetic_table

TABLE = [[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]]


@given(
    st.integers(1, 40),
    st.integers(2, 40),
    st.floats(0.0, 3.0),
    st.floats(-3.0, 3.0),
    st.floats(0.0, 0.99),
    st.integers(0, 2**40),
)
def test_synthetic_tables_are_distributions_with_a_monotone_mean(rows, codes, sigma, offset, nonlinearity, seed):
    table = synthetic_table(rows, codes, sigma, offset, nonlinearity, seed)
    assert table.shape == (rows + 1, codes)
    assert torch.equal(checked_table(table, rows).argmax(1), table.argmax(1))
    means = table @ torch.arange(codes, dtype=torch.float64)
    assert (means.diff() >= -1e-9).all()
    assert torch.equal(table, synthetic_table(rows, codes, sigma, offset, nonlinearity, seed))


def test_a_synthetic_table_is_that_of_the_formula():
    table = synthetic_table(5, sigma=0.7, offset=0.4)
    for p in range(6):
        for c in range(6):
            low, high = (stats.norm.cdf((c + side - p - 0.4) / 0.7) for side in (-0.5, 0.5))
            expected = (high if c == 0 else 1 - low) if c in (0, 5) else high - low
            assert table[p, c].item() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(synthetic_table(5, sigma=0.0), torch.eye(6, dtype=torch.float64))
    coarse = synthetic_table(8, 5, sigma=0.0)
    assert coarse.argmax(1).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]  # p / 2, halves rounded up
    assert synthetic_table(8, 5, sigma=0.0, offset=2.0).argmax(1).tolist() == [2, 3, 3, 4, 4, 4, 4, 4, 4]


@given(st.integers(1, 6), st.integers(2, 30), st.integers(0, 2**40), st.floats(0.0, 8.0))
def test_the_alias_method_has_the_probabilities_of_the_table(rows, codes, seed, power):
    p = torch.rand(rows + 1, codes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** power
    p[:, seed % codes] = 0.0 if codes > 2 else 1.0
    p = p / p.sum(1, keepdim=True)
    threshold, alias = alias_table(p)
    again = (threshold + torch.zeros_like(p).scatter_add(1, alias, 1 - threshold)) / codes
    assert torch.allclose(again, p, rtol=0, atol=1e-12)
    assert ((threshold >= 0) & (threshold <= 1)).all()
    certain = torch.eye(codes, dtype=torch.float64)
    threshold, alias = alias_table(certain)
    assert torch.equal(threshold, certain)


def test_nonlinearity_moves_the_mean_and_the_seed_chooses_how():
    even, one, two = (synthetic_table(64, sigma=0.3, nonlinearity=n, seed=s) for n, s in ((0.0, 1), (0.9, 1), (0.9, 2)))
    means = [t @ torch.arange(65, dtype=torch.float64) for t in (even, one, two)]
    assert torch.equal(even, synthetic_table(64, sigma=0.3, seed=2))
    assert (means[1] - means[0]).abs().max() > 0.5
    assert (means[2] - means[1]).abs().max() > 0.5
    assert means[1][[0, -1]].tolist() == pytest.approx(means[0][[0, -1]].tolist())  # the ends stay


@pytest.mark.parametrize("kind", ["npy", "npy32", "csv", "safetensors", "named"])
def test_files(tmp_path, kind):
    values = np.array(TABLE)
    path = tmp_path / f"chip.{ {'npy32': 'npy', 'named': 'safetensors'}.get(kind, kind) }"
    if kind.startswith("npy"):
        np.save(path, values.astype(np.float32) if kind == "npy32" else values)
    elif kind == "csv":
        np.savetxt(path, values, delimiter=",")
    else:
        other = {} if kind == "safetensors" else {"temperature": torch.tensor([300.0])}
        save_file({"table" if other else "p": torch.tensor(TABLE), **other}, path)
    table = read_table(path, rows=1)
    assert table.dtype == torch.float64
    assert torch.allclose(table, torch.tensor(TABLE, dtype=torch.float64))


def test_small_errors_of_rounding_are_renormalised():
    table = checked_table([[0.33333, 0.33333, 0.33333], [1.0, 0.0, 0.0]])
    assert torch.allclose(table.sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("table", "rows", "words"),
    [
        ([[0.5, 0.5]], None, r"table must be \[rows \+ 1, codes\].*got \(1, 2\)"),
        ([0.5, 0.5], None, r"got \(2,\)"),
        ([[1.0], [1.0]], None, r"got \(2, 1\)"),
        (TABLE, 4, "table must have rows \\+ 1 = 5 rows, .*got 2: set rows=1, or transpose it"),
        ([[1.5, -0.5], [0.0, 1.0]], None, "finite and at least 0"),
        ([[float("nan"), 1.0], [0.0, 1.0]], None, "finite and at least 0"),
        (
            [[0.5, 0.5], [3.0, 7.0]],
            None,
            "every row of table must sum to 1, but that of the partial sum 1 sums to 10: divide",
        ),
        ([[0.0, 0.0], [0.0, 1.0]], None, "partial sum 0 sums to 0"),
    ],
)
def test_tables_that_are_none(table, rows, words):
    with pytest.raises(ValueError, match=words):
        checked_table(table, rows)


@pytest.mark.parametrize("table", [[[1.0, 0.0], [1.0]], "abc", None, [["a", "b"], ["c", "d"]]])
def test_tables_that_are_no_numbers(table):
    with pytest.raises(TypeError, match="table must be numbers in rows of equal length"):
        checked_table(table)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_table(tmp_path / "chip.npy")
    with pytest.raises(ValueError, match=r"must be a .npy, .safetensors, .csv file, got 'chip.pkl'"):
        read_table(tmp_path / "chip.pkl")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}, None]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        read_table(tmp_path / "objects.npy")
    (tmp_path / "text.csv").write_text("code,p\n1,0.5\n")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "junk.npy").write_bytes(b"junk")
    for name in ("text.csv", "junk.safetensors", "junk.npy"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_table(tmp_path / name)
    save_file({"a": torch.eye(2), "b": torch.eye(2)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"it holds \['a', 'b'\]: name one of them 'table'"):
        read_table(tmp_path / "two.safetensors")
    np.save(tmp_path / "text.npy", np.array([["a", "b"], ["c", "d"]]))
    with pytest.raises(ValueError, match="no plain array of numbers"):
        read_table(tmp_path / "text.npy")
    np.save(tmp_path / "small.npy", np.eye(3))
    with pytest.raises(ValueError, match=r"table \(small.npy\) must have rows \+ 1 = 65 rows"):
        read_table(tmp_path / "small.npy", rows=64)


def test_values_of_codes():
    assert code_values(5, 8).tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert code_values(2, 8, [1.0, 6.5]).tolist() == [1.0, 6.5]
    with pytest.raises(ValueError, match="values must have one number for each of the 3 codes, got 2"):
        code_values(3, 8, [1.0, 2.0])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"rows": 0}, ValueError, "rows must be at least 1"),
        ({"rows": 4, "codes": 1}, ValueError, "codes must be at least 2"),
        ({"rows": 4, "sigma": -1.0}, ValueError, "sigma"),
        ({"rows": 4, "offset": float("inf")}, ValueError, "offset"),
        ({"rows": 4, "nonlinearity": 1.0}, ValueError, r"nonlinearity must be in \[0, 1\)"),
        ({"rows": 4, "seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        synthetic_table(**arguments)
