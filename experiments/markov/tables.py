"""K hypotheses that are Markov chains themselves, each a table of logits: trained in NumPy, all seeds at once.

The gradient has a closed form, so that only the objective is compiled, and a run of hundreds of steps takes a fraction
of a second.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mcl_jax.objectives import Objective

BETA1, BETA2, TINY = 0.9, 0.95, 1e-8  # of Adam


@partial(jax.jit, static_argnums=0)
def shares(objective: Objective, log_p: Float[Array, "S K B"], step: Int[Array, ""], state: Any, rng: Key[Array, " S"]):
    """Returns the weights q [S, K, B] and the next state of the objective, of each seed."""

    def one(log_p, state, rng):
        _, aux = objective(log_p, step, state, jax.random.fold_in(rng, step))
        return aux.weights, aux.state

    return jax.vmap(one)(log_p, state, rng)


def transition_counts(sequences: np.ndarray, num_symbols: int) -> np.ndarray:
    """Returns how often each symbol follows each in sequences [..., T]: shares [..., V, V] that sum to 1."""
    hot = np.eye(num_symbols, dtype=np.float32)[sequences]
    return np.einsum("...ti,...tj->...ij", hot[..., :-1, :], hot[..., 1:, :]) / (sequences.shape[-1] - 1)


def schedule(step: int, steps: int) -> float:
    """Returns the factor of the learning rate: a linear warm-up over a tenth of the steps, then half a cosine to 0."""
    warmup = max(steps // 10, 1)
    return step / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def train(
    objective: Objective,
    logits: np.ndarray,
    counts: np.ndarray,
    learning_rate: float,
    *,
    choosing: np.ndarray | None = None,
    rounded: Callable[[np.ndarray], np.ndarray] = lambda logits: logits,
    admit: Callable[[int, np.ndarray], np.ndarray] | None = None,
    keep: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Trains tables of logits [S, K, V, V] on transition counts [S, N, B, V, V] in N steps; returns the tables.

    Adam with a cosine schedule after a warm-up of a tenth of the steps minimises nats per token.

    Args:
      objective: the objective.
      logits: the tables at the start, of each seed.
      counts: the sequences of each seed and step.
      learning_rate: highest learning rate.
      choosing: counts of what the objective compares the hypotheses by; by default the sequences themselves.
      rounded: takes the logits, and returns those that the objective compares the hypotheses by; the same by default.
      admit: takes the number of a step and log p [S, K, B], and returns which hypotheses compete, as booleans; all by
        default.
      keep: takes the number of a step and its weights q [S, K, B], and returns those to use in their place.
    """
    (seeds, k), (steps, batch) = logits.shape[:2], counts.shape[1:3]
    flat = counts.reshape(seeds, steps, batch, -1)
    compared = flat if choosing is None else choosing.reshape(flat.shape)
    state = jax.tree.map(lambda x: jnp.stack([x] * seeds), objective.init(k))
    rng = jax.random.split(jax.random.key(0), seeds)
    mean, square = np.zeros_like(logits), np.zeros_like(logits)
    for step in range(steps):
        log_p = _normalized(logits)
        likelihood = _normalized(rounded(logits)).reshape(seeds, k, -1).astype(np.float32) @ compared[:, step].swapaxes(
            1, 2
        )
        if admit is not None:
            likelihood = np.where(admit(step, likelihood), likelihood, -np.inf)
        q, state = shares(objective, likelihood, np.int32(step), state, rng)
        q = np.asarray(q) if keep is None else keep(step, np.asarray(q))
        learned = (q @ flat[:, step]).reshape(logits.shape) / batch
        gradient = learned.sum(-1, keepdims=True) * np.exp(log_p) - learned
        mean, square = BETA1 * mean + (1 - BETA1) * gradient, BETA2 * square + (1 - BETA2) * gradient**2
        sizes = np.sqrt(square / (1 - BETA2 ** (step + 1))) + TINY
        logits = logits - learning_rate * schedule(step, steps) * mean / (1 - BETA1 ** (step + 1)) / sizes
    return logits


def _normalized(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
