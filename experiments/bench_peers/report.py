"""Ratios, tables and figure of the rows."""

import itertools
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.bench_peers.config import FIRST, OURS, PEER, WAYS
from experiments.common.figure_files import literal, save
from mcl_jax.console import table

LABELS = {way: f"{side}, {way}" for way, (side, _) in WAYS.items()} | {OURS: OURS, PEER: PEER}
STYLES = dict(zip(LABELS, ("C0o-", "C3s-", "C1^--", "C2D--", "C0o-", "C1^--"), strict=True))
Row = dict[str, Any]


def baselines(row: Row, rows: list[Row]) -> dict[str, Row]:
    """Returns the rows of the other side with the same part, K and T, and that of the same way with K = 1."""
    alike = [other for other in rows if (other["part"], other.get("t")) == (row["part"], row.get("t"))]
    ways = {side: [way for way, (of, _) in WAYS.items() if of == side] + [side] for side in (OURS, PEER)}
    side = next(name for name in ways if row["way"] in ways[name])
    others = {o["way"]: o for o in alike if o["k"] == row["k"] and o["way"] not in ways[side]}
    first = next((o for o in alike if o["k"] == 1 and o["way"] in (FIRST[side], side)), None)
    return (others if side == OURS else {}) | ({} if first is None else {"K=1": first})


def ratio(row: Row, other: Row) -> dict[str, float]:
    """Returns the median and range, over the rounds, of the other's time divided by the row's time."""
    each = [theirs / own for own, theirs in zip(row["times"], other["times"], strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


def with_ratios(rows: list[Row]) -> list[Row]:
    """Adds `faster_than` (times as fast as each way of the other side) and `cost` (in steps of K = 1) to the rows."""
    out = []
    for row in rows:
        bases = baselines(row, rows)
        first = bases.pop("K=1", None)
        cost = {} if first is None else {"cost": ratio(first, row)}
        out.append(row | cost | {"faster_than": {way: ratio(row, other) for way, other in bases.items()}})
    return out


def show(rows: list[Row]) -> None:
    """Prints a table for each part and T."""
    keys = list(dict.fromkeys((row["part"], row.get("t")) for row in rows))
    for part, t in keys:
        shown = [row for row in rows if (row["part"], row.get("t")) == (part, t)]
        columns = ["K", "", "seconds", "range", "÷ K = 1", "faster than the other side", "peak MiB"]
        table(_title(part, t), columns, [_cells(row) for row in shown])


def _title(part: str, t: int | None) -> str:
    return f"training step, T = {t}" if part == "train" else "greedy decoding"


def _cells(row: Row) -> list[Any]:
    faster = ", ".join(f"{way} {_range(found)}" for way, found in row["faster_than"].items())
    cost = f"{row['cost']['median']:.2f}" if "cost" in row else ""
    peak = "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 2**20:.0f}"
    spread = f"{row['least']:.3f} to {row['most']:.3f}"
    return [row["k"], LABELS[row["way"]], f"{row['seconds']:.3f}", spread, cost, faster, peak]


def _range(found: dict[str, float]) -> str:
    return f"{found['median']:.2f}× ({found['least']:.2f} to {found['most']:.2f})"


def figure(rows: list[Row], title: str, path: Path) -> None:
    """Draws seconds against K, one panel for each part and T."""
    keys = list(dict.fromkeys((row["part"], row.get("t")) for row in rows))
    fig, axes = plt.subplots(1, len(keys), figsize=(4.6 * len(keys), 3.9), squeeze=False, layout="constrained")
    for (part, t), ax in zip(keys, axes[0], strict=True):
        shown = [row for row in rows if (row["part"], row.get("t")) == (part, t)]
        for way, group in itertools.groupby(sorted(shown, key=lambda row: list(LABELS).index(row["way"])), _way):
            points = sorted(group, key=lambda row: row["k"])
            seconds = [row["seconds"] for row in points]
            below = [row["seconds"] - row["least"] for row in points]
            above = [row["most"] - row["seconds"] for row in points]
            ks = [row["k"] for row in points]
            ax.errorbar(ks, seconds, [below, above], fmt=STYLES[way], capsize=2, label=LABELS[way])
        ax.set(title=_title(part, t), ylabel="seconds", ylim=(0, None))
        ax.set(xlabel="hypotheses K", xticks=sorted({row["k"] for row in shown}))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    fig.suptitle(literal(title.replace("; ", "\n")), fontsize=10)
    save(fig, path)


def _way(row: Row) -> str:
    return row["way"]
