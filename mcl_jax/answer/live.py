"""Answers on the console while they are decoded."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import rich.console
import rich.live
from rich.text import Text

from mcl_jax.console import plain, say

Growing = Sequence[Sequence[tuple[int, str]]]  # for each question, (hypothesis, text) of each answer


@contextlib.contextmanager
def growing(name: str, console: rich.console.Console | None = None) -> Iterator[Callable[[Growing], None]]:
    """Shows the answers to one question; the result takes them each time that they have grown.

    On a terminal they are lines that grow, and vanish in the end. Elsewhere each new piece, up to the last space, is a
    line with the number of its hypothesis.

    Args:
      name: the question.
      console: output; standard output by default.
    """
    console = console or rich.console.Console()
    if not console.is_terminal:
        say(plain(name, "bold"), console=console)
        yield _Pieces(console)
        return
    with rich.live.Live(console=console, transient=True, auto_refresh=False) as live:
        show = lambda answers: live.update(
            Text("\n").join([plain(name, "bold"), *map(_line, answers[0])]), refresh=True
        )
        yield show


def _line(answer: tuple[int, str]) -> Text:
    hypothesis, text = answer
    return Text.assemble(plain(f"{hypothesis:>5}", "cyan"), "  ", plain(_flat(text)))


def _flat(text: str) -> str:
    return " ".join(text.split())


class _Pieces:
    """Prints what is new in each answer."""

    def __init__(self, console: rich.console.Console):
        self.console, self.printed = console, {}

    def __call__(self, answers: Growing) -> None:
        for row, (hypothesis, text) in enumerate(answers[0]):
            words, before = text.rpartition(" ")[0], self.printed.get(row, "")
            if words.startswith(before) and (piece := _flat(words[len(before) :])):
                say(_line((hypothesis, piece)), console=self.console)
                self.printed[row] = words
