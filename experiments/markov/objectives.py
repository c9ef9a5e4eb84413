"""`python -m experiments.markov.objectives --workdir DIR`: compares objectives on mixtures of Markov chains.

Each objective trains on each mixture from several seeds: chains that are equally frequent, or one of them much more
often than the others; chains that are nearly equal; more hypotheses than chains; and a hypothesis with a head start.
The base is so small that hundreds of runs take minutes: a frozen network that sees one symbol, with LoRA adapters.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcl_jax as mcl
from experiments.common.options import COUNT, VOLATILE, Options, parse
from experiments.markov import theory
from experiments.markov.collapse import DEAD, THREE_CHAINS
from experiments.markov.config import SETTINGS
from experiments.markov.training import ADAPTERS, BASE, DATA, STEPS, sample_mixture, stream, to_numpy
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import say, table
from mcl_jax.json_io import read_json
from mcl_jax.lora import LoraConfig
from mcl_jax.run import Run
from mcl_jax.training import Update

LENGTH, BATCH, TEST = 32, 32, 8000
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
      ahead: number of steps that hypothesis 0 has learned alone, from all sequences, before the training.
    """

    chains: np.ndarray
    prior: tuple[float, ...]
    k: int
    ahead: int = 0


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
        "nine-ahead": Mixture(first, (0.9, 0.1), 2, ahead=100),
        "three": Mixture(three, third, 3),
        "eight": Mixture(three, (0.8, 0.1, 0.1), 3),
        "three-ahead": Mixture(three, third, 3, ahead=100),
        "extra": Mixture(three, third, 5),
    }


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An objective, and what a run with it does besides.

    Attributes:
      objective: the objective.
      backward: as in `mcl.make_train_step`.
      restarts: whether dead hypotheses start again from the winner's adapters with noise.
    """

    objective: mcl.objectives.Objective
    backward: str = "all"
    restarts: bool = False


@dataclasses.dataclass(frozen=True)
class Fading(mcl.objectives.BalancedWTA):
    """Balanced, where rate and bias fall linearly, and are zero from `release_step` on."""

    def next_state(self, state, win_rate, step):
        left = lambda at: jnp.maximum(1.0 - at / self.release_step, 0.0)
        here = left(step)
        moved = state + here * self.rate * (1.0 / win_rate.size - win_rate)
        return moved * left(step + 1) / jnp.maximum(here, 1e-6)


@dataclasses.dataclass(frozen=True)
class FadingRelaxed(mcl.objectives.RelaxedWTA):
    """Relaxed, where ε falls linearly, and is zero from `release_step` on."""

    release_step: int = 1

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        left = jnp.maximum(1.0 - step / self.release_step, 0.0).astype(jnp.float32)
        hard = mcl.objectives.wta().weights(log_likelihood, step, None, rng)
        return left * super().weights(log_likelihood, step, state, rng) + (1.0 - left) * hard


def candidates(steps: int) -> dict[str, Candidate]:
    """Returns the objectives by name, for a training of `steps` steps."""
    o, half = mcl.objectives, steps // 2
    cooling = optax.exponential_decay(1.0, 1, 0.98)
    return {
        "wta": Candidate(o.wta()),
        "relaxed": Candidate(o.relaxed_wta(0.05)),
        "relaxed-fading": Candidate(FadingRelaxed(0.2, release_step=half)),
        "annealed": Candidate(o.annealed(cooling)),
        "annealed-drawn": Candidate(o.annealed(cooling), "sampled"),
        "mixture": Candidate(o.mixture()),
        "balanced": Candidate(o.balanced_wta(rate=0.05)),
        "balanced-released": Candidate(o.balanced_wta(rate=0.05, release_step=half)),
        "balanced-fading": Candidate(Fading(rate=0.05, release_step=half)),
        "balanced-learned-weak": Candidate(o.balanced_wta(rate=0.01, decay=0.1)),
        "balanced-learned-strong": Candidate(o.balanced_wta(rate=0.05, decay=0.1)),
        "restarts": Candidate(o.wta(), restarts=True),
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


# --- Training -------------------------------------------------------------------------------------------------------


class OneSymbol(nn.Module):
    """A network that predicts the next symbol from the last one."""

    num_symbols: int

    @nn.compact
    def __call__(self, symbols):
        hidden = nn.Embed(self.num_symbols, 16, embedding_init=nn.initializers.normal(1.0))(symbols)
        return nn.Dense(self.num_symbols, name="head")(nn.gelu(nn.Dense(32, name="up")(hidden)))


LORA = LoraConfig(rank=4, alpha=8.0, targets=("up", "head"))


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains K hypotheses; one compiled function serves all mixtures of the same shape, and all seeds at once.

    Attributes:
      candidate: the objective.
      optimizer: the optimizer.
      steps: number of steps.
    """

    candidate: Candidate
    optimizer: optax.GradientTransformation
    steps: int

    @partial(jax.jit, static_argnums=(0, 4, 5))
    def __call__(self, seeds, chains, prior, k: int, ahead: int):
        """Returns the learned transition matrices [S, K, V, V]."""
        return jax.vmap(lambda seed: self._one(seed, chains, prior, k, ahead))(seeds)

    def _one(self, seed, chains, prior, k, ahead):
        hypotheses, symbols = mcl.Hypotheses(OneSymbol(chains.shape[-1]), LORA), jnp.arange(chains.shape[-1])
        params = hypotheses.module.init(stream(seed, BASE), symbols)["params"]
        adapters = hypotheses.init(stream(seed, ADAPTERS), params, symbols, num_hypotheses=k)
        if ahead:
            first = jax.tree.map(lambda x: x[:1], adapters)
            alone = Candidate(mcl.objectives.mle())
            first = self._train(alone, hypotheses, params, first, seed, chains, prior, ahead, DATA + 100)
            adapters = jax.tree.map(lambda every, one: every.at[:1].set(one), adapters, first)
        adapters = self._train(self.candidate, hypotheses, params, adapters, seed, chains, prior, self.steps, DATA)
        return jax.nn.softmax(hypotheses.apply_all(params, adapters, symbols), axis=-1)

    def _train(self, candidate, hypotheses, params, adapters, seed, chains, prior, steps, data):
        def log_likelihood(params, adapters_k, tokens, rng):
            table = jax.nn.log_softmax(hypotheses.apply(params, adapters_k, jnp.arange(chains.shape[-1])))
            return table[tokens[:, :-1], tokens[:, 1:]].sum(-1), jnp.full(len(tokens), LENGTH - 1)

        objective = candidate.objective
        update = Update(log_likelihood, objective, self.optimizer, candidate.backward)
        create = partial(mcl.TrainState.create, optimizer=self.optimizer, rng=stream(seed, STEPS), objective=objective)

        def step(carry, _):
            state, rate = carry
            key = jax.random.fold_in(stream(seed, data), state.step)
            state, metrics = update(params, state, sample_mixture(key, chains, BATCH, LENGTH, prior)[0])
            rate = 0.95 * rate + 0.05 * metrics["win_rate"]
            return restarted(state, rate, key, self.optimizer) if candidate.restarts else (state, rate), None

        k = mcl.hypotheses.count(adapters)
        carry = create(params=None, adapters=adapters), jnp.full(k, 1.0 / k)
        return jax.lax.scan(step, carry, None, length=steps)[0][0].adapters


def restarted(state, rate, key, optimizer, noise: float = 0.1):
    """Gives hypotheses that win less than a twentieth of 1/K the adapters and moments of the winner, with noise.

    Returns the state, and the running win rates [K] with 1/K for those that start again.
    """
    k = rate.size
    dead = rate < 0.05 / k
    source = jnp.where(dead, jnp.argmax(rate), jnp.arange(k))
    leaves, tree = jax.tree.flatten(state.adapters)
    keys = jax.random.split(key, len(leaves))

    def noisy(leaf, key):
        each = dead.reshape(-1, *[1] * (leaf.ndim - 1))
        copied = leaf[source]
        return copied + jnp.where(each, noise * copied.std() * jax.random.normal(key, leaf.shape), 0.0)

    adapters = tree.unflatten([noisy(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])
    opt_state = optax.tree.map_params(optimizer, lambda x: x[source], state.opt_state)
    return state.replace(adapters=adapters, opt_state=opt_state), jnp.where(dead, 1.0 / k, rate)


# --- Evaluation -----------------------------------------------------------------------------------------------------


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


def measured(config: SweepConfig, run: Run, name: str, mixture_name: str, train: Callable[..., Any]) -> list[Any]:
    """Returns the scores of each seed, from the run's records if it has them."""
    tag = f"{mixture_name}/{name}"
    if done := run.lines(tag):
        return done[-1]["result"]
    if run.stop_requested:
        run.stop()
    mixture, seeds = mixtures()[mixture_name], jnp.arange(config.seeds)
    chains, prior = jnp.asarray(mixture.chains, jnp.float32), jnp.asarray(mixture.prior, jnp.float32)
    learned = to_numpy(train(seeds, chains, prior, mixture.k, mixture.ahead)).astype(np.float64)
    learned /= learned.sum(-1, keepdims=True)
    result = [scores(mixture, one) for one in learned]
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
            results = {}
            for name in config.objectives:
                train = Trainer(candidates(config.steps)[name], config.optimizer(), config.steps)
                results[name] = {m: measured(config, run, name, m, train) for m in config.mixtures}
                jax.clear_caches()
            run.finish({"objectives": results})
        results = run.results()["objectives"]
        for score, title in TITLES.items():
            rows = [[name, *(spread(by[m], score) for m in config.mixtures)] for name, by in results.items()]
            table(title, ["objective", *config.mixtures], rows)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(SweepConfig))
