"""What a person sees of a run: a progress bar with loss, win rates and time left, and summary tables.

Where the output is not a terminal, the bar becomes a plain line every few seconds.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table

PLAIN_WIDTH = 140


class Progress:
    """A context manager around a loop: `update(step, loss=, win_rate=)` after each step, or whenever values are known.

    Args:
      total: steps of the whole training.
      completed: steps done before, which time left does not count.
      description: what runs, such as "seed1235/mcl".
      console: where to; standard output by default.
      interval: seconds between plain lines.
    """

    def __init__(
        self,
        total: int,
        completed: int = 0,
        description: str = "train",
        *,
        console: rich.console.Console | None = None,
        interval: float = 10.0,
    ):
        self.total, self.completed, self.description, self.interval = total, completed, description, interval
        self.console = console or rich.console.Console()
        self._first, self._values, self._bar = completed, "", None

    def __enter__(self) -> "Progress":
        self._started = self._printed = time.monotonic()
        if self.console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[values]}"),
                rich.progress.TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.completed, values=self._values
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print()

    def update(self, step: int, loss: Any = None, win_rate: Any = None, **values: Any) -> None:
        """Shows that `step` steps are done. Values stay until others come; passing none costs no device transfer.

        Args:
          step: steps done.
          loss: nats.
          win_rate: [K].
          **values: further numbers, shown by name.
        """
        self.completed = step
        if loss is not None or win_rate is not None or values:
            self._values = describe_values(loss=loss, win_rate=win_rate, **values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, values=self._values)
        elif time.monotonic() - self._printed >= self.interval:
            self._print()

    def seconds_left(self) -> float | None:
        """At the mean speed since the start; None before the first step."""
        done = self.completed - self._first
        return (time.monotonic() - self._started) / done * (self.total - self.completed) if done > 0 else None

    def _print(self) -> None:
        left = self.seconds_left()
        ending = "" if left is None else f"  {left:.0f} s left"
        line = f"{self.description}  {self.completed}/{self.total}  {self._values}{ending}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._printed = time.monotonic()


def describe_values(**values: Any) -> str:
    """Numbers by name on one line, vectors in brackets: "loss 1.234  win_rate [0.50 0.30 0.20]"."""
    known = {name: np.asarray(value, np.float64) for name, value in values.items() if value is not None}
    show = lambda x: f"{x:.4g}" if x.ndim == 0 else "[" + " ".join(f"{v:.2f}" for v in x.ravel()) + "]"
    return "  ".join(f"{name} {show(value)}" for name, value in known.items())


def say(line: str, *, console: rich.console.Console | None = None) -> None:
    """Prints a line as it is: nothing in it is markup, and no word is cut."""
    (console or rich.console.Console()).print(line, markup=False, highlight=False, soft_wrap=True)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    console: rich.console.Console | None = None,
) -> None:
    """Prints a table; floats with four significant digits, None as "n/a".

    Raises:
      ValueError: for a row that has not one value a column; names both.
    """
    shown = rich.table.Table(title=title)
    for column in columns:
        shown.add_column(column, overflow="fold")  # a long word is broken rather than cut
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"table {title!r} has {len(columns)} columns {list(columns)}, got the row {list(row)}")
        shown.add_row(*map(_cell, row))
    console = console or rich.console.Console()
    if not console.is_terminal:  # rich takes a file for a terminal of 80 columns, and cuts what is wider
        console.width = max(console.width, PLAIN_WIDTH)
    console.print(shown)


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, (float, np.floating)) or getattr(value, "shape", None) == ():
        return f"{float(value):.4g}"
    return str(value)
