"""The compiled kernel library: found, checked and loaded once; where that fails, torch operations take its place.

``SNNROBUST_KERNELS`` chooses an instruction set (``portable``, ``avx2``, ``avx512``) or none (``off``).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["ISAS", "available", "function", "status", "threads"]

ISAS = ("portable", "avx2", "avx512")
"""From the plainest to the fastest."""

_FOLDER = Path(__file__).parent
P, I64, I32, F32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


class _MissingError(Exception):
    """Why there is no kernel library."""


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str, str]:
    """The library, its instruction set, and what there is to say of it."""
    wanted = os.environ.get("SNNROBUST_KERNELS", "")
    try:
        return _load(wanted.lower())
    except _MissingError as missing:
        if wanted.lower() not in ("", "off"):  # somebody counts on them
            warnings.warn(f"no compiled kernels: {missing}", stacklevel=2)
        return None, "", str(missing)


def _load(wanted: str) -> tuple[ctypes.CDLL, str, str]:
    if wanted not in ("", "off", *ISAS):
        raise _MissingError(f"SNNROBUST_KERNELS is {wanted!r}, which is none of {', '.join(ISAS)} and off")
    if wanted == "off":
        raise _MissingError("switched off by SNNROBUST_KERNELS=off")
    path = _FOLDER / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        raise _MissingError("it was not built: install again where there is a C compiler")
    try:
        library = ctypes.CDLL(str(path))
        library.snn_digest.restype = library.snn_threads.restype = ctypes.c_char_p
        digest, threading = library.snn_digest().decode(), library.snn_threads().decode()
        best = ISAS[library.snn_level()]
    except (OSError, AttributeError) as error:  # of another processor, or no kernel library at all
        raise _MissingError(f"{path.name} cannot be loaded on this machine ({error}): install again") from error
    sources = sorted((_FOLDER / "csrc").glob("*.[ch]"))  # there in a checkout only
    if sources and digest != _digest(sources):
        raise _MissingError(f"{path.name} was built from other sources: install again (pip install -e .)")
    if wanted and ISAS.index(wanted) > ISAS.index(best):
        raise _MissingError(f"SNNROBUST_KERNELS asks for {wanted}, and this processor has {best}")
    isa = wanted or best
    return library, isa, f"compiled, {isa} ({threading})"


def _digest(sources: list[Path]) -> str:
    return hashlib.blake2b(b"".join(f.name.encode() + f.read_bytes() for f in sources), digest_size=8).hexdigest()


def available() -> bool:
    """Whether compiled kernels run."""
    return _library()[0] is not None


def status() -> str:
    """Which kernels run, and why."""
    library, _, found = _library()
    return found if library is not None else f"torch operations; no compiled kernels: {found}"


def function(name: str, *arguments: Any, result: Any = None) -> Callable[..., Any]:
    """The C function ``name`` for this processor.

    Args:
        name: Without its instruction set.
        arguments, result: Its ctypes. A tensor is passed as ``P``, by ``tensor.data_ptr()``.

    Raises:
        RuntimeError: there is no library; ask :func:`available` first.
    """
    library, isa, found = _library()
    if library is None:
        raise RuntimeError(f"no compiled kernels: {found}")
    compiled: Callable[..., Any] = getattr(library, f"{name}_{isa}")
    compiled.argtypes, compiled.restype = arguments, result  # type: ignore[attr-defined]
    return compiled


def threads() -> int:
    """What is given to a kernel: as many as torch uses."""
    return torch.get_num_threads()
