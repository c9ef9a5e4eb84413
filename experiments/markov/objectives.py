"""`python -m experiments.markov.objectives --workdir DIR`: compares objectives on mixtures of Markov chains.

Each objective trains on each mixture from several seeds: chains that are equally frequent, or one of them much more
often than the others; chains that are nearly equal; more hypotheses than chains; and a hypothesis with a head start.
The hypotheses are chains themselves, see `experiments.markov.tables`, so that hundreds of runs take a minute.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from experiments.common.options import COUNT, VOLATILE, Options, parse
from experiments.markov import theory
from experiments.markov.candidates import candidates
from experiments.markov.collapse import DEAD, THREE_CHAINS
from experiments.markov.config import SETTINGS
from experiments.markov.tables import train, transition_counts
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say, table
from mcl_jax.json_io import read_json
from mcl_jax.run import Run

LENGTH, BATCH = 32, 32
TEST = 8000  # sequences on which the learned chains are scored
APART = 0.1  # standard deviation of logits at the start: under soft weights, equal hypotheses would never part
BEHIND = 6.0  # logit of symbol 0 in hypotheses that start far behind another
TITLES = {
    "excess": "Loss above that of the true chains, in thousandths of a nat per token",
    "purity": "Purity",
    "dead": "Number of dead hypotheses",
}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Chains, how frequent they are, and the hypotheses that learn them.

    Attributes:
      chains: [N, V, V].
      prior: [N], how frequent each chain is.
      k: number of hypotheses.
      ahead: whether hypothesis 0 starts as the average of the chains, and the others so that they are worse on every
        sequence. Otherwise all of them start nearly equal.
    """

    chains: np.ndarray
    prior: tuple[float, ...]
    k: int
    ahead: bool = False

    def start(self, seed: int) -> np.ndarray:
        """Returns the logits of the hypotheses at step 0 [K, V, V]."""
        num_symbols = self.chains.shape[-1]
        logits = APART * np.random.default_rng(seed).normal(size=(self.k, num_symbols, num_symbols))
        if self.ahead:
            logits[1:, :, 0] += BEHIND
            logits[0] = np.log(np.einsum("n,nij->ij", self.prior, self.chains))
        return logits


def _two(*probabilities: tuple[float, float]) -> np.ndarray:
    return np.array([[[1 - p, p], [q, 1 - q]] for p, q in probabilities])


@functools.cache
def mixtures() -> dict[str, Mixture]:
    """Returns the mixtures by name."""
    first, three = _two(*SETTINGS[1]), np.array(read_json(THREE_CHAINS))
    third = (1 / 3, 1 / 3, 1 / 3)
    return {
        "equal": Mixture(first, (0.5, 0.5), 2),
        "nine": Mixture(first, (0.9, 0.1), 2),
        "near": Mixture(_two((0.3, 0.5), (0.6, 0.5)), (0.5, 0.5), 2),
        "nine-ahead": Mixture(first, (0.9, 0.1), 2, ahead=True),
        "three": Mixture(three, third, 3),
        "eight": Mixture(three, (0.8, 0.1, 0.1), 3),
        "three-ahead": Mixture(three, third, 3, ahead=True),
        "extra": Mixture(first, (0.5, 0.5), 3),
    }


@dataclasses.dataclass(frozen=True)
class SweepConfig(Options):
    """Compares objectives on mixtures of Markov chains."""

    workdir: Path = field(metadata=VOLATILE)
    """Run directory. The same command again resumes the run."""
    objectives: tuple[str, ...] = tuple(candidates(1))
    """Objectives to compare."""
    mixtures: tuple[str, ...] = tuple(mixtures())
    """Mixtures to learn."""
    seeds: int = field(default=5, metadata=COUNT)
    """Number of random seeds; the first is 0."""
    steps: int = field(default=300, metadata=COUNT)
    """Number of training steps."""
    learning_rate: float = 0.05
    """Highest learning rate."""

    def __post_init__(self):
        self.check()


def training_counts(mixture: Mixture, seeds: int, steps: int) -> np.ndarray:
    """Returns the transition counts of the sequences of each seed and step [S, N, B, V, V]."""
    draw = lambda seed: theory.sample(mixture.chains, LENGTH, steps * BATCH, seed, mixture.prior)[0]
    sequences = np.stack([draw(seed).reshape(steps, BATCH, LENGTH) for seed in range(seeds)])
    return transition_counts(sequences, mixture.chains.shape[-1])


@functools.cache
def test_counts(name: str) -> np.ndarray:
    """Returns the transition counts of fresh sequences of each chain [N, TEST / N, V, V]."""
    chains = mixtures()[name].chains
    draw = lambda n: theory.sample(chains[n][None], LENGTH, TEST // len(chains), TEST + n)[0]
    return transition_counts(np.stack([draw(n) for n in range(len(chains))]), chains.shape[-1])


def scores(name: str, logits: np.ndarray) -> dict[str, Any]:
    """Returns what K tables of logits [K, V, V] are worth on fresh sequences, as many from each chain.

    `excess` is the loss above that of the true chains on the same sequences, in nats per token, where each chain counts
    as often as in training. `purity` counts all chains alike: the share of sequences whose chain is the most frequent
    one among those that their hypothesis won.
    """
    mixture, counts, k = mixtures()[name], test_counts(name), len(logits)
    log_p, truth = (np.einsum("nbij,kij->nkb", counts, x) for x in (log_softmax(logits, -1), np.log(mixture.chains)))
    gaps, winner = (truth.max(1) - log_p.max(1)).mean(-1), log_p.argmax(1)
    win_matrix = (winner[..., None] == np.arange(k)).mean(1)
    prior = np.array(mixture.prior)
    return {
        "excess": float(prior @ gaps),
        "purity": float(win_matrix.max(0).sum() / len(prior)),
        "dead": int((prior @ win_matrix < DEAD).sum()),
        "win_matrix": win_matrix,
    }


def measured(run: Run, steps: int, tag: str, learn: Callable[[], np.ndarray]) -> list[dict[str, Any]]:
    """Returns the scores of each seed, from the run's records if it has them.

    Args:
      run: the run.
      steps: number of training steps.
      tag: "MIXTURE/NAME" of the cell.
      learn: trains, and returns the tables of logits [S, K, V, V].
    """
    if done := run.lines(tag):
        return done[-1]["result"]
    if run.stop_requested:
        run.stop()
    result = [scores(tag.split("/")[0], one) for one in learn()]
    run.log(steps, {"result": result}, tag=tag)
    say(f"{tag}: " + "  ".join(f"{key} {spread(result, key)}" for key in TITLES))
    return result


def show(what: str, results: dict[str, dict[str, list[dict[str, Any]]]], names: Sequence[str]) -> None:
    """Prints a table for each score: a row for each `what`, and a column for each mixture."""
    for score, title in TITLES.items():
        rows = [
            [name, *(spread(by[mixture], score) if mixture in by else "–" for mixture in names)]
            for name, by in results.items()
        ]
        table(title, [what, *names], rows)


def learned(config: SweepConfig, name: str, mixture_name: str) -> np.ndarray:
    """Returns the tables of logits [S, K, V, V] that an objective learns from each seed."""
    mixture = mixtures()[mixture_name]
    logits = np.stack([mixture.start(seed) for seed in range(config.seeds)])
    counts = training_counts(mixture, config.seeds, config.steps)
    return train(candidates(config.steps)[name], logits, counts, config.learning_rate)


def spread(runs: list[dict[str, Any]], name: str) -> str:
    """Returns mean ± sample standard deviation over seeds; excess losses are in thousandths of a nat."""
    values = np.array([run[name] for run in runs]) * (1000 if name == "excess" else 1)
    digits = {"excess": 1, "purity": 3, "dead": 1}[name]
    return f"{values.mean():.{digits}f} ± {values.std(ddof=min(1, len(values) - 1)):.{digits}f}"


def main(config: SweepConfig) -> None:
    """Runs the whole sweep. Finished cells are kept in metrics.jsonl, so the sweep resumes at the next one."""
    with Run(config.workdir, config, volatile=config.volatile) as run:
        if run.finished:
            run.say_finished()
        else:
            cell = lambda n, m: measured(run, config.steps, f"{m}/{n}", functools.partial(learned, config, n, m))
            run.finish({"objectives": {n: {m: cell(n, m) for m in config.mixtures} for n in config.objectives}})
        show("objective", run.results()["objectives"], config.mixtures)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(SweepConfig))
