"""What must be equal on any device: backward passes, pmap, a mesh, and one hypothesis against K."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcl_jax as mcl
from experiments.gpu_check import models

TOLERANCE = 2e-4  # of the largest entry, in float32


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the largest differences so far; raises an AssertionError if one is too large."""
    sizes = models.TINY | ({} if quick else {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4})
    module, params = models.base(sizes, jnp.float32)
    model, adapters = models.hypotheses(module, params, 3)
    batch = models.batch_of(sizes, 8, 24)
    log_likelihood = mcl.language_model.log_likelihood_fn(model)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    device = {"devices": jax.devices()[:1]}
    plain, wta, result = ("winner", mcl.make_train_step, {}), mcl.objectives.wta(), {}
    cases = {
        "winner and all": ("all", mcl.make_train_step, {}),
        "jit and pmap": ("winner", mcl.parallel.pmap_step, device),
        "jit and mesh": ("winner", mcl.make_train_step, {"mesh": mesh}),
    }

    def trained(case, objective, adapters):
        backward, make, options = case
        optimizer = optax.sgd(1.0)
        step = make(log_likelihood, objective, optimizer, backward, **options)
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(0))
        for _ in range(2):
            state, metrics = step(state, batch)
        return jax.device_get((state.adapters, metrics["loss"]))

    straight = trained(plain, wta, adapters)
    for name, case in cases.items():
        result[name] = difference(trained(case, wta, adapters), straight)
        yield result
    one = mcl.hypotheses.select(adapters, slice(1))
    result["K=1 and MLE"] = difference(trained(plain, wta, one), trained(plain, mcl.objectives.mle(), one))
    yield result
    every = jax.jit(model.apply_all)(params, adapters, batch["tokens"])

    @jax.jit
    def merged(params, adapters):
        variables = [{"params": model.merge(params, adapters, k)} for k in range(3)]
        return jnp.stack([module.apply(v, batch["tokens"]) for v in variables])

    result["merged"] = difference(every, merged(params, adapters))
    yield result
    assert all(value < TOLERANCE for value in result.values()), result  # NaN is not below


def difference(actual: Any, expected: Any) -> float:
    """Returns the largest difference of any leaf, relative to the largest entry of that leaf; NaN if one has a NaN."""
    actual, expected = jax.device_get((actual, expected))
    relative = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1e-6), actual, expected)
    return float(np.max(jax.tree.leaves(relative)))
