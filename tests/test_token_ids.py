"""Ids outside of the vocabulary: refused where values are known, NaN where they are traced, nothing at padding."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import normal

import mcl_jax as mcl
from mcl_jax import chunked_sequence_log_likelihood, sequence_log_likelihood

GOLDEN = Path(__file__).parent / "golden" / "models"
V = 41  # of the tiny models
TOKENS = np.random.default_rng(5).integers(0, V, (3, 7)).astype(np.int32)
MASK = np.arange(7)[None] >= np.array([[0], [4], [2]])


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request):
    return mcl.models.from_pretrained(GOLDEN / request.param)[:2]


@pytest.mark.parametrize("padding", [-1, -100, V, 10**6])
def test_what_stands_at_padding_changes_nothing(loaded, padding):
    module, params = loaded
    logits = jax.jit(lambda tokens: module.apply({"params": params}, tokens, MASK))
    wanted, found = logits(TOKENS), logits(np.where(MASK, TOKENS, padding))
    np.testing.assert_array_equal(found[MASK], wanted[MASK])
    assert np.isfinite(found).all()
    eagerly = module.apply({"params": params}, np.where(MASK, TOKENS, padding), MASK, method="hidden")
    assert np.isfinite(eagerly).all()


@pytest.mark.parametrize("wrong", [-1, -V, V, V + 1])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int8])
def test_tokens_of_a_model(loaded, wrong, dtype):
    module, params = loaded
    tokens = TOKENS.astype(dtype)
    tokens[1, 4] = wrong
    run = lambda tokens: module.apply({"params": params}, tokens, MASK)
    with pytest.raises(
        ValueError, match=rf"tokens must be in the vocabulary \[0, {V}\).* got \[{wrong}\] in rows \[1\]"
    ):
        run(tokens)
    traced = np.asarray(jax.jit(run)(tokens))
    assert np.isnan(traced[1, 4:]).all() and np.isfinite(traced[[0, 2]]).all()


def problem(wrong):
    """hidden, unembedding, targets, mask, of which example 1 has a wrong target."""
    targets, mask = np.random.default_rng(3).integers(0, 11, (3, 5)), np.arange(5)[None] < np.array([[5], [3], [2]])
    targets[1, 2] = wrong
    return normal((3, 5, 7)), normal((7, 11), 1), np.where(mask, targets, -100), mask


def whole(hidden, unembedding, targets, mask):
    return sequence_log_likelihood(hidden @ unembedding, targets, mask)[0]


def chunked(hidden, unembedding, targets, mask):
    return chunked_sequence_log_likelihood(hidden, unembedding, targets, mask, chunk_size=4)[0]


@pytest.mark.parametrize("log_likelihood", [whole, chunked])
@pytest.mark.parametrize("wrong", [-1, -11, 11, 12, -100])
def test_targets(log_likelihood, wrong):
    with pytest.raises(
        ValueError, match=rf"targets must be in the vocabulary \[0, 11\).*got \[{wrong}\] in rows \[1\]"
    ):
        log_likelihood(*problem(wrong))
    found = np.asarray(jax.jit(log_likelihood)(*problem(wrong)))
    assert np.isnan(found[1])
    np.testing.assert_allclose(found[[0, 2]], np.asarray(log_likelihood(*problem(4)))[[0, 2]], rtol=1e-6)


@pytest.mark.parametrize("log_likelihood", [whole, chunked])
def test_masks_that_are_weights_or_biases(log_likelihood):
    hidden, unembedding, targets, mask = problem(4)
    wanted = log_likelihood(hidden, unembedding, targets, mask)
    for dtype in (np.int32, np.float32):
        as_numbers = log_likelihood(hidden, unembedding, targets, mask.astype(dtype))
        np.testing.assert_array_equal(as_numbers, wanted)
    for odd in (np.where(mask, 0.0, -np.inf), 0.5 * mask, jnp.where(mask, 1, -100)):
        with pytest.raises(ValueError, match="mask must be 1 on tokens and 0 on padding"):
            log_likelihood(hidden, unembedding, targets, odd)
