"""The toys of `toys` and `toy_language` as modules of Flax NNX, with the same parameters, and layers of NNX."""

import jax.numpy as jnp
from flax import nnx

from mcl_jax.models.decoder import Segment


class Tokens(nnx.Module):
    """`toys.Tokens`: tokens [B, T] -> logits [B, T, V]."""

    def __init__(self, vocabulary=13, width=7, *, rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.up = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.down = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + nnx.tanh(self.up(x))
        x = x + self.down(self.norm(x))
        return self.head(x)


class Bigrams(nnx.Module):
    """`toy_language.Bigrams`: a language model with the methods that `mcl.generate` needs."""

    vocab_size = 13

    def __init__(self, width=7, *, rngs):
        self.embed = nnx.Embed(self.vocab_size, width, rngs=rngs)
        self.up = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, self.vocab_size, rngs=rngs)

    def hidden(self, tokens, mask=None):
        return nnx.tanh(self.up(self.embed(tokens)))

    def logits(self, hidden):
        return self.head(hidden)

    def extend(self, tokens, mask, positions, past=()):
        nothing = jnp.zeros((1, *tokens.shape, 1, 1))
        return self.hidden(tokens), Segment(nothing, nothing, positions, mask)

    def __call__(self, tokens):
        return self.logits(self.hidden(tokens))

    @staticmethod
    def unembedding(params):
        return params["head"]["kernel"]


class Named(nnx.Module):
    """One layer named `up`, as `make(rngs)` makes it, and other layers by name."""

    def __init__(self, make, **others):
        rngs = nnx.Rngs(0)
        self.up = make(rngs)
        for name, other in others.items():
            setattr(self, name, other(rngs))

    def __call__(self, x):
        return self.up(x)


class Around(nnx.Linear):
    """Does something before and after the layer, and adds to it."""

    def __call__(self, x):
        return nnx.tanh(super().__call__(2.0 * x)) + 1.0


class Positive(nnx.Linear):
    """Has a use of its own for the kernel."""

    def __call__(self, x):
        return x @ nnx.softplus(self.kernel[...])


class Scanned(nnx.Module):
    """Three layers of one class, with stacked parameters; they run in a loop of the compiler."""

    depth = 3

    def __init__(self, width=7, *, rngs):
        @nnx.split_rngs(splits=self.depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Linear(width, width, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return x + nnx.tanh(layer(x))

        return run(x, self.layers)


class Dropped(nnx.Module):
    """A layer after dropout and batch normalisation."""

    def __init__(self, *, rngs, mean=None):
        self.norm = nnx.BatchNorm(7, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.up = nnx.Linear(7, 3, rngs=rngs)
        self.mean = mean

    def __call__(self, x):
        return self.up(self.drop(self.norm(x, use_running_average=self.mean)))
