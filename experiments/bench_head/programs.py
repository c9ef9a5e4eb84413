"""What is timed: each variant compiled, with the state that it carries on, and its first result to be checked."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench_head import variants
from mcl_jax import hypotheses


@dataclasses.dataclass(frozen=True)
class Program:
    """One step, compiled.

    Attributes:
      first: to be called before anything else; takes a step and returns what all variants must agree on. train: the
        mean gradient of WTA [K, ...]. forward: log p [K, B].
      run: takes one step and waits for it.
      temp_bytes: XLA's temporaries (activations, logits) while it runs; None where XLA does not say. For `separate`
        those of one model, since K steps one after another reuse them.
      argument_bytes: what it is given: weights, adapters, optimizer state, batch; of all K models for `separate`.
    """

    first: Callable[[], Any]
    run: Callable[[], Any]
    temp_bytes: int | None
    argument_bytes: int | None


def compile_program(variant: str, mode: str, setup: variants.Setup, num_hypotheses: int) -> Program:
    """The program of one row.

    train: forward, backward, clip, AdamW update. For `separate` K such steps of K models (weights of their own), each
    maximum likelihood on the whole batch: what K fine-tunes on their own cost, without the further forward passes that
    choosing winners would need. forward: log p [K, B], by K calls for `separate`.
    """
    adapters = setup.adapters(num_hypotheses)
    if variant != "separate":
        models = [(setup.params, adapters)]
    else:
        models = [(setup.params_of(k), hypotheses.select(adapters, slice(k, k + 1))) for k in range(num_hypotheses)]
    return (_train if mode == "train" else _forward)(variant, setup, models)


def _train(variant, setup, models):
    step = variants.make_step(variant, setup, hypotheses.count(models[0][1]))
    batch = setup.batch
    if variant == "separate":
        batch = batch | {"weight": jnp.ones(batch["tokens"].shape[0])}
    states = [setup.state(adapters, params) for params, adapters in models]
    compiled = _compiled(variant, "train", setup, lambda: step.lower(states[0], batch))
    rests = [step.prepare(state, batch)[1] for state in states]  # all but the weights, which are not donated

    def run():
        for i, (params, _) in enumerate(models):
            rests[i], _ = jax.block_until_ready(compiled(params, rests[i], batch))

    def first():
        batches = _won_by_each(setup, models, batch) if variant == "separate" else [batch]
        gradients = []
        for i, (params, _) in enumerate(models):
            relaxation = rests[i].objective_state  # ε of `sampled`, without which its draws are the winners
            hard = rests[i].replace(objective_state=jax.tree.map(jnp.zeros_like, relaxation))
            rest, metrics = compiled(params, hard, batches[i])
            gradients.append(first_gradient(rest.opt_state, metrics["gradient_norm"]))
            rests[i] = rest.replace(objective_state=relaxation)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *gradients)

    return _program(first, run, compiled, len(models))


def _forward(variant, setup, models):
    jitted = jax.jit(variants.WAYS[variant](setup))
    compiled = _compiled(variant, "forward", setup, lambda: jitted.lower(*models[0], setup.batch))

    def run():
        outs = [jax.block_until_ready(compiled(params, adapters, setup.batch)) for params, adapters in models]
        return jnp.concatenate([log_p for log_p, _ in outs])

    return _program(run, run, compiled, len(models))


def _compiled(variant, mode, setup, lower):
    if variant != "separate":
        return lower().compile()
    if mode not in setup.compiled:
        setup.compiled[mode] = lower().compile()
    return setup.compiled[mode]


def _program(first, run, compiled, copies):
    memory = compiled.memory_analysis()
    if memory is None:
        return Program(first, run, None, None)
    return Program(first, run, memory.temp_size_in_bytes, copies * memory.argument_size_in_bytes)


def first_gradient(opt_state: Any, norm: Any) -> Any:
    """The gradient of the first step, as Adam's first moment has it: (1 − β₁) · clip(gradient)."""
    factor = jnp.maximum(norm, variants.CLIP) / (variants.CLIP * (1.0 - variants.B1))
    return jax.tree.map(lambda moment: factor * moment, optax.tree.get(opt_state, "mu"))


def _won_by_each(setup, models, batch):
    """K forward passes and winners chosen on the host: the batch of each model, weighted 1 (won) or 0 (lost)."""
    log_p = np.asarray(_forward("separate", setup, models).first())
    winner = log_p.argmax(axis=0)
    return [batch | {"weight": jnp.asarray(winner == k, jnp.float32)} for k in range(len(models))]
