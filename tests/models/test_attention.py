"""A key or value that is not finite reaches the queries that see it, and no others, in values and in gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from mcl_jax.models import decoder
from mcl_jax.models.llama import Llama, LlamaConfig

B, T, PAST, HEADS, GROUPS, D = 2, 7, 5, 6, 3, 4


def normal(shape, seed=0):
    return jnp.asarray(toys.normal(shape, seed))


def attention_inputs(copies=1):
    """(queries, past segment with fewer rows, own segment); everything is visible as in a decoder."""
    rows = B // copies
    q = normal((B, T, HEADS, D))
    past = normal((rows, PAST, GROUPS, D), 1), normal((rows, PAST, GROUPS, D), 2)
    own = normal((B, T, GROUPS, D), 3), normal((B, T, GROUPS, D), 4)
    causal = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    before = T + jnp.arange(T)[:, None] - jnp.arange(PAST)[None]
    return q, past, own, jnp.broadcast_to(before, (B, T, PAST)), jnp.broadcast_to(causal, (B, T, T))


def attend(q, past, own, before, causal, window=None):
    return decoder.attend(q, [(*past, before), (*own, causal)], window=window, scale=0.5)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("window", [None, 3])
def test_later_positions_and_the_window(broken, part, window):
    q, past, own, before, causal = attention_inputs()
    expected = attend(q, past, own, before, causal, window)
    own = tuple(x.at[1, 2, 0, 3].set(broken) if i == part else x for i, x in enumerate(own))
    y = attend(q, past, own, before, causal, window)
    sees = np.zeros((B, T), bool)
    sees[1, 2 : None if window is None else 2 + window] = True
    np.testing.assert_array_equal(np.isnan(y).all((2, 3)), sees)
    np.testing.assert_allclose(np.asarray(y)[~sees], np.asarray(expected)[~sees], rtol=1e-6)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_masked_key_of_the_prompt(copies):
    q, past, own, before, causal = attention_inputs(copies)
    hidden = before.at[:, :, 1].set(-1)
    expected = attend(q, past, own, hidden, causal)
    past = tuple(x.at[0, 1].set(jnp.nan) for x in past)
    np.testing.assert_allclose(attend(q, past, own, hidden, causal), expected, rtol=1e-6)
    rows = np.arange(B) < copies  # the queries that share row 0 of the prompt
    np.testing.assert_array_equal(np.isnan(attend(q, past, own, before, causal)).all((1, 2, 3)), rows)


def test_gradients():
    q, past, own, before, causal = attention_inputs()
    causal = causal.at[:, :, 4].set(-1)
    loss = lambda q, past, own: (attend(q, past, own, before, causal) ** 2).sum()
    expected = jax.grad(loss, (0, 1, 2))(q, past, own)
    broken = tuple(x.at[:, 4].set(jnp.nan) for x in own)
    gradients = jax.grad(loss, (0, 1, 2))(q, past, broken)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients, expected)


def test_of_a_model():
    """A token outside the vocabulary spoils itself and what follows it, not what comes before or other rows."""
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
    )
    module, tokens = Llama(config), jax.random.randint(jax.random.key(0), (3, 7), 0, 31)
    params = jax.jit(module.init)(jax.random.key(1), tokens)
    apply = jax.jit(module.apply)
    logits, broken = apply(params, tokens), apply(params, tokens.at[1, 4].set(31))
    sees = np.zeros((3, 7), bool)
    sees[1, 4:] = True
    np.testing.assert_array_equal(np.isnan(broken).any(-1), sees)
    np.testing.assert_allclose(np.asarray(broken)[~sees], np.asarray(logits)[~sees], rtol=1e-5, atol=1e-6)
