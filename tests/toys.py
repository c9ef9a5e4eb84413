"""Small Linen modules that know nothing about adapters. Sizes are primes, so that a mixed-up axis cannot pass."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mcl_jax import likelihood


class MLP(nn.Module):
    """[B, 7] -> [B, 3]; `calls` times through the same hidden layer."""

    hidden: int = 11
    out: int = 3
    calls: int = 1
    norm: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, scale=1.0, *, shift=None):
        x = nn.LayerNorm(name="norm", dtype=self.dtype)(x) if self.norm else x
        x = x * scale if shift is None else x * scale + shift
        x = nn.gelu(nn.Dense(self.hidden, name="up", dtype=self.dtype)(x))
        again = nn.Dense(self.hidden, name="again", dtype=self.dtype)
        for _ in range(self.calls):
            x = x + nn.tanh(again(x))
        return nn.Dense(self.out, name="down", dtype=self.dtype, use_bias=False)(x)


class Named(nn.Module):
    """One layer named `up`, as `make(name)` makes it."""

    make: Callable[[str], Callable]

    @nn.compact
    def __call__(self, x):
        return self.make("up")(x)


class Attention(nn.Module):
    """A causal attention block of Dense layers, [B, T, D] -> [B, T, D]."""

    heads: int = 2
    head_dim: int = 5

    @nn.compact
    def __call__(self, x):
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, self.head_dim)
        q, k, v = (split(nn.Dense(self.heads * self.head_dim, name=name)(x)) for name in ("q_proj", "k_proj", "v_proj"))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / self.head_dim**0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
        y = jnp.einsum("bhts,bshd->bthd", nn.softmax(jnp.where(causal, scores, -1e9)), v)
        return x + nn.Dense(x.shape[-1], name="o_proj")(y.reshape(*x.shape[:-1], -1))


class GemmaLike(nn.Module):
    """nn.Einsum with multi-axis, stacked and batched kernels, one of them with an equation given at the call."""

    @nn.compact
    def __call__(self, x):
        q = nn.Einsum((3, 7, 5), "BTD,NDH->BTNH", name="q", use_bias=False)(x)
        kv = nn.Einsum((2, 3, 7, 5), name="kv", use_bias=False)(x, einsum_str="BSD,CKDH->CBSKH")
        q = q + nn.Einsum((3, 5, 5), "BTND,NDH->BTNH", name="per_head")(q)  # a kernel with a batch axis
        y = jnp.einsum("btnh,btnh->btnh", q, kv[0]) + kv[1]
        return nn.Einsum((3, 5, 7), "BTNH,NHD->BTD", name="o", use_bias=False)(inputs=y)


class General(nn.Module):
    """nn.DenseGeneral over two axes given out of order, and with a batch axis: [B, 7, 5] -> [B, 2, 3]."""

    @nn.compact
    def __call__(self, x):
        y = nn.DenseGeneral((2, 3), axis=(-1, -2), name="two")(x)
        return y + nn.DenseGeneral(3, axis=-1, batch_dims=(0,), name="own")(y)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1], name="down")(nn.tanh(nn.Dense(11, name="up")(x))), None


class Scanned(nn.Module):
    """`layers` rematerialised layers under one nn.scan, whose kernels have a leading layer axis."""

    layers: int = 3

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "lora": 0, "routing": 0}
        splits = {"params": True, "dropout": True}
        scan = nn.scan(nn.remat(Layer), variable_axes=axes, split_rngs=splits, length=self.layers)
        return scan(name="layers")(x)[0]


class Tokens(nn.Module):
    """A language model for training tests: [B, T] tokens -> [B, T, V] logits."""

    vocabulary: int = 13
    width: int = 7

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocabulary, self.width, name="embed")(tokens)
        x = x + nn.tanh(nn.Dense(self.width, name="up")(x))
        x = x + nn.Dense(self.width, name="down")(nn.LayerNorm(name="norm")(x))
        return nn.Dense(self.vocabulary, name="head", use_bias=False)(x)


def normal(shape, seed=0):
    """A float32 NumPy array, which costs no compilation."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomized(tree, seed=0, scale=0.5):
    """A tree of the same shapes and dtypes, all of it random: adapters with B ≠ 0, or parameters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype), tree)


def token_batch(batch=8, time=5, vocabulary=13, seed=0, empty=()):
    """Sequences of unequal lengths from 1 to `time`; the examples in `empty` have no targets."""
    lengths = 1 + np.arange(batch) % time
    lengths[list(empty)] = 0
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (batch, time + 1)).astype(np.int32)
    return {"tokens": tokens, "mask": np.arange(time)[None] < lengths[:, None]}


def token_log_likelihood(model, *, dropout=True):
    """log_likelihood_fn of a `Hypotheses` over `Tokens`."""

    def log_likelihood_fn(params, adapters, batch, rng):
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits = model.apply(params, adapters, inputs, dropout_rng=rng if dropout else None)
        return likelihood.sequence_log_likelihood(logits, targets, batch["mask"])

    return log_likelihood_fn


def adam(rate):
    """optax.adam, which mixes dtypes on purpose."""
    inner = optax.adam(rate)

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(*args)

    return optax.GradientTransformation(inner.init, update)


def keep_gradient():
    """An optimizer that moves nothing and whose state is the last gradient."""
    return optax.GradientTransformation(lambda adapters: adapters, lambda g, *_: (jax.tree.map(jnp.zeros_like, g), g))
