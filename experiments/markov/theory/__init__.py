"""Best possible losses for data from a mixture of Markov chains (LoRA-MCL paper, section 5).

Data: z ~ prior over N chains (uniform by default), x_1 uniform over V symbols, x_{t+1} ~ P_z[x_t, :], up to length T.
Everything is float64 NumPy, in nats. The entropy of a sequence is that of x_2..x_T given x_1: T - 1 predicted tokens.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from experiments.markov.theory.chains import (
    Matching,
    average_transition,
    entropy_rate,
    first_transition,
    log_likelihood,
    match_chains,
    row_entropies,
    row_total_variation,
    sample,
    stationary_distribution,
    validate_length,
    validate_prior,
    validate_transitions,
)
from experiments.markov.theory.types import TooManyStatesError, sequence_types

__all__ = [
    "DEFAULT_MAX_STATES",
    "Matching",
    "TooManyStatesError",
    "WtaBounds",
    "average_transition",
    "bounds",
    "conditional_entropy",
    "entropy_rate",
    "first_transition",
    "limited_memory_entropy",
    "log_likelihood",
    "match_chains",
    "mixture_entropy",
    "mixture_entropy_monte_carlo",
    "row_entropies",
    "row_total_variation",
    "sample",
    "stationary_distribution",
    "validate_length",
    "validate_prior",
    "validate_transitions",
    "wta_loss_of_true_chains",
]

DEFAULT_MAX_STATES = 5_000_000  # at most a few seconds and half a gigabyte


# --- The mixture: losses of ideal models ----------------------------------------------------------------------------


def mixture_entropy(transitions, length: int, prior=None, max_states: int = DEFAULT_MAX_STATES) -> float:
    """Computes the best loss of one model (MLE): H(x_2..x_T | x_1) = -E[log sum_k prior_k p(x_2..x_T | x_1; P_k)].

    Args:
      transitions: [N, V, V], row-stochastic.
      length: T >= 2.
      prior: [N] probabilities of the chains; None is uniform.
      max_states: size limit of the dynamic programme (see `types.sequence_types`).
    Returns:
      Nats per sequence.
    Raises:
      ValueError: bad arguments.
      TooManyStatesError: a ValueError; use `mixture_entropy_monte_carlo`.
    """
    return _exact_losses(*_validate_mixture(transitions, length, prior), max_states)[0]


def wta_loss_of_true_chains(transitions, length: int, prior=None, max_states: int = DEFAULT_MAX_STATES) -> float:
    """Computes the WTA loss of the true chains as hypotheses: E[min_k -log p(x_2..x_T | x_1; P_k)].

    Arguments, unit and errors are as in `mixture_entropy`.
    """
    return _exact_losses(*_validate_mixture(transitions, length, prior), max_states)[1]


def mixture_entropy_monte_carlo(transitions, length: int, num_samples: int, seed, prior=None) -> tuple[float, float]:
    """Estimates `mixture_entropy` from sampled sequences: mean and standard error of -log p(x_2..x_T | x_1).

    Args:
      transitions: [N, V, V], row-stochastic.
      length: T >= 2.
      num_samples: at least 2 sequences.
      seed: int or anything `np.random.default_rng` takes.
      prior: [N] probabilities of the chains; None is uniform.
    Returns:
      (mean, standard_error), nats per sequence.
    Raises:
      ValueError: bad arguments.
    """
    losses = _sampled_losses(*_validate_mixture(transitions, length, prior), num_samples, seed)[0]
    return float(losses.mean()), float(_standard_errors(losses))


def conditional_entropy(transitions, length: int, prior=None) -> float:
    """Computes the loss if the chain is known, H(x_2..x_T | x_1, z) = sum_k prior_k sum_{t<T} (u P_k^{t-1}) . H(P_k).

    Here u is uniform. This is the WTA optimum of the paper's proposition, and an upper bound of
    `wta_loss_of_true_chains`. Its mean per token tends to the mean entropy rate as T grows.

    Args:
      transitions: [N, V, V], row-stochastic.
      length: T >= 2.
      prior: [N] probabilities of the chains; None is uniform.
    Returns:
      Nats per sequence.
    Raises:
      ValueError: bad arguments.
    """
    transitions, length, prior = _validate_mixture(transitions, length, prior)
    entropies = row_entropies(transitions)
    symbol = np.full(entropies.shape, 1 / entropies.shape[-1])
    total = 0.0
    for _ in range(length - 1):
        total += prior @ np.sum(symbol * entropies, axis=1)
        symbol = np.einsum("ki,kij->kj", symbol, transitions)
    return float(total)


def limited_memory_entropy(transitions, length: int, memory: int, prior=None) -> float:
    """Computes the best loss of a model that sees only the last `memory` symbols: Σ_t H(x_t | x_{t−m}..x_{t−1}).

    It bounds the loss of a model with local attention: L layers with a window of w symbols see m = L (w − 1) + 1.

    Args:
      transitions: [N, V, V], row-stochastic.
      length: T, symbols per sequence.
      memory: m, number of symbols that a prediction may depend on, besides its position; at least 1.
      prior: [N], probabilities of the chains; None is uniform.
    Returns:
      Nats per sequence; `mixture_entropy` when m >= T − 1.
    Raises:
      ValueError: for a bad mixture, memory < 1, or more than DEFAULT_MAX_STATES contexts (V^(m+1)).
    """
    transitions, length, prior = _validate_mixture(transitions, length, prior)
    num_symbols = transitions.shape[-1]
    memory = min(memory, length - 1)
    if memory < 1 or num_symbols ** (memory + 1) > DEFAULT_MAX_STATES:
        raise ValueError(
            f"memory must be at least 1 and leave at most {DEFAULT_MAX_STATES} contexts, got memory={memory} for "
            f"{num_symbols} symbols: {num_symbols ** (memory + 1)}."
        )
    total, first = 0.0, np.full((len(prior), num_symbols), 1.0 / num_symbols)
    for start in range(length - memory):  # windows that start at x_1 grow up to m symbols, then they slide
        for size in range(1, memory + 1) if start == 0 else [memory]:
            total += _next_symbol_entropy(transitions, prior, first, size)
        first = np.einsum("ni,nij->nj", first, transitions)
    return total


def _next_symbol_entropy(transitions, prior, first, size: int) -> float:
    """H(x_{s+size} | x_s..x_{s+size−1}), where `first` [N, V] is the distribution of x_s under each chain."""
    joint = first  # [N, V, V, ...], a symbol more in each round
    for _ in range(size):
        joint = joint[..., None] * transitions.reshape(len(prior), *[1] * (joint.ndim - 2), *transitions.shape[1:])
    mixture = np.einsum("n,n...->...", prior, joint)
    context = mixture.sum(-1, keepdims=True)
    return float(xlogy(mixture, context).sum() - xlogy(mixture, mixture).sum())


@dataclass(frozen=True)
class WtaBounds:
    """Theoretical losses for a mixture of Markov chains, all in nats per predicted token.

    Attributes:
      mle: H(x_2..x_T | x_1) / (T - 1), the least loss of one hypothesis.
      wta_lower: (H - log K) / (T - 1); no K hypotheses do better.
      wta_upper: K >= N: the prior's mean of the entropy rates, the paper's line; it is stationary, so with x_1
        uniform and T finite the guarantee is `conditional_entropy`. K < N: `mle`, which equal hypotheses reach.
      wta_true_chains: WTA loss of the N true chains (whatever K is), at most `conditional_entropy`, and at least
        `wta_lower` if K >= N.
      conditional_entropy: H(x_2..x_T | x_1, z) / (T - 1).
      exact: False when `mle`, `wta_lower` and `wta_true_chains` are Monte Carlo estimates.
      standard_error: the larger one of `mle` and `wta_true_chains`; 0 when exact.
    """

    mle: float
    wta_lower: float
    wta_upper: float
    wta_true_chains: float
    conditional_entropy: float
    exact: bool
    standard_error: float


def bounds(
    transitions,
    length: int,
    num_hypotheses: int | None = None,
    prior=None,
    max_states: int = DEFAULT_MAX_STATES,
    num_samples: int = 100_000,
    seed: int = 0,
) -> WtaBounds:
    """Computes (H - log K) / (T - 1) <= WTA optimum <= H / (T - 1), exactly if feasible, else by Monte Carlo.

    Args:
      transitions: [N, V, V], row-stochastic.
      length: T >= 2.
      num_hypotheses: K; None is N.
      prior: [N] probabilities of the chains; None is uniform.
      max_states: size limit of the exact computation; beyond it Monte Carlo is used.
      num_samples: sequences drawn for Monte Carlo.
      seed: random seed of the draws.
    Returns:
      WtaBounds, in nats per predicted token.
    Raises:
      ValueError: bad arguments, or a chain without a unique stationary distribution.

    Source: proposition and Figure 1 of arXiv 2507.10419.
    """
    transitions, length, prior = _validate_mixture(transitions, length, prior)
    num_hypotheses = len(transitions) if num_hypotheses is None else num_hypotheses
    if num_hypotheses < 1:
        raise ValueError(f"num_hypotheses must be at least 1, got {num_hypotheses}")
    try:
        entropy, wta = _exact_losses(transitions, length, prior, max_states)
        exact, standard_error = True, 0.0
    except TooManyStatesError:
        losses = _sampled_losses(transitions, length, prior, num_samples, seed)
        (entropy, wta), standard_error = losses.mean(axis=1), _standard_errors(losses).max()
        exact = False
    num_tokens = length - 1
    mle = entropy / num_tokens
    mean_rate = sum(w * entropy_rate(p) for w, p in zip(prior, transitions, strict=True))
    return WtaBounds(
        mle=float(mle),
        wta_lower=float(mle - np.log(num_hypotheses) / num_tokens),
        wta_upper=float(mean_rate if num_hypotheses >= len(transitions) else mle),
        wta_true_chains=float(wta / num_tokens),
        conditional_entropy=conditional_entropy(transitions, length, prior) / num_tokens,
        exact=exact,
        standard_error=float(standard_error / num_tokens),
    )


def _exact_losses(transitions, length: int, prior, max_states: int) -> tuple[float, float]:
    """(H(x_2..x_T | x_1), WTA loss of the true chains), nats per sequence, summed over types of sequences."""
    entropy = wta = 0.0
    for log_multiplicity, log_p in sequence_types(transitions, length, max_states):
        log_mixture = _log_mixture(log_p, prior)
        probability = np.exp(log_multiplicity - np.log(transitions.shape[-1]) + log_mixture)
        seen = probability > 0  # a chain with prior 0 may allow what the mixture never produces
        entropy -= probability[seen] @ log_mixture[seen]
        wta -= probability[seen] @ log_p.max(axis=0)[seen]
    return float(entropy), float(wta)


def _sampled_losses(transitions, length: int, prior, num_samples: int, seed) -> np.ndarray:
    """[2, num_samples]: -log p(x) of the mixture and min_k -log p(x; P_k) of the same sampled sequences."""
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2 for a standard error, got {num_samples}")
    sequences, _ = sample(transitions, length, num_samples, seed, prior)
    log_p = log_likelihood(transitions, sequences)
    return -np.stack([_log_mixture(log_p, prior), log_p.max(axis=0)])


def _log_mixture(log_p: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """log sum_k prior_k p_k: [S] from [N, S]."""
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(log_p + np.log(prior)[:, None], axis=0)


def _standard_errors(losses: np.ndarray) -> np.ndarray:
    return losses.std(axis=-1, ddof=1) / np.sqrt(losses.shape[-1])


def _validate_mixture(transitions, length: int, prior) -> tuple[np.ndarray, int, np.ndarray]:
    transitions = validate_transitions(transitions)
    return transitions, validate_length(length), validate_prior(prior, len(transitions))
