"""The look of all figures. They need no display and leave pyplot and matplotlib's settings alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GRID", "INK", "MARKERS", "MUTED", "PAPER", "SERIES", "TEXT", "figure", "save", "style"]

INK, MUTED, GRID, PAPER = "#1f2328", "#6b7280", "#dfe2e6", "#ffffff"
# After Okabe & Ito and Tol: safe for colour blindness.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#a87b00", "#56669c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours, so that pairs do not repeat soon
TEXT = 11.0
_STYLE: dict[Any, Any] = {
    "font.size": TEXT, "text.parse_math": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "svg.fonttype": "none", "svg.hashsalt": "snnrobust",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Our look on top of matplotlib's defaults, whatever the user's settings are; they come back at the end."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` by ``height`` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure, atomically, in the format that the name of ``path`` ends in.

    Raises:
        ValueError: matplotlib does not know the format.
    """
    from snnrobust.models.checkpoint import write_bytes  # models may import this module

    path = Path(path)
    content, kind = io.BytesIO(), path.suffix[1:].lower()
    known = made.canvas.get_supported_filetypes()
    if kind not in known:
        raise ValueError(f"path must end in one of {', '.join(sorted(known))}, got {str(path)!r}: use .png")
    with style():
        made.savefig(content, format=kind, dpi=dpi)
    write_bytes(path, content.getvalue())
