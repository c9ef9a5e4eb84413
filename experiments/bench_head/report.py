"""Table, summary and figure of the rows."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.table import Table

from experiments.bench_head.config import VARIANTS
from experiments.common.figure_files import literal, save

COLOURS = dict(zip(VARIANTS, ("C3", "C0", "C9", "C1", "C2", "C5"), strict=True))
MARKERS = dict(zip(VARIANTS, "osDv^P", strict=True))


def row_of(rows: list[dict], variant: str, k: int, rank: int, mode: str) -> dict | None:
    """Returns the row of that variant, or None if it was not measured."""
    wanted = dict(variant=variant, k=k, rank=rank, mode=mode)
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def table(rows: list[dict]) -> Table:
    """Makes the table, in milliseconds and MiB."""
    out = Table(title="One step: time (ms) and memory (MiB)", title_justify="left")
    out.add_column("variant", no_wrap=True)
    for name in ("K", "rank", "mode", "median", "min", "max", "÷ MLE", "temp", "args", "peak RSS"):
        out.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous is not None and previous != (row["rank"], row["mode"], row["k"]):
            out.add_section()
        previous = (row["rank"], row["mode"], row["k"])
        times = [f"{1e3 * row[f'seconds_{name}']:.1f}" for name in ("median", "min", "max")]
        memory = [_mib(row.get(name)) for name in ("temp_bytes", "argument_bytes", "peak_rss_bytes")]
        cells = [row["variant"], row["k"], row["rank"], row["mode"], *times, f"{row['relative_to_mle']:.2f}", *memory]
        out.add_row(*map(str, cells))
    return out


def _mib(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.1f}"


def summary(rows: list[dict], k: int, rank: int) -> list[str]:
    """Compares the gain of winner-only training at K with its targets."""
    winner, every = (row_of(rows, variant, k, rank, "train") for variant in ("winner", "all"))
    mle = row_of(rows, "all", 1, rank, "train")
    if winner is None or every is None or mle is None:
        return [f"r={rank}: no summary, which needs --modes train with the variants all and winner at K={k}"]
    lines = [
        _verdict("all ÷ winner, time", every["seconds_median"] / winner["seconds_median"], ">=", 2.0),
        _verdict("winner ÷ MLE, time", winner["seconds_median"] / mle["seconds_median"], "<=", 2.2),
    ]
    for name, label in [("temp_bytes", "temporaries"), ("peak_rss_bytes", "peak RSS")]:
        if winner.get(name) and every.get(name):
            lines.append(_verdict(f"winner ÷ all, {label}", winner[name] / every[name], "<=", 0.6))
    return [f"K={k} r={rank} train", *lines]


def _verdict(label: str, value: float, relation: str, bound: float) -> str:
    met = value >= bound if relation == ">=" else value <= bound
    return f"  {label:28} {value:6.2f}×   target {relation} {bound}   {'met' if met else 'NOT met'}"


# ------------------------------------------------------------------------------------------------------------ Figure


def figure(rows: list[dict], title: str, path: Path) -> None:
    """Draws, against K and for each rank, the cost of each mode relative to the MLE step, and the temporaries."""
    ranks = list(dict.fromkeys(row["rank"] for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    columns = len(modes) + 1
    fig, axes = plt.subplots(
        len(ranks), columns, figsize=(4.6 * columns, 3.9 * len(ranks)), squeeze=False, layout="constrained"
    )
    for rank, line in zip(ranks, axes, strict=True):
        of_rank = [row for row in rows if row["rank"] == rank]
        for mode, ax in zip(modes, line, strict=False):
            _cost([row for row in of_rank if row["mode"] == mode], mode, ax)
            ax.set_title(f"{mode}, r = {rank}")
        _memory([row for row in of_rank if row["mode"] == modes[0]], line[-1])
        line[-1].set_title(f"memory without weights, {modes[0]}, r = {rank}")
    entries = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = sorted(entries, key=lambda label: label.startswith("ideal"))
    handles = [entries[label] for label in labels]
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels) if columns > 2 else 3, frameon=False)
    fig.suptitle(literal(title))
    save(fig, path)


def _cost(rows, mode, ax):
    ks = sorted({row["k"] for row in rows})
    ideal = {"2K forwards": ks, "K + 2 forwards": [(k + 2) / 2 for k in ks]} if mode == "train" else {"K forwards": ks}
    styles = {"2K forwards": "--", "K + 2 forwards": ":", "K forwards": "-."}
    for label, costs in ideal.items():
        ax.plot(ks, costs, styles[label], color="0.5", label=f"ideal: {label}", zorder=1)
    _lines(rows, "relative_to_mle", "seconds_median", ax)
    _axes(ax, ks, "time ÷ MLE step" if mode == "train" else "time ÷ one forward")
    top = 2 * max(ks)
    off = [
        f"{row['variant']} at K={row['k']}: {row['relative_to_mle']:.0f}×"
        for row in rows
        if row["relative_to_mle"] > top
    ]
    if off:  # one outlier would flatten everything else
        ax.set_ylim(0, 1.4 * max(ks))
        ax.text(0.03, 0.97, "off the scale:\n" + "\n".join(off), transform=ax.transAxes, va="top", fontsize=8)


def _memory(rows, ax):
    rows = [row | {"mib": row["temp_bytes"] / 2**20} for row in rows if row["temp_bytes"] is not None]
    _lines(rows, "mib", None, ax)
    _axes(ax, sorted({row["k"] for row in rows}), "XLA temporaries, MiB")


def _lines(rows, name, seconds, ax):
    for variant in VARIANTS:
        points = sorted((row for row in rows if row["variant"] == variant), key=lambda row: row["k"])
        if not points:
            continue
        x, y = [row["k"] for row in points], [row[name] for row in points]
        style = dict(color=COLOURS[variant], marker=MARKERS[variant], markersize=5, label=variant)
        if variant == "sampled":  # its cost is that of `winner`, which must stay visible below
            style |= dict(linestyle="--", markerfacecolor="none", markersize=9)
        if seconds is None:
            ax.plot(x, y, **style)
            continue
        low = [row[name] * (1 - row["seconds_min"] / row[seconds]) for row in points]
        high = [row[name] * (row["seconds_max"] / row[seconds] - 1) for row in points]
        ax.errorbar(x, y, yerr=(low, high), capsize=2, elinewidth=0.8, **style)


def _axes(ax, ks, ylabel):
    ax.set(xlabel="hypotheses K", ylabel=ylabel, xticks=ks, ylim=(0, None))
    ax.grid(alpha=0.3)
