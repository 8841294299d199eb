import random

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from snnrobust.data import batches, take

X, Y = torch.arange(23.0)[:, None] / 23, torch.arange(23) % 5


class Plain(Dataset):
    """A map-style dataset of other types than tensors."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        if not 0 <= index < len(X):
            raise IndexError(index)
        return X[index].numpy(), int(Y[index])


class Augmented(Plain):
    def __getitem__(self, index):
        return X[index] + torch.rand(1), Y[index]


def loader(dataset=None, **settings):
    return DataLoader(TensorDataset(X, Y) if dataset is None else dataset, batch_size=7, **settings)


KINDS = {
    "tensors": lambda: (X, Y),
    "TensorDataset": lambda: TensorDataset(X, Y),
    "dataset": Plain,
    "DataLoader": loader,
    "DataLoader, shuffled": lambda: loader(shuffle=True),
    "DataLoader, sampled": lambda: loader(sampler=torch.utils.data.SubsetRandomSampler(range(23))),
}


@pytest.mark.parametrize("key", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_comes_once_with_its_label(kind, key):
    generator = torch.get_rng_state()
    parts = list(batches(KINDS[kind](), 7, key))
    assert [len(b.x) for b in parts] == [7, 7, 7, 2]
    x, y, ids = (torch.cat(t) for t in zip(*parts, strict=True))
    index = (x[:, 0] * 23).round().long()
    assert sorted(index.tolist()) == list(range(23))
    assert torch.equal(y, Y[index])
    assert torch.equal(torch.get_rng_state(), generator)
    if "DataLoader" in kind:  # which sample is which is not known: they are counted
        assert ids.tolist() == list(range(23))
    else:
        assert torch.equal(ids, index)
        assert (ids.tolist() == list(range(23))) == (key is None)


def order(data, key, size=7):
    return torch.cat([b.x for b in batches(data, size, key)]).flatten().tolist()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "DataLoader"])
def test_the_key_decides_the_order(kind):
    data = KINDS[kind]()
    torch.rand(random.randrange(1, 9))  # wherever torch's generator stands
    assert order(data, 1) == order(data, 1)
    assert order(data, 1) == order(KINDS[kind](), 1)
    assert order(data, 1) != order(data, 2)


@pytest.mark.parametrize("kind", ["tensors", "dataset"])
def test_the_order_does_not_depend_on_the_batch_size(kind):
    assert order(KINDS[kind](), 1, 7) == order(KINDS[kind](), 1, 4)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
@pytest.mark.parametrize("settings", [{}, {"num_workers": 1, "multiprocessing_context": "fork"}])
@pytest.mark.parametrize("shuffle", [False, True])
def test_random_augmentation_in_a_loader_is_keyed(shuffle, settings):
    data = loader(Augmented(), shuffle=shuffle, **settings)
    generator = torch.get_rng_state()
    assert order(data, 1) == order(data, 1)
    assert order(data, 1) != order(data, 2)
    noise = torch.tensor(order(loader(Augmented()), 1)) - X[:, 0]
    assert len(noise.unique()) > 20  # not the same draws in every batch
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ((X[:0], Y[:0]), ValueError, "the data is empty"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), ValueError, "the data is empty"),
        ((X, Y[:-1]), ValueError, "one label a sample"),
        ((X, Y.float()), TypeError, "labels must be int64"),
        ((X[:, 0], Y), ValueError, r"inputs must be batches \[B, ...\]"),
        (TensorDataset(X[:, 0], Y), ValueError, r"inputs must be batches \[B, ...\]"),
        (iter([]), TypeError, "data must be a map-style dataset"),
        (None, TypeError, "data must be a map-style dataset"),
    ],
)
def test_what_is_not_data_is_an_error(data, error, words):
    with pytest.raises(error, match=words):
        list(batches(data, 4))


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_a_bad_batch_size_is_named(size, error):
    with pytest.raises(error, match="batch_size"):
        list(batches((X, Y), size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 7, 8, 23, None])
def test_take_gives_the_first_samples(kind, n):
    x, y = take(KINDS[kind](), n, batch_size=5)
    assert len(x) == len(y) == (23 if n is None else n)
    assert torch.equal(y, Y[(x[:, 0] * 23).round().long()])
    if "," not in kind:
        assert torch.equal(x, X[:n])


@pytest.mark.parametrize(
    ("n", "words"), [(24, "24 samples are asked for, but the data has only 23"), (0, "n must"), (-1, "n must")]
)
def test_take_never_gives_fewer(n, words):
    with pytest.raises(ValueError, match=words):
        take((X, Y), n)


def test_a_last_sample_on_its_own_joins_the_batch_before_when_training():
    x, y = torch.rand(9, 2), torch.arange(9)
    assert [len(b.x) for b in batches((x, y), 4, shuffle_key=1)] == [4, 5]
    assert [len(b.x) for b in batches((x, y), 4)] == [4, 4, 1]
    assert sorted(torch.cat([b.sample_ids for b in batches((x, y), 4, shuffle_key=1)]).tolist()) == list(range(9))
    assert [len(b.x) for b in batches((x[:1], y[:1]), 4, shuffle_key=1)] == [1]


def test_a_list_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"got a list of tensors: use \(x, y\)"):
        next(batches([torch.rand(3, 2), torch.arange(3)], 2))


def test_labels_that_are_not_integers_are_refused_and_not_cut():
    dataset = [(torch.rand(2), 1.9), (torch.rand(2), 0.2)]
    with pytest.raises(TypeError, match="labels must be int64"):
        next(batches(dataset, 2))


def test_a_loader_with_a_generator_of_its_own_is_keyed_and_it_is_put_back():
    own = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(torch.rand(8, 2), torch.arange(8)), 4, shuffle=True, generator=own)
    state = own.get_state()
    first, again, other = (torch.cat([b.y for b in batches(loader, 4, key)]).tolist() for key in (1, 1, 2))
    assert first == again
    assert first != other
    assert torch.equal(own.get_state(), state)


def test_a_loader_that_drops_samples_is_refused():
    loader = DataLoader(TensorDataset(torch.rand(5, 2), torch.arange(5)), 2, drop_last=True)
    with pytest.raises(ValueError, match="drop_last"):
        next(batches(loader, 2))
