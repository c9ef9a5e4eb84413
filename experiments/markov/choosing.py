"""`python -m experiments.markov.choosing --workdir DIR`: what cheaper choices of winners cost on Markov chains.

A fixed set of sequences is visited again and again. Winners are chosen by the first tokens of a sequence alone or by
rounded logits, or they serve for several visits of it, or only those hypotheses compete that a selector takes for
likely; see `choose_fn`, `refresh` and `candidates` of `mcl_jax.make_train_step`. The hypotheses are chains themselves,
see `experiments.markov.tables`.
"""

import dataclasses
import functools
from dataclasses import field
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from experiments.common.options import COUNT, VOLATILE, Options, parse
from experiments.markov import theory
from experiments.markov.objectives import BATCH, LENGTH, Mixture, measured, mixtures, show
from experiments.markov.tables import train, transition_counts
from mcl_jax import objectives, selector
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.kept_winners import UNKNOWN
from mcl_jax.models.narrowed import Narrow
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
    dtypes: tuple[Narrow, ...] = get_args(Narrow)
    """Dtypes to which the logits are rounded that choose a winner; int8 has a scale for each symbol before."""
    refresh: tuple[int, ...] = (2, 4, 8, 16)
    """Numbers of visits that a winner serves."""
    candidates: tuple[int, ...] = (1, 2)
    """Numbers of hypotheses that compete once a selector is trained, where there are more hypotheses."""
    prompts: tuple[int, ...] = (8, 4, 2)
    """Numbers of transitions, of the 31 of a sequence, that the selector sees. Those after them are learned."""
    warmup: int = field(default=100, metadata=COUNT)
    """Number of steps in which all hypotheses compete, before the selector is trained on their winners."""
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
        if wrong := [n for n in self.prompts if not 1 <= n < LENGTH - 1]:
            raise ValueError(f"--prompts must be from 1 to {LENGTH - 2}, so that one is left to learn, got {wrong[0]}")
        if wrong := [n for n in self.candidates if n < 1]:
            raise ValueError(f"--candidates must be at least 1 hypothesis, got {wrong[0]}")
        if wrong := [n for n in self.refresh if n < 1]:
            raise ValueError(f"--refresh must be at least 1 visit, got {wrong[0]}")
        if self.sequences < BATCH:
            raise ValueError(f"--sequences must be at least {BATCH}, which is a batch, got {self.sequences}")

    @property
    def ways(self) -> dict[str, dict[str, Any]]:
        """The ways to choose by name, the usual one first."""
        first = {f"first-{n}": {"tokens": n} for n in self.tokens}
        rounded = {name: {"dtype": name} for name in self.dtypes}
        every = {f"every-{n}-visits": {"refresh": n} for n in self.refresh}
        told = {
            f"prompt-{n}" + ("" if m is None else f"-best-{m}"): {"prompt": n, "candidates": m}
            for n in self.prompts
            for m in (None, *self.candidates)
        }
        return {"each-visit": {}, **first, **rounded, **every, **told}

    def asks(self, way: str, mixture: str) -> bool:
        """Whether a way is another one for this mixture: it is not if all hypotheses are candidates."""
        return (self.ways[way].get("candidates") or 0) < mixtures()[mixture].k


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


class Likeliest:
    """The hypotheses that a selector takes for the likeliest of each sequence, from its prompt.

    The selector is trained after a warm-up, on the winners of the last visits of all sequences.

    Args:
      visits: number of each sequence of each step, [N, B].
      features: of the prompt of each sequence [S, M, D].
      number: m, how many of them compete.
      warmup: number of steps in which all compete.
    """

    def __init__(self, visits: np.ndarray, features: np.ndarray, number: int, warmup: int):
        self.visits, self.features, self.number, self.warmup = visits, features, number, warmup
        self.winner = np.full(features.shape[:2], UNKNOWN)
        self.chosen = None

    def __call__(self, step: int, log_p: np.ndarray) -> np.ndarray:
        """Returns which hypotheses compete [S, K, B]."""
        here = self.visits[step]
        if step < self.warmup:
            self.winner[:, here] = log_p.argmax(1)
            return np.ones_like(log_p, bool)
        if self.chosen is None:
            self.chosen = np.stack(
                [self._fitted(log_p.shape[1], *of) for of in zip(self.features, self.winner, strict=True)]
            )
        return self.chosen[:, :, here]

    def _fitted(self, k: int, features: np.ndarray, winner: np.ndarray) -> np.ndarray:
        """Trains the selector of one seed; returns which hypotheses compete for each sequence [K, M]."""
        known, weights = np.flatnonzero(winner != UNKNOWN), np.eye(k, dtype=np.float32)
        of = lambda places: selector.Examples(features[places], weights[winner[places]].T)
        held_out = known[::5]
        fitted = selector.fit(of(np.setdiff1d(known, held_out)), of(held_out))
        best = np.asarray(selector.choose(fitted.log_gamma(features), self.number))
        return (best[:, None] == np.arange(k)[None, :, None]).any(0)


def visits(sequences: int, steps: int) -> np.ndarray:
    """Returns the numbers of the sequences of each step [N, B]: a new order in each epoch."""
    rng, per_epoch = np.random.default_rng(0), sequences // BATCH * BATCH
    orders = [rng.permutation(sequences)[:per_epoch] for _ in range(-(-steps * BATCH // per_epoch))]
    return np.concatenate(orders)[: steps * BATCH].reshape(steps, BATCH)


def rounded(logits: np.ndarray, dtype: str | None) -> np.ndarray:
    """Rounds logits [..., V, V] to a dtype, for int8 as multiples of 1/127 of the largest in each row."""
    if dtype is None:
        return logits
    if dtype == "bfloat16":
        return logits.astype(jnp.bfloat16).astype(logits.dtype)
    scale = np.abs(logits).max(-1, keepdims=True) / 127
    return np.round(logits / scale) * scale


def learned(
    config: ChoosingConfig,
    mixture: Mixture,
    tokens: int = LENGTH - 1,
    dtype: str | None = None,
    refresh: int = 1,
    prompt: int = 0,
    candidates: int | None = None,
) -> np.ndarray:
    """Returns the tables of logits [S, K, V, V] after the training of each seed."""
    draw = lambda seed: theory.sample(mixture.chains, LENGTH, config.sequences, seed, mixture.prior)[0]
    sequences, num_symbols = np.stack([draw(seed) for seed in range(config.seeds)]), mixture.chains.shape[-1]
    seen, counts = visits(config.sequences, config.steps), functools.partial(transition_counts, num_symbols=num_symbols)
    admit = None
    if candidates is not None:
        features = counts(sequences[..., : prompt + 1]).reshape(*sequences.shape[:2], -1)
        admit = Likeliest(seen, features, candidates, config.warmup)
    logits = np.stack([mixture.start(seed) for seed in range(config.seeds)])
    return train(
        objectives.wta(),
        logits,
        counts(sequences[..., prompt:])[:, seen],
        config.learning_rate,
        choosing=counts(sequences[..., prompt : tokens + 1])[:, seen],
        rounded=functools.partial(rounded, dtype=dtype),
        admit=admit,
        keep=Kept(seen, refresh, config.seeds),
    )


def main(config: ChoosingConfig) -> None:
    """Measures all ways. Finished cells are kept in metrics.jsonl, so the sweep resumes at the next one."""
    with Run(config.workdir, config, volatile=config.volatile) as run:
        if run.finished:
            run.say_finished()
        else:
            learn = lambda way, m: functools.partial(learned, config, mixtures()[m], **config.ways[way])
            cell = lambda way, m: measured(run, config.steps, f"{m}/{way}", learn(way, m))
            asked = lambda way: [m for m in config.mixtures if config.asks(way, m)]
            run.finish({"ways": {way: {m: cell(way, m) for m in asked(way)} for way in config.ways}})
        show("winners chosen by", run.results()["ways"], config.mixtures)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(ChoosingConfig))
