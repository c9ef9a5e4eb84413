"""One update of the adapters: K forward passes choose winners, and a backward pass goes where the objective has weight.

    winner   K forward passes without activations, then forward and backward of each example under its winner. Exact if
             q is hard; costs about K + 2 forward passes and the activations of one (paper, section 3)
    sampled  the same, but each example's hypothesis is drawn from q: an unbiased gradient for every objective
    all      forward and backward of every hypothesis: exact for every objective, about 2K forward passes

With one hypothesis there is nothing to choose, and all three do one forward and one backward pass.

With `assign="clean"`, the scores from which q is taken come from a pass without dropout, which compares the hypotheses
as they are (Shen et al., arXiv 1902.07816); the gradient still has dropout. "winner" and "sampled" choose in a pass of
their own anyway, so clean scores cost nothing. With "all" they need one more forward pass of every hypothesis, unless
`hypothesis_chunk` already makes it choose first. With `assign="noisy"` (the authors' choice) they come from a pass with
dropout. Each hypothesis has other masks, so winners are partly drawn by chance. Without dropout both are the same
program.

The choice can be made cheaper, for "winner" and "sampled". With `choose_fn` the scores that choose come from another
function, such as the base in fewer bits or the first tokens of each answer. With `refresh=n` a winner serves for n
visits of its example: the steps between choose nothing and cost as much as a step of one model. `TrainState.create`
then needs `num_examples`, and each batch "example" [B], the number of each example. With `candidates=m` only m of the K
hypotheses compete for an example, those in "candidates" [B, m] of the batch, such as the likeliest of a selector. The
last two need "winner".

A row of a batch may hold several examples (`mcl_jax.packing`). Each has its winner, and the backward pass runs each
part of a row under its own (`Hypotheses.apply_by_token`), so that the gradient is that of one example per row. All
hypotheses have the same dropout masks then.

Each row runs as a batch of one under `vmap`. Its random key depends only on the step, the hypothesis and the index
of the example in the global batch. Dropout masks, ties and draws are therefore the same for every `backward`, every
number of micro-batches and every number of devices.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.interpreters import partial_eval
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mcl_jax import dtypes, hypotheses, objectives, packing, sharding
from mcl_jax.kept_winners import KeptWinners
from mcl_jax.train_state import TrainState

Batch = PyTree[Array]
Metrics = dict[str, Array]
Backward = Literal["winner", "sampled", "all"]
BACKWARDS = ("winner", "sampled", "all")
Assign = Literal["clean", "noisy"]
ASSIGNS = ("clean", "noisy")

# log_likelihood_fn(params, adapters_k, batch, rng) -> [B] log p in nats; or ([B] sums of log p, [B] numbers of tokens).
# rng is None where dropout is off. If rows hold S examples each, [B, S] in place of [B].
LogLikelihoodFn = Callable[[Any, Any, Batch, Any], Any]


@flax.struct.dataclass
class Sums:
    """Sums that are added over micro-batches and devices before anything is divided.

    Attributes:
      gradient: sum over examples, in float32 or wider whatever the dtype of the adapters.
      totals: sums of the objective.
      tokens: number of target tokens.
      winner: the winner of each example of this device, with `refresh`; not added.
    """

    gradient: Any
    totals: objectives.Totals
    tokens: Float[Array, ""]
    winner: Int[Array, " B"] | None = None


def example_log_likelihoods(
    log_likelihood_fn: LogLikelihoodFn,
    params: Any,
    adapters: Any,
    batch: Batch,
    k_of_example: Int[Array, " B"],
    index: Int[Array, " B"],
    rng: Key[Array, ""] | None,
    *,
    gathered: bool,
) -> tuple[Float[Array, " N"], Int[Array, " N"] | None]:
    """Returns log p [N] and the number of tokens [N], or None if the function gives no tokens.

    N is B, or B·S for rows of S examples. Each row runs as a batch of one, with the key of its hypothesis and its
    global index.

    Args:
      log_likelihood_fn, params, batch: as in `make_train_step`.
      adapters: one set per example (leading axis B) if `gathered`, else one set for all examples.
      k_of_example: hypothesis of each row [B], for its key.
      index: index of each row in the global batch [B].
      rng: key of the step; None is for a pass without dropout.
      gathered: whether `adapters` has the leading axis B.
    Raises:
      ValueError: if the function does not return one number per example.
    """

    def one(adapters_b, example, k, b):
        key = None if rng is None else hypotheses.example_key(rng, k, b)
        out = log_likelihood_fn(params, adapters_b, jax.tree.map(lambda x: x[None], example), key)
        log_p, tokens = out if isinstance(out, tuple) else (out, None)
        wanted = (1, *packing.texts_per_row(batch))
        if jnp.shape(log_p) != wanted:
            raise ValueError(
                f"log_likelihood_fn must return one number per example, so shape {wanted} for this batch of one row, "
                f"got shape {jnp.shape(log_p)}"
            )
        return log_p[0].astype(jnp.float32), None if tokens is None else tokens[0]

    in_axes = (hypotheses.axes(adapters) if gathered else None, 0, 0, 0)
    return jax.tree.map(jnp.ravel, jax.vmap(one, in_axes)(adapters, batch, k_of_example, index))


class Update:
    """One step as a pure function `update(params, state, batch) -> (state, metrics)`, for jit, scan, pmap or a mesh.

    The arguments are those of `make_train_step`. The state that goes in and comes out is a `TrainState` with
    `params=None`.
    """

    def __init__(
        self,
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
    ):
        if backward not in BACKWARDS:
            raise ValueError(f"backward must be one of {BACKWARDS}, got {backward!r}")
        if backward == "winner" and not (objective.is_hard(1) or objective.is_hard(2)):
            raise ValueError(_not_hard(objective))
        if assign not in ASSIGNS:
            raise ValueError(f"assign must be one of {ASSIGNS}, got {assign!r}")
        if choose_fn is not None and backward == "all":
            raise ValueError('choose_fn needs backward="winner" or "sampled", which choose before the backward pass')
        if refresh is not None and (refresh < 1 or backward != "winner"):
            raise ValueError(
                f'refresh must be at least 1 visit and needs backward="winner", got refresh={refresh} and '
                f"backward={backward!r}"
            )
        if candidates is not None and (candidates < 1 or backward != "winner"):
            raise ValueError(
                f'candidates must be at least 1 hypothesis and needs backward="winner", got candidates={candidates} '
                f"and backward={backward!r}"
            )
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1 micro-batch, got {accumulate}")
        if hypothesis_chunk is not None and (hypothesis_chunk < 1 or backward != "all"):
            raise ValueError(
                f'hypothesis_chunk must be at least 1 and needs backward="all", '
                f"got hypothesis_chunk={hypothesis_chunk} and backward={backward!r}"
            )
        self.log_likelihood_fn, self.objective = log_likelihood_fn, objective
        self.optimizer = _extended(optimizer)
        self.backward, self.assign, self.choose_fn = backward, assign, choose_fn
        self.refresh, self.candidates = refresh, candidates
        self.accumulate, self.hypothesis_chunk = accumulate, hypothesis_chunk

    def check(self, num_hypotheses: int, size: int) -> None:
        """Raises a ValueError if the step cannot run with K hypotheses or with a batch of `size` examples."""
        self.objective.check(num_hypotheses)
        if self.backward == "winner" and not self.objective.is_hard(num_hypotheses):
            raise ValueError(_not_hard(self.objective, f" with K={num_hypotheses}"))
        if self.candidates is not None and self.candidates > num_hypotheses:
            raise ValueError(f"candidates={self.candidates} must be at most K={num_hypotheses}")
        if self.hypothesis_chunk and num_hypotheses % self.hypothesis_chunk:
            raise ValueError(f"hypothesis_chunk={self.hypothesis_chunk} does not divide K={num_hypotheses}")
        if size == 0 or size % self.accumulate:
            raise ValueError(
                f"a batch of {size} examples does not divide into accumulate={self.accumulate} micro-batches"
            )

    def __call__(
        self,
        params: Any,
        state: TrainState,
        batch: Batch,
        real: Bool[Array, " B"] | None = None,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Computes the next state and the metrics.

        Args:
          params: frozen base.
          state: a state without params.
          batch: examples of this device.
          real: False for rows that only pad the batch and have no weight; None if there are none.
          axis_name: the mapped axis that divides the batch, if any.
        """
        sums = self.sums(params, state, batch, real, axis_name)
        kept = self._kept(state, batch, real, sums.winner, axis_name)
        if axis_name is not None:
            sums = jax.lax.psum(sums.replace(winner=None), axis_name)
        totals = sums.totals
        examples = jnp.maximum(totals.weight, 1.0)
        loss, win_rate = totals.loss / examples, totals.wins / examples
        gradient = jax.tree.map(lambda g, a: (g / examples).astype(a.dtype), sums.gradient, state.adapters)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.adapters, value=loss)
        new_state = state.replace(
            step=state.step + 1,
            adapters=optax.apply_updates(state.adapters, updates),
            opt_state=jax.tree.map(dtypes.cast, opt_state, state.opt_state),
            objective_state=self.objective.next_state(state.objective_state, win_rate, state.step),
            winners=kept,
        )
        metrics = {
            "loss": loss,
            "win_rate": win_rate,
            "weight_entropy": totals.entropy / examples,
            "log_likelihood": totals.log_likelihood / examples,
            "gradient_norm": optax.tree.norm(gradient),
            "examples": totals.weight,
            "tokens": sums.tokens,
        }
        return new_state, metrics

    def sums(
        self,
        params: Any,
        state: TrainState,
        batch: Batch,
        real: Bool[Array, " B"] | None = None,
        axis_name: str | None = None,
    ) -> Sums:
        """Returns gradient and metrics, summed over the examples of this device."""
        size = sharding.batch_size(batch)
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
        index = first + jnp.arange(size)
        due = None if self.refresh is None else self._due(state, batch, real, axis_name)
        if self.accumulate == 1:
            return self._micro_batch(params, state, due, batch, index, real)
        split = lambda x: x.reshape(self.accumulate, -1, *x.shape[1:])
        micro_batches = jax.tree.map(split, (batch, index, real))
        shapes = jax.eval_shape(self._micro_batch, params, state, due, *jax.tree.map(lambda x: x[0], micro_batches))
        zeros = _zeros(shapes.replace(winner=None))

        def add(total, micro):
            sums = self._micro_batch(params, state, due, *micro)
            return jax.tree.map(jnp.add, total, sums.replace(winner=None)), sums.winner

        sums, winner = jax.lax.scan(add, zeros, micro_batches)
        return sums.replace(winner=jax.tree.map(jnp.ravel, winner))

    def _due(self, state, batch, real, axis_name) -> Bool[Array, ""]:
        """Whether this step chooses winners, with `refresh`."""
        real = _real_examples(real, batch) & (batch["example"].ravel() >= 0)
        return state.winners.due(batch["example"].ravel(), real, self.refresh, axis_name)

    def _kept(self, state, batch, real, winner, axis_name) -> KeptWinners | None:
        """Returns the winners to keep after a step, with `refresh`."""
        if self.refresh is None:
            return state.winners
        example, due = batch["example"].ravel(), self._due(state, batch, real, axis_name)
        return state.winners.after(example, _real_examples(real, batch) & (example >= 0), winner, due, axis_name)

    def _micro_batch(
        self,
        params: Any,
        state: TrainState,
        due: Bool[Array, ""] | None,
        batch: Batch,
        index: Int[Array, " B"],
        real: Bool[Array, " B"] | None,
    ) -> Sums:
        choose_rng, model_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        number = packing.examples_of_rows(index, batch)
        example_rngs = jax.vmap(jax.random.fold_in, (None, 0))(choose_rng, number)
        tie_rngs, draw_rngs = jax.vmap(jax.random.split, out_axes=1)(example_rngs)
        num_hypotheses = hypotheses.count(state.adapters)
        counts = self._token_counts(params, state, batch, index)
        counted = jnp.ones(number.size, bool) if counts is None else counts > 0
        weight = (counted & _real_examples(real, batch)).astype(jnp.float32)
        example = None if due is None else batch["example"].ravel()
        if counts is not None:
            batch = _without_empty(batch, weight.reshape(index.size, -1).max(1))
        packed = packing.is_packed(batch)
        adapters = jax.tree.map(dtypes.widened, state.adapters)  # so that gradients of examples are added in float32

        def normalized(adapters, k_of_row, gathered, batch=batch, rng=model_rng, function=self.log_likelihood_fn):
            narrowed = jax.tree.map(dtypes.cast, adapters, state.adapters)
            log_p, lengths = example_log_likelihoods(
                function, params, narrowed, batch, k_of_row, index, rng, gathered=gathered
            )
            return self.objective.normalize(log_p, lengths)

        def every(adapters, ks, **options):
            one = lambda a, k: normalized(a, jnp.full_like(index, 0 if packed else k), False, **options)
            return jax.vmap(one, (hypotheses.axes(adapters), 0))(adapters, ks)

        def under(adapters, chosen):
            if packed:  # the parts of a row have different winners, but one key
                winner = chosen.reshape(index.size, -1)
                return normalized(adapters, jnp.zeros_like(index), False, {**batch, "winner": winner})
            return normalized(hypotheses.select(adapters, chosen), chosen, True)

        def among(candidates, **options):  # [m, B]; the others get a probability of 0
            one = lambda k: normalized(hypotheses.select(adapters, k), k, True, **options)
            out = jnp.full((num_hypotheses, index.size), -jnp.inf)
            return out.at[candidates, jnp.arange(index.size)].set(jax.vmap(one)(candidates))

        def assess(log_p):
            totals, q, _ = self.objective.totals(log_p, weight, state.step, state.objective_state, tie_rngs)
            return totals, q

        ks = jnp.arange(num_hypotheses)
        clean = self.assign == "clean" and num_hypotheses > 1 and self._has_noise(params, state, batch)
        one_pass = self.backward == "all" and self.hypothesis_chunk is None and not clean
        winner = None
        if one_pass or num_hypotheses == 1:  # with one hypothesis there is no winner to choose first

            def loss(adapters):
                totals, _ = assess(every(adapters, ks))
                return totals.loss, totals

            gradient, totals = jax.grad(loss, has_aux=True)(adapters)
            winner = jnp.zeros_like(number)
        elif self.backward == "all":
            totals, q = assess(every(adapters, ks, rng=None if clean else model_rng))
            gradient = self._gradient_of_all(adapters, q, weight, every)
        else:
            options = {"rng": None if clean else model_rng, "function": self.choose_fn or self.log_likelihood_fn}

            def choose():
                if self.candidates is None:
                    totals, q = assess(every(adapters, ks, **options))
                else:
                    log_p = among(batch["candidates"].T, **options)
                    totals, q = assess(log_p)
                    counted = (weight[None] > 0.0) & ~jnp.isneginf(log_p)
                    totals = totals.replace(log_likelihood=jnp.where(counted, log_p, 0.0).sum(1))
                return totals, self._chosen(q, draw_rngs).astype(jnp.int32)

            def keep():
                winner = state.winners.winner[example]
                wins = objectives.win_counts(winner, num_hypotheses, weight)
                return _zeros(jax.eval_shape(choose)[0]).replace(weight=weight.sum(), wins=wins), winner

            totals, winner = choose() if due is None else jax.lax.cond(due, choose, keep)
            log_p, gradient = self._gradient_of_chosen(adapters, winner, weight, under)
            totals = self._with_log_p(totals, log_p, winner, due)
        tokens = jnp.zeros(()) if counts is None else jnp.where(weight > 0.0, counts, 0).sum()
        return Sums(gradient, totals, tokens.astype(jnp.float32), None if due is None else winner)

    def _with_log_p(
        self, totals: objectives.Totals, log_p: Float[Array, " B"], chosen: Int[Array, " B"], due: Any
    ) -> objectives.Totals:
        """Puts log p of the chosen hypotheses into the sums, where the scores that chose are others or missing."""
        loss = -log_p.sum()
        if due is not None:
            own = jnp.zeros_like(totals.log_likelihood).at[chosen].add(log_p)
            totals = totals.replace(
                loss=jnp.where(due, totals.loss, loss), log_likelihood=jnp.where(due, totals.log_likelihood, own)
            )
        return totals if self.choose_fn is None else totals.replace(loss=loss)

    def _token_counts(self, params: Any, state: TrainState, batch: Batch, index: Int[Array, " B"]) -> Any:
        """Returns the number of target tokens of each example, or None. The compiler drops the rest of this pass."""
        first, k_of_example = hypotheses.select(state.adapters, 0), jnp.zeros_like(index)
        return example_log_likelihoods(
            self.log_likelihood_fn, params, first, batch, k_of_example, index, state.rng, gathered=False
        )[1]

    def _has_noise(self, params: Any, state: TrainState, batch: Batch) -> bool:
        """Whether log p depends on its rng, as it does with dropout. Nothing is computed."""
        first, example = hypotheses.select(state.adapters, 0), jax.tree.map(lambda x: x[:1], batch)
        log_p = lambda rng: jax.tree.leaves(self.log_likelihood_fn(params, first, example, rng))[0]
        _, needed = partial_eval.dce_jaxpr(jax.make_jaxpr(log_p)(state.rng).jaxpr, [True])
        return needed[0]

    def _gradient_of_all(self, adapters, q, weight, every) -> Any:
        """Returns the gradient of −Σ_b w_b Σ_k q_kb log p(x_b | θ_k), with q from an earlier pass."""
        num_hypotheses = q.shape[0]

        def chunk_gradient(ks):
            counted = (weight[None] > 0.0) & (q[ks] > 0.0)
            loss = lambda chunk: -jnp.where(counted, q[ks] * every(chunk, ks), 0.0).sum()
            return jax.grad(loss)(hypotheses.select(adapters, ks))

        chunks = jnp.arange(num_hypotheses).reshape(-1, self.hypothesis_chunk or num_hypotheses)
        gradient = jax.lax.map(chunk_gradient, chunks)
        return jax.tree_util.tree_map_with_path(
            lambda keys, g, a: g.sum(0) if hypotheses.is_shared(keys) else g.reshape(a.shape), gradient, adapters
        )

    def _chosen(self, q: objectives.Weights, draw_rngs: Key[Array, " B"]) -> Int[Array, " B"]:
        """Returns the hypothesis of each example that gets the backward pass: the winner, or one drawn from q."""
        if self.backward == "winner":
            return jnp.argmax(q, axis=0)
        return jax.vmap(jax.random.categorical)(draw_rngs, jnp.log(q).T)

    def _gradient_of_chosen(self, adapters, chosen, weight, under) -> tuple[Float[Array, " B"], Any]:
        """Returns log p [B] under the chosen hypotheses, 0 without weight, and the gradient of minus its sum."""

        def loss(adapters):
            log_p = under(adapters, chosen)
            log_p = jnp.where(weight > 0.0, log_p, 0.0)
            return -log_p.sum(), log_p

        gradient, log_p = jax.grad(loss, has_aux=True)(adapters)
        return log_p, gradient


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _real_examples(real: Bool[Array, " B"] | None, batch: Batch) -> Bool[Array, " N"]:
    """Returns which examples do not only pad the batch."""
    rows = jnp.ones(sharding.batch_size(batch), bool) if real is None else real
    return jnp.repeat(rows, math.prod(packing.texts_per_row(batch)))


def _without_empty(batch: Batch, weight: Float[Array, " B"]) -> Batch:
    """Replaces each row that has no weight by one that has, so that its values cannot reach the gradient.

    A NaN in such a row, in its features for example, would make the gradient NaN although the weight is 0.
    """
    counted = weight > 0.0
    row = jnp.where(counted, jnp.arange(weight.size), jnp.argmax(counted))
    return jax.tree.map(lambda x: jnp.asarray(x)[row], batch)


def _extended(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer with an update that accepts the loss as `value`, and ignores it if it has no use for it.

    Raises:
      ValueError: if the optimizer needs an argument that a train step does not have, such as `grad_fn`.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    arguments = inspect.signature(optimizer.update).parameters.values()
    needed = [a.name for a in arguments if a.name.endswith("_fn") and a.default is a.empty]
    if needed:
        raise ValueError(f"the optimizer needs {', '.join(needed)}, which a train step cannot give it")
    if any(a.name == "value" or a.kind is a.VAR_KEYWORD for a in arguments):
        return optimizer
    update = lambda updates, state, params=None, **ignored: optimizer.update(updates, state, params)
    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _not_hard(objective: objectives.Objective, detail: str = "") -> str:
    return (
        f'backward="winner" is exact only if one hypothesis has all the weight, which {type(objective).__name__}'
        f'{detail} does not promise. Use "sampled" (unbiased, same cost) or "all" (exact, about 2K forward passes).'
    )
