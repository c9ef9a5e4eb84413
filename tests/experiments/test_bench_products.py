"""Products of a traced function counted by hand, and the report at tiny sizes. No clock is judged."""

import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench_products import __main__ as bench
from experiments.bench_products import products
from mcl_jax.models import GPT2, GPT2Config, save_pretrained


def sizes(counts):
    return collections.Counter({(p.left[0], p.right[0]): times for p, times in counts.items()})


def test_products_are_counted_as_often_as_they_run():
    x, w, v = jnp.ones((3, 5)), jnp.ones((5, 5)), jnp.ones((5, 7))

    def function(x, w, v):
        unused = x @ v  # no result depends on it
        x, _ = jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, w), None), x, length=4)
        x = jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ w @ w, x)
        del unused
        return x @ w @ v

    once, looped = products.of(function, x, w, v)
    assert sizes(once) == {((3, 5), (5, 5)): 5, ((3, 5), (5, 7)): 1}
    assert sizes(looped) == {((3, 5), (5, 5)): 2}
    assert products.gflop(once) == (5 * 2 * 3 * 5 * 5 + 2 * 3 * 5 * 7) / 1e9


def test_the_right_matrix_may_be_stored_transposed():
    x, w = np.random.default_rng(0).normal(size=(2, 3, 5)), np.random.default_rng(1).normal(size=(5, 7))
    (product,) = products.of(jnp.matmul, x, w)[0]
    x, w = jnp.asarray(x, "float32"), jnp.asarray(w, "float32")
    np.testing.assert_allclose(product.turned(x, w.T), product(x, w), rtol=1e-5)
    assert product.turned.turned == product and product.turned.flop == product.flop
    (product,) = products.of(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), x, jnp.ones((2, 5, 7)))[0]
    assert product.turned is None


def test_those_of_a_gradient_and_of_all_hypotheses_are_found():
    x, a = jnp.ones((4, 3)), jnp.ones((2, 3, 5))
    loss = lambda a: (jax.vmap(lambda one: x @ one)(a) ** 2).sum()
    forward, _ = products.of(loss, a)
    assert products.gflop(forward) == 2 * 2 * 4 * 3 * 5 / 1e9
    both, _ = products.of(jax.grad(loss), a)
    assert products.gflop(both) == 2 * products.gflop(forward)  # x needs no gradient


@pytest.mark.parametrize("times", [1, 3])
def test_a_product_alone_is_the_one_that_was_found(times):
    left, right = (np.random.default_rng(i).normal(size=shape) for i, shape in enumerate([(2, 3, 5), (2, 7, 5)]))
    (product,) = products.of(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), left, right)[0]
    result = product(jnp.asarray(left, "float32"), jnp.asarray(right, "float32"))
    result = result if result.shape == (2, 3, 7) else result.swapaxes(1, 2)
    np.testing.assert_allclose(result, np.einsum("bij,bkj->bik", left, right), rtol=1e-5)
    assert product.flop == 2 * 2 * 3 * 5 * 7
    assert products.Alone(collections.Counter({product: times}))() > 0


@pytest.fixture
def config(tmp_path):
    module = GPT2(GPT2Config(vocab_size=61, hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=32))
    save_pretrained(tmp_path, module, module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    options = {"seq_len": 7, "batch": 2, "prompt": 5, "new_tokens": 3, "rank": 2, "repeats": 1}
    return bench.Config(base=str(tmp_path), ks=(3,), json=tmp_path / "rows.json", **options)


def test_products_of_every_part(config):
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not written for strict promotion
        parts = bench.parts_of(config, *bench.model_of(config))
    parts = {part.name: products.gflop(part.counts) * 1e9 for part in parts}
    assert list(parts) == ["choose winners", "training step", "decoding"]
    D, K, B, T, r = 16, 3, 2, 7, 2
    attention, output = 2 * T * D, 61 * D
    factors = r * (4 * D + 5 * D + 5 * D)  # A and B of c_attn, c_fc and the c_proj after it
    layer = K * (9 * D**2 + attention + factors) + 3 * D**2  # queries, keys and values of layer 0 once for all K
    assert parts["choose winners"] == 2 * B * T * (layer + K * output)
    assert parts["training step"] > parts["choose winners"] * (K + 2) / K
    of_rows = lambda tokens: 2 * K * B * tokens * (12 * D**2 + factors)
    assert of_rows(5 + 2) < parts["decoding"] < of_rows(5 + 2) + 2 * K * B * (3 * output + 40 * attention)


@pytest.mark.slow
def test_rows_of_every_part(config, capsys):
    with jax.numpy_dtype_promotion("standard"):
        bench.main(config)
    rows = json.loads(config.json.read_text())["rows"]
    assert [row["part"] for row in rows] == ["choose winners", "training step", "decoding"]
    assert all(row["share"] == row["times_of_products"][0] / row["times"][0] for row in rows)
    assert "products alone" in capsys.readouterr().out


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="--ks needs values of at least 1"):
        bench.Config(ks=(0,))
    with pytest.raises(ValueError, match="--json must be a file in an existing folder"):
        bench.Config(json=tmp_path / "none" / "x.json")
