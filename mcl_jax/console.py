"""Console output of a run: a progress bar with loss, win rates and time left, and summary tables.

If the output is not a terminal, the bar becomes a plain line every few seconds. Texts are shown literally: names and
paths may contain square brackets, colons and terminal escape codes, and none of them are interpreted.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table
from rich.text import Text

PLAIN_WIDTH = 100  # columns of a table where the output is not a terminal
# Visible symbols for control characters, except newline and tab.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
CONTROLS |= {code: 0xFFFD for code in range(0x80, 0xA0)} | {0x7F: 0x2421}


def plain(text: Any, style: str = "") -> Text:
    """Returns a text in a style, to be shown literally: rich parses markup and emoji codes in `str`, not in `Text`."""
    return Text(str(text).translate(CONTROLS), style=style)


def say(*parts: str | Text, console: rich.console.Console | None = None) -> None:
    """Prints one line without breaking it. Strings are shown literally, results of `plain` in their style."""
    line = Text.assemble(*(part if isinstance(part, Text) else plain(part) for part in parts))
    (console or rich.console.Console()).print(line, soft_wrap=True)


class Progress:
    """Shows the progress of a loop. Use it as a context manager and call `update` after each step.

    Args:
      total: number of steps of the whole training.
      completed: steps done before this process; the estimate of the time left ignores them.
      description: name of the training, such as "seed1235/mcl".
      console: output; standard output by default.
      interval: seconds between two plain lines, where the output is not a terminal.
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
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[values]}", markup=False),
                rich.progress.TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                plain(self.description).plain, total=self.total, completed=self.completed, values=self._values
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print()

    def update(self, step: int, loss: Any = None, win_rate: Any = None, **values: Any) -> None:
        """Shows that `step` steps are done.

        The last values stay on display until new ones are given. A call without values copies nothing from the device.

        Args:
          step: number of steps done.
          loss: in nats.
          win_rate: share of the examples that each hypothesis wins, [K].
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
        """Estimates the time left in seconds from the mean speed so far; None before the first step."""
        done = self.completed - self._first
        return (time.monotonic() - self._started) / done * (self.total - self.completed) if done > 0 else None

    def _print(self) -> None:
        left = self.seconds_left()
        ending = "" if left is None else f"{left:.0f} s left"
        parts = [self.description, f"{self.completed}/{self.total}", self._values, ending]
        say("  ".join(filter(None, parts)), console=self.console)
        self._printed = time.monotonic()


def describe_values(**values: Any) -> str:
    """Formats named numbers on one line, vectors in brackets: "loss 1.234  win_rate [0.50 0.30 0.20]"."""

    def show(x: np.ndarray) -> str:
        return f"{x:.4g}" if x.ndim == 0 else "[" + " ".join(f"{v:.2f}" for v in x.ravel()) + "]"

    known = {name: np.asarray(value, np.float64) for name, value in values.items() if value is not None}
    return "  ".join(f"{name} {show(value)}" for name, value in known.items())


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    console: rich.console.Console | None = None,
) -> None:
    """Prints a table. Floats have four significant digits, None is "n/a", and texts are shown literally.

    Args:
      title: line above the table.
      columns: names of the columns.
      rows: one value per column; use `plain` to give a text a style.
      console: output; standard output by default.
    Raises:
      ValueError: if a row does not have one value per column.
    """
    shown = rich.table.Table(title=plain(title, "table.title"))
    for column in columns:
        shown.add_column(plain(column), overflow="fold")  # breaks a long word instead of cutting it off
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(
                f"every row of table {title!r} must have {len(columns)} values, for the columns {list(columns)}, got "
                f"{list(row)}"
            )
        shown.add_row(*map(_cell, row))
    console = console or rich.console.Console()
    if not console.is_terminal:  # rich treats a file as a terminal of 80 columns
        console.width = max(console.width, PLAIN_WIDTH)
    if console.measure(shown, options=console.options.update(max_width=10_000)).maximum > console.width:
        shown.padding = 0  # narrower, so that fewer cells are broken
    console.print(shown)


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return plain("n/a")
    if isinstance(value, (float, np.floating)) or getattr(value, "shape", None) == ():
        return plain(f"{float(value):.4g}")
    return plain(value)
