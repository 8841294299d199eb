"""Every benchmark once on a tiny size, and the command. No times are asserted."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import attack, harness, lif, limits, networks, peers, steps, train
from benchmarks.harness import OURS, Case, DisagreementError
from snnrobust.kernels import native
from snnrobust.neurons import LIF


def _there(package):
    return importlib.util.find_spec(package) is not None


needs_peers = pytest.mark.skipif(
    not all(map(_there, ("spikingjelly", "snntorch"))), reason="the interop extra is missing"
)


@needs_peers
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_every_benchmark_runs(name):
    cases, _ = command.BENCHMARKS[name]
    for case in cases(True):
        assert None not in case.contenders.values()
        assert any(contender.startswith((OURS, "T = ")) for contender in case.contenders)
        result = harness.run(case, 1)
        assert set(result.samples) == {c for c, call in case.contenders.items() if callable(call)}
        assert case.targets


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_a_missing_peer_is_a_line_not_a_crash(name, monkeypatch):
    for package in peers.PACKAGES:
        for module in [m for m in sys.modules if m.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
    cases, _ = command.BENCHMARKS[name]
    for case in cases(True):
        result = harness.run(case, 1)
        missing = [contender for contender, call in case.contenders.items() if call is None]
        assert all(contender.startswith((peers.JELLY, peers.SNNTORCH)) for contender in missing)
        assert not set(missing) & set(result.samples)


def test_a_peer_that_is_broken_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        peers.optional(lambda: importlib.import_module("no_such_module"))


@pytest.mark.parametrize("architecture", [networks.SMALL, networks.VGG6])
def test_networks_have_neurons_that_fire(architecture):
    model = networks.ours(architecture).train()
    rates = []
    for module in model.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda module, x, spikes: rates.append(float(spikes.detach().mean())))
    model(networks.batch(architecture, 2)[0])
    assert len(rates) == sum(width != "P" for width in architecture.widths)
    assert all(0.05 < rate < 0.5 for rate in rates), rates


def test_limits_move_the_memory():
    x, grad = torch.randn(2, 3, 1001)
    for name, move in limits.copy_and_add(x, grad).items():
        assert name in limits.LIMITS
        if callable(move):
            move()
    assert limits.huge(x).eq(0).all()
    assert limits.huge(x).data_ptr() % 2**21 == 0


@pytest.mark.skipif(not native.available(), reason="no compiled kernels")
@pytest.mark.parametrize("around", [0, 1])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 70_001])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_streams_of_the_kernel_library(around, threads, size, offset):
    p, i64, i32 = native.P, native.I64, native.I32
    copy = native.function("stream_copy", p, p, i64, i32, i32)
    triad = native.function("stream_triad", p, p, p, i64, i32, i32)
    x, y = torch.randn(2, size)
    to = limits.huge(torch.empty(size + offset + 1))[offset:]
    copy(x.data_ptr(), to.data_ptr(), size, around, threads)
    assert torch.equal(to[:size], x)
    triad(x.data_ptr(), y.data_ptr(), to.data_ptr(), size, around, threads)
    assert torch.equal(to[:size], y + 0.5 * x)
    assert to[size] == 0


@pytest.mark.parametrize(("steps_", "chunk"), [(3, 2), (8, 3), (16, 4), (32, 6), (64, 8), (128, 12)])
def test_chunks_are_about_the_root(steps_, chunk):
    assert steps.chunk(steps_) == chunk


# --- disagreement ---------------------------------------------------------------------------------------------


def test_lif_is_not_timed_where_spikes_or_gradients_differ(monkeypatch):
    naive = lif.naive
    monkeypatch.setattr(lif, "naive", lambda x: 1 - naive(x))
    with pytest.raises(DisagreementError, match="snnrobust and the naive loop differ in 48 spikes"):
        next(lif.cases(True))
    monkeypatch.setattr(lif, "naive", lambda x: naive(x) + 1e-4 * (x - x.detach()))
    with pytest.raises(DisagreementError, match="snnrobust and the naive loop have gradients that differ"):
        next(lif.cases(True))


def test_pgd_is_not_timed_where_the_images_differ(monkeypatch):
    monkeypatch.setattr(attack, "by_hand", lambda model, x, y: x)
    with pytest.raises(DisagreementError, match="PGD and the loop by hand differ"):
        next(attack.cases(True))


def test_training_is_not_timed_where_the_losses_differ(monkeypatch):
    tiny = networks.VGG6.tiny()
    ours = networks.ours
    monkeypatch.setattr(networks, "jelly", lambda architecture: ours(replace(architecture, time_steps=5)))
    with pytest.raises(DisagreementError, match=r"snnrobust begins at a loss of .*, SpikingJelly at"):
        train._check(tiny, *networks.batch(tiny, 2))


# --- the command ----------------------------------------------------------------------------------------------


def _cases(tiny):
    target = harness.Target("a row", OURS, "peer", 2.0)
    yield Case("fast", {OURS: lambda: None, "peer": None}, reference="peer", targets=(target,), remarks=("a remark",))


def _refusing(tiny):
    raise DisagreementError("they differ")
    yield


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.setattr(command, "BENCHMARKS", {"fast": (_cases, 5), "refusing": (_refusing, 2)})
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


@pytest.mark.usefixtures("commands")
def test_the_command_prints_tables_and_writes_every_sample(tmp_path, capsys):
    file = tmp_path / "times.json"
    assert command.main(["fast", "--repeats", "4", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    for text in ("processor", torch.__version__, "threads", "load", "date", "kernels", "fast", "a remark", "nowhere"):
        assert text in printed
    assert "not measured: peer is not installed" in printed
    record = json.loads(file.read_text())
    assert record["environment"]["torch"] == torch.__version__
    (result,) = record["results"]
    assert len(result["contenders"][OURS]["cpu"]) == len(result["contenders"][OURS]["wall"]) == 4


@pytest.mark.usefixtures("commands")
def test_stored_samples_are_read_again_and_written_into_a_page(tmp_path, capsys):
    file, page = tmp_path / "times.json", tmp_path / "page.md"
    page.write_text("<!-- bench table -->\n<!-- end of bench table -->\n")
    assert command.main(["fast", "--quick", "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())["results"][0]["contenders"][OURS]["cpu"]) == command.QUICK
    written = file.read_text()
    assert command.main(["--from", str(file), "--write", str(page), "--plots", str(tmp_path)]) == 0
    assert "a row" in page.read_text()
    assert file.read_text() == written
    assert "a row" in capsys.readouterr().out


@pytest.mark.usefixtures("commands")
def test_another_allocator_is_told(monkeypatch, capsys):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert command.main(["fast", "--repeats", "1"]) == 0
    assert "The allocator is not the default one" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("commands")
def test_a_refused_benchmark_fails_the_command_but_not_the_others(capsys):
    assert command.main(["refusing", "fast"]) == 1
    printed = capsys.readouterr().out
    assert "refusing is not measured: they differ" in printed
    assert "a remark" in printed


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unknown"], "'unknown' is not one of fast, refusing"),
        (["--repeats", "0"], "whole number of at least 1, got '0'"),
        (["--threads", "x"], "whole number of at least 1, got 'x'"),
        (["--json", "no/such/folder/times.json"], "is not a file in a folder that exists"),
        (["--from", "no/such/file.json"], "is not a file"),
        (["--plots", "no/such/folder"], "is not a folder"),
        (["--write", "LICENSE"], "must have the line"),
    ],
)
def test_wrong_arguments_are_told(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err
