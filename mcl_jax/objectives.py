"""Multiple-choice objectives: pure functions of the log-likelihoods of K hypotheses on B examples.

    L = −(1/B) Σ_b Σ_k q_kb log p(x_b | c_b; θ_k)

They differ in q, which carries no gradient: all on the winner (`wta`), a little on the losers (`relaxed_wta`), a
softmax that cools down (`annealed`), the posterior of a mixture (`mixture`), or on the winner of a race with handicaps
(`balanced_wta`). They need no model: any [K, B] array will do, from Haiku, Equinox or plain JAX as well.
Source: paper, sections 2, 3 and 7.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

LogLikelihood = Float[Array, "K B"]
Weights = Float[Array, "K B"]
State = Any
Rng = Key[Array, "..."] | None
Normalization = Literal["token", "sum"]

# Log-likelihoods that differ by less than this, relatively, are a tie: at B = 0 all hypotheses are one function, and
# only the order of float32 sums tells them apart.
TIE_TOLERANCE = 1e-6


@flax.struct.dataclass
class Aux:
    """What an objective says beside its loss.

    Attributes:
      winner: [B], the hypothesis that each example is assigned to.
      win_rate: [K], share of the examples that each hypothesis won.
      weights: q [K, B].
      entropy: of q over hypotheses, mean over examples, in nats: 0 when hard, log K when uniform.
      state: the next state of the objective.
    """

    winner: Int[Array, " B"]
    win_rate: Float[Array, " K"]
    weights: Weights
    entropy: Float[Array, ""]
    state: State


def check_key(rng: Rng) -> None:
    """Raises a ValueError for an old-style key, whose [2] numbers would be taken for the keys of two examples."""
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        raise ValueError(f"rng must be a typed key, jax.random.key(seed), got an array of {rng.dtype} {rng.shape}")


def example_keys(rng: Rng, batch: int) -> Key[Array, " B"] | None:
    """One key an example: [B] keys are kept as they are, a single key is folded with the index of each example."""
    if rng is None:
        return None
    check_key(rng)
    if rng.ndim == 1:
        return rng
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))


def winners(log_likelihood: LogLikelihood, rng: Rng = None) -> Int[Array, " B"]:
    """argmax over k. Ties go to one of the tied at random, or to the first of them without `rng`.

    Args:
      log_likelihood: [K, B].
      rng: one key, or one an example [B].
    """
    num_hypotheses, batch = log_likelihood.shape
    best = jnp.max(log_likelihood, axis=0, keepdims=True)
    tied = log_likelihood >= best - TIE_TOLERANCE * (1.0 + jnp.abs(best))
    if rng is None:
        return jnp.argmax(tied, axis=0).astype(jnp.int32)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (num_hypotheses,)))(example_keys(rng, batch)).T
    return jnp.argmax(jnp.where(tied, draws, -1.0), axis=0).astype(jnp.int32)


def win_counts(winner: Int[Array, " B"], num_hypotheses: int, weight: Float[Array, " B"]) -> Float[Array, " K"]:
    """How many examples, each counted `weight` times, every hypothesis won."""
    return jnp.where(winner[None] == jnp.arange(num_hypotheses)[:, None], weight[None], 0.0).sum(1)


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """A rule for q, and a loss.

    Attributes:
      normalization: what becomes of sums of log p before anything else when token counts are known. "token" divides
        each by its own count (nats per token, the authors' choice); "sum" leaves nats per sequence, as in the formula.
    """

    normalization: Normalization = dataclasses.field(default="token", kw_only=True)

    def __post_init__(self):
        if self.normalization not in ("token", "sum"):
            raise ValueError(f'normalization must be "token" or "sum", got {self.normalization!r}')

    def init(self, num_hypotheses: int) -> State:
        """State before the first step; () unless the objective says otherwise.

        Raises:
          ValueError: if the objective is not defined for this K.
        """
        self.check(num_hypotheses)
        return ()

    def check(self, num_hypotheses: int) -> None:
        """Raises a ValueError if the objective is not defined for K hypotheses."""
        if num_hypotheses < 1:
            raise ValueError(f"need at least one hypothesis, got K={num_hypotheses}")

    @property
    @abc.abstractmethod
    def hard(self) -> bool:
        """True if q puts everything on the winner, so that only winners need a backward pass."""

    @abc.abstractmethod
    def weights(self, log_likelihood: LogLikelihood, step: Any = 0, state: State = None, rng: Rng = None) -> Weights:
        """q [K, B]: non-negative, sums to 1 over k. No gradient flows through it."""

    def assign(self, log_likelihood: LogLikelihood, state: State = None, rng: Rng = None) -> Int[Array, " B"]:
        """The winner of each example [B]."""
        return winners(log_likelihood, rng)

    def next_state(self, state: State, win_rate: Float[Array, " K"], step: Any) -> State:
        """State after a step in which the hypotheses won these shares of the whole batch (all devices)."""
        return state

    def example_loss(self, log_likelihood: LogLikelihood, weights: Weights) -> Float[Array, " B"]:
        """−Σ_k q_kb log p(x_b | θ_k): each example's part of the loss."""
        counted = (weights > 0.0) | jnp.isnan(log_likelihood)  # a NaN must show, also in a hypothesis that lost
        return -jnp.where(counted, weights * log_likelihood, 0.0).sum(0)

    def normalize(self, log_likelihood: LogLikelihood, tokens: Int[Array, " B"] | None) -> LogLikelihood:
        """Sums of log p as this objective compares them; as they are if no token counts are given."""
        if tokens is None or self.normalization == "sum":
            return log_likelihood
        tokens = jnp.broadcast_to(jnp.maximum(tokens, 1), log_likelihood.shape)
        return log_likelihood / tokens.astype(log_likelihood.dtype)

    def __call__(
        self,
        log_likelihood: LogLikelihood,
        step: Any = 0,
        state: State = None,
        rng: Rng = None,
        *,
        tokens: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, ""], Aux]:
        """Loss (nats, to be minimised) and `Aux`; differentiable in the log-likelihoods.

        Args:
          log_likelihood: log p(x_b | c_b; θ_k) in nats [K, B].
          step: number of the training step, for schedules.
          state: from `init` or the last `Aux.state`; None is the initial one.
          rng: breaks ties, nothing else. One key, or one an example [B].
          tokens: target tokens of each example [B]. Examples with none have no weight. None: all weigh the same, and
            the log-likelihoods are taken as they are.
        Raises:
          ValueError: for an array that is not [K, B], or a K for which the objective is not defined.
        """
        if log_likelihood.ndim != 2:
            raise ValueError(f"log_likelihood must be [K, B], got shape {log_likelihood.shape}")
        num_hypotheses, batch = log_likelihood.shape
        state = self.init(num_hypotheses) if state is None else state
        log_likelihood = self.normalize(log_likelihood, tokens)
        weight = jnp.ones(batch) if tokens is None else (tokens > 0).astype(jnp.float32)
        total = jnp.maximum(weight.sum(), 1.0)

        q = self.weights(log_likelihood, step, state, rng)
        loss = (weight * self.example_loss(log_likelihood, q)).sum() / total

        winner = self.assign(jax.lax.stop_gradient(log_likelihood), state, rng)
        win_rate = win_counts(winner, num_hypotheses, weight) / total
        entropy = (weight * weight_entropy(q)).sum() / total
        return loss, Aux(winner, win_rate, q, entropy, self.next_state(state, win_rate, step))


def weight_entropy(weights: Weights) -> Float[Array, " B"]:
    """−Σ_k q log q, in nats, of each example."""
    return -jax.scipy.special.xlogy(weights, weights).sum(0)


def _one_hot(winner: Int[Array, " B"], num_hypotheses: int) -> Weights:
    return jax.nn.one_hot(winner, num_hypotheses, axis=0)


def _relaxed(winner: Int[Array, " B"], num_hypotheses: int, epsilon: float) -> Weights:
    """1 − ε for the winner, ε/(K−1) for each other."""
    if epsilon == 0.0:
        return _one_hot(winner, num_hypotheses)
    hot = _one_hot(winner, num_hypotheses)
    return (1.0 - epsilon) * hot + epsilon / (num_hypotheses - 1) * (1.0 - hot)


def _check_epsilon(name: str, epsilon: float) -> None:
    if not 0.0 <= epsilon < 1.0:
        raise ValueError(f"{name}: epsilon must be in [0, 1), got {epsilon}")


@dataclasses.dataclass(frozen=True)
class MLE(Objective):
    """q = 1/K: every hypothesis on every example, which for K = 1 is maximum likelihood."""

    hard = True

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        return jnp.full(log_likelihood.shape, 1.0 / log_likelihood.shape[0])


@dataclasses.dataclass(frozen=True)
class WTA(Objective):
    """q = 1 for the winner: L = −E[max_k log p(x | θ_k)]."""

    hard = True

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        return _one_hot(self.assign(jax.lax.stop_gradient(log_likelihood), state, rng), log_likelihood.shape[0])


@dataclasses.dataclass(frozen=True)
class RelaxedWTA(Objective):
    """q = 1−ε for the winner and ε/(K−1) for each other, which keeps losers alive."""

    epsilon: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        _check_epsilon("relaxed_wta", self.epsilon)

    @property
    def hard(self) -> bool:
        return self.epsilon == 0.0

    def check(self, num_hypotheses):
        super().check(num_hypotheses)
        if num_hypotheses == 1:
            raise ValueError("relaxed_wta needs at least 2 hypotheses (ε/(K−1)), got K=1: use mle() for one")

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        self.check(log_likelihood.shape[0])
        winner = self.assign(jax.lax.stop_gradient(log_likelihood), state, rng)
        return _relaxed(winner, log_likelihood.shape[0], self.epsilon)


@dataclasses.dataclass(frozen=True)
class Annealed(Objective):
    """q = softmax_k(log p(x | θ_k) / τ(step)), and hard WTA once τ ≤ floor (Annealed MCL)."""

    temperature: Callable[[Any], Any] = dataclasses.field(default=lambda step: 1.0)
    floor: float = 1e-6
    hard = False

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        log_likelihood = jax.lax.stop_gradient(log_likelihood)
        temperature = jnp.asarray(self.temperature(step), jnp.float32)
        soft = jax.nn.softmax(log_likelihood / jnp.maximum(temperature, self.floor), axis=0)
        hard = _one_hot(self.assign(log_likelihood, state, rng), log_likelihood.shape[0])
        return jnp.where(temperature <= self.floor, hard, soft)


@dataclasses.dataclass(frozen=True)
class Mixture(Objective):
    """L = −E[log (1/K) Σ_k p(x | θ_k)], the exact likelihood of a uniform mixture; q is its posterior (soft EM)."""

    hard = False

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        return jax.nn.softmax(jax.lax.stop_gradient(log_likelihood), axis=0)

    def example_loss(self, log_likelihood, weights):
        return math.log(log_likelihood.shape[0]) - jax.nn.logsumexp(log_likelihood, axis=0)


@dataclasses.dataclass(frozen=True)
class BalancedWTA(Objective):
    """Winners of log p(x | θ_k) + b_k, with a bias that chases a share of wins: b_k += η (share_k − win rate_k).

    Whoever gets ahead at the task itself would otherwise win the examples of every mode. The bias (nats, on the scale
    of the normalised log-likelihood) chooses winners only: it is never part of the loss, nor of evaluation.
    """

    epsilon: float = 0.0
    rate: float = 0.05
    share: tuple[float, ...] | None = None
    release_step: int | None = None

    def __post_init__(self):
        super().__post_init__()
        _check_epsilon("balanced_wta", self.epsilon)
        if self.rate < 0.0:
            raise ValueError(f"balanced_wta: rate must be at least 0, got {self.rate}")
        if self.share is not None and (min(self.share) < 0.0 or abs(sum(self.share) - 1.0) > 1e-6):
            raise ValueError(f"balanced_wta: share must be K non-negative numbers that sum to 1, got {self.share}")

    @property
    def hard(self) -> bool:
        return self.epsilon == 0.0

    def check(self, num_hypotheses):
        super().check(num_hypotheses)
        if num_hypotheses == 1 and self.epsilon > 0.0:
            raise ValueError("balanced_wta with epsilon > 0 needs at least 2 hypotheses, got K=1")
        if self.share is not None and len(self.share) != num_hypotheses:
            raise ValueError(f"balanced_wta: share has {len(self.share)} numbers for K={num_hypotheses} hypotheses")

    def init(self, num_hypotheses):
        self.check(num_hypotheses)
        return jnp.zeros(num_hypotheses, jnp.float32)

    def assign(self, log_likelihood, state=None, rng=None):
        return winners(log_likelihood if state is None else log_likelihood + state[:, None], rng)

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        self.check(log_likelihood.shape[0])
        winner = self.assign(jax.lax.stop_gradient(log_likelihood), state, rng)
        return _relaxed(winner, log_likelihood.shape[0], self.epsilon)

    def next_state(self, state, win_rate, step):
        share = 1.0 / win_rate.size if self.share is None else jnp.asarray(self.share, jnp.float32)
        biased = state + self.rate * (share - win_rate)
        return biased if self.release_step is None else jnp.where(step + 1 >= self.release_step, 0.0, biased)


def mle(*, normalization: Normalization = "token") -> MLE:
    """Maximum likelihood; with K > 1 each hypothesis learns from every example (an ensemble)."""
    return MLE(normalization=normalization)


def wta(*, normalization: Normalization = "token") -> WTA:
    """Winner takes all, L = −E[max_k log p]: conditional hard EM (paper, section 2)."""
    return WTA(normalization=normalization)


def relaxed_wta(epsilon: float = 0.05, *, normalization: Normalization = "token") -> RelaxedWTA:
    """Relaxed winner takes all: q = 1−ε for the winner, ε/(K−1) for the others (paper, section 2).

    Raises:
      ValueError: for ε outside [0, 1), and for K = 1 when used.
    """
    return RelaxedWTA(epsilon, normalization=normalization)


def annealed(
    temperature: Callable[[Any], Any] | float, *, floor: float = 1e-6, normalization: Normalization = "token"
) -> Annealed:
    """Annealed MCL: q = softmax(log p / τ), hard once τ ≤ floor (paper, section 2).

    Args:
      temperature: τ as an optax schedule, such as `optax.exponential_decay(1.0, 1, 0.999)`; a number is constant.
      floor: τ at or below which winners take all.
    """
    schedule = temperature if callable(temperature) else lambda step: temperature
    return Annealed(schedule, floor, normalization=normalization)


def mixture(*, normalization: Normalization = "sum") -> Mixture:
    """Exact likelihood of the uniform mixture, −E[log (1/K) Σ_k p], of sequences, hence "sum" (paper, section 3)."""
    return Mixture(normalization=normalization)


def balanced_wta(
    epsilon: float = 0.0,
    rate: float = 0.05,
    *,
    share: tuple[float, ...] | None = None,
    release_step: int | None = None,
    normalization: Normalization = "token",
) -> BalancedWTA:
    """Winner takes all with balanced assignment (paper, section 7).

    Args:
      epsilon: as in `relaxed_wta`.
      rate: η, nats of bias per step and unit of missing win rate.
      share: of wins that each hypothesis should have; uniform by default.
      release_step: from this step on the bias is zero, so that a warm-up is balanced and the rest is free.
    """
    return BalancedWTA(
        epsilon, rate, None if share is None else tuple(share), release_step, normalization=normalization
    )
