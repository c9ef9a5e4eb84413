"""Makes the rows of the tables: one method in a group of runs, with its metrics aggregated over the seeds."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from experiments.compare.runs import Group
from mcl_jax.metrics.report import NotAvailable

NOT_METRICS = ("samples", "intervals", "not_available", "modes", "per_item", "below_mcl")


@dataclasses.dataclass(frozen=True)
class Number:
    """A metric of one run, or aggregated over seeds.

    Attributes:
      mean: the value, or the mean over seeds.
      interval: ends of the 95 % bootstrap interval of a single run, if it has one; None for several seeds.
      std: sample standard deviation over seeds; None for a single seed.
    """

    mean: float
    interval: tuple[float, float] | None = None
    std: float | None = None

    @property
    def bar(self) -> tuple[float, float] | None:
        """Ends of the error bar: the interval, or mean ± std."""
        return self.interval if self.std is None else (self.mean - self.std, self.mean + self.std)


Value = Number | NotAvailable | str  # texts are lists, such as the win rates


@dataclasses.dataclass(frozen=True)
class Row:
    """A method in a group of runs.

    Attributes:
      group: name of the group.
      method: name in results.json.
      seeds: number of runs that the values come from.
      values: value of each metric; `metric.mode` names that of a mode.
    """

    group: str
    method: str
    seeds: int
    values: Mapping[str, Value]


def fold(group: Group) -> list[Row]:
    """Makes one row per method: the values of a single seed, or means over seeds."""
    rows = []
    for method in dict.fromkeys(method for run in group.runs for method in run.methods):
        seeds = [values_of(run.methods[method]) for run in group.runs if method in run.methods]
        metrics = dict.fromkeys(metric for values in seeds for metric in values)
        absent = NotAvailable("not in results.json")
        folded = {metric: _fold([values.get(metric, absent) for values in seeds]) for metric in metrics}
        rows.append(Row(group.name, method, len(seeds), folded))
    return rows


def _fold(values: list[Value]) -> Value:
    if len(values) == 1:
        return values[0]
    if missing := [value.reason for value in values if isinstance(value, NotAvailable)]:
        reasons = "; ".join(dict.fromkeys(filter(None, missing)))
        if len(missing) == len(values):
            return NotAvailable(reasons)
        # A mean over the other seeds would not fit the number of seeds of the row.
        return NotAvailable(f"{len(missing)} of {len(values)} seeds lack it" + (f": {reasons}" if reasons else ""))
    if all(isinstance(value, Number) for value in values):
        means = [value.mean for value in values]
        return Number(statistics.fmean(means), std=statistics.stdev(means))
    return "; ".join(f"{value.mean:.2f}" if isinstance(value, Number) else value for value in values)


def values_of(results: Mapping[str, Any]) -> dict[str, Value]:
    """Returns the metrics of a method in results.json."""
    intervals, reasons, values = results.get("intervals", {}), results.get("not_available", {}), {}
    for name, value in results.items():
        if name in NOT_METRICS:
            continue
        match value:
            case None:
                values[name] = NotAvailable(reasons.get(name, ""))
            case {"mean": mean, "low": low, "high": high}:
                values[name] = Number(mean, (low, high))
            case int() | float():
                values[name] = Number(float(value), tuple(intervals[name]) if intervals.get(name) else None)
            case dict() if name == "of_mode":  # metrics by mode
                for mode, scores in value.items():
                    of_mode = values_of({**scores, "not_available": reasons | scores.get("not_available", {})})
                    values |= {f"{metric}.{mode}": score for metric, score in of_mode.items()}
            case dict():  # modes by metric
                values |= {f"{name}.{mode}": score for mode, score in values_of(value).items()}
            case _:
                values[name] = _text(value)
    return values


def _text(value: Any) -> str:
    """Formats a list on one line, with slashes between the rows of a matrix."""
    if isinstance(value, list):
        return (" / " if any(isinstance(entry, list) for entry in value) else " ").join(map(_text, value))
    return f"{value:.2f}" if isinstance(value, float) else str(value)
