"""The training of the Markov experiment: data are sampled on the device, and one compiled loop runs many steps."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

import mcl_jax as mcl
from experiments.markov.config import Config
from mcl_jax import objectives
from mcl_jax.models import GPTNeo
from mcl_jax.parallel import DATA_AXIS
from mcl_jax.update import Update

# Random number streams of one seed. The base and the data do not depend on K, so both methods see the same ones.
BASE, ADAPTERS, DATA, EVALUATION, STEPS, FINAL = range(6)


def stream(seed: int, index: int) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.key(seed), index)


def sample_mixture(
    key: Key[Array, ""], transitions: Float[Array, "N V V"], batch: int, length: int
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """Samples sequences from a uniform mixture of chains, with x_1 uniform over symbols, and the chain z of each."""
    num_chains, num_symbols, _ = transitions.shape
    z_key, first_key, step_key = jax.random.split(key, 3)
    z = jax.random.randint(z_key, (batch,), 0, num_chains)
    first = jax.random.randint(first_key, (batch,), 0, num_symbols)
    cumulative = jnp.cumsum(transitions, axis=-1)[..., :-1]  # the last one is 1; x counts the thresholds below u

    def step(x, u):
        x = (u[:, None] >= cumulative[z, x]).sum(-1, dtype=jnp.int32)
        return x, x

    _, rest = jax.lax.scan(step, first, jax.random.uniform(step_key, (length - 1, batch)))
    return jnp.concatenate([first[None], rest]).T, z


@dataclasses.dataclass(frozen=True)
class Problem:
    """Base, hypotheses and data of one seed.

    Attributes:
      config: the configuration.
      seed: random seed.
      shared: whether the hypotheses have a shared part, if the configuration asks for one.
    """

    config: Config
    seed: int
    shared: bool = True

    @property
    def module(self) -> GPTNeo:
        return GPTNeo(self.config.model())

    @property
    def hypotheses(self) -> mcl.Hypotheses:
        return mcl.Hypotheses(self.module, self.config.lora(shared=self.shared))

    @property
    def transitions(self) -> Float[Array, "N V V"]:
        return jnp.asarray(self.config.chains, jnp.float32)

    def log_likelihood(self, params: Any, adapters_k: Any, tokens: Int[Array, "B T"], rng: Any = None):
        """Returns log p(x_2..x_T | x_1) in nats and T − 1, for each sequence."""
        logits = self.hypotheses.apply(params, adapters_k, tokens, dropout_rng=rng)[:, :-1]
        return mcl.sequence_log_likelihood(logits, tokens[:, 1:], jnp.ones_like(tokens[:, 1:], bool))

    def initial_state(
        self, num_hypotheses: int, optimizer: optax.GradientTransformation, objective: objectives.Objective
    ) -> mcl.TrainState:
        tokens = jnp.zeros((1, 2), jnp.int32)
        params = jax.jit(self.module.init)(stream(self.seed, BASE), tokens)["params"]
        key = stream(self.seed, ADAPTERS)
        adapters = self.hypotheses.init(key, params, tokens, num_hypotheses=num_hypotheses)
        return mcl.TrainState.create(
            params=params,
            adapters=adapters,
            optimizer=optimizer,
            rng=stream(self.seed, STEPS),
            objective=objective,
        )

    def train_chunk(self, objective: objectives.Objective, optimizer: Any, backward: str) -> Callable[..., Any]:
        """Returns `chunk(state, stop) -> (state, metrics)`, which takes the steps up to number `stop` in one loop.

        The metrics are those of the last step, or of the first step whose loss is not finite; its number is "step".
        """
        devices, batch_size = self.config.training.devices, self.config.training.batch_size
        length = self.config.data.seq_len
        update = Update(self.log_likelihood, objective, optimizer, backward, assign=self.config.objective.assign)
        axis_name = None if devices == 1 else DATA_AXIS

        def steps(params, state, data_key, stop, device):
            def one(carry):
                state, metrics = carry
                key = jax.random.fold_in(data_key, state.step)
                tokens, _ = sample_mixture(key, self.transitions, batch_size, length)
                local = batch_size // devices
                tokens = jax.lax.dynamic_slice_in_dim(tokens, device * local, local)
                number, sound = state.step, jnp.isfinite(metrics["loss"])
                state, new = update(params, state, tokens, axis_name=axis_name)
                return state, jax.tree.map(partial(jnp.where, sound), new | {"step": number}, metrics)

            tokens = jax.ShapeDtypeStruct((batch_size // devices, length), jnp.int32)
            _, shapes = jax.eval_shape(lambda t: update(params, state, t, axis_name=axis_name), tokens)
            none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes | {"step": state.step})
            return jax.lax.while_loop(lambda carry: carry[0].step < stop, one, (state, none))

        if devices == 1:
            compiled = jax.jit(partial(steps, device=0), donate_argnums=1)
        else:
            pmapped = jax.pmap(
                steps, DATA_AXIS, in_axes=(None, None, None, None, 0), out_axes=None, devices=_devices(devices)
            )
            compiled = lambda *arguments: pmapped(*arguments, jnp.arange(devices))

        def chunk(state, stop):
            data_key = stream(self.seed, DATA)  # an argument, so that all seeds share the compiled function
            rest, metrics = compiled(state.params, state.replace(params=None), data_key, jnp.int32(stop))
            return rest.replace(params=state.params), metrics

        return chunk

    @partial(jax.jit, static_argnums=(0, 4))
    def evaluate(self, params: Any, adapters: Any, key: Key[Array, ""], num_sequences: int) -> dict[str, Array]:
        """Evaluates hard winner-takes-all on fresh sequences.

        Returns:
          eval_loss (nats per predicted token), its standard_error, and win_matrix [N, K]: the share of all sequences
          that come from chain n and are won by hypothesis k.
        """
        chunks = -(-num_sequences // 1000)

        def some(key):
            sample_key, tie_key = jax.random.split(key)
            tokens, z = sample_mixture(sample_key, self.transitions, num_sequences // chunks, self.config.data.seq_len)
            one = lambda adapters_k: self.log_likelihood(params, adapters_k, tokens)[0]
            log_p = jax.vmap(one, (mcl.hypotheses.axes(adapters),))(adapters)
            winner = objectives.winners(log_p, tie_key)
            return -log_p.max(0) / (self.config.data.seq_len - 1), z, winner

        losses, z, winner = jax.tree.map(jnp.ravel, jax.lax.map(some, jax.random.split(key, chunks)))
        chain = jax.nn.one_hot(z, self.transitions.shape[0])
        won = jax.nn.one_hot(winner, mcl.hypotheses.count(adapters))
        return {
            "eval_loss": losses.mean(),
            "standard_error": losses.std() / jnp.sqrt(losses.size),
            "win_matrix": chain.T @ won / losses.size,
        }

    @partial(jax.jit, static_argnums=(0,))
    def transition_matrices(self, params: Any, adapters: Any) -> Float[Array, "K V V"]:
        """Returns p(x_2 = j | x_1 = i; θ_k), from prompts of one symbol."""
        prompts = jnp.arange(self.transitions.shape[-1])[:, None]
        return jax.nn.softmax(self.hypotheses.apply_all(params, adapters, prompts)[:, :, 0], axis=-1)


def _devices(number: int) -> list[jax.Device]:
    available = jax.local_devices()
    if number > len(available):
        raise ValueError(
            f"--devices must be at most {len(available)}, the {available[0].platform} devices of this machine, got "
            f"{number}"
        )
    return available[:number]


def to_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
