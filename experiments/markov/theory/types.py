"""Exact enumeration of Markov sequences by type, for the entropies in `experiments.markov.theory`.

Two sequences with the same transition counts have the same likelihood under every Markov chain, so the V^T sequences
fall into a polynomial number of *types*. A dynamic programme over time keeps, for each last symbol, the types reached
and how many sequences share each. Three merges keep it small: entries (i, j) with the same probability under every
chain share one count, symbols with the same row in every chain are one state, and what no chain can produce is dropped.
Measured: V=3, T=32 takes 2.0 million states, about 1 s and 0.2 GB; V=2, T=32 takes 994 states.
"""

from collections.abc import Iterator

import numpy as np

_WORD_BITS = 63  # counts are packed into non-negative int64 words


class TooManyStatesError(ValueError):
    """The exact dynamic programme needs more states than it was allowed."""


def sequence_types(transitions: np.ndarray, length: int, max_states: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields all sequences x_1..x_T that some chain can produce, grouped by type.

    log p(x_2..x_T | x_1; P_k) = sum_c n_c(x) log P_k[c],  with n_c the number of transitions of class c.

    Args:
      transitions: [N, V, V], row-stochastic.
      length: T.
      max_states: most (last state, type) pairs to hold after any step, counted in 64-bit words: a pair takes one
        word for each 63 // bits(T - 1) distinct transition probabilities. A step may look at four times as many.
    Yields:
      (log_multiplicity [S], log_likelihood [N, S]): the log of the number of sequences of each type (first symbol
      included) and their log-likelihood in nats under each chain; one batch for each last state, and a type may
      appear in several.
    Raises:
      TooManyStatesError: more than `max_states` are needed.
    """
    class_of, state_of, probabilities = _classes(transitions)
    bits = (length - 1).bit_length()
    num_words = -(-len(probabilities) // (_WORD_BITS // bits))
    limit = max_states // num_words
    _check_size([len(probabilities)], length, limit, max_states)
    units = _packing(len(probabilities), num_words, bits)
    # A sequence is impossible under chain k when it holds any transition of these classes: one bit mask for each chain.
    impossible = np.stack([np.bitwise_or.reduce(units[p == 0] * (2**bits - 1), axis=0) for p in probabilities.T])

    states = range(len(class_of))
    types = [(np.zeros((num_words, 1), np.int64), np.log([np.sum(state_of == s)])) for s in states]
    sizes = [len(types)]
    for _ in range(length - 1):
        sizes.append(0)
        arrived = []
        for s in states:
            _check_candidates(types, class_of, state_of == s, len(sizes), limit, max_states)
            arrived.append(_arrivals(types, class_of, state_of == s, units, impossible))
            sizes[-1] += len(arrived[-1][1])
            _check_size(sizes, length, limit, max_states)
        types = arrived
    for codes, log_multiplicity in types:
        yield log_multiplicity, _log_likelihood(codes, probabilities, bits)


def _classes(transitions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges equal entries and equal rows; equal is to 13 digits, so that 1 - 0.8 and 0.2 are.

    Returns (class_of [states, V], -1 where no chain goes; state_of [V]; probabilities [C, N] of the classes).
    """
    num_chains, vocabulary, _ = transitions.shape
    entries = transitions.reshape(num_chains, -1).T
    possible = np.any(entries > 0, axis=1)
    mantissa, exponent = np.frexp(entries[possible])
    rounded = np.ldexp(np.round(mantissa, 13), exponent)
    _, first, inverse = np.unique(rounded, axis=0, return_index=True, return_inverse=True)
    probabilities = entries[possible][first]
    class_of = np.full(vocabulary**2, -1)
    class_of[possible] = inverse.reshape(-1)
    class_of, state_of = np.unique(class_of.reshape(vocabulary, vocabulary), axis=0, return_inverse=True)
    return class_of, state_of.reshape(-1), probabilities


def _packing(num_classes: int, num_words: int, bits: int) -> np.ndarray:
    """Packed code, int64 [C, W], of a single transition of each class: each count takes `bits` bits of one word."""
    word, field = np.divmod(np.arange(num_classes), _WORD_BITS // bits)
    units = np.zeros((num_classes, num_words), np.int64)
    units[np.arange(num_classes), word] = np.int64(1) << (bits * field)
    return units


def _arrivals(types, class_of, is_target, units, impossible) -> tuple[np.ndarray, np.ndarray]:
    """One step of the programme: all types that end in the target state, merged, (codes [W, S], log counts [S])."""
    codes, log_multiplicity = [np.zeros((units.shape[1], 0), np.int64)], [np.zeros(0)]
    for (old_codes, old_log_multiplicity), row in zip(types, class_of, strict=True):
        for transition_class in row[is_target & (row >= 0)]:
            codes.append(old_codes + units[transition_class][:, None])
            log_multiplicity.append(old_log_multiplicity)
    codes, log_multiplicity = np.concatenate(codes, axis=1), np.concatenate(log_multiplicity)
    if impossible.any():
        possible = np.any([np.all(codes & mask[:, None] == 0, axis=0) for mask in impossible], axis=0)
        codes, log_multiplicity = codes[:, possible], log_multiplicity[possible]
    return _merge(codes, log_multiplicity)


def _merge(codes: np.ndarray, log_multiplicity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds up the multiplicities of equal codes."""
    if codes.shape[1] == 0:
        return codes, log_multiplicity
    order = np.lexsort(codes)  # a stable merge sort: the input is a few sorted runs, so this is close to linear
    codes, log_multiplicity = codes[:, order], log_multiplicity[order]
    is_first = np.any(codes[:, 1:] != codes[:, :-1], axis=0)
    first = np.flatnonzero(np.concatenate([[True], is_first]))
    return codes[:, first], np.logaddexp.reduceat(log_multiplicity, first)


def _log_likelihood(codes: np.ndarray, probabilities: np.ndarray, bits: int) -> np.ndarray:
    """log-likelihood [N, S] in nats of packed counts [W, S], with 0 log 0 = 0."""
    num_classes, num_chains = probabilities.shape
    result = np.zeros((num_chains, codes.shape[1]))
    for c in range(num_classes):
        word, field = divmod(c, _WORD_BITS // bits)
        count = (codes[word] >> (bits * field)) & (2**bits - 1)
        for k, probability in enumerate(probabilities[c]):
            result[k] += count * np.log(probability) if probability > 0 else np.where(count > 0, -np.inf, 0.0)
    return result


def _check_size(sizes: list[int], length: int, limit: int, max_states: int) -> None:
    """Refuses more than `limit` states; `sizes[t]` is the number of them for sequences of length t + 1."""
    if sizes[-1] <= limit:
        return
    reached, log10_needed = len(sizes), np.log10(sizes[-1])
    if reached > 1:  # the growth is polynomial in the length, so continue it on a log-log line
        slope = np.log10(sizes[-1] / sizes[-2]) / np.log10(reached / (reached - 1))
        log10_needed += slope * np.log10(length / reached)
    in_all = f"at least about 10^{log10_needed:.1f} in all"
    _refuse(f"{sizes[-1]:,} states at length {reached} of {length}, {in_all}", limit, max_states)


def _check_candidates(types, class_of, is_target, reached: int, limit: int, max_states: int) -> None:
    """Refuses a merge of more than four times `limit` candidates, which would not fit in memory either."""
    rows = zip(types, class_of, strict=True)
    candidates = sum(len(log_multiplicity) * np.sum(row[is_target] >= 0) for (_, log_multiplicity), row in rows)
    if candidates > 4 * limit:
        _refuse(f"a merge of {candidates:,} candidate states at length {reached}", limit, max_states)


def _refuse(needed: str, limit: int, max_states: int) -> None:
    raise TooManyStatesError(
        f"the exact computation needs {needed}, but max_states={max_states:,} allows {limit:,} states of this width. "
        "Raise max_states, shorten the sequences, or use mixture_entropy_monte_carlo."
    )
