"""`python -m experiments.markov.choosing --workdir DIR`: what cheaper choices of winners cost on Markov chains.

A fixed set of sequences is visited again and again. Winners are chosen by the first tokens of a sequence alone, or they
serve for several visits of it; see `choose_fn` and `refresh` of `mcl_jax.make_train_step`. The hypotheses are chains
themselves, see `experiments.markov.tables`.
"""

import dataclasses
import functools
from dataclasses import field
from pathlib import Path

import numpy as np

from experiments.common.options import COUNT, VOLATILE, Options, parse
from experiments.markov import theory
from experiments.markov.objectives import BATCH, LENGTH, Mixture, measured, mixtures, show
from experiments.markov.tables import train, transition_counts
from mcl_jax import objectives
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.kept_winners import UNKNOWN
from mcl_jax.run import Run


@dataclasses.dataclass(frozen=True)
class ChoosingConfig(Options):
    """Measures what cheaper choices of winners cost on mixtures of Markov chains, with winner-takes-all."""

    workdir: Path = field(metadata=VOLATILE)
    """Run directory."""
    mixtures: tuple[str, ...] = ("equal", "nine", "near", "three")
    """Mixtures to learn."""
    tokens: tuple[int, ...] = (16, 8, 4, 2, 1)
    """Numbers of transitions, of the 31 of a sequence, that choose its winner."""
    refresh: tuple[int, ...] = (2, 4, 8, 16)
    """Numbers of visits that a winner serves."""
    sequences: int = field(default=512, metadata=COUNT)
    """Number of training sequences of each seed."""
    seeds: int = field(default=5, metadata=COUNT)
    """Number of random seeds; the first is 0."""
    steps: int = field(default=300, metadata=COUNT)
    """Number of training steps, with batches of 32 sequences."""
    learning_rate: float = 0.05
    """Highest learning rate."""

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        super().check()
        if unknown := [name for name in self.mixtures if name not in mixtures()]:
            raise ValueError(f"--mixtures must be among {', '.join(mixtures())}, got {unknown[0]}")
        if wrong := [n for n in self.tokens if not 1 <= n < LENGTH]:
            raise ValueError(f"--tokens must be from 1 to {LENGTH - 1}, the transitions of a sequence, got {wrong[0]}")
        if wrong := [n for n in self.refresh if n < 1]:
            raise ValueError(f"--refresh must be at least 1 visit, got {wrong[0]}")
        if self.sequences < BATCH:
            raise ValueError(f"--sequences must be at least {BATCH}, which is a batch, got {self.sequences}")

    @property
    def ways(self) -> dict[str, dict[str, int]]:
        """The ways to choose by name, the usual one first."""
        first = {f"first-{n}": {"tokens": n} for n in self.tokens}
        return {"each-visit": {}, **first, **{f"every-{n}-visits": {"refresh": n} for n in self.refresh}}


class Kept:
    """Winners that serve for several visits, by the rule of `mcl_jax.kept_winners`.

    Args:
      visits: number of each sequence of each step, [N, B].
      refresh: number of visits that a winner serves.
      seeds: number of seeds, S.
    """

    def __init__(self, visits: np.ndarray, refresh: int, seeds: int):
        self.visits, self.refresh = visits, refresh
        self.winner = np.full((seeds, visits.max() + 1), UNKNOWN)
        self.age = np.zeros_like(self.winner)

    def __call__(self, step: int, q: np.ndarray) -> np.ndarray:
        """Returns the weights of a step [S, K, B]: q, where its winners are due, and else those of the kept winners."""
        here = self.visits[step]
        winner, age = self.winner[:, here], self.age[:, here]
        due = ((winner == UNKNOWN).any(1) | (age.mean(1) >= self.refresh))[:, None]
        self.winner[:, here] = np.where(due, q.argmax(1), winner)
        self.age[:, here] = np.where(due, 1, age + 1)
        return (self.winner[:, None, here] == np.arange(q.shape[1])[:, None]).astype(q.dtype)


def visits(sequences: int, steps: int) -> np.ndarray:
    """Returns the numbers of the sequences of each step [N, B]: a new order in each epoch."""
    rng, per_epoch = np.random.default_rng(0), sequences // BATCH * BATCH
    orders = [rng.permutation(sequences)[:per_epoch] for _ in range(-(-steps * BATCH // per_epoch))]
    return np.concatenate(orders)[: steps * BATCH].reshape(steps, BATCH)


def learned(config: ChoosingConfig, mixture: Mixture, tokens: int = LENGTH - 1, refresh: int = 1) -> np.ndarray:
    """Returns the tables of logits [S, K, V, V] after the training of each seed."""
    draw = lambda seed: theory.sample(mixture.chains, LENGTH, config.sequences, seed, mixture.prior)[0]
    sequences, num_symbols = np.stack([draw(seed) for seed in range(config.seeds)]), mixture.chains.shape[-1]
    seen = visits(config.sequences, config.steps)
    counts, first = (transition_counts(x, num_symbols)[:, seen] for x in (sequences, sequences[..., : tokens + 1]))
    logits, keep = np.stack([mixture.start(seed) for seed in range(config.seeds)]), Kept(seen, refresh, config.seeds)
    return train(objectives.wta(), logits, counts, config.learning_rate, choosing=first, keep=keep)


def main(config: ChoosingConfig) -> None:
    """Measures all ways. Finished cells are kept in metrics.jsonl, so the sweep resumes at the next one."""
    with Run(config.workdir, config, volatile=config.volatile) as run:
        if run.finished:
            run.say_finished()
        else:
            learn = lambda way, m: functools.partial(learned, config, mixtures()[m], **config.ways[way])
            cell = lambda way, m: measured(run, config.steps, f"{m}/{way}", learn(way, m))
            run.finish({"ways": {way: {m: cell(way, m) for m in config.mixtures} for way in config.ways}})
        show("winners chosen by", run.results()["ways"], config.mixtures)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(ChoosingConfig))
