"""Multiple choice learning on a Flax NNX module that others wrote: `python examples/nnx_module.py`.

The base is Mamba-2 from the package `mamba2-jax`, a language model without attention, here small and with random
weights. The task is that of `own_module.py`: sequences count in steps of 1, 2 or 3, and their first number does not
tell which. Each of K = 3 hypotheses can take one step size.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from own_module import VOCABULARY, batch_of

import mcl_jax as mcl

try:
    from mamba2_jax import Mamba2Config, Mamba2ForCausalLM
except ModuleNotFoundError as error:
    raise SystemExit("error: this example needs a package: pip install mamba2-jax") from error


def logits_of(module: Mamba2ForCausalLM, tokens: jax.Array) -> jax.Array:
    """Logits [B, T, V], out of the dictionary that the model returns."""
    return module(tokens)["logits"]


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Trains three hypotheses and prints what each of them learned."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(argv)

    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        state_size=8,
        head_dim=16,
        chunk_size=8,
        num_hidden_layers=2,
        tie_word_embeddings=False,
    )
    module = Mamba2ForCausalLM(config, rngs=nnx.Rngs(0))
    params = nnx.state(module)  # frozen from here on
    # Paths are those of attributes, such as backbone/layers/0/mixer/in_proj.
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=8, alpha=8, targets=("in_proj", "out_proj", "lm_head")))
    adapters = model.init(jax.random.key(1), params, batch_of(0), num_hypotheses=3, method=logits_of)
    model.check(params, adapters, batch_of(0), method=logits_of)  # raises if examples influence each other

    def log_likelihood(params, adapters_k, batch, rng):
        """log p of each sequence under one hypothesis, and its number of predicted tokens."""
        logits = model.apply(params, adapters_k, batch[:, :-1], method=logits_of)
        return mcl.sequence_log_likelihood(logits, batch[:, 1:], jnp.ones_like(batch[:, 1:], bool))

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    step = mcl.make_train_step(log_likelihood, mcl.objectives.relaxed_wta(epsilon=0.05), optimizer, backward="sampled")
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(2))
    for i in range(options.steps):
        state, metrics = step(state, batch_of(i))
        if i % 50 == 0:
            print(f"step {i:4d}  loss {metrics['loss']:.3f}  win rates {np.array(metrics['win_rate']).round(2)}")

    # What follows a 0 under each hypothesis? The answer also comes from the module with hypothesis k folded into it.
    zero = jnp.zeros((1, 1), jnp.int32)
    likeliest = model.apply_all(params, state.adapters, zero, method=logits_of).argmax(-1).ravel()
    print(f"step size of each hypothesis: {likeliest.tolist()}")
    first = nnx.merge(nnx.graphdef(module), model.merge(params, state.adapters, 0))
    print(f"step size of the first, as a plain NNX module: {logits_of(first, zero).argmax(-1).item()}")
    return {"step_sizes": likeliest.tolist(), "merged": logits_of(first, zero).argmax(-1).item(), "state": state}


if __name__ == "__main__":
    main()
