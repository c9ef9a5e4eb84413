"""Objectives that were tried, as a training of a few hundred steps takes them."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import mcl_jax as mcl


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
        "balanced": Candidate(o.balanced_wta(rate=0.05)),
        "balanced-released": Candidate(o.balanced_wta(rate=0.05, release_step=half)),
        "balanced-learned-weak": Candidate(o.balanced_wta(rate=0.01, decay=0.1)),
        "balanced-learned-strong": Candidate(o.balanced_wta(rate=0.05, decay=0.1)),
        "relaxed": Candidate(o.relaxed_wta(0.05)),
        "annealed": Candidate(o.annealed(cooling)),
        "restarts": Candidate(o.wta(), restarts=True),
        "balanced-fading": Candidate(Fading(rate=0.05, release_step=half)),
        "relaxed-fading": Candidate(FadingRelaxed(0.2, release_step=half)),
        "annealed-drawn": Candidate(o.annealed(cooling), "sampled"),
        "mixture": Candidate(o.mixture()),
    }


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
