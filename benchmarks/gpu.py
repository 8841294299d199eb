"""``python -m benchmarks.gpu``: the Triton kernels on a GPU, beside SpikingJelly's backends and the copy bandwidth.

Times are of CUDA events, contenders take turns, medians are compared. A layer is also measured as a CUDA graph, without the time
that Python takes to launch it: what the kernels themselves need is what is compared with the bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import harness, networks, peers
from benchmarks.environment import environment as where
from benchmarks.harness import OURS, DisagreementError
from benchmarks.peers import DECAY, JELLY, SLOPE, THRESHOLD
from snnrobust import draws
from snnrobust.kernels import triton_lif, triton_philox
from snnrobust.neurons.surrogate import ATan, in_kernel

__all__ = ["SHAPES", "check", "lif_forward_backward", "main", "measure", "turns"]

SHAPES = ((8, 64, 4096), (16, 64, 4096), (32, 64, 4096), (8, 64, 64, 16, 16), (16, 64, 64, 16, 16))
TARGET = 0.8
"""Of the copy bandwidth, for LIF forward and backward."""
BATCH = 64
"""Of training steps."""

Call = Callable[[], object]
Clock = Callable[[Call, int], float]


# --- measuring ------------------------------------------------------------------------------------------------


def on_events(call: Call, times: int) -> float:
    """Milliseconds of one of ``times`` calls in a row."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(times):
        call()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / times


def turns(
    contenders: Mapping[str, Call], repeats: int, clock: Clock = on_events, at_least: float = 5.0
) -> dict[str, list[float]]:
    """Milliseconds of a call of each contender, ``repeats`` times in turn, after a warm-up; a sample takes ``at_least``."""
    times = {}
    for name, call in contenders.items():
        clock(call, 3)  # compiles, allocates
        spent = clock(call, 3)
        times[name] = min(1000, max(1, round(at_least / max(spent, 1e-6))))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            samples[name].append(clock(call, times[name]))
    return samples


def graphed(call: Call) -> Call:
    """``call`` as a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@dataclass
class Result:
    """Milliseconds of each contender: launched by Python, and as a CUDA graph."""

    name: str
    launched: dict[str, list[float]]
    graphs: dict[str, list[float]] = field(default_factory=dict)
    limit: str | None = None
    unmeasured: dict[str, str] = field(default_factory=dict)

    def rival(self) -> str | None:
        """SpikingJelly's fastest backend in this run."""
        rivals = [name for name in self.launched if name.startswith(JELLY)]
        return min(rivals, key=lambda name: statistics.median(self.launched[name])) if rivals else None

    def table(self) -> Table:
        table = Table(title=self.name, title_justify="left")
        headings = ["contender", "ms", "quartiles", *(["ms as a graph", "of copy bandwidth"] if self.limit else [])]
        for heading in [*headings, f"speed of {JELLY}'s best = 1"]:
            table.add_column(heading)
        rival = self.rival()
        for name, samples in self.launched.items():
            median, (low, high) = statistics.median(samples), harness.quartiles(samples)
            cells = [name, f"{median:.4f}", f"{low:.4f} – {high:.4f}"]
            if self.limit:
                graph = self.graphs.get(name)
                share = self.share(name)
                cells += [
                    "-" if graph is None else f"{statistics.median(graph):.4f}",
                    "-" if share is None else f"{share:.2f}",
                ]
            cells.append("-" if rival is None else f"{statistics.median(self.launched[rival]) / median:.2f}x")
            table.add_row(*cells, style="bold" if name.startswith(OURS) else None)
        return table

    def share(self, name: str) -> float | None:
        """Of the copy bandwidth, kernels alone."""
        if self.limit not in self.graphs or name not in self.graphs:
            return None
        return statistics.median(self.graphs[self.limit]) / statistics.median(self.graphs[name])

    def verdicts(self) -> Iterator[str]:
        ours = [name for name in self.launched if name.startswith(OURS)]
        shares = [share for name in ours if (share := self.share(name)) is not None]
        if shares:
            best = max(shares)
            yield f"{self.name}: {best:.2f} of the copy bandwidth (kernels alone), target {TARGET}: {_met(best >= TARGET)}"
        rival = self.rival()
        if rival is None:
            yield f"{self.name}: {JELLY} was not measured"
        elif ours:
            speed = statistics.median(self.launched[rival]) / min(
                statistics.median(self.launched[name]) for name in ours
            )
            yield f"{self.name}: {speed:.2f} times the speed of {rival}, target above 1: {_met(speed > 1)}"


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def measure(name: str, contenders: Mapping[str, Call], repeats: int, limit: str | None = None) -> Result:
    unmeasured = {}
    graphs: dict[str, Call] = {}
    for contender, call in contenders.items() if limit else ():
        try:
            graphs[contender] = graphed(call)
        except RuntimeError as error:  # what waits for the device cannot be captured
            torch.cuda.synchronize()
            unmeasured[contender] = f"no CUDA graph: {str(error).splitlines()[0]}"
    return Result(name, turns(contenders, repeats), turns(graphs, repeats), limit, unmeasured)


# --- contenders -----------------------------------------------------------------------------------------------


class _Kernels(torch.autograd.Function):
    """Our kernels with as little as possible around them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: bool) -> Tensor:
        s, *h = triton_lif.forward(x, 0, None, None, DECAY, THRESHOLD, None, None, False, 0, keep, False, False)
        ctx.save_for_backward(None if keep else x, *h)
        return s

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, h = (*ctx.saved_tensors, None)[:2]
        neuron = None, None, DECAY, THRESHOLD, None, None, False, 0, False, True, *in_kernel(ATan(SLOPE))
        return triton_lif.backward(grad, x, 0, h, None, None, *neuron, False, False, False)[0], None


def lif_forward_backward(shape: Sequence[int], device: torch.device) -> dict[str, Call]:
    """LIF forward and backward, and ``copy``, which reads and writes as many bytes as must be: 20 an element and step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(*shape).uniform_(-0.5, 1.2, generator=generator).to(device).requires_grad_()
    grad = torch.randn(*shape, generator=generator).to(device)
    s, grad_x = torch.empty_like(x, requires_grad=False), torch.empty_like(grad)

    def of(neurons: Callable[[Tensor], Tensor]) -> Call:
        return lambda: torch.autograd.grad(neurons(x), x, grad)

    def copy() -> None:
        s.copy_(x.detach())
        torch.add(grad, x.detach(), alpha=0.5, out=grad_x)

    calls = {
        f"{OURS}, kernels, x kept": of(lambda x: _Kernels.apply(x, False)),
        f"{OURS}, kernels, h kept": of(lambda x: _Kernels.apply(x, True)),
        f"{OURS}, LIF": of(peers.our_lif()),
    }
    node = peers.optional(peers.jelly_lif)
    if node is not None and device.type == "cuda":
        node = node.to(device)

        def theirs(x: Tensor) -> Tensor:
            node.reset()
            return node(x)  # type: ignore[no-any-return]

        for backend, use in jelly_backends(device).items():
            calls[f"{JELLY}, {backend}"] = partial(_using, use, of(theirs))
    return {**calls, "copy": copy}


def _using(use: Call, call: Call) -> object:
    use()
    return call()


def jelly_backends(device: torch.device) -> dict[str, Call]:
    """Its backends that can be loaded, and how each is switched on.

    SpikingJelly 2.0 chooses once, from SJ_LIF_CUDA_IMPLEMENTATION; to take turns, what it has chosen is swapped.
    """
    try:
        from spikingjelly._ops.lif import _selection
    except ImportError:
        return {"as it chooses": lambda: None}
    found: dict[str, Call] = {}
    for name in ("torch", "cuda", "triton"):
        _selection._requested, _selection._selections = name, {}
        try:
            _selection.get_cuda_forward(device)
        except (RuntimeError, ImportError, OSError):
            continue
        found[name] = partial(setattr, _selection, "_selections", _selection._selections)
    return found


def _step(model: nn.Module, x: Tensor, y: Tensor) -> Call:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def training(device: torch.device) -> Iterator[tuple[str, dict[str, Call]]]:
    """A training step, forward, backward and Adam, of each network."""
    for architecture in (networks.SMALL, networks.VGG6):
        ours, theirs = (partial(make, architecture) for make in (networks.ours, networks.jelly))
        x, y = (tensor.to(device) for tensor in networks.batch(architecture, BATCH))
        calls = {f"{OURS}, LIF": _step(ours().to(device), x, y)}
        if peers.optional(theirs) is not None:
            _same_start(ours().to(device), theirs().to(device), x, y)
            for backend, use in jelly_backends(device).items():
                calls[f"{JELLY}, {backend}"] = partial(_using, use, _step(theirs().to(device), x, y))
        yield f"Training step, {architecture.name}, T = {architecture.time_steps}, batch of {BATCH}", calls


@torch.no_grad()
def _same_start(ours: nn.Module, theirs: nn.Module, x: Tensor, y: Tensor) -> None:
    losses = [float(F.cross_entropy(model.train()(x), y)) for model in (ours, theirs)]
    if abs(losses[0] - losses[1]) > 0.05 * abs(losses[1]):  # rounding turns spikes, more so in deeper layers
        raise DisagreementError(f"{OURS} begins at a loss of {losses[0]:.4f}, {JELLY} at {losses[1]:.4f}")


# --- correctness ----------------------------------------------------------------------------------------------


def check(shape: Sequence[int], device: torch.device) -> None:
    """Raise where spikes, gradients or draws are not those of the CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(*shape).uniform_(-0.5, 1.2, generator=generator).requires_grad_()
    grad = torch.randn(*shape, generator=generator)
    expected = peers.our_lif()(x)
    of_x = torch.autograd.grad(expected, x, grad)[0]
    for keep in (False, True):
        there = x.detach().to(device).requires_grad_()
        spikes = _Kernels.apply(there, keep)
        found = torch.autograd.grad(spikes, there, grad.to(device))[0]
        if not torch.equal(spikes.cpu(), expected):
            raise DisagreementError(
                f"{int((spikes.cpu() != expected).sum())} spikes of {list(shape)} differ from the CPU's"
            )
        if not torch.allclose(found.cpu(), of_x, rtol=1e-5, atol=1e-6):
            worst = float((found.cpu() - of_x).abs().max())
            raise DisagreementError(f"gradients of {list(shape)} differ from the CPU's by {worst:.2g}")
    key, ids = torch.tensor([1, 2]), torch.arange(shape[1])
    uniform = triton_philox.uniform(key.to(device), ids.to(device), shape)
    if not torch.equal(uniform.cpu(), draws.uniform(key, ids, shape)):
        raise DisagreementError(f"draws of {list(shape)} differ from the CPU's")


# --- the command ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    if find_spec("triton") is None:
        console.print("Triton is not installed: pip install triton (it comes with PyTorch's CUDA builds for Linux)")
        return 2
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        for shape in ((3, 2, 70), (4, 2, 3, 5, 7)):
            check(shape, torch.device("cpu"))
        console.print("The kernels are correct under Triton's interpreter. Nothing was measured.")
        return 0
    if not torch.cuda.is_available():
        console.print(
            f"No GPU: torch {torch.__version__} finds none (torch.cuda.is_available() is False). "
            "To check the kernels without one: python -m benchmarks.gpu --interpret"
        )
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    environment = {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    environment |= where((*peers.PACKAGES, "triton"))
    console.print(", ".join(f"{name}: {value}" for name, value in environment.items()))
    for shape in ((5, 3, 1000), *SHAPES[:1], *SHAPES[3:4]):
        check(shape, device)
    console.print("Spikes, gradients and draws are those of the CPU.")
    results = []
    for shape in SHAPES:
        name = f"LIF {list(shape)}, forward and backward"
        results.append(measure(name, lif_forward_backward(shape, device), options.repeats, "copy"))
        console.print(results[-1].table())
    for name, calls in training(device):
        results.append(measure(name, calls, options.repeats))
        console.print(results[-1].table())
    for result in results:
        console.print(
            *(f"{result.name}, {who}: {why}" for who, why in result.unmeasured.items()), *result.verdicts(), sep="\n"
        )
    if options.json is not None:
        options.json.write_text(
            json.dumps({"environment": environment, "results": [vars(r) for r in results]}, indent=1) + "\n"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    from benchmarks.__main__ import _file, _positive

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="The Triton kernels on a GPU.")
    parser.add_argument("--repeats", type=_positive, default=21, help="of every contender; default: 21")
    parser.add_argument("--json", type=_file, metavar="FILE", help="write all samples there")
    parser.add_argument("--interpret", action="store_true", help="check the kernels on the CPU; measure nothing")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
