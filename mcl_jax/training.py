"""The train step: an update that is compiled and placed on devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mcl_jax import hypotheses, objectives, packing, sharding
from mcl_jax.over_mesh import OverMesh
from mcl_jax.train_state import TrainState
from mcl_jax.update import Assign, Backward, Batch, LogLikelihoodFn, Metrics, Update


class TrainStep:
    """`step(state, batch) -> (state, metrics)`, compiled once for each shape of the batch.

    The buffers of the state that goes in are donated, except `params`: use the state that comes back.

    Args:
      update: the step as a pure function.
      placement: where it runs, see `mcl_jax.sharding`; None is one device.
      donate: whether the state that goes in gives up its buffers.
    """

    def __init__(self, update: Update, placement: sharding.Placement | None = None, *, donate: bool = True):
        self.update, self.placement = update, placement or sharding.OneDevice()

        def train_step(params, state, batch, real=None):  # the name that profilers show
            return update(params, state, batch, real, axis_name=self.placement.axis_name)

        self.jitted = self.placement.compile(train_step, donate=donate)

    def prepare(self, state: TrainState, batch: Batch) -> tuple[Any, ...]:
        """Returns the arguments of the compiled function.

        Raises:
          ValueError: if the step cannot run with this state or this batch.
        """
        num_hypotheses = hypotheses.count(state.adapters)
        if self.update.refresh is not None:
            _check_examples(state, batch)
        if self.update.candidates is not None:
            _check_candidates(self.update.candidates, num_hypotheses, batch)
        self.update.check(num_hypotheses, self.placement.local_size(sharding.batch_size(batch)))
        if state.objective_state is None:
            initial = jax.jit(self.update.objective.init, static_argnums=0)  # compiled: no transfer from the host
            state = state.replace(objective_state=initial(num_hypotheses))
        return self.placement.place(state.params, state.replace(params=None), batch)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params, *arguments = self.prepare(state, batch)
        rest, metrics = self.jitted(params, *arguments)
        return rest.replace(params=params), metrics

    def lower(self, state: TrainState, batch: Batch):
        """Returns the step lowered for these arguments (arrays or shapes), for `.compile().memory_analysis()`."""
        return self.jitted.lower(*self.prepare(state, batch))


def make_train_step(
    log_likelihood_fn: LogLikelihoodFn,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformation,
    backward: Backward = "winner",
    *,
    assign: Assign = "clean",
    choose_fn: LogLikelihoodFn | None = None,
    refresh: int | None = None,
    candidates: int | None = None,
    accumulate: int = 1,
    hypothesis_chunk: int | None = None,
    donate: bool = True,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Makes a jit-compiled `step(state, batch) -> (state, metrics)` for K hypotheses.

    Args:
      log_likelihood_fn: (params, adapters_k, batch, rng) -> log p of each example in nats [B], or a pair of log p and
        the number of target tokens [B]. With token counts, the objective can normalise, and examples without targets
        have no weight. The function is called with a batch of one under `vmap`; rng is for dropout, and None where
        dropout is off.
      objective: an objective from `mcl_jax.objectives`.
      optimizer: an optax chain for the adapters; clipping belongs in it.
      backward: "winner", "sampled" or "all", see the docstring of `mcl_jax.update`.
      assign: "clean" takes winners and q from scores without dropout, "noisy" from scores with it. So do the metrics.
        With backward="all", dropout and no hypothesis_chunk, "clean" costs one more forward pass of every hypothesis.
      choose_fn: a cheaper function, called as `log_likelihood_fn` is, whose scores choose the winners or give q. The
        metrics loss and gradient are those of `log_likelihood_fn` under the chosen hypotheses; win_rate, weight_entropy
        and log_likelihood those of `choose_fn`. With "winner" or "sampled".
      refresh: number of visits of an example after which its winner is chosen again; with "winner". The steps between
        cost as much as those of one model. They are those in which every example has a winner, and these winners have
        not served that often on average. Each batch needs "example" [B], the number of each example, and the state
        `num_examples`. In these steps, log_likelihood counts each example under its winner alone.
      candidates: m, number of hypotheses that compete for each example; with "winner". Each batch needs "candidates"
        [B, m], their numbers, such as `selector.choose(log_gamma, m).T`. A step then costs about m + 2 forward passes.
        log_likelihood counts each example under its candidates alone, and a hypothesis that is a candidate nowhere
        learns nothing.
      accumulate: number of micro-batches per batch. Sums are divided once, by the weight of the whole batch.
      hypothesis_chunk: with "all", number of hypotheses whose activations are held at a time. Each hypothesis then
        costs one more forward pass.
      donate: whether the state that goes in gives up its buffers.
      mesh: devices to run on, with an axis "data" that divides batches; its other axes may divide the base, see
        `parallel.mesh_step`. None is one device. For pmap, see `parallel.pmap_step`.
    Returns:
      The step. Its metrics are loss (nats), win_rate [K], weight_entropy (nats), log_likelihood [K] (nats, mean over
      examples), gradient_norm (before clipping), examples and tokens.
    Raises:
      ValueError: for "winner" with an objective whose weights are not hard, or a mesh without the axis "data". The step
        raises it for a batch that does not divide, or a K that the objective refuses.
    """
    update = Update(
        log_likelihood_fn,
        objective,
        optimizer,
        backward,
        assign=assign,
        choose_fn=choose_fn,
        refresh=refresh,
        candidates=candidates,
        accumulate=accumulate,
        hypothesis_chunk=hypothesis_chunk,
    )
    return TrainStep(update, None if mesh is None else OverMesh(mesh), donate=donate)


def _check_candidates(number: int, num_hypotheses: int, batch: Batch) -> None:
    """Raises a ValueError unless the batch has `number` hypotheses for each example."""
    if not isinstance(batch, Mapping) or "candidates" not in batch:
        raise ValueError('a step with candidates needs batch["candidates"] [B, m], the hypotheses that compete')
    if packing.is_packed(batch):
        raise ValueError("candidates need one example in each row, got a batch with several texts in a row")
    found, size = batch["candidates"], sharding.batch_size(batch)
    if found.shape != (size, number):
        raise ValueError(f'batch["candidates"] must have shape [B, m] = {(size, number)}, got {found.shape}')
    if isinstance(found, np.ndarray) and found.size and not 0 <= found.min() <= found.max() < num_hypotheses:
        raise ValueError(
            f'batch["candidates"] must be from 0 to {num_hypotheses - 1}, got {found.min()} to {found.max()}'
        )


def _check_examples(state: TrainState, batch: Batch) -> None:
    """Raises a ValueError unless the state can keep the winners of the examples of this batch."""
    if state.winners is None:
        raise ValueError("a step with refresh keeps winners: make the state with TrainState.create(num_examples=N)")
    if not isinstance(batch, Mapping) or "example" not in batch:
        raise ValueError('a step with refresh needs batch["example"] [B], the number of each example from 0')
    example, N = batch["example"], state.winners.winner.size
    if packing.is_packed(batch):
        example = example[np.asarray(batch["packed"]) >= 0]
    if isinstance(example, np.ndarray) and example.size and not 0 <= example.min() <= example.max() < N:
        raise ValueError(
            f'batch["example"] must be from 0 to {N - 1}, since the state keeps winners of num_examples={N}; got '
            f"{example.min()} to {example.max()}"
        )
