"""Time and memory of train steps of one model, against K and the backward pass."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import optax

import mcl_jax as mcl
from experiments.gpu_check import models
from experiments.gpu_check.hardware import product
from experiments.gpu_check.timing import summary
from experiments.gpu_check.trace import largest


def step_flops(sizes: dict[str, Any], length: int, size: int, K: int, backward: str, remat: bool) -> float:
    """Counts FLOPs of a step by formula.

    The backward pass of a frozen base needs gradients of activations only: as many products as the forward pass, and
    twice those of attention, which has two factors. Adapters are left out (below 2 %).
    """
    layers, head = models.forward_flops(sizes, length)
    attention = 4 * sizes["num_hidden_layers"] * length**2 * sizes["hidden_size"]
    forward, back = layers + head, layers + attention + 2 * head + (layers if remat else 0)  # head: logits again
    passes = K * (forward + back) if backward == "all" or K == 1 else K * forward + forward + back
    return size * passes


def steps(
    sizes: dict[str, Any],
    rows: Sequence[tuple[int, str]],
    *,
    size: int,
    length: int,
    remat: bool,
    repeats: int,
    trace: tuple[int, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the rows measured so far; all programs are compiled before the first is timed."""
    module, params = models.base(sizes, jnp.bfloat16, remat=remat)
    model, adapters = models.hypotheses(module, params, max(k for k, _ in rows))
    batch, optimizer = models.batch_of(sizes, size, length), optax.adam(1e-4)
    objective, log_likelihood = mcl.objectives.wta(), mcl.language_model.log_likelihood_fn(model)
    edge = 64 if size * length < 1024 else 8192
    ceiling = 2 * edge**3 / product(edge, edge, edge).median

    def compiled(row):
        k, backward = row
        step = mcl.make_train_step(log_likelihood, objective, optimizer, backward)
        state = mcl.TrainState.create(
            params=params,
            adapters=mcl.hypotheses.select(adapters, slice(k)),
            optimizer=optimizer,
            rng=jax.random.key(0),
            objective=objective,
        )
        params_, state, batch_ = step.prepare(state, batch)
        started = time.perf_counter()
        try:
            program = step.jitted.lower(params_, state, batch_).compile()
        except jax.errors.JaxRuntimeError as error:  # it needs more memory than there is
            program = error
        return program, state, time.perf_counter() - started

    with ThreadPoolExecutor(4) as pool:
        programs = list(pool.map(compiled, rows))
    result = {
        "base_gib": round(sum(x.nbytes for x in jax.tree.leaves(params)) / 2**30, 2),
        "batch": size,
        "length": length,
        "remat": remat,
        "ceiling_tflops": round(ceiling / 1e12, 1),
        "rows": [],
    }
    for (k, backward), (program, state, compile_seconds) in zip(rows, programs, strict=True):
        row = {"k": k, "backward": backward, "compile_seconds": round(compile_seconds, 1)}
        try:
            if isinstance(program, Exception):
                raise program
            row["temp_gib"] = round(program.memory_analysis().temp_size_in_bytes / 2**30, 2)
            seconds, loss = timed(program, params, state, batch, repeats)
        except jax.errors.JaxRuntimeError as error:
            row["error"] = str(error)[:300]
        else:
            flops = step_flops(sizes, length, size, k, backward, remat)
            row |= {
                "seconds": round(seconds.median, 5),
                "least": round(seconds.least, 5),
                "most": round(seconds.most, 5),
                "tokens_per_second": round(size * length / seconds.median),
                "model_tflop": round(flops / 1e12, 3),
                "of_ceiling": round(flops / seconds.median / ceiling, 3),
                "loss": loss,
            }
            first = (result["rows"] or [row])[0].get("seconds")
            row["relative_to_k1"] = round(seconds.median / first, 2) if first else None
        stats = jax.devices()[0].memory_stats() or {}
        row["peak_gib_so_far"] = round(stats.get("peak_bytes_in_use", 0) / 2**30, 2)
        result["rows"].append(row)
        yield result
    if trace and "seconds" in result["rows"][list(rows).index(trace)]:
        program, _, _ = programs[list(rows).index(trace)]
        state = fresh(adapters, optimizer, objective, trace[0])
        result["largest_kernels"] = largest(lambda: timed(program, params, state, batch, 2))
        yield result


def fresh(adapters: Any, optimizer: Any, objective: Any, k: int) -> Any:
    """Makes a state without params."""
    return mcl.TrainState.create(
        params=None,
        adapters=mcl.hypotheses.select(adapters, slice(k)),
        optimizer=optimizer,
        rng=jax.random.key(0),
        objective=objective,
    )


def timed(program: Any, params: Any, state: Any, batch: Any, repeats: int) -> tuple[Any, float]:
    """Times steps after two that do not count; returns their seconds and the last loss."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        state, metrics = program(params, state, batch)
        loss = float(metrics["loss"])
        times.append(time.perf_counter() - started)
    return summary(times[2:]), loss
