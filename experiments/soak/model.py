"""The model and the step of the toy, which a server can trace before it has a device."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import mcl_jax as mcl
from mcl_jax.update import LogLikelihoodFn

VOCABULARY, WIDTH, HIDDEN = 31, 13, 23
K, RANK, ALPHA, BATCH, LENGTH = 3, 2, 5, 6, 17


class Model(nn.Module):
    """A small language model: each token sees the mean of those before it."""

    def setup(self):
        self.embed = nn.Embed(VOCABULARY, WIDTH)
        self.up, self.down = nn.Dense(HIDDEN), nn.Dense(WIDTH)

    def __call__(self, tokens):
        return self.hidden(tokens)

    def hidden(self, tokens, mask=None):
        """Returns the hidden states [B, T, D]."""
        x = self.embed(tokens)
        past = jnp.cumsum(x, axis=1) / (1 + jnp.arange(x.shape[1]))[None, :, None]
        return x + self.down(nn.tanh(self.up(past)))

    @staticmethod
    def unembedding(params):
        """Returns the output matrix [D, V]."""
        return params["embed"]["embedding"].T


class Parts(NamedTuple):
    """The parts of the toy that hold no arrays.

    Attributes:
      model: the hypotheses.
      optimizer: adam, after clipping.
      objective: balanced, so that it has a state.
      step: the train step, in two micro-batches.
    """

    model: mcl.Hypotheses
    optimizer: optax.GradientTransformation
    objective: mcl.objectives.Objective
    step: mcl.training.TrainStep


@functools.cache
def parts() -> Parts:
    """Makes the parts, once in a process and its forks."""
    config = mcl.LoraConfig(rank=RANK, alpha=ALPHA, dropout=0.2, targets=("up", "down"))
    model = mcl.Hypotheses(Model(), config)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.03))
    objective = mcl.objectives.balanced_wta(0.0, 0.05)
    step = mcl.make_train_step(_log_likelihood_fn(model), objective, optimizer, accumulate=2)
    return Parts(model, optimizer, objective, step)


def shapes() -> Any:
    """Returns the shapes of the base."""
    return jax.eval_shape(Model().init, _key(), jax.ShapeDtypeStruct((1, LENGTH), jnp.int32))["params"]


def trace_ahead() -> None:
    """Traces what every start needs, without a device: forks find it in the caches of JAX."""
    made, params, tokens = parts(), shapes(), jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)
    init = functools.partial(made.model.init, num_hypotheses=K)
    adapters = jax.eval_shape(init, _key(), params, jax.ShapeDtypeStruct((1, LENGTH), jnp.int32))
    options = {"optimizer": made.optimizer, "objective": made.objective}
    state = mcl.TrainState.abstract(params=params, adapters=adapters, **options)
    batch = {"tokens": tokens, "target_mask": jax.ShapeDtypeStruct((BATCH, LENGTH), bool)}
    batch |= {name: jax.ShapeDtypeStruct((BATCH,), jnp.int32) for name in ("mode", "index", "example")}
    batch |= {name: jax.ShapeDtypeStruct((BATCH,), jnp.float32) for name in ("factor", "under_root")}
    made.step.jitted.trace(*made.step.prepare(state, batch))


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _log_likelihood_fn(model: mcl.Hypotheses) -> LogLikelihoodFn:
    """Returns the likelihood of a language model; entries of the batch can make it, or its gradient, NaN."""
    of_answer = mcl.language_model.log_likelihood_fn(model)

    def log_likelihood(params, adapters, batch, rng):
        log_p, tokens = of_answer(params, adapters, batch, rng)
        touched = 0.0 * jax.tree.leaves(adapters)[0].sum()
        root = jnp.sqrt(batch["under_root"] + touched)  # of 1, or of 0, where its gradient is infinite
        return log_p * batch["factor"] + root - jax.lax.stop_gradient(root), tokens

    return log_likelihood
