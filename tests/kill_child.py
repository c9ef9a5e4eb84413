"""A small training that is meant to be killed: `python kill_child.py WORKDIR` prints what it does, line by line.

Every source of randomness is there (dropout, ties of a balanced objective, data from the step), and adam's state, so
that whatever a checkpoint forgot would show in the final adapters.
"""

import argparse
import hashlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcl_jax as mcl
from mcl_jax.run import Run

WIDTH = 257  # a base much larger than what a checkpoint holds
TARGETS = 7


class Net(nn.Module):
    """[B, WIDTH] to logits [B, TARGETS]."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(TARGETS, name="head")(nn.gelu(nn.Dense(WIDTH, name="hidden")(x)))


def build(num_hypotheses=3, optimizer=None, make_step=mcl.make_train_step, objective=None, rank=2):
    """(step, state at 0, draw): `draw(step)` is the batch of a step."""
    config = mcl.LoraConfig(rank=rank, alpha=rank, dropout=0.3, targets=("hidden", "head"))
    model, example = mcl.Hypotheses(Net(), config), jnp.zeros((1, WIDTH))
    params = Net().init(jax.random.key(0), example)["params"]
    adapters = model.init(jax.random.key(1), params, example, num_hypotheses=num_hypotheses)
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer

    def log_likelihood(params, adapters_k, batch, rng):
        logits = model.apply(params, adapters_k, batch["x"], dropout_rng=rng)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    objective = mcl.objectives.balanced_wta(0.0, 0.05) if objective is None else objective
    step = make_step(log_likelihood, objective, optimizer)
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(2))
    return step, state, draw


def draw(step):
    """Batch of 16 examples, a function of the step alone."""
    x_key, y_key = jax.random.split(jax.random.fold_in(jax.random.key(3), step))
    return {"x": jax.random.normal(x_key, (16, WIDTH)), "y": jax.random.randint(y_key, (16,), 0, TARGETS)}


def digest(tree):
    """SHA-256 of all bytes of a tree."""
    hashed = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        hashed.update(np.asarray(leaf).tobytes())
    return hashed.hexdigest()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--save_every", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds after each step, for kills to land in")
    arguments = parser.parse_args()
    say = lambda *words: print(*words, flush=True)
    config = vars(arguments) | {"workdir": None}
    train_step, state, draw = build()

    def step(state, batch):
        before = int(state.step)
        if before and not taken:
            say("resumed", before)
        state, metrics = train_step(state, batch)
        taken.append(before)
        say("step", before + 1)
        time.sleep(arguments.pause)
        return state, metrics

    def evaluate(state):
        """A score that the last checkpoint wins; with `keep_best` each evaluation is followed by a checkpoint."""
        say("saving", int(state.step))
        return {"eval_loss": -float(state.step)}

    taken = []
    with Run(arguments.workdir, config, volatile=("pause",)) as run:
        if run.finished:
            run.say_finished()
            return
        options = dict(evaluate=evaluate, eval_every=arguments.save_every, keep_best=True)
        state = mcl.fit(step, state, draw, steps=arguments.steps, run=run, **options).state
        run.finish({"adapters": digest(state.adapters), "opt_state": digest(state.opt_state)})
        say("finished")


if __name__ == "__main__":
    main()
