"""A language model and a tokenizer for tests of decoding, which compile in no time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from toys import randomized

import mcl_jax as mcl
from mcl_jax.models.decoder import Segment

K, V, D = 3, 13, 7


class Bigrams(nn.Module):
    """A language model in which a token depends on the one before it: quick to compile."""

    vocab_size = V

    def setup(self):
        self.embed = nn.Embed(V, D)
        self.up, self.head = nn.Dense(D), nn.Dense(V)

    def hidden(self, tokens, mask=None):
        return nn.tanh(self.up(self.embed(tokens)))

    def logits(self, hidden):
        return self.head(hidden)

    def extend(self, tokens, mask, positions, past=()):
        keys = jnp.zeros((1, len(tokens), 1, 1, tokens.shape[1]))
        return self.hidden(tokens), Segment(keys, keys.swapaxes(-1, -2), positions, mask)

    def __call__(self, tokens):
        return self.logits(self.hidden(tokens))

    @staticmethod
    def unembedding(params):
        return params["head"]["kernel"]


class Pieces:
    """Token i is a letter; 10 is "ab", though `encode` writes it as two letters, 11 a new line, 12 the end."""

    pieces = [*"abcdefghij", "ab", "\n", "</s>"]
    eos_token_id = 12

    def encode(self, text):
        return [self.pieces.index(letter) for letter in text if letter in self.pieces]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.pieces[i] for i in ids if not (skip_special_tokens and i == self.eos_token_id))


def bigram_hypotheses():
    """Hypotheses of `Bigrams`, its parameters, and K different adapters."""
    module = Bigrams()
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=5, targets=("up",)))
    init = lambda: model.init(jax.random.key(0), shapes, tokens, num_hypotheses=K)
    params = randomized(shapes, seed=1, scale=1.0)
    return model, jax.tree.map(jnp.asarray, params), randomized(jax.eval_shape(init), seed=2, scale=0.7)
