"""K hypotheses on a frozen network that sees one symbol: so small that all seeds train at once, in seconds."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import mcl_jax as mcl
from experiments.markov.candidates import Candidate, restarted
from experiments.markov.training import ADAPTERS, BASE, FINAL, STEPS, stream
from mcl_jax.lora import LoraConfig
from mcl_jax.training import Update

LENGTH, BATCH = 32, 32
LORA = LoraConfig(rank=4, alpha=8.0, targets=("up", "head"))
MEMORY = 0.95  # of the running win rate that tells whether a hypothesis is dead


class OneSymbol(nn.Module):
    """A network that predicts the next symbol from the last one."""

    num_symbols: int

    @nn.compact
    def __call__(self, symbols):
        hidden = nn.Embed(self.num_symbols, 16, embedding_init=nn.initializers.normal(1.0))(symbols)
        return nn.Dense(self.num_symbols, name="head")(nn.gelu(nn.Dense(32, name="up")(hidden)))


def hypotheses_of(num_symbols: int) -> mcl.Hypotheses:
    return mcl.Hypotheses(OneSymbol(num_symbols), LORA)


@partial(jax.jit, static_argnums=(1, 2))
def start(seeds: Int[Array, " S"], num_symbols: int, k: int) -> tuple[Any, Any]:
    """Returns the base and K hypotheses of each seed, with leading axis S."""

    def one(seed):
        hypotheses, symbols = hypotheses_of(num_symbols), jnp.arange(num_symbols)
        params = hypotheses.module.init(stream(seed, BASE), symbols)["params"]
        return params, hypotheses.init(stream(seed, ADAPTERS), params, symbols, num_hypotheses=k)

    return jax.vmap(one)(seeds)


def behind(params: Any) -> Any:
    """Returns a base that says symbol 0 nearly always, so that it is worse on every sequence than one that learned."""
    head = params["head"]
    return params | {"head": head | {"bias": head["bias"].at[..., 0].add(6.0)}}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains K hypotheses; one compiled function serves all mixtures of the same shape, and all seeds at once.

    Attributes:
      candidate: the objective.
      optimizer: the optimizer.
    """

    candidate: Candidate
    optimizer: optax.GradientTransformation

    @partial(jax.jit, static_argnums=0)
    def __call__(
        self, seeds: Int[Array, " S"], params: Any, adapters: Any, tokens: Int[Array, "S N B T"]
    ) -> tuple[Any, Float[Array, "S K V V"]]:
        """Returns the adapters and the transition matrices that they learned in N steps, of each seed."""
        return jax.vmap(self._one)(seeds, params, adapters, tokens)

    def _one(self, seed, params, adapters, tokens):
        num_symbols = params["head"]["kernel"].shape[-1]
        hypotheses, symbols = hypotheses_of(num_symbols), jnp.arange(num_symbols)

        def log_likelihood(params, adapters_k, tokens, rng):
            table = jax.nn.log_softmax(hypotheses.apply(params, adapters_k, symbols))
            return table[tokens[:, :-1], tokens[:, 1:]].sum(-1), jnp.full(len(tokens), LENGTH - 1)

        objective, k = self.candidate.objective, mcl.hypotheses.count(adapters)
        update = Update(log_likelihood, objective, self.optimizer, self.candidate.backward)
        state = mcl.TrainState.create(
            params=None, adapters=adapters, optimizer=self.optimizer, rng=stream(seed, STEPS), objective=objective
        )

        def step(carry, batch):
            state, rate = carry
            key = jax.random.fold_in(stream(seed, FINAL), state.step)
            state, metrics = update(params, state, batch)
            rate = MEMORY * rate + (1.0 - MEMORY) * metrics["win_rate"]
            return restarted(state, rate, key, self.optimizer) if self.candidate.restarts else (state, rate), None

        (state, _), _ = jax.lax.scan(step, (state, jnp.full(k, 1.0 / k)), tokens)
        return state.adapters, jax.nn.softmax(hypotheses.apply_all(params, state.adapters, symbols), axis=-1)


def with_one_ahead(alone: Trainer, seeds, params, adapters, tokens) -> Any:
    """Returns the adapters after hypothesis 0 has learned alone from all these sequences."""
    learned, _ = alone(seeds, params, jax.tree.map(lambda x: x[:, :1], adapters), tokens)
    return jax.tree.map(lambda every, one: every.at[:, :1].set(one), adapters, learned)
