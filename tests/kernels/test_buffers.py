import copy
import gc
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snnrobust import kernels
from snnrobust.kernels import buffers

MiB = 1 << 20
SHAPE = (4, 2, 8, 128, 128)  # 4 MiB of float32

pytestmark = pytest.mark.skipif(buffers._pool is None, reason="no huge pages here")


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[buffers.Pool]:
    pool = buffers.Pool(limit=256 * MiB)
    monkeypatch.setattr(buffers, "_pool", pool)
    yield pool
    pool.forget()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_a_block_is_used_again_when_its_tensor_is_dead(pool: buffers.Pool) -> None:
    x = buffers.empty(SHAPE)
    address = x.data_ptr()
    assert address % buffers.PAGE == 0
    y = buffers.empty(SHAPE)
    assert y.data_ptr() != address
    del x
    z = buffers.empty(SHAPE)
    assert z.data_ptr() == address
    memory = pool.memory()
    assert (memory.hits, memory.misses, memory.held, memory.idle) == (1, 2, 8 * MiB, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.int64])
def test_shape_dtype_and_strides(dtype: torch.dtype) -> None:
    for shape in [(4 * MiB,), (3, 5, 1 << 20), (0, 4 * MiB), (), (2, 3), (1, 1, 4 * MiB, 1), torch.Size([2, 4 * MiB])]:
        x = buffers.empty(shape, dtype)
        like = torch.empty(shape, dtype=dtype)
        assert (x.shape, x.dtype, x.stride(), x.is_contiguous()) == (like.shape, dtype, like.stride(), True)
        assert x.untyped_storage().nbytes() == x.nbytes
        assert not x._is_view()
        x.fill_(1)
        assert bool((x == 1).all())


def layouts() -> list[Tensor]:
    x = torch.empty(SHAPE)
    return [
        x,
        torch.empty(8, 8, 128, 128).to(memory_format=torch.channels_last),
        torch.empty(4, 2, 128, 128, 8).permute(0, 1, 4, 2, 3),
        torch.empty(8, 1, 512, 512).to(memory_format=torch.channels_last),
        torch.empty(1024, 2048).t(),
        torch.empty(1024, 4096)[:, ::2],
        torch.empty(1024, 1).expand(1024, 2048),
        torch.empty(3, 5)[:, :2],
        torch.empty(0, 5, 7),
    ]


@pytest.mark.parametrize("x", layouts(), ids=lambda x: f"{tuple(x.shape)}-{x.stride()}")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_empty_like_has_the_strides_of_torch(x: Tensor, dtype: torch.dtype | None) -> None:
    ours, theirs = buffers.empty_like(x, dtype), torch.empty_like(x, dtype=dtype)
    assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)


def test_given_strides_and_another_device() -> None:
    assert buffers.empty((2, 3, 4), strides=(12, 1, 3)).stride() == (12, 1, 3)
    assert buffers.empty((8, 8, 256, 256), strides=(8 * 65536, 1, 2048, 8)).stride() == (8 * 65536, 1, 2048, 8)
    assert buffers.empty_like(torch.empty(1 << 24, device="meta")).device.type == "meta"
    with torch.device("meta"):
        assert buffers.empty((4,)).device.type == buffers.empty((4 * MiB,)).device.type == "cpu"


class Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override, no-untyped-def]
        y = buffers.empty_like(x)
        y.copy_(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override, no-untyped-def]
        (y,) = ctx.saved_tensors
        return grad * y


class Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override, no-untyped-def]
        return buffers.empty_like(x).copy_(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override, no-untyped-def]
        return grad


KEEPERS: dict[str, Callable[[Tensor], object]] = {
    "the tensor": lambda x: x,
    "a view": lambda x: x.view(-1),
    "a slice": lambda x: x[1, 1, 3:4],
    "an array": lambda x: x.numpy(),
    "a view of an array": lambda x: x[2].numpy()[:, ::2],
    "its storage": lambda x: x.untyped_storage(),
    "dlpack": lambda x: torch.from_dlpack(x.__dlpack__()),
    "a detached tensor": lambda x: x.detach(),
    "a parameter": lambda x: torch.nn.Parameter(x),
    "a graph": lambda x: x.requires_grad_().exp().sum(),
    "what a graph saved": lambda x: (x * torch.ones(1, requires_grad=True)).sum(),
    "a memoryview": lambda x: memoryview(x.numpy()),
}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_never_used_again_while_something_lives_on_it(keep: Callable[[Tensor], object], pool: buffers.Pool) -> None:
    x = buffers.empty(SHAPE)
    address = x.data_ptr()
    kept = keep(x)
    del x
    gc.collect()
    others = [buffers.empty(SHAPE) for _ in range(3)]
    assert address not in [y.data_ptr() for y in others]
    del kept
    gc.collect()
    assert pool.memory().idle == 4 * MiB
    assert buffers.empty(SHAPE).data_ptr() == address


def test_outputs_of_autograd_functions_can_be_changed_in_place() -> None:
    x = torch.rand(SHAPE, requires_grad=True)
    y = Copy.apply(x)
    y.mul_(2)
    torch.relu_(y[1:]).sum().backward()
    assert x.grad.flatten()[0] == 0
    assert x.grad.flatten()[-1] == 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as with any tensor that is saved
        Keep.apply(x).mul_(2).sum().backward()


def test_a_saved_tensor_lives_until_the_graph_is_gone() -> None:
    x = torch.rand(SHAPE, requires_grad=True)
    loss = Keep.apply(x).sum()
    noise = [buffers.empty(SHAPE).fill_(7.0) for _ in range(4)]
    loss.backward()
    assert torch.equal(x.grad, x.detach())
    assert len(noise) == 4


def test_exceptions_give_the_block_back(pool: buffers.Pool) -> None:
    def fail() -> None:
        x = buffers.empty(SHAPE)
        x.fill_(1)
        raise KeyError

    for _ in range(5):
        with pytest.raises(KeyError):
            fail()
    with pytest.raises((RuntimeError, TypeError)):
        buffers.empty((4 * MiB,), strides=(2,))  # does not fit
    with pytest.raises((RuntimeError, ValueError)):
        buffers.empty((-2, -2 * MiB), strides=None)
    gc.collect()
    memory = pool.memory()
    assert memory.held == memory.idle <= 24 * MiB


def test_where_nothing_can_be_mapped_torch_takes_over(monkeypatch: pytest.MonkeyPatch, pool: buffers.Pool) -> None:
    def fail(size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(buffers, "_Block", fail)
    x = buffers.empty(SHAPE).fill_(2.0)
    assert x.is_contiguous()
    assert pool.memory().held == 0


def test_it_is_a_tensor_like_any_other(tmp_path: Path) -> None:
    x = buffers.empty(SHAPE)
    torch.arange(x.numel(), out=x.view(-1))
    expected = x.clone()
    assert torch.equal(copy.deepcopy(x), expected)
    torch.save(x, tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt"), expected)
    assert torch.equal(torch.add(expected, 1, out=x), expected + 1)
    x.copy_(expected)
    x.transpose_(0, 1)
    assert torch.equal(x, expected.transpose(0, 1))
    x.transpose_(0, 1)
    x.share_memory_()
    assert x.is_shared()
    assert torch.equal(x, expected)
    if torch.cuda.is_available():
        assert torch.equal(expected.copy_(x).pin_memory(), x)
    y = buffers.empty(SHAPE)
    with pytest.raises(RuntimeError, match="not resizable"):
        y.resize_(5 * MiB)


@pytest.mark.parametrize("nbytes", [1, 2 * MiB, 2 * MiB + 1, 17_000_000, 33 * MiB, 100 * MiB + 3, 134_217_728, 5 << 30])
def test_sizes(nbytes: int) -> None:
    size = buffers.size_class(nbytes)
    assert size % buffers.PAGE == 0
    assert nbytes <= size <= max(nbytes * 1.125, nbytes + buffers.PAGE)
    assert buffers.size_class(size) == size


def test_idle_memory_is_bounded_and_the_oldest_goes_first(pool: buffers.Pool) -> None:
    pool.limit = 20 * MiB
    x = [buffers.empty((k * MiB,)) for k in (1, 2, 3, 1, 1)]  # 4, 8, 12, 4, 4 MiB
    first, last = x[0].data_ptr(), x[4].data_ptr()
    while x:
        x.pop(0)
        assert pool.memory().idle <= 20 * MiB
    memory = pool.memory()
    assert memory.held == memory.idle == 20 * MiB  # 12, 4, 4
    assert buffers.empty((MiB,)).data_ptr() == last
    del first
    big = buffers.empty((8 * MiB,))  # more than the limit: it is not kept, and the others are
    del big
    assert pool.memory().held == 20 * MiB
    kernels.limit_memory(4 * MiB)
    assert kernels.memory() == pool.memory()
    assert pool.memory().held == 4 * MiB
    kernels.release_memory()
    assert pool.memory().held == 0
    with pytest.raises(ValueError, match="nbytes"):
        kernels.limit_memory(-1)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_release_gives_memory_to_the_system(pool: buffers.Pool) -> None:
    before = resident()
    x = [buffers.empty((16 * MiB,)).fill_(1.0) for _ in range(3)]
    y = buffers.empty((4 * MiB,)).fill_(2.0)
    assert resident() - before >= 200 * MiB
    del x
    assert resident() - before >= 200 * MiB
    pool.release()
    assert resident() - before < 40 * MiB
    assert bool((y == 2).all())
    assert pool.memory().held == 16 * MiB


def hammer(number: int, rounds: int, failures: list[str]) -> None:
    generator = random.Random(number)
    kept: list[tuple[Tensor, float]] = []
    try:
        for i in range(rounds):
            x = buffers.empty((generator.randint(MiB // 2, 2 * MiB),))
            mark = float(number * 1_000_000 + i)
            x.fill_(mark)
            kept.append((x[generator.randrange(x.numel() // 2) :], mark))
            del x
            if len(kept) > 4:
                old, expected = kept.pop(generator.randrange(len(kept)))
                if not bool((old == expected).all()):
                    failures.append(f"thread {number}: expected {expected}, found {old.unique()}")
            if generator.random() < 0.1:
                cycle: list[object] = [kept.pop() if kept else None]
                cycle.append(cycle)  # dies in a collection, wherever that happens
            if generator.random() < 0.05:
                kernels.release_memory()
    except Exception as error:
        failures.append(repr(error))


def storm(rounds: int, threads: int = 4) -> None:
    failures: list[str] = []
    workers = [threading.Thread(target=hammer, args=(k, rounds, failures)) for k in range(threads)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failures


def test_threads_never_share(pool: buffers.Pool) -> None:
    pool.limit = 24 * MiB
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()  # or each of the many collections would go through all of torch
    gc.set_threshold(20, 2, 2)
    sys.setswitchinterval(1e-5)
    try:
        storm(40)
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
        gc.unfreeze()
    gc.collect()
    memory = pool.memory()
    assert memory.held == memory.idle <= 24 * MiB


def write_there(x: Tensor, queue: "multiprocessing.Queue[float]") -> None:
    x.fill_(5.0)
    y = buffers.empty(SHAPE).fill_(6.0)
    queue.put(float(x.sum() + y.sum()) / x.numel())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork_nothing_is_shared(pool: buffers.Pool) -> None:
    x = buffers.empty(SHAPE).fill_(1.0)
    idle = buffers.empty(SHAPE).fill_(2.0)
    address = idle.data_ptr()
    del idle
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=write_there, args=(x, queue))
    child.start()
    assert queue.get(timeout=60) == 11.0
    child.join()
    assert child.exitcode == 0
    assert bool((x == 1).all())
    y = buffers.empty(SHAPE)
    assert y.data_ptr() == address
    assert bool((y == 2).all())


def test_in_a_child_idle_blocks_are_dropped() -> None:
    code = """
import os, torch
from snnrobust.kernels import buffers, memory
x = buffers.empty((1 << 22,)); y = buffers.empty((1 << 22,)); del y
assert memory().idle == 1 << 24, memory()
child = os.fork()
if child == 0:
    right = memory().idle == 0 and memory().held == 1 << 24
    os._exit(0 if right else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert memory().idle == 1 << 24
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_end_of_the_interpreter_is_quiet() -> None:
    code = """
import atexit, sys, threading, torch
from snnrobust.kernels import buffers
x = buffers.empty((1 << 22,))
sys.kept = buffers.empty((1 << 22,))
loss = (x.requires_grad_() * 2).sum()
threading.local().x = buffers.empty((1 << 22,))
cycle = [buffers.empty((1 << 22,))]; cycle.append(cycle)
atexit.register(lambda: setattr(sys, "late", buffers.empty((1 << 22,))))
ready = threading.Event()
def work():  # it holds one to the end; a daemon in the middle of an operation aborts in torch, pooled or not
    x = buffers.empty((1 << 20,))
    ready.set()
    threading.Event().wait()
threading.Thread(target=work, daemon=True).start()
ready.wait()
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("setting", "expected"), [("off", "0 0"), ("100", f"{100 << 20} 8388608"), ("x", "must be off or a number of MiB")]
)
def test_environment(setting: str, expected: str) -> None:
    code = "from snnrobust.kernels import buffers, memory; x = buffers.empty((1 << 21,)); print(memory().limit, memory().held)"
    done = run(code, SNNROBUST_BUFFERS=setting)
    assert expected in (done.stderr if setting == "x" else done.stdout)


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_pool", None)
    x = buffers.empty(SHAPE)
    assert buffers.empty_like(x).shape == x.shape
    kernels.release_memory()
    kernels.limit_memory(1)
    assert kernels.memory().held == 0


@pytest.mark.slow
def test_very_many_calls_leave_memory_flat(pool: buffers.Pool) -> None:
    def calls(n: int) -> int:
        for _ in range(n):
            buffers.empty((MiB,))
        gc.collect()
        return resident()

    start = calls(20_000)
    assert calls(1_000_000) - start < 2 * MiB
    assert pool.memory().held == 4 * MiB
    assert not pool._leases


@pytest.mark.slow
def test_a_mix_of_sizes_does_not_fragment(pool: buffers.Pool) -> None:
    pool.limit = 64 * MiB
    generator = random.Random(0)
    before, kept = resident(), []
    for i in range(3000):
        kept.append(buffers.empty((generator.randint(MiB // 2, 6 * MiB),)))
        kept[-1][:: 1 << 10] = float(i)
        if len(kept) > 6:
            kept.pop(generator.randrange(len(kept)))
        live = sum(x.nbytes for x in kept)
        memory = pool.memory()
        assert memory.idle <= 64 * MiB
        assert memory.held - memory.idle <= 1.125 * live + len(kept) * buffers.PAGE
    assert resident() - before < 64 * MiB + 1.2 * live + 16 * MiB


@pytest.mark.slow
def test_a_storm_of_threads(pool: buffers.Pool) -> None:
    pool.limit = 24 * MiB
    storm(500)
    gc.collect()
    assert pool.memory().held <= 24 * MiB
