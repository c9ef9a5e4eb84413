"""Draws the two figures of the paper: losses with the theory, and learned with true transition matrices."""

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.common.figure_files import save
from experiments.markov.config import Config
from mcl_jax.run import Run

MLE, MCL, THEORY = "tab:orange", "tab:blue", "0.25"


def draw(run: Run, config: Config, results: dict[str, Any]) -> None:
    """Writes figures/loss.png and figures/transitions.png."""
    save(losses(run, config, results), run.figure_path("loss.png"))
    save(transitions(results), run.figure_path("transitions.png"))


def losses(run: Run, config: Config, results: dict[str, Any]) -> plt.Figure:
    """Draws the validation loss over the steps for each method (mean over seeds, range shaded), and the theory."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    bounds = results["bounds"]
    axes.axhline(bounds["mle"], color=MLE, linestyle="--", label="MLE optimum")
    if bounds["mle_limited_memory"] is not None:
        axes.axhline(bounds["mle_limited_memory"], color=MLE, linestyle=":", label=f"MLE, last {config.memory} symbols")
    axes.axhspan(bounds["wta_lower"], bounds["wta_upper"], color=MCL, alpha=0.25, label="WTA band")
    for method, colour, label in [("mle", MLE, "LoRA-MLE, K=1"), ("mcl", MCL, f"LoRA-MCL, K={config.k}")]:
        lines = [run.lines(f"seed{seed}/{method}") for seed in config.seed]
        steps = [line["step"] for line in lines[0]]
        values = np.array([[line["eval_loss"] for line in seed] for seed in lines])
        axes.plot(steps, values.mean(0), color=colour, label=label)
        if len(values) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.3, linewidth=0)
    axes.set(xlabel="step", ylabel="validation loss (nats per predicted token)", xlim=(0, config.training.steps))
    uniform = np.log(len(results["targets"]["average"]))
    axes.set_ylim(bounds["wta_lower"] - 0.02, 1.05 * uniform)  # the first steps start far above
    seeds = f"{len(config.seed)} seeds" if len(config.seed) > 1 else f"seed {config.seed[0]}"
    axes.set_title(f"{len(config.chains)} chains, {results['objective']}, {seeds}", fontsize=10)
    axes.legend()
    return figure


def transitions(results: dict[str, Any]) -> plt.Figure:
    """Draws true matrices above learned ones.

    The upper row has the chains, their long-run average, and the best prediction of one model. The lower row has each
    hypothesis and the MLE model. All predictions follow a prompt of one symbol, which does not reveal the chain. There
    the best single model gives the mean of the chains, and not their average over the positions of a long sequence.
    """
    targets, learned = results["targets"], results["mcl"]["transition_matrices"]
    true = [
        *((f"chain {n + 1}", p) for n, p in enumerate(targets["transition_matrices"])),
        ("average,\nlong run", targets["average"]),
        ("best one model,\nafter one symbol", targets["first_transition"]),
    ]
    fitted = [
        *((f"hypothesis {k + 1}", p) for k, p in enumerate(learned)),
        ("LoRA-MLE", results["mle"]["transition_matrix"]),
    ]
    columns = max(len(true), len(fitted))
    figure, grid = plt.subplots(2, columns, figsize=(2.1 * columns, 4.6), layout="constrained", squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for row, matrices in zip(grid, (true, fitted), strict=True):
        # The best prediction of one model and the MLE model come last, one below the other.
        for axes, (title, matrix) in zip([*row[: len(matrices) - 1], row[-1]], matrices, strict=True):
            image = _matrix(axes, title, np.asarray(matrix))
    figure.colorbar(image, ax=grid, shrink=0.7, label="p(next symbol | symbol)")
    return figure


def _matrix(axes: plt.Axes, title: str, matrix: np.ndarray):
    axes.axis("on")
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)))
    if len(matrix) <= 6:
        for (i, j), value in np.ndenumerate(matrix):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.5 else "black")
    return image
