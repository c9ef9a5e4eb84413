"""Theory lines of Markov mixtures: against exhaustive enumeration, Monte Carlo, known values, and each other."""

import itertools
from math import log

import numpy as np
import pytest

from experiments.markov import theory
from experiments.markov.theory import types as markov_types


def two_symbols(p: float, q: float) -> np.ndarray:
    return np.array([[1 - p, p], [q, 1 - q]])


SETTING_1 = [two_symbols(0.2, 0.9), two_symbols(0.8, 0.25)]
SETTING_2 = [two_symbols(0.7, 0.8), two_symbols(0.8, 0.25)]
CYCLE = np.roll(np.eye(3), 1, axis=1)  # 0 -> 1 -> 2 -> 0: periodic and deterministic
UNEQUAL_PRIOR = np.array([0.5, 0.3, 0.2])
# Some sequences are impossible under one chain only; some under all, though each transition is possible under some.
SPARSE = [CYCLE, [[0.5, 0.5, 0], [0, 0.25, 0.75], [1, 0, 0]], [[0, 0, 1], [0, 1, 0], [0, 1, 0]]]


def random_chains(num_chains: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(vocabulary), (num_chains, vocabulary))


def exhaustive(transitions, length, prior=None) -> tuple[float, float, float]:
    """(entropy, WTA loss, entropy given the chain) by a plain loop over all V^T sequences."""
    transitions = np.asarray(transitions)
    num_chains, vocabulary, _ = transitions.shape
    prior = np.full(num_chains, 1 / num_chains) if prior is None else prior
    entropy = wta = given_chain = 0.0
    for x in itertools.product(range(vocabulary), repeat=length):
        p = np.prod([transitions[:, i, j] for i, j in itertools.pairwise(x)], axis=0)
        mixture = prior @ p
        if mixture > 0:
            entropy -= mixture * log(mixture) / vocabulary
            wta -= mixture * log(p.max()) / vocabulary
            given_chain -= sum(w * q * log(q) for w, q in zip(prior, p, strict=True) if q > 0) / vocabulary
    return entropy, wta, given_chain


# --- Exact losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [None, UNEQUAL_PRIOR])
@pytest.mark.parametrize("length", [2, 3, 5, 7])
@pytest.mark.parametrize("transitions", [random_chains(3, 3), SPARSE], ids=["dense", "sparse"])
def test_exact_losses_equal_exhaustive_enumeration(transitions, length, prior):
    entropy, wta, given_chain = exhaustive(transitions, length, prior)
    assert theory.mixture_entropy(transitions, length, prior) == pytest.approx(entropy, abs=1e-12)
    assert theory.wta_loss_of_true_chains(transitions, length, prior) == pytest.approx(wta, abs=1e-12)
    assert theory.conditional_entropy(transitions, length, prior) == pytest.approx(given_chain, abs=1e-12)


def test_exact_losses_with_counts_in_two_words():
    transitions = random_chains(2, 5)  # 25 classes of 3 bits need two 63-bit words
    entropy, wta, _ = exhaustive(transitions, 5)
    assert theory.mixture_entropy(transitions, 5) == pytest.approx(entropy, abs=1e-12)
    assert theory.wta_loss_of_true_chains(transitions, 5) == pytest.approx(wta, abs=1e-12)


def test_exact_losses_ignore_a_chain_of_prior_zero_in_the_data_only():
    prior = np.array([0.6, 0.4, 0.0])
    entropy, wta, _ = exhaustive(SPARSE, 5, prior)
    assert theory.mixture_entropy(SPARSE, 5, prior) == pytest.approx(entropy, abs=1e-12)
    assert theory.wta_loss_of_true_chains(SPARSE, 5, prior) == pytest.approx(wta, abs=1e-12)


def test_equal_rows_and_equal_entries_are_merged():
    independent = np.tile([0.2, 0.3, 0.5], (1, 3, 1))  # i.i.d. symbols
    assert theory.mixture_entropy(independent, 13, max_states=91) == pytest.approx(12 * 1.0296530140645737)
    uniform = np.full((1, 50, 50), 1 / 50)  # one state with one class
    assert theory.mixture_entropy(uniform, 101, max_states=50) == pytest.approx(100 * log(50))


def test_types_of_a_long_sequence_hold_all_probability():
    batches = markov_types.sequence_types(random_chains(2, 3), 17, max_states=10**6)
    total = sum(np.exp(log_multiplicity + log_p - log(3)).sum(axis=1) for log_multiplicity, log_p in batches)
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)


def test_long_sequences_do_not_overflow():
    # 2^1100 sequences do not fit in a float64; 1 - 0.8 differs from 0.2 in the last bit and is merged with it
    independent = [two_symbols(0.2, 0.8)]
    expected = 1099 * theory.entropy_rate(independent[0])
    assert theory.mixture_entropy(independent, 1100, max_states=1100) == pytest.approx(expected)


def test_deterministic_mixture_costs_only_the_choice_of_the_chain():
    transitions = [CYCLE, CYCLE.T]
    assert theory.mixture_entropy(transitions, 31, max_states=6) == pytest.approx(log(2))  # 3 starts, 2 chains
    assert theory.wta_loss_of_true_chains(transitions, 31) == 0.0


def test_losses_do_not_depend_on_the_order_of_the_chains():
    transitions, order = random_chains(3, 3), [2, 0, 1]
    for loss in (theory.mixture_entropy, theory.wta_loss_of_true_chains, theory.conditional_entropy):
        expected = loss(transitions, 11, UNEQUAL_PRIOR)
        assert loss(transitions[order], 11, UNEQUAL_PRIOR[order]) == pytest.approx(expected, abs=1e-12)


def test_too_many_states_is_refused_before_memory_is_gone():
    with pytest.raises(theory.TooManyStatesError, match=r"1,578 states at length 8 of 32.*10\^6.*monte_carlo"):
        theory.mixture_entropy(random_chains(2, 3), 32, max_states=1577)
    with pytest.raises(theory.TooManyStatesError, match="max_states=5,000,000 allows"):
        theory.mixture_entropy(random_chains(2, 200), 32)
    independent = np.tile(random_chains(1, 200)[:, :1], (1, 200, 1))  # one state, and 200 arrivals from each type
    with pytest.raises(theory.TooManyStatesError, match=r"40,000 candidate states at length 3.* allows 9,000"):
        theory.mixture_entropy(independent, 5, max_states=90_000)


# --- Monte Carlo and bounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transitions", [random_chains(3, 3), SPARSE], ids=["dense", "sparse"])
def test_monte_carlo_agrees_within_four_standard_errors(transitions):
    mean, error = theory.mixture_entropy_monte_carlo(transitions, 13, 20_000, seed=7, prior=UNEQUAL_PRIOR)
    assert 0 < error < 0.05
    assert abs(mean - theory.mixture_entropy(transitions, 13, UNEQUAL_PRIOR)) < 4 * error
    assert theory.mixture_entropy_monte_carlo(transitions, 13, 20_000, seed=7, prior=UNEQUAL_PRIOR) == (mean, error)


@pytest.mark.parametrize(
    ("transitions", "mle", "wta_true_chains", "rate"),
    [(SETTING_1, 0.52935, 0.50699, 0.50806), (SETTING_2, 0.57509, 0.55290, 0.55345)],
    ids=["setting 1", "setting 2"],
)
def test_bounds_of_the_paper(transitions, mle, wta_true_chains, rate):
    lines = theory.bounds(transitions, 32)
    assert lines.mle == pytest.approx(mle, abs=6e-6)
    assert lines.wta_true_chains == pytest.approx(wta_true_chains, abs=6e-6)
    assert lines.wta_upper == pytest.approx(rate, abs=6e-6)
    assert lines.wta_lower == pytest.approx(lines.mle - log(2) / 31)
    assert (lines.exact, lines.standard_error) == (True, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_bounds_are_ordered(seed):
    lines = theory.bounds(random_chains(3, 3, seed), 7, prior=UNEQUAL_PRIOR)
    assert lines.wta_lower <= lines.wta_true_chains <= lines.conditional_entropy <= lines.mle


def test_bounds_with_more_or_fewer_hypotheses_than_chains():
    chains = random_chains(3, 3)
    fewer, equal, more = (theory.bounds(chains, 7, num_hypotheses=k) for k in (2, 3, 5))
    assert fewer.wta_upper == fewer.mle
    mean_rate = np.mean([theory.entropy_rate(p) for p in chains])
    assert equal.wta_upper == more.wta_upper == pytest.approx(mean_rate)
    lower = [lines.wta_lower for lines in (fewer, equal, more)]
    np.testing.assert_allclose(lower, fewer.mle - np.log([2, 3, 5]) / 6)


def test_bounds_fall_back_to_monte_carlo_and_say_so():
    exact = theory.bounds(SETTING_2, 32)
    sampled = theory.bounds(SETTING_2, 32, max_states=10, num_samples=20_000, seed=3)
    assert not sampled.exact
    assert 0 < sampled.standard_error < 0.002
    for line in ("mle", "wta_lower", "wta_true_chains"):
        assert abs(getattr(sampled, line) - getattr(exact, line)) < 4 * sampled.standard_error
    assert sampled.wta_upper == exact.wta_upper


# --- Chains ---------------------------------------------------------------------------------------------------------


def test_stationary_distribution():
    np.testing.assert_allclose(theory.stationary_distribution(two_symbols(0.2, 0.9)), [9 / 11, 2 / 11])
    np.testing.assert_allclose(theory.stationary_distribution(CYCLE), [1 / 3, 1 / 3, 1 / 3])
    with_transient = [[0.5, 0.25, 0.25], [0, 0, 1], [0, 0.5, 0.5]]
    np.testing.assert_allclose(theory.stationary_distribution(with_transient), [0, 1 / 3, 2 / 3])
    chain = random_chains(1, 7)[0]
    np.testing.assert_allclose(theory.stationary_distribution(chain), np.linalg.matrix_power(chain, 200)[0])


def test_stationary_distribution_that_is_not_unique():
    with pytest.raises(ValueError, match=r"not unique.*2: \[\[0\], \[1, 2\]\]"):
        theory.stationary_distribution([[1, 0, 0], [0, 0.5, 0.5], [0, 1, 0]])


def test_entropy_rate():
    assert theory.entropy_rate(CYCLE) == 0.0
    assert theory.entropy_rate(np.full((5, 5), 1 / 5)) == pytest.approx(log(5))
    chains = random_chains(1, 3)
    last_token = theory.mixture_entropy(chains, 19) - theory.mixture_entropy(chains, 18)
    assert last_token == pytest.approx(theory.entropy_rate(chains[0]), abs=1e-6)


def test_average_transition():
    pi_1, pi_2 = np.array([9 / 11, 2 / 11]), np.array([5 / 21, 16 / 21])
    expected = [(a * p + b * q) / (a + b) for a, b, p, q in zip(pi_1, pi_2, *SETTING_1, strict=True)]
    np.testing.assert_allclose(theory.average_transition(SETTING_1), expected)
    np.testing.assert_allclose(theory.average_transition(SETTING_1, prior=[0, 1]), SETTING_1[1])
    with pytest.raises(ValueError, match=r"no chain visits \[0\]"):
        theory.average_transition([[[0.5, 0.5], [0, 1]]])


def test_first_transition():
    """Setting 1 by hand, and the share of pairs (x_1, x_2) in sampled sequences."""
    np.testing.assert_allclose(theory.first_transition(SETTING_1), [[0.5, 0.5], [0.575, 0.425]])
    np.testing.assert_allclose(theory.first_transition(SETTING_1, prior=[0, 1]), SETTING_1[1])
    chains = random_chains(3, 3)
    sequences, _ = theory.sample(chains, 2, 60_000, seed=5, prior=UNEQUAL_PRIOR)
    pairs = np.bincount(3 * sequences[:, 0] + sequences[:, 1], minlength=9).reshape(3, 3)
    share = pairs / pairs.sum(1, keepdims=True)
    np.testing.assert_allclose(theory.first_transition(chains, UNEQUAL_PRIOR), share, atol=0.015)


def test_sample_follows_the_chains():
    chains = random_chains(3, 3)
    sequences, z = theory.sample(chains, 11, 20_000, seed=5, prior=UNEQUAL_PRIOR)
    assert sequences.shape == (20_000, 11)
    assert (sequences.dtype, z.dtype) == (np.int32, np.int32)
    np.testing.assert_allclose(np.bincount(z) / 20_000, UNEQUAL_PRIOR, atol=0.015)
    np.testing.assert_allclose(np.bincount(sequences[:, 0]) / 20_000, 1 / 3, atol=0.015)
    for k, chain in enumerate(chains):
        counts = np.zeros((3, 3))
        np.add.at(counts, (sequences[z == k, :-1], sequences[z == k, 1:]), 1)
        np.testing.assert_allclose(counts / counts.sum(axis=1, keepdims=True), chain, atol=0.03)


def test_sample_never_draws_the_impossible():
    sequences, z = theory.sample(SPARSE, 13, 5000, seed=0)
    log_p = theory.log_likelihood(SPARSE, sequences)
    assert np.all(np.isfinite(log_p[z, np.arange(5000)]))
    assert np.any(np.isneginf(log_p))


def test_log_likelihood():
    expected = [2 * log(0.2) + log(0.9), 2 * log(0.8) + log(0.25)]
    np.testing.assert_allclose(theory.log_likelihood(SETTING_1, [[0, 1, 0, 1]])[:, 0], expected)


# --- Matching -------------------------------------------------------------------------------------------------------


def test_row_total_variation():
    np.testing.assert_allclose(theory.row_total_variation(SETTING_1[0], SETTING_1[1]), [0.6, 0.65])


def test_matching_recovers_a_permutation():
    true, order = random_chains(5, 3), [3, 0, 4, 1, 2]
    noise = 0.01 * random_chains(5, 3, seed=1)
    matching = theory.match_chains(0.99 * true[order] + noise, true)
    np.testing.assert_array_equal(np.array(order)[matching.hypothesis], range(5))
    assert 0 < matching.total_variation.max() < 0.01
    assert matching.covered.all()


def test_matching_is_one_to_one_even_when_one_hypothesis_is_nearest_to_both():
    true = [two_symbols(0.5, 0.5), two_symbols(0.6, 0.6)]
    matching = theory.match_chains([two_symbols(0.55, 0.55), two_symbols(0.9, 0.8)], true)
    np.testing.assert_array_equal(matching.hypothesis, [0, 1])
    np.testing.assert_allclose(matching.total_variation, [0.05, 0.3])


def test_matching_with_more_hypotheses_than_chains():
    true = random_chains(2, 3)
    matching = theory.match_chains([*random_chains(3, 3, seed=1), true[1], true[0]], true)
    np.testing.assert_array_equal(matching.hypothesis, [4, 3])
    np.testing.assert_array_equal(matching.total_variation, [0, 0])


def test_matching_with_fewer_hypotheses_than_chains():
    true = [two_symbols(0.1, 0.1), two_symbols(0.8, 0.8), two_symbols(0.9, 0.9)]
    matching = theory.match_chains([true[2], true[0]], true)
    np.testing.assert_array_equal(matching.hypothesis, [1, 0, 0])
    np.testing.assert_allclose(matching.total_variation, [0, 0.1, 0])
    np.testing.assert_array_equal(matching.covered, [True, False, True])


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transitions", "message"),
    [
        ([], "at least one chain"),
        (0.5, "list of matrices"),
        ([[0.2, 0.8], [0.9, 0.1]], "single matrix.*wrap it in a list"),
        ([np.eye(2), [[0.2, 0.7], [0, 1]]], r"chain 1, row 0.*sum to 1.*0\.9"),
        ([np.eye(2), [[1, 0], [1.5, -0.5]]], r"chain 1, row 1.*non-negative.*-0\.5"),
        ([[[np.nan, 1], [0, 1]]], "chain 0, row 0.*finite"),
        ([np.eye(2), np.full((2, 3), 1 / 3)], r"square.*chain 1 has shape \(2, 3\)"),
        ([np.eye(2), np.eye(3)], r"same V.*\(2, 2\).*chain 1 has \(3, 3\)"),
        ([np.eye(2), [[1], [0, 1]]], "chain 1 needs a rectangular array"),
    ],
)
def test_bad_transitions_are_refused(transitions, message):
    with pytest.raises(ValueError, match=message):
        theory.validate_transitions(transitions)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"T >= 2.*got 1"):
        theory.mixture_entropy(SETTING_1, 1)
    with pytest.raises(ValueError, match=r"each of 2 chains; got shape \(3,\)"):
        theory.mixture_entropy(SETTING_1, 5, prior=UNEQUAL_PRIOR)
    with pytest.raises(ValueError, match=r"prior.*sums to 0\.9"):
        theory.sample(SETTING_1, 5, 10, seed=0, prior=[0.5, 0.4])
    with pytest.raises(ValueError, match=r"num_hypotheses.*got 0"):
        theory.bounds(SETTING_1, 5, num_hypotheses=0)
    with pytest.raises(ValueError, match=r"num_samples.*got 1"):
        theory.mixture_entropy_monte_carlo(SETTING_1, 5, 1, seed=0)
    with pytest.raises(ValueError, match=r"num needs.*got 0"):
        theory.sample(SETTING_1, 5, 0, seed=0)
    with pytest.raises(ValueError, match=r"one transition matrix.*\(2, 2, 2\)"):
        theory.entropy_rate(SETTING_1)
    with pytest.raises(ValueError, match="same V"):
        theory.match_chains(SETTING_1, SPARSE)


# --- Limited memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1, 2, 3, 7])
def test_limited_memory_is_the_entropy_given_the_last_symbols(memory):
    """Against the definition: -E[log p(x_t | last m symbols)] over every sequence, with an unequal prior."""
    rng, length = np.random.default_rng(5), 5
    chains, prior = rng.dirichlet(np.ones(3), (2, 3)), np.array([0.3, 0.7])
    sequences = np.array(list(itertools.product(range(3), repeat=length)))
    p = prior @ np.exp(theory.log_likelihood(chains, sequences)) / 3
    expected = 0.0
    for t in range(1, length):
        # A context is its place and its symbols: the model knows positions.
        seen = [tuple(x[max(0, t - memory) : t]) for x in sequences]
        joint, context = {}, {}
        for x, c, weight in zip(sequences, seen, p, strict=True):
            joint[c, x[t]] = joint.get((c, x[t]), 0.0) + weight
            context[c] = context.get(c, 0.0) + weight
        expected -= sum(weight * np.log(weight / context[c]) for (c, _), weight in joint.items())
    assert theory.limited_memory_entropy(chains, length, memory, prior) == pytest.approx(expected, abs=1e-12)
    if memory >= length - 1:
        assert expected == pytest.approx(theory.mixture_entropy(chains, length, prior), abs=1e-12)


def test_limited_memory_refuses():
    with pytest.raises(ValueError, match="memory must be at least 1"):
        theory.limited_memory_entropy(np.full((1, 2, 2), 0.5), 5, 0)
