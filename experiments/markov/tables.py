"""K hypotheses that are Markov chains themselves, each a table of logits: trained in NumPy, all seeds at once.

The gradient has a closed form, so that only the objective is compiled, and a run of hundreds of steps takes a fraction
of a second.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from experiments.markov.candidates import Candidate

BETA1, BETA2, TINY = 0.9, 0.95, 1e-8  # of Adam
MEMORY = 0.95  # of the running win rate that tells whether a hypothesis is dead
NOISE = 0.3  # standard deviation of the logits of a hypothesis that starts again


@partial(jax.jit, static_argnums=0)
def shares(candidate: Candidate, log_p: Float[Array, "S K B"], step: Int[Array, ""], state: Any, rng: Key[Array, " S"]):
    """Returns the weights q [S, K, B], the win rates [S, K] and the next state of the objective, of each seed."""
    objective, k = candidate.objective, log_p.shape[1]

    def one(log_p, state, rng):
        tie, draw = jax.random.split(jax.random.fold_in(rng, step))
        q = objective.weights(log_p, step, state, tie)
        if candidate.drawn:
            q = jax.nn.one_hot(jax.random.categorical(draw, jnp.log(q), axis=0), k, axis=0)
        win_rate = jax.nn.one_hot(objective.assign(log_p, state, tie), k).mean(0)
        return q, win_rate, objective.next_state(state, win_rate, step)

    return jax.vmap(one)(log_p, state, rng)


def transition_counts(sequences: np.ndarray, num_symbols: int) -> np.ndarray:
    """Returns how often each symbol follows each in sequences [..., T]: shares [..., V, V] that sum to 1."""
    hot = np.eye(num_symbols, dtype=np.float32)[sequences]
    return np.einsum("...ti,...tj->...ij", hot[..., :-1, :], hot[..., 1:, :]) / (sequences.shape[-1] - 1)


def schedule(step: int, steps: int) -> float:
    """Returns the factor of the learning rate: a linear warm-up over a tenth of the steps, then half a cosine to 0."""
    warmup = max(steps // 10, 1)
    return step / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def train(candidate: Candidate, logits: np.ndarray, counts: np.ndarray, learning_rate: float) -> np.ndarray:
    """Trains tables of logits [S, K, V, V] on transition counts [S, N, B, V, V] in N steps; returns the tables.

    Adam with a cosine schedule after a warm-up of a tenth of the steps minimises nats per token.
    """
    (seeds, k), (steps, batch) = logits.shape[:2], counts.shape[1:3]
    flat = counts.reshape(seeds, steps, batch, -1)
    state = jax.tree.map(lambda x: jnp.stack([x] * seeds), candidate.objective.init(k))
    rng, noise = jax.random.split(jax.random.key(0), seeds), np.random.default_rng(0)
    mean, square, running = np.zeros_like(logits), np.zeros_like(logits), np.full((seeds, k), 1.0 / k)
    for step in range(steps):
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        likelihood = log_p.reshape(seeds, k, -1).astype(np.float32) @ flat[:, step].swapaxes(1, 2)
        q, win_rate, state = shares(candidate, likelihood, np.int32(step), state, rng)
        learned = (np.asarray(q) @ flat[:, step]).reshape(logits.shape) / batch
        gradient = learned.sum(-1, keepdims=True) * np.exp(log_p) - learned
        mean, square = BETA1 * mean + (1 - BETA1) * gradient, BETA2 * square + (1 - BETA2) * gradient**2
        sizes = np.sqrt(square / (1 - BETA2 ** (step + 1))) + TINY
        logits = logits - learning_rate * schedule(step, steps) * mean / (1 - BETA1 ** (step + 1)) / sizes
        if candidate.restarts:
            running = MEMORY * running + (1 - MEMORY) * np.asarray(win_rate)
            (logits, mean, square), running = restarted((logits, mean, square), running, noise)
    return logits


def restarted(tables: tuple[np.ndarray, ...], running: np.ndarray, noise: np.random.Generator):
    """Gives hypotheses that win less than a twentieth of 1/K the logits and the moments of the winner, with noise.

    Returns logits, moments, and the running win rates [S, K], 1/K for those that start again.
    """
    seeds, k = running.shape
    dead = running < 0.05 / k
    source, each = np.where(dead, running.argmax(1)[:, None], np.arange(k)), np.arange(seeds)[:, None]
    logits, *moments = (x[each, source] for x in tables)
    logits = logits + NOISE * noise.normal(size=logits.shape) * dead[..., None, None]
    return (logits, *moments), np.where(dead, 1.0 / k, running)
