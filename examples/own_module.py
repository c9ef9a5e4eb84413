"""Multiple choice learning on a Flax module of your own: `python examples/own_module.py [--workdir DIR]`.

Every sequence counts upwards modulo 11 in steps of 1, 2 or 3, and its first number does not tell which. One model must
spread its probability over three next numbers. Each of K = 3 hypotheses can take one step size, and predict it exactly.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcl_jax as mcl

VOCABULARY, LENGTH, STEP_SIZES = 11, 8, (1, 2, 3)


class NextNumber(nn.Module):
    """Logits [B, T, V] of the number that follows each number in tokens [B, T]."""

    @nn.compact
    def __call__(self, tokens):
        hidden = nn.Embed(VOCABULARY, 32, name="embed")(tokens)
        hidden = nn.gelu(nn.Dense(64, name="up")(hidden))
        return nn.Dense(VOCABULARY, name="out")(hidden)


def batch_of(step: int, size: int = 64) -> np.ndarray:
    """Sequences [B, T] for one training step; the same ones whenever the step is run again."""
    rng = np.random.default_rng(step)
    first, size_of_step = rng.integers(VOCABULARY, size=(size, 1)), rng.choice(STEP_SIZES, size=(size, 1))
    return ((first + size_of_step * np.arange(LENGTH)) % VOCABULARY).astype(np.int32)


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Trains three hypotheses and prints what each of them learned."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workdir", help="train through mcl.fit, which logs, saves checkpoints and resumes")
    options = parser.parse_args(argv)

    # The base is frozen. The adapters are one pytree whose leaves have a leading axis K.
    module = NextNumber()
    params = module.init(jax.random.key(0), batch_of(0))["params"]
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=8, alpha=8, targets=("up", "out")))
    adapters = model.init(jax.random.key(1), params, batch_of(0), num_hypotheses=3)
    model.check(params, adapters, batch_of(0))  # raises if the examples of a batch influence each other

    def log_likelihood(params, adapters_k, batch, rng):
        """log p of each sequence under one hypothesis, and its number of predicted tokens."""
        logits = model.apply(params, adapters_k, batch[:, :-1], dropout_rng=rng)
        return mcl.sequence_log_likelihood(logits, batch[:, 1:], jnp.ones_like(batch[:, 1:], bool))

    objective = mcl.objectives.relaxed_wta(epsilon=0.05)  # losers learn a little too, so none is left behind
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    step = mcl.make_train_step(log_likelihood, objective, optimizer, backward="sampled")
    state = mcl.TrainState.create(
        params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(2), objective=objective
    )

    if options.workdir:
        state = mcl.fit(step, state, batch_of, steps=options.steps, workdir=options.workdir).state
    else:
        for i in range(options.steps):
            state, metrics = step(state, batch_of(i))
            if i % 50 == 0:
                print(f"step {i:4d}  loss {metrics['loss']:.3f}  win rates {np.array(metrics['win_rate']).round(2)}")

    # What follows a 0 under each hypothesis? Step sizes 1, 2 and 3, in some order.
    likeliest = model.apply_all(state.params, state.adapters, jnp.zeros((1, 1), jnp.int32)).argmax(-1).ravel()
    print(f"step size of each hypothesis: {likeliest.tolist()}")
    return {"step_sizes": likeliest.tolist(), "state": state}


if __name__ == "__main__":
    main()
