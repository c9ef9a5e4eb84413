"""Markov chains: checks, long-run quantities, sampling, likelihood, and matching of learned chains with true ones.

Transitions are [N, V, V], row-stochastic: N chains over V symbols, P_k[i, j] the probability of j after i.
Sequences start from x_1 uniform over V. Everything is float64 NumPy, in nats.
`experiments.markov.theory` exports all public names too.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from scipy.special import entr

_SUM_TOLERANCE = 1e-5  # wide enough for rows that come out of a float32 softmax


# --- Checks ---------------------------------------------------------------------------------------------------------


def validate_transitions(transitions) -> np.ndarray:
    """Checks a list of transition matrices, sum_j P_k[i, j] = 1 (within 1e-5) and P_k[i, j] >= 0.

    Args:
      transitions: [N, V, V] array, or a sequence of N arrays [V, V].
    Returns:
      float64 [N, V, V], values unchanged.
    Raises:
      ValueError: if the matrices are wrong; names the chain and the row.
    """
    if not np.iterable(transitions):
        raise ValueError(f"transitions needs a list of matrices, [N, V, V]; got {transitions!r}")
    chains = [_as_array(chain, f"chain {k}") for k, chain in enumerate(transitions)]
    if not chains:
        raise ValueError("transitions needs at least one chain, [N, V, V]; got none")
    if all(chain.ndim == 1 for chain in chains):
        single = f"a single matrix of {len(chains)} rows"
        raise ValueError(f"transitions needs a list of matrices, [N, V, V]; got {single}, so wrap it in a list")
    for k, chain in enumerate(chains):
        if chain.ndim != 2 or chain.shape[0] != chain.shape[1] or chain.size == 0:
            raise ValueError(f"each chain needs a square matrix [V, V]; chain {k} has shape {chain.shape}")
        if chain.shape != chains[0].shape:
            shapes = f"chain 0 has shape {chains[0].shape}, chain {k} has {chain.shape}"
            raise ValueError(f"all chains need the same V; {shapes}")
        for i, row in enumerate(chain):
            _check_distribution(row, f"chain {k}, row {i}")
    return np.stack(chains)


def validate_prior(prior, num_chains: int) -> np.ndarray:
    """Checks prior [N], probabilities of the chains; None is uniform. Returns float64 [N]; raises ValueError."""
    if prior is None:
        return np.full(num_chains, 1 / num_chains)
    prior = _as_array(prior, "prior")
    if prior.shape != (num_chains,):
        raise ValueError(f"prior needs one probability for each of {num_chains} chains; got shape {prior.shape}")
    _check_distribution(prior, "prior")
    return prior


def validate_length(length: int) -> int:
    """Checks that sequences have at least one predicted token, T >= 2. Returns int; raises ValueError."""
    if int(length) != length or length < 2:
        raise ValueError(f"length needs an integer T >= 2 (x_1 is given, T - 1 tokens are predicted); got {length}")
    return int(length)


def _as_array(values, where: str) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} needs a rectangular array of numbers; got {values!r}") from error


def _check_distribution(row: np.ndarray, where: str) -> None:
    if not np.all(np.isfinite(row)) or np.any(row < 0):
        raise ValueError(f"{where}: probabilities need to be finite and non-negative; got {row.tolist()}")
    if abs(row.sum() - 1) > _SUM_TOLERANCE:
        raise ValueError(f"{where}: probabilities need to sum to 1; got {row.tolist()}, which sums to {row.sum():.6g}")


def _validate_transition(transition) -> np.ndarray:
    transition = _as_array(transition, "transition")
    if transition.ndim != 2:
        raise ValueError(f"needs one transition matrix [V, V]; got shape {transition.shape}")
    return validate_transitions(transition[None])[0]


# --- Long run -------------------------------------------------------------------------------------------------------


def stationary_distribution(transition) -> np.ndarray:
    """Computes the long-run share of each symbol, pi = pi P.

    Periodic chains and transient symbols are allowed; two closed classes are not, since pi then depends on x_1.

    Args:
      transition: [V, V], row-stochastic.
    Returns:
      [V], sums to 1.
    Raises:
      ValueError: not a transition matrix, or pi is not unique.
    """
    transition = _validate_transition(transition)
    closed = _closed_classes(transition)
    if len(closed) > 1:
        raise ValueError(
            f"the stationary distribution is not unique: it needs one closed class of symbols, "
            f"but the chain has {len(closed)}: {[c.tolist() for c in closed]}"
        )
    (symbols,) = closed
    block = transition[np.ix_(symbols, symbols)]
    equations = np.vstack([block.T - np.eye(len(symbols)), np.ones(len(symbols))])
    right_side = np.append(np.zeros(len(symbols)), 1.0)
    pi = np.zeros(len(transition))
    pi[symbols] = np.linalg.lstsq(equations, right_side, rcond=None)[0]
    return pi


def entropy_rate(transition) -> float:
    """Computes the long-run entropy of the next symbol, sum_i pi(i) H(P[i, :]), with 0 log 0 = 0.

    Args:
      transition: [V, V], row-stochastic.
    Returns:
      Nats per token.
    Raises:
      ValueError: not a transition matrix, or its stationary distribution is not unique.
    """
    return float(stationary_distribution(transition) @ row_entropies(_validate_transition(transition)))


def row_entropies(transitions: np.ndarray) -> np.ndarray:
    """H(P[i, :]) = -sum_j P[i, j] log P[i, j] in nats, [..., V] from [..., V, V], with 0 log 0 = 0."""
    return entr(transitions).sum(axis=-1)


def average_transition(transitions, prior=None) -> np.ndarray:
    """Computes the limit of MLE: Pbar[i, :] = sum_k prior_k pi_k(i) P_k[i, :] / sum_k prior_k pi_k(i).

    Args:
      transitions: [N, V, V], row-stochastic.
      prior: [N] probabilities of the chains; None is uniform.
    Returns:
      [V, V], row-stochastic.
    Raises:
      ValueError: bad arguments, a stationary distribution that is not unique, or a symbol no chain keeps visiting.
    """
    transitions = validate_transitions(transitions)
    prior = validate_prior(prior, len(transitions))
    weights = prior[:, None] * np.stack([stationary_distribution(p) for p in transitions])
    if not np.all(weights.sum(axis=0) > 0):
        unvisited = np.flatnonzero(weights.sum(axis=0) <= 0).tolist()
        raise ValueError(f"average_transition needs every symbol visited in the long run; no chain visits {unvisited}")
    return np.einsum("ki,kij->ij", weights / weights.sum(axis=0), transitions)


def first_transition(transitions, prior=None) -> np.ndarray:
    """Computes the best single model's prediction after one symbol: p(x_2 = j | x_1 = i) = sum_k prior_k P_k[i, j].

    The first symbol is uniform for every chain, so it does not reveal the chain. Therefore the answer to a prompt of
    one symbol differs from `average_transition`, the mean over the positions of a long sequence.

    Args:
      transitions: [N, V, V], row-stochastic.
      prior: [N] probabilities of the chains; None is uniform.
    Returns:
      [V, V], row-stochastic.
    Raises:
      ValueError: bad arguments.
    """
    transitions = validate_transitions(transitions)
    return np.einsum("k,kij->ij", validate_prior(prior, len(transitions)), transitions)


def _closed_classes(transition: np.ndarray) -> list[np.ndarray]:
    """Returns the sets of symbols that reach each other and that the chain never leaves."""
    num_classes, label = connected_components(transition > 0, connection="strong")
    classes = [np.flatnonzero(label == c) for c in range(num_classes)]
    return [c for c in classes if not np.any(np.delete(transition[c], c, axis=1) > 0)]


# --- Sequences ------------------------------------------------------------------------------------------------------


def sample(transitions, length: int, num: int, seed, prior=None) -> tuple[np.ndarray, np.ndarray]:
    """Draws z ~ prior, x_1 uniform, x_{t+1} ~ P_z[x_t, :].

    Args:
      transitions: [N, V, V], row-stochastic.
      length: T >= 2.
      num: number of sequences.
      seed: int or anything `np.random.default_rng` takes; same seed, same draw.
      prior: [N] probabilities of the chains; None is uniform.
    Returns:
      (sequences int32 [num, T], z int32 [num], the chain of each).
    Raises:
      ValueError: bad arguments.
    """
    transitions, length = validate_transitions(transitions), validate_length(length)
    prior = validate_prior(prior, len(transitions))
    if num < 1:
        raise ValueError(f"num needs at least one sequence; got {num}")
    rng = np.random.default_rng(seed)
    # Dividing by the last entry makes it exactly 1, so that rounding never draws a symbol of probability zero.
    cumulative = np.cumsum(transitions, axis=-1)
    cumulative /= cumulative[..., -1:]
    z = rng.choice(len(prior), size=num, p=prior / prior.sum())
    sequences = np.empty((num, length), np.int32)
    sequences[:, 0] = rng.integers(transitions.shape[-1], size=num)
    for t in range(length - 1):
        uniform = rng.random((num, 1))
        sequences[:, t + 1] = np.sum(cumulative[z, sequences[:, t]] <= uniform, axis=-1)
    return sequences, z.astype(np.int32)


def log_likelihood(transitions, sequences) -> np.ndarray:
    """log p(x_2..x_T | x_1; P_k) = sum_t log P_k[x_t, x_{t+1}].

    Args:
      transitions: [N, V, V], row-stochastic.
      sequences: integers [num, T] in 0..V-1.
    Returns:
      [N, num], nats per sequence; -inf where a chain cannot produce it.
    Raises:
      ValueError: bad transitions.
    """
    with np.errstate(divide="ignore"):
        log_transitions = np.log(validate_transitions(transitions))
    sequences = np.asarray(sequences)
    result = np.zeros((len(log_transitions), len(sequences)))
    for current, following in zip(sequences.T[:-1], sequences.T[1:], strict=True):
        result += log_transitions[:, current, following]
    return result


# --- Learned against true -------------------------------------------------------------------------------------------


def row_total_variation(p, q) -> np.ndarray:
    """Total variation of each row, 1/2 sum_j |p[..., i, j] - q[..., i, j]|: [..., V] in [0, 1] from two [..., V, V]."""
    return np.abs(np.asarray(p, np.float64) - np.asarray(q, np.float64)).sum(axis=-1) / 2


@dataclass(frozen=True)
class Matching:
    """Matching of hypotheses with true chains.

    Attributes:
      hypothesis: [N] index of the hypothesis of each true chain.
      total_variation: [N] largest row total variation between the two, in [0, 1].
      covered: [N] True if the chain has its own hypothesis; False if K < N left none, so that `hypothesis` is the
        nearest one, which belongs to another chain.
    """

    hypothesis: np.ndarray
    total_variation: np.ndarray
    covered: np.ndarray


def match_chains(learned, true) -> Matching:
    """One-to-one matching of least total cost, cost[k, n] = max_i 1/2 |learned_k[i, :] - true_n[i, :]|_1.

    Args:
      learned: [K, V, V], row-stochastic.
      true: [N, V, V], row-stochastic.
    Returns:
      Matching. K > N leaves hypotheses unused; K < N leaves chains that share the nearest hypothesis (not `covered`).
    Raises:
      ValueError: bad transitions, or different V.

    Source: Hungarian algorithm, `scipy.optimize.linear_sum_assignment`.
    """
    learned, true = validate_transitions(learned), validate_transitions(true)
    if learned.shape[1:] != true.shape[1:]:
        raise ValueError(f"learned and true chains need the same V; got {learned.shape} and {true.shape}")
    cost = row_total_variation(learned[:, None], true[None]).max(axis=-1)
    owners, owned = linear_sum_assignment(cost)
    hypothesis, covered = cost.argmin(axis=0), np.zeros(len(true), bool)
    hypothesis[owned], covered[owned] = owners, True
    return Matching(hypothesis, cost[hypothesis, np.arange(len(true))], covered)
