"""A progress bar for long work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bar", "progress_bar"]


class Bar:
    """Call it after each piece of work; :meth:`say` writes a line above it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def __call__(self) -> None:
        self._progress.advance(self._task)

    def more(self, pieces: int) -> None:
        """There are so many more pieces than thought."""
        task = self._progress.tasks[self._task]
        self._progress.update(self._task, total=(task.total or 0) + pieces)

    def say(self, text: str) -> None:
        if not self._progress.disable:
            self._progress.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str, total: int, visible: bool) -> Iterator[Bar]:
    """Yields what to call after each of ``total`` pieces of work."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not visible) as progress:
        yield Bar(progress, progress.add_task(title, total=total))
