"""What the commands share on the terminal: errors, tables and progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO


class CommandError(Exception):
    """Something the user can mend; its text is the one line that is printed."""


class Progress(Protocol):
    """What `progress` hands out."""

    def advance(self, text: str) -> None:
        """One more step is done; `text` says which."""


@contextmanager
def progress(what: str, total: int, stream: TextIO | None = None) -> Iterator[Progress]:
    """Show `total` steps: a bar on a terminal, elsewhere (or without rich) a line for each."""
    stream = stream or sys.stdout
    if stream.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress
        except ImportError:
            pass
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[text]}"),
            )
            with RichProgress(*columns, console=Console(file=stream)) as rich_progress:
                task = rich_progress.add_task(what, total=total, text="")
                yield _Bar(rich_progress, task)
            return
    yield _Lines(what, total, stream)


class _Bar:
    def __init__(self, rich_progress, task) -> None:  # type: ignore[no-untyped-def]
        self._rich_progress = rich_progress
        self._task = task

    def advance(self, text: str) -> None:
        self._rich_progress.update(self._task, advance=1, text=text)


class _Lines:
    def __init__(self, what: str, total: int, stream: TextIO) -> None:
        self._what = what
        self._total = total
        self._stream = stream
        self._done = 0

    def advance(self, text: str) -> None:
        self._done += 1
        line = f"{self._what} {self._done:>{len(str(self._total))}}/{self._total}  {text}"
        print(line, file=self._stream, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Columns of text under their headers.

    `align` has a letter a column, `l` or `r`; columns without one are aligned to the left.
    """
    align = align.ljust(len(headers), "l")
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(cells, widths, align, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headers), rule, *map(line, rows)])


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in pairs)


def numba_settings() -> dict[str, str]:
    """Numba's settings in the environment."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")}
