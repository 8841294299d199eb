"""Many tiles through the nodal solver: equal ones once, in chunks that suit the processor, on all cores, and kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, replace

import torch
from torch import Tensor

from snnrobust.hardware.crossbar import cache as disk
from snnrobust.hardware.crossbar.nodal import Wires, effective_conductance
from snnrobust.hardware.crossbar.nodal_tree import Plan

__all__ = ["demand_memory", "demand_room", "seconds", "solve", "tile_bytes"]

VERSION = 1
"""Of the solver's numbers: a change of them makes old files void."""
AT_A_TIME = 3 << 23
"""Bytes of tiles that are solved together: more falls out of the processor's cache, which costs a third."""
FILE_BYTES = 1 << 21
"""Of the results of one file, which is one thread's piece of work."""
WORTH_A_FILE = 2e6
"""Of :func:`work`, eight tiles of 64 x 64: solving less is about as fast as reading a file."""
LONG = 2.0
"""Seconds after which there is a progress bar."""


def work(rows: int, columns: int) -> float:
    """Of solving a tile, up to a factor: the cube of the side of a square one."""
    short, long = sorted((rows, columns))
    return float(long) * short**2


def tile_bytes(rows: int, columns: int) -> int:
    """What solving one tile holds at its peak, about."""
    return Plan.of(rows, columns).bytes(keep=False)


def available_bytes() -> float:
    """Memory that could be taken now; infinity where the system does not tell."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024.0 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return float("inf")


def demand_memory(rows: int, columns: int) -> None:
    """Raise a ValueError if one tile of this size is more than memory holds."""
    need, have = tile_bytes(rows, columns), available_bytes()
    if need > 0.8 * have:
        raise ValueError(
            f"rows, columns: solving one tile of {rows} x {columns} takes about {need / 1e9:.1f} GB, and {have / 1e9:.1f} GB are "
            "available: use smaller tiles, or ir_drop=False"
        )


def demand_room(tiles: int, rows: int, columns: int) -> None:
    """Raise a ValueError if the conductances of so many tiles are more than memory holds."""
    need, have = 4.0 * 8 * tiles * rows * columns, available_bytes()
    if need > 0.8 * have:
        raise ValueError(
            f"rows, columns: {tiles} tiles of {rows} x {columns} take about {need / 1e9:.1f} GB, and {have / 1e9:.1f} GB are "
            "available: use tiles that fit the layer (each group of a grouped convolution fills tiles of its own)"
        )


def seconds(tiles: int, rows: int, columns: int, wires: Wires) -> float:
    """About how long ``tiles`` tiles take: a few of at most 64 x 64 are solved, and the work scaled."""
    m, n = min(rows, 64), min(columns, 64)
    few = max(1, min(tiles, AT_A_TIME // tile_bytes(m, n), 64))
    probe, times, threads = torch.full((few, m, n), 1e-5, dtype=torch.float64), [], torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for _ in range(2):
            began = time.perf_counter()
            with torch.no_grad():
                effective_conductance(probe, wires)
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return min(times) / few * tiles * work(rows, columns) / work(m, n) / threads


def solve(
    tiles: Tensor,
    wires: Wires,
    *,
    used: Tensor | None = None,
    cache: bool = True,
    progress: bool = True,
) -> Tensor:
    r"""Effective conductances of many tiles, float64 ``[n, M, N]``: currents at the senses are :math:`G_{eff}^T v`.

    Args:
        tiles: Conductances, float64 ``[n, M, N]``.
        wires: Resistances.
        used: int64 ``[n, 2]``: of tile k only the first ``used[k, 0]`` rows and ``used[k, 1]`` columns have cells. Those
            beyond are disconnected: no current flows there, but for the bit lines between the last used row and the senses.
        cache: Keep what was solved on disk, and look there first.
        progress: Show a bar where it takes long.

    Raises:
        ValueError: A tile is larger than memory allows.
    """
    _, rows, columns = tiles.shape
    out = torch.zeros_like(tiles)
    shapes = [(rows, columns)] if used is None else sorted({(int(m), int(n)) for m, n in used.tolist()})
    jobs: list[_Job] = []
    for m, n in shapes:
        demand_memory(m, n)
        fits = (used == torch.tensor([m, n])).all(-1) if used is not None else torch.ones(len(tiles), dtype=torch.bool)
        index = fits.nonzero().flatten()
        part = tiles[index.to(tiles.device)][:, :m, :n]
        # disconnected rows below the last used one leave the wire: series resistance of the sense
        longer = replace(wires, sense=wires.sense + wires.column * (rows - m))
        jobs.append((index, part, longer))
    _run(jobs, out, cache, progress)
    return out


_Job = tuple[Tensor, Tensor, Wires]
"""Where the results go, the tiles, their wires."""
_Chunk = tuple[Tensor, Wires, str, Tensor, Tensor]
"""Different tiles, their wires, the name of their file; where the results go, and which of them."""


def _chunks(jobs: list[_Job]) -> Iterator[_Chunk]:
    for index, part, wires in jobs:
        _, m, n = part.shape
        size = max(1, FILE_BYTES // (8 * m * n))
        first: dict[str, int] = {}  # digest to the first tile that has it
        alike = [first.setdefault(disk.digest(tile), k) for k, tile in enumerate(part.cpu())]
        place = {k: i for i, k in enumerate(first.values())}
        back, names, unique = torch.tensor([place[k] for k in alike]), list(first), torch.tensor(list(first.values()))
        for begin in range(0, len(unique), size):
            stop = min(begin + size, len(unique))
            where = ((back >= begin) & (back < stop)).nonzero().flatten()
            name = disk.digest(VERSION, part.device.type, astuple(wires), m, n, *names[begin:stop])
            yield part[unique[begin:stop].to(part.device)], wires, name, index[where], back[where] - begin


def _run(jobs: list[_Job], out: Tensor, cache: bool, progress: bool) -> None:
    def one(chunk: _Chunk) -> tuple[int, bool]:
        tiles, wires, name, where, which = chunk
        _, m, n = tiles.shape
        kept = cache and len(tiles) * work(m, n) >= WORTH_A_FILE
        solved = disk.fetch(name, tuple(tiles.shape)) if kept else None
        found = solved is not None
        if solved is None:
            with torch.no_grad():  # the mode is a thread's own
                few = max(1, AT_A_TIME // tile_bytes(m, n))
                solved = torch.cat([effective_conductance(part, wires) for part in tiles.split(few)])
            if kept:
                disk.keep(name, solved)
        out[where.to(out.device), :m, :n] = solved.to(out.device)[which.to(out.device)]
        return len(where), kept and not found

    chunks, threads, written = list(_chunks(jobs)), torch.get_num_threads(), False
    workers = max(1, min(threads, len(chunks))) if out.device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers)
    try:
        # a core a chunk: threads inside the small matrices cost more than they bring, and would change the last bits
        torch.set_num_threads(1)
        with _bar(out, progress) as advance:
            for done, stored in pool.map(one, chunks):
                written |= stored
                advance(done)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    if written:
        disk.trim()


@contextmanager
def _bar(tiles: Tensor, visible: bool) -> Iterator[Callable[[int], None]]:
    """A bar that appears where the first tiles say that it will take long."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total, rows, columns = tiles.shape
    console, began = Console(stderr=True), time.perf_counter()
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress, visible = Progress(*bars, console=console, transient=True), visible and console.is_terminal
    task = progress.add_task(f"IR drop of {total} tiles of {rows} x {columns}", total=total)
    shown = False

    def advance(done: int) -> None:
        nonlocal shown
        progress.advance(task, done)
        ready = progress.tasks[0].completed
        expected = (time.perf_counter() - began) * total / ready
        if visible and not shown and ready < total and expected > LONG:
            shown = True
            size = 2 * tiles.numel() * tiles.element_size() / 1e6
            console.print(f"IR drop: {total} tiles, about {expected:.0f} s and {size:.0f} MB", highlight=False)
            progress.start()

    try:
        yield advance
    finally:
        if shown:
            progress.stop()
