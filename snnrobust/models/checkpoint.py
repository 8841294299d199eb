"""Checkpoints: one safetensors file with the weights and, as JSON in its header, all that rebuilds the model."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from snnrobust.models.description import build, describe

__all__ = ["kind_of", "load", "read_tensors", "save", "write_bytes", "write_tensors"]

_FORMAT = "snnrobust 1"
_FROZEN = "frozen"  # beside the description of the whole model


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic: whatever happens, ``path`` holds either its old content or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_tensors(path: Path, kind: str, tensors: dict[str, Tensor], content: Any) -> None:
    """Tensors and JSON ``content`` in one file, atomically; :func:`read_tensors` gives them back."""
    header = {"snnrobust": json.dumps({"format": _FORMAT, "kind": kind, "content": content})}  # one key: equal bytes
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_bytes(path, to_bytes(tensors, header))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], Any]:
    """What :func:`write_tensors` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not a safetensors file, or not written by snnrobust as this ``kind``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("snnrobust", "{}"))
            if header.get("format") != _FORMAT or header.get("kind") != kind:
                found = f"a {header['kind']} of {header['format']}" if "kind" in header else "another program's file"
                raise ValueError(f"{path} is not a {kind} of {_FORMAT}: it holds {found}")
            return {name: file.get_tensor(name) for name in file.keys()}, header["content"]  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}): restore it or train again"
        ) from error


def kind_of(path: Path) -> str | None:
    """What snnrobust wrote into a file; None if it is no file of ours."""
    try:
        with safe_open(path, "pt") as file:
            kind = json.loads((file.metadata() or {}).get("snnrobust", "{}")).get("kind")
    except (OSError, SafetensorError, ValueError, AttributeError, RecursionError):
        return None
    return kind if isinstance(kind, str) else None


def save(model: nn.Module, path: str | Path) -> None:
    """Write ``model`` as a checkpoint that :func:`load` rebuilds: structure, T, encoder, surrogate, weights, statistics, and
    which parameters are frozen (``requires_grad=False``)."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    write_tensors(Path(path), "model", model.state_dict(), describe(model) | ({_FROZEN: frozen} if frozen else {}))


def load(path: str | Path) -> nn.Module:
    """The model of a checkpoint, in eval mode. No code of the file's author is run and no pickle is read.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_tensors`, or the weights do not fit the description.
    """
    tensors, description = read_tensors(Path(path), "model")
    frozen = description.pop(_FROZEN, []) if isinstance(description, dict) else []
    with torch.device("meta"):  # a hostile description allocates nothing
        model = build(description)
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        want, have = expected.get(name), tensors.get(name)
        if (
            want is None
            or have is None
            or want.shape != have.shape
            or want.dtype.is_floating_point != have.dtype.is_floating_point
        ):
            raise ValueError(
                f"{path} is from another architecture: {name} is {_shape(have)} in the file and {_shape(want)} in the model"
            )
    model.load_state_dict(tensors, assign=True)
    parameters = dict(model.named_parameters())
    if not isinstance(frozen, list) or not all(isinstance(name, str) and name in parameters for name in frozen):
        raise ValueError(f"{path} is damaged: it freezes {frozen!r:.80}, which are not all parameters of its model")
    for name in frozen:
        parameters[name].requires_grad_(False)
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{path} lacks {name}, a constant that its module does not save: let the module make it with device='cpu'"
            )
    return model.eval()


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
