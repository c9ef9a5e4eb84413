"""Attention at once and in blocks of queries: the same values, gradients and broken keys, and less memory.

A key or value that is not finite reaches the queries that see it, and no others, in values and in gradients.
"""

import math

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


def in_blocks(monkeypatch, size=3):
    """Takes the queries of any call in blocks; 7 queries need 3 blocks of 3, and the last overlaps."""
    monkeypatch.setattr(decoder, "MOST_SCORES", 0)
    monkeypatch.setattr(decoder, "QUERY_BLOCK", size)
    jax.clear_caches()


def in_parts(monkeypatch):
    """Divides ordered queries of any call; 7 queries are parts of 4 and 3."""
    monkeypatch.setattr(decoder, "MOST_PARTS", 2)
    monkeypatch.setattr(decoder, "LEAST_QUERIES", 2)
    jax.clear_caches()


@pytest.fixture(params=["plain", "blocked", "parts", "parts, blocked"])
def path(request, monkeypatch):
    if "blocked" in request.param:
        in_blocks(monkeypatch)
    if "parts" in request.param:
        in_parts(monkeypatch)
    yield request.param
    jax.clear_caches()


def attention_inputs(copies=1):
    """(queries, past segment with fewer rows, own segment); everything is visible as in a decoder."""
    rows = B // copies
    q = normal((B, T, HEADS, D))
    past = normal((rows, PAST, GROUPS, D), 1), normal((rows, PAST, GROUPS, D), 2)
    own = normal((B, T, GROUPS, D), 3), normal((B, T, GROUPS, D), 4)
    causal = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    before = T + jnp.arange(T)[:, None] - jnp.arange(PAST)[None]
    return q, past, own, jnp.broadcast_to(before, (B, T, PAST)), jnp.broadcast_to(causal, (B, T, T))


def attend(q, past, own, before, causal, window=None, cap=None):
    past = decoder.Past(*decoder.stored(*past), before)
    return decoder.attend(q, (*own, causal), [past], window=window, scale=0.5, cap=cap, order="ordered")


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("window", [None, 3])
def test_later_positions_and_the_window(broken, part, window, path):
    q, past, own, before, causal = attention_inputs()
    expected = attend(q, past, own, before, causal, window)
    own = tuple(x.at[1, 2, 0, 3].set(broken) if i == part else x for i, x in enumerate(own))
    y = attend(q, past, own, before, causal, window)
    sees = np.zeros((B, T), bool)
    sees[1, 2 : None if window is None else 2 + window] = True
    np.testing.assert_array_equal(np.isnan(y).all((2, 3)), sees)
    np.testing.assert_allclose(np.asarray(y)[~sees], np.asarray(expected)[~sees], rtol=1e-6)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_masked_key_of_the_prompt(copies, path):
    q, past, own, before, causal = attention_inputs(copies)
    hidden = before.at[:, :, 1].set(-1)
    expected = attend(q, past, own, hidden, causal)
    past = tuple(x.at[0, 1].set(jnp.nan) for x in past)
    np.testing.assert_allclose(attend(q, past, own, hidden, causal), expected, rtol=1e-6)
    rows = np.arange(B) < copies  # the queries that share row 0 of the prompt
    np.testing.assert_array_equal(np.isnan(attend(q, past, own, before, causal)).all((1, 2, 3)), rows)


def test_the_past_alone(path):
    """As from a query that sees no key of its own, in heads that share keys and under rows that share a prompt."""
    q, past, own, before, causal = attention_inputs(copies=2)
    before = before.at[1, :, 2].set(-1)
    expected = attend(q, past, own, before, jnp.full_like(causal, -1))
    kept = decoder.Past(*decoder.stored(*past), before)
    np.testing.assert_allclose(decoder.attend(q, None, [kept], scale=0.5), expected, rtol=1e-5, atol=1e-6)


def test_sixteen_bits():
    """One query in each row of three hypotheses, whose heads are so wide that XLA 0.10 refuses the product on a CPU."""
    q, keys, values = (
        normal((3, B, length, heads, 64), i) for i, (length, heads) in enumerate([(1, 6), (4, 3), (4, 3)])
    )
    far = jnp.broadcast_to(4 - jnp.arange(4)[None, None], (B, 1, 4))

    kept = jax.vmap(decoder.stored)(keys, values)
    one = lambda q, keys, values: decoder.attend(q, None, [decoder.Past(keys, values, far)], scale=0.1)
    y = jax.jit(jax.vmap(one))(*(x.astype(jnp.bfloat16) for x in (q, *kept)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), jax.vmap(one)(q, *kept), atol=0.03)


def test_gradients(path):
    q, past, own, before, causal = attention_inputs()
    causal = causal.at[:, :, 4].set(-1)
    loss = lambda q, past, own: (attend(q, past, own, before, causal) ** 2).sum()
    expected = jax.grad(loss, (0, 1, 2))(q, past, own)
    broken = tuple(x.at[:, 4].set(jnp.nan) for x in own)
    gradients = jax.grad(loss, (0, 1, 2))(q, past, broken)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients, expected)


def test_of_a_model(path):
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


@pytest.mark.parametrize(
    ("copies", "window"),
    [(2, 3), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(1, None), (1, 3), (2, None)])],
)
def test_blocks_equal_the_plain_path(copies, window, monkeypatch):
    """Values and gradients, vmapped over hypotheses, with padding, a query that sees no key, and capped scores."""
    q, past, own, before, causal = attention_inputs(copies)
    before = before.at[0, :, :2].set(-1).at[1, 6].set(-1)
    causal = causal.at[1, 6].set(-1)
    queries = jnp.stack([q, 2 * q, q - 1])

    def loss(queries, past, own):
        y = jax.vmap(lambda q: attend(q, past, own, before, causal, window, cap=1.5))(queries)
        return jnp.sin(y).sum(), y

    gradient = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    expected = gradient(queries, past, own)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    in_parts(monkeypatch)
    jax.tree.map(close, gradient(queries, past, own), expected)
    for size in (1, 3, 4):
        in_blocks(monkeypatch, size)
        jax.tree.map(close, gradient(queries, past, own), expected)


@pytest.mark.parametrize(("length", "share"), [(64, 1), (128, 0.75), (131, 0.739), (512, 0.625), (521, 0.670)])
def test_the_work_of_ordered_queries(length, share):
    """Each of at most four parts, of a multiple of 64 queries, meets only the keys up to its own end."""
    q, far = jnp.zeros((1, length, 1, 32)), jnp.zeros((1, length, length), jnp.int32)

    def work(order):
        jaxpr = jax.make_jaxpr(lambda q, k, v: decoder.attend(q, (k, v, far), scale=0.5, order=order))(q, q, q)
        dots = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
        return sum(math.prod(eqn.outvars[0].aval.shape) * _contracted(eqn) for eqn in dots)

    assert work("any") == 2 * 32 * length**2
    assert work("ordered") == pytest.approx(share * work("any"), rel=1e-3)


def _contracted(eqn):
    (axes, _), _ = eqn.params["dimension_numbers"]
    return math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)


def test_blocks_under_scan_and_remat(monkeypatch):
    q, _, own, _, causal = attention_inputs()
    layer = jax.checkpoint(lambda x, _: (decoder.attend(x, (*own, causal), scale=0.5) + x, None))
    loss = lambda q: (jax.lax.scan(layer, q, None, length=3)[0] ** 2).sum()
    expected = jax.grad(loss)(q)
    in_blocks(monkeypatch)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda q: loss(q)))(q), expected, rtol=1e-5, atol=1e-5)


def test_memory_of_blocks(monkeypatch):
    """The temporaries of a gradient hold the scores of a block, not those of all queries."""
    length, size, heads = 509, 32, 4
    q, far = jnp.zeros((1, length, heads, 8)), jnp.zeros((1, length, length), jnp.int32)

    def temporaries():
        loss = lambda q, k, v: (decoder.attend(q, (k, v, far), scale=0.5) ** 2).sum()
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = temporaries()
    in_blocks(monkeypatch, size)
    scores = 4 * heads * length
    assert plain > scores * length
    assert temporaries() < scores * size * 4 + 16 * q.nbytes


@pytest.mark.parametrize("groups", [3, 6])
def test_the_fused_kernel_is_called_with_what_the_plain_path_computes(monkeypatch, groups):
    """XLA's function stands in for cuDNN's on a CPU; `make gpu-check` compares the real one."""
    calls, library = [], jax.nn.dot_product_attention

    def without_cudnn(q, k, v, *, implementation, **options):
        calls.append(implementation)
        return library(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    q, k, v = (normal((2, T, heads, 8), seed).astype(jnp.float32) for seed, heads in enumerate([6, groups, groups]))
    k = k.at[1, 4].set(jnp.nan)
    far = jnp.broadcast_to(jnp.arange(T)[:, None] - jnp.arange(T)[None], (2, T, T))
    one = lambda q, k, v: decoder.attend(q[None], (k[None], v[None], far[:1]), scale=0.3, order="causal")[0]
    expected = jax.vmap(one)(q, k, v)
    monkeypatch.setattr(decoder, "_has_kernel", lambda q: True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        y = jax.vmap(one)(q, k, v)
        decoder.attend(q, (k, v, far), scale=0.3, cap=2.0, order="causal")  # which the kernel cannot compute
    assert calls == ["cudnn"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(y[1, 4:]).all() and not np.isnan(y[1, :4]).any()
