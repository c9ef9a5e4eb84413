"""Multiple-choice objectives: pure functions of the log-likelihoods of K hypotheses on B examples.

    L = −(1/B) Σ_b Σ_k q_kb log p(x_b | c_b; θ_k)

The objectives differ in the weights q, which carry no gradient. `wta` puts all weight on the winner, and `relaxed_wta`
leaves a little to the losers. `annealed` uses a softmax that cools down, and `mixture` the posterior of a mixture.
`balanced_wta` adds a bias to each hypothesis before it chooses the winner, and `random_wta` draws the winner. None of
them needs a model: any [K, B] array will do, whether it comes from Haiku, Equinox or plain JAX.
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
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import dtypes

LogLikelihood = Float[Array, "K B"]
Weights = Float[Array, "K B"]
State = Any
Rng = Key[Array, "..."] | None
Normalization = Literal["token", "sum"]

# Log-likelihoods whose relative difference is below this are a tie. While the LoRA matrices B are 0, all hypotheses are
# the same function, and only the order of float32 sums tells them apart.
TIE_TOLERANCE = 1e-6


@flax.struct.dataclass
class Totals:
    """Sums over examples, which can be added over micro-batches and devices before anything is divided.

    Attributes:
      loss: sum of the losses of the examples, in nats.
      weight: number of examples that count.
      wins: [K], number of these examples that each hypothesis won.
      entropy: sum of the entropies of q, in nats.
      log_likelihood: [K], sum of the normalised log p, in nats; not finite if a hypothesis diverged.
    """

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    wins: Float[Array, " K"]
    entropy: Float[Array, ""]
    log_likelihood: Float[Array, " K"]


@flax.struct.dataclass
class Aux:
    """The values that an objective returns together with its loss.

    Attributes:
      winner: [B], the hypothesis that each example is assigned to.
      win_rate: [K], share of the examples that each hypothesis won. It sums to 1, or to less if every hypothesis
        diverged on some examples.
      weights: q [K, B].
      entropy: mean over examples of the entropy of q, in nats: 0 for hard weights, log K for uniform ones.
      state: the next state of the objective.
    """

    winner: Int[Array, " B"]
    win_rate: Float[Array, " K"]
    weights: Weights
    entropy: Float[Array, ""]
    state: State


def check_key(rng: Rng) -> None:
    """Raises a ValueError for an old-style key, whose two numbers would pass for the keys of two examples."""
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        raise ValueError(f"rng must be a typed key, jax.random.key(seed), got an array of {rng.dtype} {rng.shape}")


def example_keys(rng: Rng, batch: int) -> Key[Array, " B"] | None:
    """Returns one key per example: keys [B] unchanged, a single key folded with the index of each example."""
    if rng is None:
        return None
    check_key(rng)
    if rng.ndim == 1:
        return rng
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))


def diverged(log_likelihood: LogLikelihood) -> Bool[Array, "K B"]:
    """True where log p is NaN or +inf, which no sound model returns; −inf is a probability of zero."""
    return jnp.isnan(log_likelihood) | jnp.isposinf(log_likelihood)


def winners(log_likelihood: LogLikelihood, rng: Rng = None) -> Int[Array, " B"]:
    """Returns the likeliest hypothesis of each example [B].

    A hypothesis that diverged on an example wins it only if all of them diverged.

    Args:
      log_likelihood: [K, B].
      rng: one key, or one key per example [B]. It chooses one of several tied hypotheses; None chooses the first.
    """
    num_hypotheses, batch = log_likelihood.shape
    broken = diverged(log_likelihood)
    contest = jnp.where(broken, -jnp.inf, log_likelihood)
    best = jnp.max(contest, axis=0, keepdims=True)
    tied = contest >= best - TIE_TOLERANCE * (1.0 + jnp.abs(best))
    tied &= ~broken | broken.all(0, keepdims=True)
    if rng is None:
        return jnp.argmax(tied, axis=0).astype(jnp.int32)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (num_hypotheses,)))(example_keys(rng, batch)).T
    return jnp.argmax(jnp.where(tied, draws, -1.0), axis=0).astype(jnp.int32)


def win_counts(winner: Int[Array, " B"], num_hypotheses: int, weight: Float[Array, " B"]) -> Float[Array, " K"]:
    """Returns the sum of the weights of the examples that each hypothesis won [K]."""
    return jnp.where(winner[None] == jnp.arange(num_hypotheses, dtype=winner.dtype)[:, None], weight[None], 0.0).sum(1)


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """A rule for the weights q, and a loss.

    Attributes:
      normalization: how log-likelihoods are scaled first, if token counts are known. "token" divides each by its number
        of tokens (nats per token, the authors' choice); "sum" keeps nats per sequence, as in the formula.
    """

    normalization: Normalization = dataclasses.field(default="token", kw_only=True)

    def __post_init__(self):
        if self.normalization not in ("token", "sum"):
            raise ValueError(f'normalization must be "token" or "sum", got {self.normalization!r}')

    def init(self, num_hypotheses: int) -> State:
        """Returns the state before the first step; () unless the objective overrides this.

        Raises:
          ValueError: if the objective is not defined for this K.
        """
        self.check(num_hypotheses)
        return ()

    def check(self, num_hypotheses: int) -> None:
        """Raises a ValueError if the objective is not defined for K hypotheses."""
        if num_hypotheses < 1:
            raise ValueError(f"need at least one hypothesis, got K={num_hypotheses}")

    @abc.abstractmethod
    def is_hard(self, num_hypotheses: int) -> bool:
        """Whether q puts all weight on the winner for this K, so that only winners need a backward pass."""

    @abc.abstractmethod
    def weights(self, log_likelihood: LogLikelihood, step: Any = 0, state: State = None, rng: Rng = None) -> Weights:
        """Returns q [K, B], which is non-negative and sums to 1 over k. No gradient flows through it."""

    def assign(self, log_likelihood: LogLikelihood, state: State = None, rng: Rng = None) -> Int[Array, " B"]:
        """Returns the winner of each example [B]."""
        return winners(log_likelihood, rng)

    def next_state(self, state: State, win_rate: Float[Array, " K"], step: Any) -> State:
        """Returns the state after a step, given the win rates [K] over the whole batch (all devices)."""
        return state

    def example_loss(self, log_likelihood: LogLikelihood, weights: Weights) -> Float[Array, " B"]:
        """Returns the loss of each example [B], −Σ_k q_kb log p(x_b | θ_k)."""
        return -jnp.where(weights == 0.0, 0.0, weights * log_likelihood).sum(0)  # keeps a NaN among the weights

    def totals(
        self,
        log_likelihood: LogLikelihood,
        weight: Float[Array, " B"],
        step: Any = 0,
        state: State = None,
        rng: Rng = None,
    ) -> tuple[Totals, Weights, Int[Array, " B"]]:
        """Returns sums over the examples, q [K, B] and the winners [B].

        The loss is differentiable in the log-likelihoods. The loss of an example is NaN if any hypothesis diverged on
        it, even one that lost. Its gradient comes from the other hypotheses alone, and one of them wins the example, so
        a diverged adapter does not spoil the others.

        Args:
          log_likelihood: [K, B], normalised.
          weight: 1 for examples that count and 0 for others, whose log-likelihoods may be anything.
          step, state, rng: as in a call of the objective.
        """
        counts = weight > 0.0
        log_likelihood = jnp.where(counts[None] | jnp.isfinite(log_likelihood), log_likelihood, 0.0)
        broken = diverged(log_likelihood)
        q = jax.lax.stop_gradient(self.weights(log_likelihood, step, state, rng)).astype(log_likelihood.dtype)
        winner = self.assign(jax.lax.stop_gradient(log_likelihood), state, rng)
        sound = jnp.where(broken, 0.0, log_likelihood)
        loss = self.example_loss(sound, jnp.where(broken, 0.0, q)) + jnp.where(broken.any(0), jnp.nan, 0.0)
        over_examples = lambda x: jnp.where(jnp.broadcast_to(counts, x.shape), x, 0.0).sum(-1)
        totals = Totals(
            loss=over_examples(loss),
            weight=weight.sum(),
            wins=win_counts(winner, log_likelihood.shape[0], jnp.where(broken.all(0), 0.0, weight)),
            entropy=over_examples(weight_entropy(q)),
            log_likelihood=over_examples(log_likelihood),
        )
        return totals, q, winner

    def normalize(self, log_likelihood: LogLikelihood, tokens: Int[Array, " B"] | None) -> LogLikelihood:
        """Scales log-likelihoods as `normalization` says; without token counts they stay as they are."""
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
        """Returns the loss (nats, to be minimised) and `Aux`; the loss is differentiable in the log-likelihoods.

        Args:
          log_likelihood: log p(x_b | c_b; θ_k) in nats [K, B].
          step: number of the training step, for schedules.
          state: the result of `init` or the last `Aux.state`; None stands for the initial state.
          rng: one key, or one key per example [B]; breaks ties, and draws the winners of `random_wta`.
          tokens: number of target tokens of each example [B]. Examples without targets have no weight. If None, all
            examples have the same weight, and the log-likelihoods are not scaled.
        Raises:
          ValueError: for an array that is not [K, B], or a K for which the objective is not defined.
        """
        log_likelihood = jnp.asarray(log_likelihood)
        if log_likelihood.ndim != 2:
            raise ValueError(f"log_likelihood must be [K, B], got shape {log_likelihood.shape}")
        log_likelihood = dtypes.widened(log_likelihood)
        num_hypotheses, batch = log_likelihood.shape
        state = self.init(num_hypotheses) if state is None else state
        weight = (jnp.ones(batch) if tokens is None else tokens > 0).astype(log_likelihood.dtype)
        log_likelihood = self.normalize(log_likelihood, tokens)

        totals, q, winner = self.totals(log_likelihood, weight, step, state, rng)
        examples = jnp.maximum(totals.weight, 1.0)
        win_rate = totals.wins / examples
        next_state = self.next_state(state, win_rate, step)
        return totals.loss / examples, Aux(winner, win_rate, q, totals.entropy / examples, next_state)


def weight_entropy(weights: Weights) -> Float[Array, " B"]:
    """Returns the entropy of q for each example [B], −Σ_k q log q in nats."""
    return -jax.scipy.special.xlogy(weights, weights).sum(0)


def posterior(log_likelihood: LogLikelihood, temperature: Any = 1.0) -> Weights:
    """Returns softmax_k(log p / τ). Diverged hypotheses get 0; if every p is 0, all hypotheses get the same weight."""
    scores = jnp.where(diverged(log_likelihood), -jnp.inf, log_likelihood)
    impossible = jnp.isneginf(scores).all(0, keepdims=True)
    return jax.nn.softmax(jnp.where(impossible, 0.0, scores) / temperature, axis=0)


def _one_hot(winner: Int[Array, " B"], num_hypotheses: int) -> Weights:
    return jax.nn.one_hot(winner, num_hypotheses, axis=0, dtype=jnp.float32)


def _relaxed(winner: Int[Array, " B"], num_hypotheses: int, epsilon: Any) -> Weights:
    """1 − ε for the winner, ε/(K−1) for each other."""
    hot = _one_hot(winner, num_hypotheses)
    if isinstance(epsilon, float) and epsilon == 0.0:
        return hot
    return (1.0 - epsilon) * hot + epsilon / (num_hypotheses - 1) * (1.0 - hot)


def _check_epsilon(name: str, epsilon: float) -> None:
    if not 0.0 <= epsilon < 1.0:
        raise ValueError(f"{name}: epsilon must be in [0, 1), got {epsilon}")


@dataclasses.dataclass(frozen=True)
class MLE(Objective):
    """q = 1/K: every hypothesis learns every example. For K = 1 this is maximum likelihood."""

    def is_hard(self, num_hypotheses):
        return num_hypotheses == 1

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        return jnp.full_like(log_likelihood, 1.0 / log_likelihood.shape[0])


@dataclasses.dataclass(frozen=True)
class WTA(Objective):
    """q = 1 for the winner: L = −E[max_k log p(x | θ_k)]."""

    def is_hard(self, num_hypotheses):
        return True

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        return _one_hot(self.assign(jax.lax.stop_gradient(log_likelihood), state, rng), log_likelihood.shape[0])


@dataclasses.dataclass(frozen=True)
class RandomWTA(WTA):
    """q = 1 for a hypothesis that is drawn uniformly for each example and step, whatever its finite log p is."""

    def assign(self, log_likelihood, state=None, rng=None):
        if rng is None:
            raise ValueError("random_wta draws winners, so it needs rng, a key or one key per example; got None")
        return winners(jnp.where(jnp.isfinite(log_likelihood), 0.0, log_likelihood), rng)  # all finite ones tie


@dataclasses.dataclass(frozen=True)
class RelaxedWTA(Objective):
    """q = 1−ε for the winner and ε/(K−1) for each other hypothesis, so that losers keep learning."""

    epsilon: float | Callable[[Any], Any] = 0.05

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.epsilon):
            _check_epsilon("relaxed_wta", self.epsilon)

    def is_hard(self, num_hypotheses):
        return not callable(self.epsilon) and self.epsilon == 0.0

    def check(self, num_hypotheses):
        super().check(num_hypotheses)
        if num_hypotheses == 1:
            raise ValueError("relaxed_wta needs at least 2 hypotheses (ε/(K−1)), got K=1: use mle() for one")

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        self.check(log_likelihood.shape[0])
        winner = self.assign(jax.lax.stop_gradient(log_likelihood), state, rng)
        epsilon = jnp.asarray(self.epsilon(step), jnp.float32) if callable(self.epsilon) else self.epsilon
        return _relaxed(winner, log_likelihood.shape[0], epsilon)


@dataclasses.dataclass(frozen=True)
class Annealed(Objective):
    """q = softmax_k(log p(x | θ_k) / τ(step)), and hard WTA once τ ≤ floor (Annealed MCL)."""

    temperature: Callable[[Any], Any] = dataclasses.field(default=lambda step: 1.0)
    floor: float = 1e-6

    def is_hard(self, num_hypotheses):
        return False

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        log_likelihood = jax.lax.stop_gradient(log_likelihood)
        temperature = jnp.asarray(self.temperature(step)).astype(log_likelihood.dtype)
        # XLA on a CPU makes exp(x / constant NaN) uninitialised memory, so it must not see that this is a constant.
        temperature = jax.lax.optimization_barrier(temperature)
        soft = posterior(log_likelihood, jnp.maximum(temperature, self.floor))
        hard = _one_hot(self.assign(log_likelihood, state, rng), log_likelihood.shape[0])
        return jnp.where(temperature <= self.floor, hard.astype(soft.dtype), soft)


@dataclasses.dataclass(frozen=True)
class Mixture(Objective):
    """L = −E[log (1/K) Σ_k p(x | θ_k)], the exact loss of a uniform mixture; q is its posterior (soft EM)."""

    def is_hard(self, num_hypotheses):
        return False

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        return posterior(jax.lax.stop_gradient(log_likelihood))

    def example_loss(self, log_likelihood, weights):
        """Returns −log (1/K) Σ_k p_k [B].

        At the posterior q it equals log K − Σ_k q_k log p_k − H(q), and both have the same gradient.
        """
        return math.log(len(weights)) + super().example_loss(log_likelihood, weights) - weight_entropy(weights)


@dataclasses.dataclass(frozen=True)
class BalancedWTA(Objective):
    """The winner has the largest log p(x | θ_k) + b_k, and after each step b_k += η (share_k − win rate_k).

    Without the bias b, a hypothesis that gets ahead at the task itself would win the examples of every mode. The bias
    (in nats, on the scale of the normalised log-likelihood) only chooses winners. It is never part of the loss or of
    evaluation.
    """

    epsilon: float = 0.0
    rate: float = 0.05
    share: tuple[float, ...] | None = None
    release_step: int | None = None

    def __post_init__(self):
        super().__post_init__()
        _check_epsilon("balanced_wta", self.epsilon)
        if not 0.0 <= self.rate < math.inf:
            raise ValueError(f"balanced_wta: rate must be finite and at least 0, got {self.rate}")
        if self.share is not None and not (min(self.share) >= 0.0 and abs(sum(self.share) - 1.0) <= 1e-6):
            raise ValueError(f"balanced_wta: share must be K non-negative numbers that sum to 1, got {self.share}")

    def is_hard(self, num_hypotheses):
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
        return winners(
            log_likelihood if state is None else log_likelihood + state.astype(log_likelihood.dtype)[:, None], rng
        )

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        self.check(log_likelihood.shape[0])
        winner = self.assign(jax.lax.stop_gradient(log_likelihood), state, rng)
        return _relaxed(winner, log_likelihood.shape[0], self.epsilon)

    def next_state(self, state, win_rate, step):
        share = jnp.full(win_rate.size, 1.0 / win_rate.size) if self.share is None else jnp.asarray(self.share)
        missing = share.astype(state.dtype) - win_rate.astype(state.dtype)
        biased = state + self.rate * jnp.where(win_rate.any(), missing, 0.0)  # a batch without wins changes nothing
        return biased if self.release_step is None else jnp.where(step + 1 >= self.release_step, 0.0, biased)


def mle(*, normalization: Normalization = "token") -> MLE:
    """Maximum likelihood; with K > 1 each hypothesis learns from every example (an ensemble)."""
    return MLE(normalization=normalization)


def wta(*, normalization: Normalization = "token") -> WTA:
    """Winner takes all, L = −E[max_k log p]: conditional hard EM (paper, section 2)."""
    return WTA(normalization=normalization)


def random_wta(*, normalization: Normalization = "token") -> RandomWTA:
    """A winner drawn uniformly for each example: the control that separates competition from mere splitting.

    Each hypothesis learns from a random 1/K of the examples, as each does under `wta` from the examples that it wins.
    What `wta` gains over this comes from the choice of winners. The objective needs `rng`.
    """
    return RandomWTA(normalization=normalization)


def relaxed_wta(epsilon: float | Callable[[Any], Any] = 0.05, *, normalization: Normalization = "token") -> RelaxedWTA:
    """Relaxed winner takes all: q = 1−ε for the winner, ε/(K−1) for each other hypothesis (paper, section 2).

    Args:
      epsilon: ε, weight that the losers share, as a number or as an optax schedule. With one that ends at 0, such as
        `optax.linear_schedule(0.2, 0.0, steps // 2)`, losers catch up at first and pay nothing for it in the end.
      normalization: see `Objective`.
    Raises:
      ValueError: for ε outside [0, 1), and for K = 1 when used.
    """
    return RelaxedWTA(epsilon, normalization=normalization)


def annealed(
    temperature: Callable[[Any], Any] | float, *, floor: float = 1e-6, normalization: Normalization = "token"
) -> Annealed:
    """Annealed MCL: q = softmax_k(log p / τ), hard once τ ≤ floor (paper, section 2).

    Args:
      temperature: τ as an optax schedule, such as `optax.exponential_decay(1.0, 1, 0.999)`, or as a constant number.
      floor: temperature at or below which the winner takes all.
      normalization: see `Objective`.
    Raises:
      ValueError: for a number that is negative or not finite.
    """
    if not callable(temperature) and not 0.0 <= temperature < math.inf:
        raise ValueError(f"annealed: temperature must be a schedule or a finite number ≥ 0, got {temperature}")
    schedule = temperature if callable(temperature) else lambda step: temperature
    return Annealed(schedule, floor, normalization=normalization)


def mixture(*, normalization: Normalization = "sum") -> Mixture:
    """Exact loss of a uniform mixture of sequence models, −E[log (1/K) Σ_k p] (paper, section 3).

    `normalization` is "sum" by default, because p is the probability of a whole sequence.
    """
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
      epsilon: ε, weight that the losers share, as in `relaxed_wta`.
      rate: η, step size of the bias: nats per step for each unit of missing win rate.
      share: [K], share of wins that each hypothesis should have; uniform by default.
      release_step: step from which the bias is zero, so that only a warm-up is balanced.
      normalization: see `Objective`.
    Raises:
      ValueError: for ε outside [0, 1), a rate that is negative or not finite, or a share that does not sum to 1.
    """
    return BalancedWTA(
        epsilon, rate, None if share is None else tuple(share), release_step, normalization=normalization
    )
