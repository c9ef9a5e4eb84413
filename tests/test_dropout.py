"""The masks of adapter dropout: their statistics, their keys, and what they are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcl_jax import lora
from mcl_jax.hypotheses import example_key
from mcl_jax.lora.layer import random_bits

P, SHAPE = 0.3, (251, 257)


class Layers(nn.Module):
    """The masks of three layers on an input of ones."""

    def setup(self):
        self.layers = [nn.Dense(1, name=f"layer_{i}") for i in range(3)]

    def __call__(self, x):
        return jnp.stack([lora.dropout(layer, "layer", x, P) for layer in self.layers])


def masks(key):
    """True where kept, for each of three layers."""
    return Layers().apply({}, jnp.ones(SHAPE), rngs={"dropout": key}) > 0


def streams(impl="threefry2x32"):
    """Masks of 2 hypotheses, 3 examples and 3 layers, [2, 3, 3, *SHAPE]."""
    key = jax.random.key(5, impl=impl)
    draw = jax.jit(jax.vmap(jax.vmap(lambda k, b: masks(example_key(key, k, b)), (None, 0)), (0, None)))
    return np.asarray(draw(jnp.arange(2), jnp.arange(3)))


def correlation(a, b):
    """Correlation of two masks in standard deviations of that of independent ones."""
    scale = P * (1 - P)
    return ((a - (1 - P)) * (b - (1 - P))).mean() / scale * np.sqrt(a.size)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_mean_and_independence(impl):
    drawn = streams(impl)
    flat = drawn.reshape(-1, *SHAPE)
    sigma = np.sqrt(P * (1 - P) / flat[0].size)
    assert (np.abs(flat.mean((1, 2)) - (1 - P)) < 5 * sigma).all()
    for i, mask in enumerate(flat):
        assert abs(correlation(mask[1:], mask[:-1])) < 5
        assert abs(correlation(mask[:, 1:], mask[:, :-1])) < 5
        for other in flat[:i]:  # of another layer, example or hypothesis
            assert abs(correlation(mask, other)) < 5


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_bytes_are_uniform(impl):
    bits = np.asarray(random_bits(jax.random.key(7, impl=impl), SHAPE))
    for shift in (0, 8, 16, 24):
        counts = np.bincount((bits >> shift & 255).ravel(), minlength=256)
        expected = bits.size / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


def test_a_raw_key_draws_what_its_typed_key_draws():
    key = jax.random.key(3)
    np.testing.assert_array_equal(random_bits(jax.random.key_data(key), (5, 7)), random_bits(key, (5, 7)))


def test_bits_of_a_batch_are_those_of_each_key():
    keys = jax.random.split(jax.random.key(4), 3)
    batch = jax.vmap(lambda key: random_bits(key, (5, 7)))(keys)
    for key, bits in zip(keys, batch, strict=True):
        np.testing.assert_array_equal(random_bits(key, (5, 7)), bits)


def test_scaling():
    y = Layers().apply({}, jnp.ones(SHAPE), rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - P)], rtol=1e-6)


def test_no_random_generator_runs_per_element():
    """Deriving keys may use threefry; the elements come from integer operations alone."""
    jaxpr = str(jax.make_jaxpr(lambda key: random_bits(key, SHAPE))(jax.random.key(0)))
    assert not any(name in jaxpr for name in ("threefry", "random_bits", "rng_bit_generator"))
    whole = str(jax.make_jaxpr(masks)(jax.random.key(0)))
    assert "random_bits" not in whole and "rng_bit_generator" not in whole
