"""Log-likelihoods: against float64 NumPy, chunked against whole, and the memory that chunks are for."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from toys import normal

from mcl_jax import chunked_sequence_log_likelihood, sequence_log_likelihood

B, T, D, V = 3, 5, 7, 11
N = B * T


def problem(batch=B, time=T, width=D, vocabulary=V):
    """hidden, unembedding, bias, targets (out of range under a false mask), mask; NumPy, float32."""
    hidden, unembedding, bias = normal((batch, time, width)), normal((width, vocabulary), 1), normal(vocabulary, 2)
    targets = np.random.default_rng(3).integers(0, vocabulary, (batch, time)).astype(np.int32)
    mask = np.arange(time)[None] < np.array([1 + 2 * b % time for b in range(batch)])[:, None]
    return hidden, unembedding, bias, np.where(mask, targets, -100).astype(np.int32), mask


def reference(logits, targets, mask):
    """Σ_t m_t log softmax(z_t)[x_t], token by token, in float64."""
    logits = np.asarray(logits, np.float64)
    out = np.zeros(logits.shape[:-2])
    for *lead, b in np.ndindex(*logits.shape[:-2]):
        for t in np.flatnonzero(mask[b]):
            z = logits[(*lead, b, t)]
            out[(*lead, b)] += z[targets[b, t]] - z.max() - np.log(np.exp(z - z.max()).sum())
    return out


def logits_of(hidden, unembedding, bias):
    return hidden @ unembedding + bias


whole = jax.jit(sequence_log_likelihood)


@functools.cache
def chunked(size, cap=None):
    def log_p(hidden, unembedding, bias, targets, mask):
        return chunked_sequence_log_likelihood(hidden, unembedding, targets, mask, bias=bias, cap=cap, chunk_size=size)

    return jax.jit(log_p)


def close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance), actual, expected)


class TestSequence:
    def test_equals_float64_reference(self):
        hidden, unembedding, bias, targets, mask = problem()
        logits = logits_of(hidden, unembedding, bias)
        log_p, tokens = whole(logits, targets, mask)
        close(log_p, reference(logits, targets, mask))
        np.testing.assert_array_equal(tokens, mask.sum(1))
        assert log_p.dtype == jnp.float32
        assert tokens.dtype == jnp.int32
        assert len({*mask.sum(1).tolist()}) > 1

    def test_uniform_logits_by_hand(self):
        log_p, tokens = whole(np.zeros((1, T, V), np.float32), np.zeros((1, T), np.int32), np.arange(T)[None] < 3)
        close(log_p, [-3 * np.log(V)])
        assert tokens.tolist() == [3]

    def test_axes_before_the_batch(self):
        *_, targets, mask = problem()
        logits = normal((2, 3, B, T, V), 4)
        log_p, tokens = whole(logits, targets, mask)
        close(log_p, reference(logits, targets, mask))
        assert tokens.shape == (B,)

    def test_what_is_masked_has_no_part_in_it(self):
        hidden, unembedding, bias, targets, mask = problem()
        logits = logits_of(hidden, unembedding, bias)
        other = np.where(mask[..., None], logits, np.inf), np.where(mask, targets, 10**6).astype(np.int32)
        np.testing.assert_array_equal(whole(*other, mask)[0], whole(logits, targets, mask)[0])

    def test_bfloat16_logits_are_summed_in_float32(self):
        targets, mask = np.zeros((1, 1000), np.int32), np.ones((1, 1000), bool)
        logits = jnp.asarray(normal((1, 1000, V)), jnp.bfloat16)
        log_p, _ = whole(logits, targets, mask)
        assert log_p.dtype == jnp.float32
        close(log_p, reference(logits.astype(jnp.float32), targets, mask), 1e-5)

    def test_large_logits_do_not_overflow(self):
        logits = np.array([[[1e4, 0.0, -1e4]]], np.float32)
        assert whole(logits, np.array([[0]]), np.array([[True]]))[0][0] == 0.0
        assert whole(logits, np.array([[2]]), np.array([[True]]))[0][0] == -2e4

    def test_masks_of_zeros_and_ones(self):
        hidden, unembedding, bias, targets, mask = problem()
        logits = logits_of(hidden, unembedding, bias)
        close(whole(logits, targets, mask.astype(np.int32)), whole(logits, targets, mask), 0)

    def test_a_target_outside_the_vocabulary_shows_as_nan(self):
        hidden, unembedding, bias, targets, mask = problem()
        targets = np.where(np.arange(T) == 0, V, targets).astype(np.int32)
        assert np.isnan(whole(logits_of(hidden, unembedding, bias), targets, mask)[0]).all()
        assert np.isnan(chunked(4)(hidden, unembedding, bias, targets, mask)[0]).all()
        value, _ = jax.jit(jax.value_and_grad(lambda h: chunked(4)(h, unembedding, bias, targets, mask)[0].sum()))(
            hidden
        )
        assert np.isnan(value)

    def test_gradients(self):
        hidden, unembedding, bias, targets, mask = problem()
        logits = logits_of(hidden, unembedding, bias)
        check_grads(lambda z: sequence_log_likelihood(z, targets, mask)[0], (logits,), 1, modes=["rev"])


class TestChunked:
    @pytest.mark.parametrize("size", [1, 4, 5, N, 100])
    def test_value_and_gradients_equal_the_whole(self, size):
        *arrays, targets, mask = problem()
        weight = np.array([1.0, -2.0, 0.5], np.float32)

        def loss(log_p):
            return lambda h, w, b: (weight * log_p(h, w, b)[0]).sum()

        by_chunks = loss(lambda h, w, b: chunked(size)(h, w, b, targets, mask))
        at_once = loss(lambda h, w, b: whole(h @ w + b[None, None], targets, mask))
        close(
            jax.jit(jax.value_and_grad(by_chunks, (0, 1, 2)))(*arrays),
            jax.jit(jax.value_and_grad(at_once, (0, 1, 2)))(*arrays),
        )
        np.testing.assert_array_equal(chunked(size)(*arrays, targets, mask)[1], mask.sum(1))

    def test_only_target_tokens_meet_the_output_layer(self):
        """Of 3 · 5 tokens two, far apart, are targets: what is elsewhere is never read, not even times zero."""
        hidden, unembedding, bias, targets, _ = problem()
        mask = np.zeros((B, T), bool)
        mask[0, 1] = mask[2, 3] = True
        elsewhere_nan = np.where(mask[..., None], hidden, np.nan)
        value = lambda h: chunked(2)(h, unembedding, bias, targets, mask)[0]
        close(value(elsewhere_nan), value(hidden), 0)
        gradient = jax.grad(lambda h: value(h).sum())
        close(gradient(elsewhere_nan), gradient(hidden), 0)
        assert not gradient(elsewhere_nan)[~mask].any()

    def test_without_bias(self):
        hidden, unembedding, _, targets, mask = problem()
        log_p, _ = chunked(4)(hidden, unembedding, None, targets, mask)
        close(log_p, reference(hidden @ unembedding, targets, mask))

    def test_a_table_of_embeddings_needs_no_transposed_copy(self):
        hidden, unembedding, _, targets, mask = problem()

        def loss(hidden, matrix, transposed):
            options = {"chunk_size": 4, "transposed": transposed}
            return chunked_sequence_log_likelihood(hidden, matrix, targets, mask, **options)[0].sum()

        gradient = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
        value, (of_hidden, of_table) = gradient(hidden, unembedding.T, True)
        close((value, (of_hidden, of_table.T)), gradient(hidden, unembedding, False))
        of_hidden_alone = jax.jit(jax.grad(lambda h, table: loss(h, table, True)))
        assert f"[{D},{V}]" not in of_hidden_alone.lower(hidden, unembedding.T).compile().as_text()
        with pytest.raises(ValueError, match=r"\[V, D\] with D = 7 as in hidden, got \(7, 11\)"):
            loss(hidden, unembedding, True)

    def test_gradients_numerically(self):
        hidden, unembedding, bias, targets, mask = problem()
        log_p = lambda h, w, b: chunked(4)(h, w, b, targets, mask)[0]
        check_grads(log_p, (hidden, unembedding, bias), 1, modes=["rev"])

    @pytest.mark.parametrize("shared", [True, False], ids=["one output layer", "an output layer each"])
    def test_vmap_over_hypotheses_and_examples(self, shared):
        """vmap(K) of vmap(B) of sequences alone, gradient inside and outside of the maps, all as without chunks."""
        K = 2
        _, unembedding, bias, targets, mask = problem()
        hidden = normal((K, B, T, D), 7)
        unembedding = unembedding if shared else normal((K, D, V), 8)
        axes = (0, None if shared else 0)

        def single(log_p):
            one = lambda h, w, x, m: log_p(h[None], w, bias, x[None], m[None])[0][0]
            return lambda f=one: jax.vmap(jax.vmap(f, (0, None, 0, 0)), (*axes, None, None))

        mapped = single(chunked(4))
        expected = single(lambda h, w, b, x, m: whole(h @ w + b[None, None], x, m))
        inputs = hidden, unembedding, targets, mask
        close(jax.jit(mapped())(*inputs), jax.jit(expected())(*inputs))

        def outside(mapped):
            total = lambda h, w: jnp.square(mapped()(h, w, targets, mask)).sum()
            return jax.jit(jax.grad(total, (0, 1)))(hidden, unembedding)

        close(outside(mapped), outside(expected), 1e-4)

        def inside(log_p):
            one = lambda h, w, x, m: log_p(h[None], w, bias, x[None], m[None])[0][0]
            gradient = jax.grad(one, (0, 1))
            return jax.jit(jax.vmap(jax.vmap(gradient, (0, None, 0, 0)), (*axes, None, None)))(*inputs)

        close(inside(chunked(4)), inside(lambda h, w, b, x, m: whole(h @ w + b[None, None], x, m)))

    def test_more_padding_changes_nothing(self):
        hidden, unembedding, bias, targets, mask = problem()
        pad = lambda x, fill: np.pad(x, [(0, 0), (0, 4)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        padded = pad(hidden, 9.0), unembedding, bias, pad(targets, -1), pad(mask, False)
        close(chunked(4)(*padded), chunked(4)(hidden, unembedding, bias, targets, mask), 1e-6)

    def test_no_targets_at_all(self):
        hidden, unembedding, bias, targets, mask = problem()
        arrays, none = (hidden, unembedding, bias), np.zeros_like(mask)
        loss = lambda h, w, b: chunked(4)(h, w, b, targets, none)[0].sum()
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arrays)
        assert value == 0.0
        assert all((np.asarray(g) == 0.0).all() for g in gradients)
        assert chunked(4)(*arrays, targets, none)[1].tolist() == [0, 0, 0]
        gradient = jax.jit(jax.grad(lambda z: whole(z, targets, none)[0].sum()))(logits_of(*arrays))
        assert (gradient == 0.0).all()

    def test_sequences_of_length_zero(self):
        _, unembedding, bias, targets, mask = problem()
        log_p, tokens = chunked(4)(normal((B, 0, D)), unembedding, bias, targets[:, :0], mask[:, :0])
        assert log_p.tolist() == [0.0] * B
        assert tokens.tolist() == [0] * B

    def test_bfloat16_hidden_states(self):
        hidden, unembedding, bias, targets, mask = problem()
        low = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(unembedding, jnp.bfloat16)
        rounded = [np.asarray(x, np.float32) for x in low]
        log_p, _ = chunked(4)(*low, bias, targets, mask)
        assert log_p.dtype == jnp.float32
        close(log_p, reference(logits_of(*rounded, bias), targets, mask), 1e-4)
        loss = lambda h, w: chunked(4)(h, w, bias, targets, mask)[0].sum()
        gradients = jax.jit(jax.grad(loss, (0, 1)))(*low)
        assert [g.dtype for g in gradients] == [jnp.bfloat16] * 2
        for g, e in zip(gradients, jax.jit(jax.grad(loss, (0, 1)))(*rounded), strict=True):
            np.testing.assert_allclose(g.astype(np.float32), e, rtol=0.05, atol=0.05)

    def test_refused(self):
        hidden, unembedding, bias, targets, mask = problem()
        call = chunked_sequence_log_likelihood
        with pytest.raises(ValueError, match="chunk_size must be at least 1 token, got 0"):
            call(hidden, unembedding, targets, mask, chunk_size=0)
        with pytest.raises(ValueError, match=r"\[D, V\] with D = 7 as in hidden, got \(11, 7\)"):
            call(hidden, unembedding.T, targets, mask)
        with pytest.raises(ValueError, match=r"bias must have shape \[V\] = \(11,\), got \(7,\)"):
            call(hidden, unembedding, targets, mask, bias=bias[:D])
        with pytest.raises(
            ValueError, match=r"hidden, targets and mask must have the same \[B, T\], got \(3, 5\), \(3, 4\)"
        ):
            call(hidden, unembedding, targets[:, 1:], mask)
        with pytest.raises(ValueError, match=r"logits, targets and mask .* got \(3, 5\), \(3, 5\) and \(3, 4\)"):
            sequence_log_likelihood(logits_of(hidden, unembedding, bias), targets, mask[:, 1:])


def largest_array(function, *args) -> int:
    """Elements of the largest array in the optimised program."""
    program = jax.jit(function).lower(*args).compile().as_text()
    shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", program)
    assert shapes
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


class TestCap:
    """Logits c · tanh(z / c), as in Gemma 2: c is near the spread of the logits, so that it bends most of them."""

    CAP = 2.5

    def both(self):
        """log p [K] of all examples by chunks and at once, and their gradients, of K hypotheses under vmap."""
        _, unembedding, bias, targets, mask = problem()
        arrays = 2 * normal((3, B, T, D), 7), unembedding, bias

        by_chunks = lambda h, w, b: chunked(4, self.CAP)(h, w, b, targets, mask)[0]

        def at_once(h, w, b):
            return whole(self.CAP * jnp.tanh(logits_of(h, w, b[None, None]) / self.CAP), targets, mask)[0]

        def run(log_p):
            mapped = lambda h, w, b: jax.vmap(lambda h: log_p(h, w, b))(h)
            weighted = lambda *x: (mapped(*x) * normal((3, B), 5)).sum()
            return jax.jit(lambda *x: (mapped(*x), jax.grad(weighted, (0, 1, 2))(*x)))(*arrays)

        return arrays, run(by_chunks), run(at_once)

    def test_values_and_gradients_are_those_of_capped_logits(self):
        (hidden, unembedding, bias), found, expected = self.both()
        close(found, expected, 1e-4)
        _, _, _, targets, mask = problem()
        capped = self.CAP * np.tanh(logits_of(hidden, unembedding, bias) / self.CAP)
        close(found[0], reference(capped, targets, mask))

    @pytest.mark.parametrize("cap", [0.0, -1.0, np.inf, np.nan])
    def test_refused(self, cap):
        hidden, unembedding, _, targets, mask = problem()
        with pytest.raises(ValueError, match="cap must be a finite number above 0, or None, got"):
            chunked_sequence_log_likelihood(hidden, unembedding, targets, mask, cap=cap)


class TestMemory:
    """No array of T·V elements in the program, forward or backward, however it is mapped."""

    K, BATCH, TIME, WIDTH, VOCABULARY, CHUNK = 3, 2, 64, 2, 97, 8

    def arrays(self):
        return problem(self.BATCH, self.TIME, self.WIDTH, self.VOCABULARY)

    def limit(self):
        return self.TIME * self.VOCABULARY

    def test_forward_and_backward(self):
        hidden, unembedding, bias, targets, mask = self.arrays()
        loss = lambda log_p: lambda h, w, b: log_p(h, w, b)[0].sum()
        by_chunks = loss(lambda h, w, b: chunked(self.CHUNK)(h, w, b, targets, mask))
        at_once = loss(lambda h, w, b: whole(h @ w + b[None, None], targets, mask))
        capped = loss(lambda h, w, b: chunked(self.CHUNK, cap=2.0)(h, w, b, targets, mask))
        for log_p, wrt in ((by_chunks, (0,)), (by_chunks, (0, 1, 2)), (capped, (0, 1, 2))):
            gradient = jax.value_and_grad(log_p, wrt)
            assert largest_array(gradient, hidden, unembedding, bias) <= self.CHUNK * self.VOCABULARY
        assert largest_array(jax.value_and_grad(at_once), hidden, unembedding, bias) >= self.limit()

    def test_under_vmap_over_hypotheses_and_examples(self):
        """A plain vmap of a loop over chunks would hold K·B chunks at a time: here batched rows become more rows."""
        hidden, unembedding, bias, targets, mask = self.arrays()
        stack = np.broadcast_to(hidden, (self.K, *hidden.shape)).copy()

        def loss(stack, log_p):
            one = lambda h, x, m: log_p(h[None], unembedding, bias, x[None], m[None])[0][0]
            return jax.vmap(jax.vmap(one), (0, None, None))(stack, targets, mask).sum()

        def hand_vmapped(gradient):
            one = lambda h, x, m: chunked(self.CHUNK)(h[None], unembedding, bias, x[None], m[None])[0][0]
            return jax.vmap(jax.vmap(jax.value_and_grad(one)), (0, None, None))(gradient, targets, mask)

        bound = max(self.CHUNK * self.VOCABULARY, stack.size)
        assert bound < self.limit() / 4
        assert largest_array(jax.value_and_grad(lambda s: loss(s, chunked(self.CHUNK))), stack) <= bound
        assert largest_array(hand_vmapped, stack) <= bound
        at_once = lambda h, w, b, x, m: whole(h @ w + b[None, None], x, m)
        assert largest_array(jax.value_and_grad(lambda s: loss(s, at_once)), stack) >= self.limit()


class TestNonFinite:
    """Nothing that stands at a masked position, and no impossible token elsewhere, makes a NaN."""

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_masked_positions_may_hold_anything(self, bad):
        hidden, unembedding, bias, targets, mask = problem()
        spoiled = np.where(mask[..., None], hidden, bad)
        loss = lambda h, w, b: chunked(4)(h, w, b, targets, mask)[0].sum()
        values, expected = (jax.value_and_grad(loss, (0, 1, 2))(h, unembedding, bias) for h in (spoiled, hidden))
        jax.tree.map(close, values, expected)

        logits = logits_of(hidden, unembedding, bias)
        spoiled = np.where(mask[..., None], logits, bad)
        loss = lambda z: sequence_log_likelihood(z, targets, mask)[0].sum()
        jax.tree.map(close, jax.value_and_grad(loss)(spoiled), jax.value_and_grad(loss)(logits))

    def test_a_token_that_is_impossible(self):
        """A bias of −inf on token 0, with which masked targets are filled up, is no target of any sequence."""
        hidden, unembedding, bias, targets, mask = problem()
        bias[0] = -np.inf
        targets = np.where(mask & (targets == 0), 1, targets)
        loss = lambda h: chunked(4)(h, unembedding, bias, targets, mask)[0]
        at_once = lambda h: whole(h @ unembedding + bias[None, None], targets, mask)[0]
        assert np.isfinite(loss(hidden)).all()
        close(loss(hidden), at_once(hidden))
        close(jax.grad(lambda h: loss(h).sum())(hidden), jax.grad(lambda h: at_once(h).sum())(hidden))

    def test_a_target_that_is_impossible_has_probability_zero(self):
        hidden, unembedding, bias, targets, mask = problem()
        bias[targets[0, 0]] = -np.inf
        log_p = chunked(4)(hidden, unembedding, bias, targets, mask)[0]
        assert log_p[0] == -np.inf
        np.testing.assert_array_equal(log_p, whole(hidden @ unembedding + bias[None, None], targets, mask)[0])
