"""The objectives that are compared, with what each does besides."""

import dataclasses

import jax.numpy as jnp
import optax

from mcl_jax import objectives


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An objective, and what a run with it does besides.

    Attributes:
      objective: the objective.
      drawn: whether one hypothesis, drawn from q, learns from each example, as with `backward="sampled"`.
      restarts: whether dead hypotheses start again from the winner with noise.
    """

    objective: objectives.Objective
    drawn: bool = False
    restarts: bool = False


@dataclasses.dataclass(frozen=True)
class Fading(objectives.BalancedWTA):
    """Balanced, where rate and bias fall linearly, and are zero from `release_step` on."""

    def next_state(self, state, win_rate, step):
        left = lambda at: jnp.maximum(1.0 - at / self.release_step, 0.0)
        here = left(step)
        moved = state + here * self.rate * (1.0 / win_rate.size - win_rate)
        return moved * left(step + 1) / jnp.maximum(here, 1e-6)


@dataclasses.dataclass(frozen=True)
class FadingRelaxed(objectives.RelaxedWTA):
    """Relaxed, where ε falls linearly, and is zero from `release_step` on."""

    release_step: int = 1

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        left = jnp.maximum(1.0 - step / self.release_step, 0.0)
        hard = objectives.wta().weights(log_likelihood, step, None, rng)
        return left * super().weights(log_likelihood, step, state, rng) + (1.0 - left) * hard


@dataclasses.dataclass(frozen=True)
class AnnealedPrior(objectives.Annealed):
    """Annealed, where q ∝ r_k exp(log p / τ) and r is a running average of the win rates.

    This is the mass-constrained variant of deterministic annealing (Rose, Proc. IEEE 86, 1998).
    """

    def init(self, num_hypotheses):
        return jnp.full(num_hypotheses, 1.0 / num_hypotheses)

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        temperature = jnp.maximum(self.temperature(step), self.floor)
        prior = jnp.log(jnp.maximum(state, 1e-3)).astype(log_likelihood.dtype)
        return super().weights(log_likelihood + temperature * prior[:, None], step, None, rng)

    def next_state(self, state, win_rate, step):
        return 0.95 * state + 0.05 * win_rate


def candidates(steps: int) -> dict[str, Candidate]:
    """Returns the objectives by name, for a training of `steps` steps."""
    half, cooling = steps // 2, optax.exponential_decay(1.0, 1, 0.98)
    balanced = objectives.balanced_wta
    return {
        "wta": Candidate(objectives.wta()),
        "balanced": Candidate(balanced(rate=0.05)),
        "balanced-released": Candidate(balanced(rate=0.05, release_step=half)),
        "balanced-learned-weak": Candidate(balanced(rate=0.01, decay=0.1)),
        "balanced-learned-strong": Candidate(balanced(rate=0.05, decay=0.1)),
        "relaxed": Candidate(objectives.relaxed_wta(0.05)),
        "annealed": Candidate(objectives.annealed(cooling)),
        "restarts": Candidate(objectives.wta(), restarts=True),
        "balanced-fading": Candidate(Fading(rate=0.05, release_step=half)),
        "relaxed-fading": Candidate(FadingRelaxed(0.2, release_step=half)),
        "relaxed-fading-small": Candidate(FadingRelaxed(0.05, release_step=half)),
        "annealed-drawn": Candidate(objectives.annealed(cooling), drawn=True),
        "mixture": Candidate(objectives.mixture()),
        "annealed-prior": Candidate(AnnealedPrior(cooling)),
    }
