"""Solved tiles on disk, by content: the name of a file is a digest of all that its content depends on.

The folder is ``$SNNROBUST_CACHE``, else ``$XDG_CACHE_HOME/snnrobust``, else ``~/.cache/snnrobust``; the files lie in ``tiles/``
and can be deleted at any time. Beyond ``$SNNROBUST_CACHE_GB`` gigabytes (default 2) those that were not used for longest are
removed. A file that is damaged is as none. Nothing is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["digest", "fetch", "folder", "keep", "trim"]

DEFAULT_GB = 2.0


def folder() -> Path:
    """Where solved tiles are kept."""
    own = os.environ.get("SNNROBUST_CACHE")
    if own:
        return Path(own) / "tiles"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "snnrobust" / "tiles"


def limit() -> float:
    """Bytes that the folder may hold.

    Raises:
        ValueError: ``SNNROBUST_CACHE_GB`` is no number of gigabytes.
    """
    text = os.environ.get("SNNROBUST_CACHE_GB", str(DEFAULT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise ValueError(f"SNNROBUST_CACHE_GB must be a number of gigabytes such as 2, got {text!r}")
    return gigabytes * 1e9


def digest(*parts: object) -> str:
    """Of numbers, strings, bytes and tensors: 32 hexadecimal digits."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            h.update(f"{part.dtype} {tuple(part.shape)};".encode())
            h.update(part.detach().cpu().contiguous().numpy().data)
        elif isinstance(part, bytes):
            h.update(part)
        else:
            h.update(f"{part!r};".encode())
    return h.hexdigest()


def fetch(name: str, shape: tuple[int, ...]) -> Tensor | None:
    """The float64 tensor that :func:`keep` stored under ``name``, or None; a damaged file is removed."""
    path = folder() / f"{name}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            value: Tensor = file.get_tensor("effective")
            told = json.loads((file.metadata() or {}).get("snnrobust", "{}"))
        if value.shape == shape and value.dtype == torch.float64 and told == {"digest": digest(value)}:
            os.utime(path)  # used just now
            return value
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError):
        pass
    with suppress(OSError):  # not ours to delete: it will be computed each time
        path.unlink(missing_ok=True)
    return None


def keep(name: str, value: Tensor) -> None:
    """Store ``value``, atomically. A disk that is full or not ours is a warning: the result is there all the same."""
    from snnrobust.models.checkpoint import write_bytes  # models import quantization, which imports hardware

    value = value.detach().cpu().contiguous()
    content = save({"effective": value}, {"snnrobust": json.dumps({"digest": digest(value)})})
    if len(content) > limit():
        return
    try:
        write_bytes(folder() / f"{name}.safetensors", content)
    except OSError as error:
        warnings.warn(
            f"solved tiles cannot be kept in {folder()} ({error}): set SNNROBUST_CACHE to another folder, or use cache=False",
            stacklevel=2,
        )


def trim() -> None:
    """Remove what was not used for longest, until the folder is within its limit."""
    found = []
    for path in folder().glob("*.safetensors"):
        try:
            about = path.stat()
        except FileNotFoundError:  # by another process
            continue
        found.append((about.st_mtime_ns, about.st_size, path))
    total, most = sum(size for _, size, _ in found), limit()
    for _, size, path in sorted(found):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size
