"""Normalisation over two processes: ``python synchronised_layers.py FOLDER`` writes what each process has of a batch of six."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch import nn

from snnrobust.layers import BNTT, TDBN, TEBN
from snnrobust.layers.synchronised import synchronised

C, T = 3, 4
LAYERS = {
    "BNTT": lambda: BNTT(C, T + 1),
    "TEBN": lambda: TEBN(C, T),
    "TDBN": lambda: TDBN(C, 0.5, 0.7),
    "BatchNorm1d": lambda: nn.BatchNorm1d(C),
    "BatchNorm2d": lambda: nn.BatchNorm2d(C, momentum=None),
    "BatchNorm3d": lambda: nn.BatchNorm3d(C, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(C, track_running_stats=False),
    "by steps": lambda: BNTT(C, T),
    "eval": lambda: nn.BatchNorm2d(C).eval(),
}
AXES = {"BatchNorm1d": 0, "BatchNorm3d": 3}
PARTS = (slice(0, 4), slice(4, 6))
"""Of unequal size."""


def made(name, dtype):
    """The layer, its input (batch first), and the gradient of its output."""
    generator = torch.Generator().manual_seed(len(name))
    layer = LAYERS[name]()
    for p in (*layer.parameters(), *layer.buffers()):
        if p.is_floating_point():
            p.data.copy_(torch.rand(p.shape, generator=generator) + 0.5)
    time = () if isinstance(layer, nn.modules.batchnorm._BatchNorm) else (T,)
    shape = (6, *time, C, *(2, 3, 2)[: AXES.get(name, 2)])
    x, grad = (2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64) + 1).to(dtype).unbind(0)
    return (layer.double() if dtype == torch.float64 else layer), x, grad


def passed(name, layer, x, grad, counted=True):
    """Output, gradients and statistics."""
    x = x.requires_grad_()
    timed = not isinstance(layer, nn.modules.batchnorm._BatchNorm)
    given = x.transpose(0, 1) if timed else x
    if name == "by steps":
        state, outputs = layer.initial_state(given[0]), []
        for x_t in given:
            y_t, state = layer.step(x_t, state)
            outputs.append(y_t)
        y = torch.stack(outputs)
    else:
        y = layer(given)
    y = y.transpose(0, 1) if timed else y
    (y * grad * counted).sum().backward()
    found = {"y": y.detach(), "x": x.grad} | {f"gradient of {n}": p.grad for n, p in layer.named_parameters()}
    return found | dict(layer.named_buffers())


def in_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for name in LAYERS:
            layer, x, grad = made(name, dtype)
            mine = x[PARTS[rank]].clone(), grad[PARTS[rank]]
            with synchronised(layer):
                found[f"{name}, {dtype}"] = passed(name, layer, *mine)
            assert not {"forward", "step", "_normalised"} & vars(layer).keys()
    for name in ("BNTT", "TEBN", "BatchNorm2d"):  # the second process goes along and counts for nothing
        layer, x, grad = made(name, torch.float64)
        with synchronised(layer, counted=rank == 0):
            found[f"{name}, along"] = passed(name, layer, x[: 6 - 5 * rank].clone(), grad[: 6 - 5 * rank], rank == 0)
    layer, x, _ = made("BatchNorm1d", torch.float64)
    own = layer.forward = partial(type(layer).forward, layer)
    with synchronised(layer):
        assert layer.forward is not own
        try:
            found["one value"] = {"": layer(x[:1, :, None][:, :, :0] if rank else x[:1])}
        except ValueError as error:
            found["one value"] = str(error)
    assert layer.forward is own
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(in_process, (sys.argv[1],), nprocs=2, start_method="fork")
