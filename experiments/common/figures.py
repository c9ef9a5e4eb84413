"""Figures of a run: losses, the win matrix, and quality against diversity."""

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.common.config import LIST, Config
from experiments.common.figure_files import literal, save
from mcl_jax.command_line import attempt
from mcl_jax.run import Run

LABELS = {
    "mcl": "LoRA-MCL",
    "prompts": "Soft prompts",
    "ensemble": "Ensemble",
    "mle_r": "LoRA-MLE, rank r",
    "mle_rk": "LoRA-MLE, rank r·K",
    "moe": "LoRA-MoE",
    "list": "List of answers",
    "nearest": "Captions of the nearest",
    "classes": "Names of the likeliest classes",
}
COLOURS = {
    "mcl": "tab:blue",
    "prompts": "tab:cyan",
    "ensemble": "tab:brown",
    "mle_r": "tab:orange",
    "mle_rk": "tab:red",
    "moe": "tab:green",
    "list": "tab:purple",
    "nearest": "tab:gray",
    "classes": "tab:olive",
}
MARKERS = {
    "beam": "o",
    "diverse": "s",
    "sampling": "^",
    "ancestral": "v",
    "top_k": "<",
    "typical": ">",
    "tta": "D",
    "greedy": "P",
}


def marker_of(decoder: str) -> str:
    """Returns the marker of a decoder, whose name may end with a value, as diverse-0.5 does; a star for others."""
    return MARKERS.get(decoder.partition("-")[0], "*")


def draw(
    run: Run, config: Config, results: dict[str, Any], quality: tuple[str, str], diversity: tuple[str, str]
) -> None:
    """Writes figures/loss.png, figures/win_matrix.png (if modes are known) and figures/quality_diversity.png.

    If a figure cannot be drawn, a line on the console says so, and the others are still drawn.

    Args:
      run: the run.
      config: its configuration.
      results: content of results.json.
      quality: title and key of the quality in the results.
      diversity: title and key of the diversity in the results.
    """
    figures = {"loss.png": lambda: losses(run, config)}
    if "win_matrix" in _of_mcl(results):
        figures["win_matrix.png"] = lambda: win_matrix(results)
    figures["quality_diversity.png"] = lambda: quality_diversity(results, quality, diversity)
    for name, figure in figures.items():
        with attempt(f"figures/{name}"):
            save(figure(), run.figure_path(name))


def _of_mcl(results: dict[str, Any]) -> dict[str, Any]:
    """Returns the results of mcl with its first decoder; {} if there are none."""
    return next((scores for name, scores in results["methods"].items() if name.partition("/")[0] == "mcl"), {})


def losses(run: Run, config: Config) -> plt.Figure:
    """Draws the held-out loss of each method over the steps, and the purity of the hypotheses."""
    lines = {method: run.lines(method) for method in config.methods}
    with_purity = "mcl" in lines and "purity" in lines["mcl"][-1]
    figure, axes = plt.subplots(
        1, 1 + with_purity, figsize=(6 + 4 * with_purity, 4), layout="constrained", squeeze=False
    )
    for method, logged in lines.items():
        steps = [line["step"] for line in logged]
        style = {"label": LABELS[method], "color": COLOURS[method]}
        if method == LIST:
            style |= {"label": f"{LABELS[method]} (loss of lists)", "linestyle": "--"}
        axes[0, 0].plot(steps, [line["eval_loss"] for line in logged], **style)
    axes[0, 0].set(xlabel="steps", ylabel="held-out loss (nats per token; hard WTA for K > 1)")
    axes[0, 0].legend(frameon=False)
    if with_purity:
        steps, purity = zip(*[(line["step"], line["purity"]) for line in lines["mcl"]], strict=True)
        axes[0, 1].plot(steps, purity, color=COLOURS["mcl"])
        axes[0, 1].set(xlabel="steps", ylabel="purity", ylim=(0.45, 1.02))
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    return figure


def win_matrix(results: dict[str, Any]) -> plt.Figure:
    """Draws the share of each mode's answers that each hypothesis wins."""
    scores = _of_mcl(results)
    counts = np.array(scores["win_matrix"], float)
    share = counts / counts.sum(1, keepdims=True)
    figure, axes = plt.subplots(figsize=(1.6 + 1.2 * share.shape[1], 1.4 + 0.8 * len(share)), layout="constrained")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (m, k), value in np.ndenumerate(share):
        axes.text(k, m, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.5 else "black")
    axes.set(xlabel="hypothesis", xticks=range(share.shape[1]), yticks=range(len(share)))
    axes.set_yticklabels(map(literal, scores["modes"]))
    axes.set_title("share of answers won")
    return figure


def quality_diversity(results: dict[str, Any], quality: tuple[str, str], diversity: tuple[str, str]) -> plt.Figure:
    """Draws quality against diversity for every method and decoder that has both, with 95 % bootstrap intervals.

    Raises:
      ValueError: if no method has both.
    """
    keys = diversity[1], quality[1]
    drawn = {
        name: scores for name, scores in results["methods"].items() if all(scores.get(key) is not None for key in keys)
    }
    if not drawn:
        raise ValueError(f"no method has both {quality[0]} and {diversity[0]}")
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for name, scores in drawn.items():
        method, _, decoder = name.partition("/")
        ends = scores.get("intervals", {})
        spread = {key: np.abs(np.array(ends[key]) - scores[key])[:, None] for key in keys if key in ends}
        axes.errorbar(
            scores[diversity[1]],
            scores[quality[1]],
            xerr=spread.get(diversity[1]),
            yerr=spread.get(quality[1]),
            color=COLOURS[method],
            capsize=2,
            elinewidth=0.8,
            marker=marker_of(decoder),
            markersize=11 if method == "mcl" else 7,
            linestyle="none",
            label=f"{LABELS[method]} {decoder}".strip(),
        )
    axes.set(xlabel=diversity[0], ylabel=quality[0])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure
