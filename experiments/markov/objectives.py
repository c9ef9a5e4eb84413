"""`python -m experiments.markov.objectives --workdir DIR`: compares objectives on mixtures of Markov chains.

Each objective trains on each mixture from several seeds: chains that are equally frequent, or one of them much more
often than the others; chains that are nearly equal; more hypotheses than chains; and a hypothesis with a head start.
The base is so small that hundreds of runs take minutes: a frozen network that sees one symbol, with LoRA adapters.
"""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import mcl_jax as mcl
from experiments.common.options import COUNT, VOLATILE, Options, parse
from experiments.markov import theory
from experiments.markov.candidates import Candidate, candidates
from experiments.markov.collapse import DEAD, THREE_CHAINS
from experiments.markov.config import SETTINGS
from experiments.markov.one_symbol import BATCH, LENGTH, Trainer, behind, start, with_one_ahead
from experiments.markov.training import to_numpy
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say, table
from mcl_jax.json_io import read_json
from mcl_jax.run import Run

TEST = 8000  # sequences on which the learned chains are scored
AHEAD = 100  # steps of a head start
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
      ahead: whether hypothesis 0 has learned alone before the training, while the base is bad at every sequence.
    """

    chains: np.ndarray
    prior: tuple[float, ...]
    k: int
    ahead: bool = False


def _two(*probabilities: tuple[float, float]) -> np.ndarray:
    return np.array([[[1 - p, p], [q, 1 - q]] for p, q in probabilities])


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
        "extra": Mixture(three, third, 5),
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
    learning_rate: float = 1e-2
    """Highest learning rate."""

    def __post_init__(self):
        self.check()

    def optimizer(self) -> optax.GradientTransformation:
        """Makes AdamW with a cosine schedule after a warm-up of a tenth of the steps."""
        warmup = max(self.steps // 10, 1)
        rates = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, max(self.steps, warmup + 1))
        return optax.adamw(rates, b2=0.95, weight_decay=1e-3)


def scores(mixture: Mixture, learned: np.ndarray) -> dict[str, Any]:
    """Returns what K learned chains [K, V, V] are worth on fresh sequences, as many from each chain.

    `excess` is the loss above that of the true chains on the same sequences, in nats per token, where each chain counts
    as often as in training. `purity` counts all chains alike: the mean over chains of the share that goes to hypotheses
    which win more of this chain than of any other.
    """
    n, gaps, won = len(mixture.chains), [], []
    for index, chain in enumerate(mixture.chains):
        sequences, _ = theory.sample(chain[None], LENGTH, TEST // n, index)
        log_p, truth = (theory.log_likelihood(c, sequences) for c in (learned, mixture.chains))
        gaps.append((truth.max(0) - log_p.max(0)).mean() / (LENGTH - 1))
        won.append(np.bincount(log_p.argmax(0), minlength=len(learned)) * n / TEST)
    win_matrix, prior = np.array(won), np.array(mixture.prior)
    win_rate = prior @ win_matrix
    return {
        "excess": float(prior @ gaps),
        "purity": float(win_matrix.max(0).sum() / n),
        "dead": int((win_rate < DEAD).sum()),
        "win_matrix": win_matrix,
    }


def starts(config: SweepConfig, optimizer: optax.GradientTransformation, mixture: Mixture) -> tuple[Any, ...]:
    """Returns seeds, bases, hypotheses and sequences, which all objectives share."""
    seeds = jnp.arange(config.seeds)
    params, adapters = start(seeds, mixture.chains.shape[-1], mixture.k)
    draw = lambda seed: theory.sample(mixture.chains, LENGTH, config.steps * BATCH, seed, mixture.prior)[0]
    tokens = jnp.asarray(np.stack([draw(seed) for seed in range(config.seeds)]), jnp.int32)
    tokens = tokens.reshape(config.seeds, config.steps, BATCH, LENGTH)
    if mixture.ahead:
        params, alone = behind(params), Trainer(Candidate(mcl.objectives.mle()), optimizer)
        adapters = with_one_ahead(alone, seeds, params, adapters, tokens[:, ::-1][:, :AHEAD])
    return seeds, params, adapters, tokens


def measured(config: SweepConfig, run: Run, name: str, mixture_name: str, train: Trainer, given: Any) -> list[Any]:
    """Returns the scores of each seed, from the run's records if it has them."""
    tag = f"{mixture_name}/{name}"
    if done := run.lines(tag):
        return done[-1]["result"]
    if run.stop_requested:
        run.stop()
    learned = to_numpy(train(*given)[1]).astype(np.float64)
    result = [scores(mixtures()[mixture_name], one / one.sum(-1, keepdims=True)) for one in learned]
    run.log(config.steps, {"result": result}, tag=tag)
    say(f"{tag}: " + "  ".join(f"{key} {spread(result, key)}" for key in ("excess", "purity", "dead")))
    return result


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
            optimizer, results = config.optimizer(), {}
            given = {name: starts(config, optimizer, mixtures()[name]) for name in config.mixtures}
            for name in config.objectives:
                train = Trainer(candidates(config.steps)[name], optimizer)
                results[name] = {m: measured(config, run, name, m, train, given[m]) for m in config.mixtures}
                run.finish({"objectives": results})
        results = run.results()["objectives"]
        for score, title in TITLES.items():
            rows = [[name, *(spread(by[m], score) for m in config.mixtures)] for name, by in results.items()]
            table(title, ["objective", *config.mixtures], rows)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(SweepConfig))
