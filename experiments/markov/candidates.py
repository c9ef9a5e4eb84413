"""The objectives that are compared: those of the library, and others that were thought of."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mcl_jax import objectives


@dataclasses.dataclass(frozen=True)
class Drawn(objectives.Annealed):
    """The winner of each example is drawn from softmax_k(log p(x | θ_k) / τ(step))."""

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        q = super().weights(log_likelihood, step, state, rng)
        drawn = jax.random.categorical(jax.random.fold_in(rng, 1), jnp.log(q), axis=0)
        return jax.nn.one_hot(drawn, len(q), axis=0, dtype=q.dtype)


@dataclasses.dataclass(frozen=True)
class AnnealedPrior(objectives.Annealed):
    """q ∝ r_k exp(log p(x | θ_k) / τ(step)), where r is a running average of the win rates."""

    newest: float = 0.05

    def init(self, num_hypotheses):
        return jnp.full(num_hypotheses, 1 / num_hypotheses)

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        q = super().weights(log_likelihood, step, state, rng) * state[:, None]
        return q / q.sum(0, keepdims=True)

    def next_state(self, state, win_rate, step):
        return (1 - self.newest) * state + self.newest * win_rate


@dataclasses.dataclass(frozen=True)
class AnnealedBalance(objectives.BalancedWTA):
    """q = softmax_k((log p(x | θ_k) + b_k) / τ(step)), with the bias b of the balanced objective."""

    soft: objectives.Annealed = dataclasses.field(default_factory=objectives.Annealed)

    def is_hard(self, num_hypotheses):
        return False

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        return self.soft.weights(log_likelihood + state[:, None], step, None, rng)


@dataclasses.dataclass(frozen=True)
class FadingBalance(objectives.BalancedWTA):
    """The balanced objective with a rate that falls linearly to 0 at step `steps`; the bias stays."""

    steps: int = 1

    def next_state(self, state, win_rate, step):
        left = jnp.maximum(0.0, 1.0 - (step + 1) / self.steps)
        return state + left * (super().next_state(state, win_rate, step) - state)


def candidates(steps: int) -> dict[str, objectives.Objective]:
    """Returns the objectives by name, for a training of `steps` steps."""
    cooling, half = optax.exponential_decay(1.0, 1, 0.98), steps // 2
    return {
        "wta": objectives.wta(),
        "relaxed": objectives.relaxed_wta(0.05),
        "relaxed-fading": objectives.relaxed_wta(optax.linear_schedule(0.2, 0.0, half)),
        "relaxed-fading-small": objectives.relaxed_wta(optax.linear_schedule(0.05, 0.0, half)),
        "annealed": objectives.annealed(cooling),
        "annealed-prior": AnnealedPrior(cooling),
        "annealed-balanced": AnnealedBalance(rate=0.05, soft=objectives.annealed(cooling)),
        "drawn": Drawn(cooling),
        "mixture": objectives.mixture(),
        "balanced": objectives.balanced_wta(rate=0.05),
        "balanced-released": objectives.balanced_wta(rate=0.05, release_step=half),
        "balanced-fading": FadingBalance(rate=0.05, steps=half),
    }
