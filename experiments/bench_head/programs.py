"""The timed programs: each variant compiled, with its state and a first result to check."""

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
    """One compiled step.

    Attributes:
      first: takes the first step and returns the result on which all variants must agree: the mean gradient of WTA
        [K, ...] for train, log p [K, B] for forward. Call it before `run`.
      run: takes one step and waits for it.
      temp_bytes: XLA's temporaries (activations, logits); None if XLA does not report them. For `separate` those of one
        model, since its K steps reuse them.
      argument_bytes: size of the arguments: weights, adapters, optimizer state, batch; for `separate` those of all K
        models.
    """

    first: Callable[[], Any]
    run: Callable[[], Any]
    temp_bytes: int | None
    argument_bytes: int | None


def compile_program(variant: str, mode: str, setup: variants.Setup, num_hypotheses: int) -> Program:
    """Compiles the program of one row.

    train: forward, backward, clipping, AdamW update. `separate` takes K such steps of K models with their own weights,
    each maximum likelihood on the whole batch: the cost of K independent fine-tunes, without the additional forward
    passes that choosing winners would need. forward: log p [K, B], in K calls for `separate`.
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
    rests = [step.prepare(state, batch)[1] for state in states]  # all except the weights, which are not donated

    def run():
        for i, (params, _) in enumerate(models):
            rests[i], _ = jax.block_until_ready(compiled(params, rests[i], batch))

    def first():
        batches = _won_by_each(setup, models, batch) if variant == "separate" else [batch]
        gradients = []
        for i, (params, _) in enumerate(models):
            relaxation = rests[i].objective_state  # ε of `sampled`; at ε = 0 its draws are the winners
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
    """Recovers the gradient of the first step from Adam's first moment, (1 − β₁) · clip(gradient)."""
    factor = jnp.maximum(norm, variants.CLIP) / (variants.CLIP * (1.0 - variants.B1))
    return jax.tree.map(lambda moment: factor * moment, optax.tree.get(opt_state, "mu"))


def _won_by_each(setup, models, batch):
    """Chooses winners on the host after K forward passes; returns the batch of each model with weights 1 or 0."""
    log_p = np.asarray(_forward("separate", setup, models).first())
    winner = log_p.argmax(axis=0)
    return [batch | {"weight": jnp.asarray(winner == k, jnp.float32)} for k in range(len(models))]
