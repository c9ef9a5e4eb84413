"""Formats the rows as tables: CSV, Markdown, LaTeX and console."""

import csv
import dataclasses
import io
import re
from collections.abc import Sequence

from experiments.compare.aggregate import Number, Row, Value
from experiments.compare.columns import higher_is_better
from mcl_jax import console
from mcl_jax.metrics.report import NotAvailable

ERRORS = "[low, high]: 95 % bootstrap interval; ± (n): sample standard deviation over n seeds."
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
} | {character: "\\" + character for character in "_%&$#{}"}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of plain texts.

    Attributes:
      head: titles of the columns.
      body: rows of cells.
      best: (row, column) of the best value of each column, and of values equal to it.
      labels: number of columns at the left that hold names.
      notes: explanations of intervals and deviations, and reasons for missing values.
    """

    head: list[str]
    body: list[list[str]]
    best: set[tuple[int, int]]
    labels: int
    notes: list[str]


def lay_out(rows: Sequence[Row], metrics: Sequence[str]) -> Table:
    """Makes the table of these metrics, with the names of groups if there are several."""
    grouped = len({row.group for row in rows}) > 1
    names = [[row.group, row.method] if grouped else [row.method] for row in rows]
    body, best = [[*map(_one_line, name)] for name in names], set()
    for column, metric in enumerate(metrics, len(names[0])):
        numbers = {i: v.mean for i, row in enumerate(rows) if isinstance(v := row.values.get(metric), Number)}
        digits = _digits(numbers.values())
        for cells, row in zip(body, rows, strict=True):
            cells.append(_one_line(_shown(row.values.get(metric, ""), digits, row.seeds)))
        if numbers and (higher := higher_is_better(metric)) is not None:
            top = max(numbers.values()) if higher else min(numbers.values())
            best |= {(i, column) for i, value in numbers.items() if value == top}
    head = [*(["runs", "method"] if grouped else ["method"]), *map(_titled, metrics)]
    return Table(head, body, best, len(names[0]), [ERRORS, *map(_one_line, _notes(rows, metrics))])


def _one_line(text: str) -> str:
    """Removes line breaks, which would end a row, and lone surrogates, which no file can hold."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _titled(metric: str) -> str:
    return _one_line(metric) + {True: " ↑", False: " ↓", None: ""}[higher_is_better(metric)]


def _digits(numbers) -> int:
    """Returns the decimals of a column: four significant digits of its largest value, at most three decimals."""
    largest = max(map(abs, numbers), default=0.0)
    return sum(largest < bound for bound in (10, 100, 1000))


def _shown(value: Value, digits: int, seeds: int) -> str:
    match value:
        case Number(mean, None, None):
            return f"{mean:z.{digits}f}"
        case Number(mean, (low, high), _):
            return f"{mean:z.{digits}f} [{low:z.{digits}f}, {high:z.{digits}f}]"
        case Number(mean, _, std):
            return f"{mean:z.{digits}f} ± {std:.{digits}f} ({seeds})"
        case NotAvailable():
            return "n/a"
    return value


def where(row: Row) -> str:
    """Names a row in a message."""
    return f"{row.method} ({row.group})" if row.group else row.method


def _notes(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """Returns "n/a: METRIC, METRIC in ROW, ROW: REASON" for missing values; without rows if it holds for all."""
    metrics_of: dict[tuple[str, str], list[str]] = {}  # (row, reason) -> metrics
    for row in rows:
        for metric in metrics:
            if isinstance(value := row.values.get(metric), NotAvailable) and value.reason:
                metrics_of.setdefault((where(row), " ".join(value.reason.split())), []).append(metric)
    rows_of: dict[tuple[str, str], list[str]] = {}  # (metrics, reason) -> rows
    for (name, reason), missing in metrics_of.items():
        rows_of.setdefault((", ".join(missing), reason), []).append(name)

    def place(names: list[str]) -> str:
        return "" if len(names) == len(rows) else f" in {', '.join(names)}"

    return [f"n/a: {missing}{place(names)}: {reason}" for (missing, reason), names in rows_of.items()]


def show(table: Table, title: str) -> None:
    """Prints the table, with the best values in bold and with a star."""

    def mark(text: str, best: bool):
        return console.plain(f"* {text}", "bold") if best else console.plain(text)

    console.table(title, table.head, _marked(table, mark))
    for note in table.notes:
        console.say(note)


def markdown(table: Table) -> str:
    """Formats a Markdown table, with the best values in bold and the notes below."""
    escape = _escape_markdown

    def mark(text: str, best: bool) -> str:
        return f"**{escape(text)}**" if best else escape(text)

    rule = ["---"] * table.labels + ["---:"] * (len(table.head) - table.labels)
    lines = [list(map(escape, table.head)), rule, *_marked(table, mark)]
    notes = [f"\n{escape(note)}" for note in table.notes]
    return "\n".join([*("| " + " | ".join(cells) + " |" for cells in lines), *notes]) + "\n"


def _escape_markdown(text: str) -> str:
    """Escapes what Markdown would read as a tag, an entity, a link or, in pairs, as emphasis, code or a formula."""
    text = text.replace("\\", r"\\").replace("|", r"\|")
    text = re.sub(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[])", r"\\\g<0>", text)
    for mark in (r"\*", "`", r"\$", "~", r"(?<![^\W_])_|_(?![^\W_])"):
        if len(re.findall(mark, text)) > 1:
            text = re.sub(mark, r"\\\g<0>", text)
    return text


def latex(table: Table) -> str:
    """Formats a LaTeX tabular for booktabs, with the best values in bold and the notes as comments."""

    def escape(text: str) -> str:
        return "".join(LATEX.get(character, character) for character in text).replace("--", "-{}-")

    def mark(text: str, best: bool) -> str:
        return rf"\textbf{{{escape(text)}}}" if best else escape(text)

    columns = "l" * table.labels + "r" * (len(table.head) - table.labels)
    body = map(_latex_row, _marked(table, mark))
    return "\n".join(
        [
            *(f"% {note}" for note in table.notes),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _latex_row([*map(escape, table.head)]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_row(cells: Sequence[str]) -> str:
    r"""Formats a row; "{}" keeps a leading "[" or "*" from being an option of the `\\` or the rule before it."""
    protect = "{}" if cells[0].startswith(("[", "*")) else ""
    return protect + " & ".join(cells) + r" \\"


def _marked(table: Table, mark) -> list[list[str]]:
    return [[mark(text, (i, j) in table.best) for j, text in enumerate(cells)] for i, cells in enumerate(table.body)]


def to_csv(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Formats one line per row: METRIC and, for numbers, METRIC_low, METRIC_high (one seed) or METRIC_std (several).

    A cell is empty if a run does not have the metric, and "n/a" if its results say that it is not available.
    """
    numeric = {metric for metric in metrics if not any(isinstance(row.values.get(metric), str) for row in rows)}

    def ends(metric: str) -> list[str]:
        return [f"{metric}_{end}" for end in ("low", "high", "std")] if metric in numeric else []

    file = io.StringIO()
    head = ["group", "method", "n_seeds", *(name for metric in metrics for name in (metric, *ends(metric)))]
    writer = csv.DictWriter(file, head, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line = {"group": row.group, "method": row.method, "n_seeds": row.seeds}
        for metric in metrics:
            match row.values.get(metric, ""):
                case Number(mean, interval, std):
                    low, high = interval or (None, None)
                    line[metric] = mean
                    line |= dict(zip(ends(metric), (low, high, std), strict=False))
                case NotAvailable():
                    line[metric] = "n/a"
                case text:
                    line[metric] = text
        writer.writerow(line)
    return file.getvalue()
