import os

import pytest
import torch

from snnrobust.hardware.crossbar import cache


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNROBUST_CACHE", str(tmp_path))
    monkeypatch.delenv("SNNROBUST_CACHE_GB", raising=False)


@pytest.fixture
def value():
    return torch.rand(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def files():
    return sorted(cache.folder().glob("*"))


def test_what_was_kept_comes_back_bit_for_bit(value):
    assert cache.fetch("a", value.shape) is None
    cache.keep("a", value)
    assert torch.equal(cache.fetch("a", value.shape), value)
    assert [f.name for f in files()] == ["a.safetensors"]  # no temporary file is left


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "a bit of the data":
        content[-5] ^= 1
    elif how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    elif how == "garbage":
        content = os.urandom(len(content))
    elif how == "a header of another program":
        content = content.replace(b"snnrobust", b"otherrust")
    elif how == "an absurd header":
        content[:8] = (2**60).to_bytes(8, "little")
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "how", ["a bit of the data", "cut", "empty", "garbage", "a header of another program", "an absurd header"]
)
def test_a_damaged_file_is_as_none_and_goes(value, how):
    cache.keep("a", value)
    damage(files()[0], how)
    assert cache.fetch("a", value.shape) is None
    assert files() == []


def test_a_file_of_another_shape_is_as_none(value):
    cache.keep("a", value)
    assert cache.fetch("a", (3, 5, 4)) is None


def test_the_least_recently_used_go_first(value, monkeypatch):
    for name in "abc":
        cache.keep(name, value)
    for age, name in enumerate("cba"):
        os.utime(cache.folder() / f"{name}.safetensors", (1000 - age, 1000 - age))  # c is the youngest
    assert cache.fetch("a", value.shape) is not None  # now a is
    size = files()[0].stat().st_size
    cache.trim()
    assert len(files()) == 3
    monkeypatch.setenv("SNNROBUST_CACHE_GB", str(2.5 * size / 1e9))
    cache.trim()
    assert [f.stem for f in files()] == ["a", "c"]
    monkeypatch.setenv("SNNROBUST_CACHE_GB", "0")
    cache.trim()
    assert files() == []
    cache.keep("d", value)
    assert files() == []


def test_a_limit_that_is_no_number(monkeypatch):
    monkeypatch.setenv("SNNROBUST_CACHE_GB", "much")
    with pytest.raises(ValueError, match="SNNROBUST_CACHE_GB must be a number of gigabytes such as 2, got 'much'"):
        cache.limit()


def test_a_folder_that_cannot_be_written_is_a_warning(value, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNNROBUST_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept .* set SNNROBUST_CACHE to another folder, or use cache=False"):
        cache.keep("a", value)
    assert cache.fetch("a", value.shape) is None


def test_where_it_lies(monkeypatch, tmp_path):
    assert cache.folder() == tmp_path / "tiles"
    monkeypatch.delenv("SNNROBUST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "snnrobust" / "tiles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "snnrobust" / "tiles"


def test_a_digest_depends_on_values_shape_and_kind(value):
    all_of_them = [
        cache.digest(*parts)
        for parts in (
            (value,),
            (value.view(4, 3, 5),),
            (value.float(),),
            (value.clone(),),
            (value, 1),
            (value, 1.0),
            (value, "1"),
        )
    ]
    all_of_them.append(cache.digest(value.nextafter(2 * value)))
    assert all_of_them[0] == all_of_them[3]
    assert len(set(all_of_them)) == len(all_of_them) - 1
