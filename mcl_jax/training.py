"""The train step: K forward passes choose the winners, then a backward pass goes where the objective puts weight.

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

Each example runs as a batch of one under `vmap`. Its random key depends only on the step, the hypothesis and the index
of the example in the global batch. Dropout masks, ties and draws are therefore the same for every `backward`, every
number of micro-batches and every number of devices.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.interpreters import partial_eval
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mcl_jax import dtypes, hypotheses, objectives, sharding
from mcl_jax.mesh import OverMesh

Batch = PyTree[Array]
Metrics = dict[str, Array]
Backward = Literal["winner", "sampled", "all"]
BACKWARDS = ("winner", "sampled", "all")
Assign = Literal["clean", "noisy"]
ASSIGNS = ("clean", "noisy")

# log_likelihood_fn(params, adapters_k, batch, rng) -> [B] log p in nats; or ([B] sums of log p, [B] numbers of tokens).
# rng is None where dropout is off.
LogLikelihoodFn = Callable[[Any, Any, Batch, Any], Any]


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes. A step never writes or donates `params`, and no optimizer sees it.

    Attributes:
      step: number of steps taken.
      params: frozen base.
      adapters: arrays with leading axis K.
      opt_state: state of the optimizer, for the adapters only.
      objective_state: state of the objective, such as the biases of `balanced_wta`. It is None before the first step if
        `create` got no objective.
      rng: key of the run; step t uses fold_in(rng, t).
    """

    step: Int[Array, ""]
    params: Any
    adapters: Any
    opt_state: Any
    objective_state: Any
    rng: Key[Array, ""]

    @classmethod
    def create(
        cls,
        *,
        params: Any,
        adapters: Any,
        optimizer: optax.GradientTransformation,
        rng: Key[Array, ""],
        objective: objectives.Objective | None = None,
    ) -> "TrainState":
        """Returns the state at step 0. Adapters are copied, since steps donate their buffers.

        Args:
          params: frozen base.
          adapters: arrays with leading axis K.
          optimizer: the optimizer of the adapters.
          rng: key of the run.
          objective: the objective whose state to hold. If None, the first step adds the state of its own objective.
        Raises:
          ValueError: if the adapters do not share one leading axis K, the objective is not defined for this K, or rng
            is an old-style key.
        """
        num_hypotheses = hypotheses.count(adapters)
        objectives.check_key(rng)

        def initial(adapters, rng):
            own = jax.tree.map(jnp.copy, adapters)  # an optimizer may keep what it is given
            return cls(
                step=jnp.zeros((), jnp.int32),
                params=None,
                adapters=jax.tree.map(jnp.copy, adapters),
                opt_state=jax.tree.map(_settled, optimizer.init(own)),
                objective_state=None if objective is None else objective.init(num_hypotheses),
                rng=jnp.copy(rng),
            )

        # Compiled, so that every leaf has its own buffer, Python numbers become arrays, and nothing leaves the device.
        return jax.jit(initial)(adapters, rng).replace(params=params)

    @classmethod
    def abstract(
        cls,
        *,
        params: Any,
        adapters: Any,
        optimizer: optax.GradientTransformation,
        objective: objectives.Objective | None = None,
    ) -> "TrainState":
        """Describes the state that `create` makes, without arrays, for `TrainStep.lower`.

        Args:
          params: `jax.ShapeDtypeStruct`s of the frozen base; those with a sharding keep it.
          adapters: `jax.ShapeDtypeStruct`s with leading axis K.
          optimizer: the optimizer of the adapters.
          objective: the objective whose state to hold.
        """
        create = functools.partial(cls.create, params=None, optimizer=optimizer, objective=objective)
        rng = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(lambda adapters, rng: create(adapters=adapters, rng=rng), adapters, rng).replace(
            params=params
        )


@flax.struct.dataclass
class Sums:
    """Sums that are added over micro-batches and devices before anything is divided.

    Attributes:
      gradient: sum over examples, in float32 or wider whatever the dtype of the adapters.
      totals: sums of the objective.
      tokens: number of target tokens.
    """

    gradient: Any
    totals: objectives.Totals
    tokens: Float[Array, ""]


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
) -> tuple[Float[Array, " B"], Int[Array, " B"] | None]:
    """Returns log p [B] and the number of tokens [B], or None if the function gives no tokens.

    Each example runs as a batch of one, with the key of its hypothesis and its global index.

    Args:
      log_likelihood_fn, params, batch: as in `make_train_step`.
      adapters: one set per example (leading axis B) if `gathered`, else one set for all examples.
      k_of_example: hypothesis of each example [B], for its key.
      index: index of each example in the global batch [B].
      rng: key of the step; None is for a pass without dropout.
      gathered: whether `adapters` has the leading axis B.
    Raises:
      ValueError: if the function does not return one number per example.
    """

    def one(adapters_b, example, k, b):
        key = None if rng is None else hypotheses.example_key(rng, k, b)
        out = log_likelihood_fn(params, adapters_b, jax.tree.map(lambda x: x[None], example), key)
        log_p, tokens = out if isinstance(out, tuple) else (out, None)
        if jnp.shape(log_p) != (1,):
            raise ValueError(
                f"log_likelihood_fn must return one number per example, so shape (1,) for this batch of one, got shape "
                f"{jnp.shape(log_p)}"
            )
        return log_p[0].astype(jnp.float32), None if tokens is None else tokens[0]

    in_axes = (hypotheses.axes(adapters) if gathered else None, 0, 0, 0)
    return jax.vmap(one, in_axes)(adapters, batch, k_of_example, index)


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
        accumulate: int = 1,
        hypothesis_chunk: int | None = None,
    ):
        if backward not in BACKWARDS:
            raise ValueError(f"backward must be one of {BACKWARDS}, got {backward!r}")
        if backward == "winner" and not (objective.is_hard(1) or objective.is_hard(2)):
            raise ValueError(_not_hard(objective))
        if assign not in ASSIGNS:
            raise ValueError(f"assign must be one of {ASSIGNS}, got {assign!r}")
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1 micro-batch, got {accumulate}")
        if hypothesis_chunk is not None and (hypothesis_chunk < 1 or backward != "all"):
            raise ValueError(
                f'hypothesis_chunk must be at least 1 and needs backward="all", '
                f"got hypothesis_chunk={hypothesis_chunk} and backward={backward!r}"
            )
        self.log_likelihood_fn, self.objective = log_likelihood_fn, objective
        self.optimizer = _extended(optimizer)
        self.backward, self.assign = backward, assign
        self.accumulate, self.hypothesis_chunk = accumulate, hypothesis_chunk

    def check(self, num_hypotheses: int, size: int) -> None:
        """Raises a ValueError if the step cannot run with K hypotheses or with a batch of `size` examples."""
        self.objective.check(num_hypotheses)
        if self.backward == "winner" and not self.objective.is_hard(num_hypotheses):
            raise ValueError(_not_hard(self.objective, f" with K={num_hypotheses}"))
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
          real: False for examples that only pad the batch and have no weight; None if there are none.
          axis_name: the mapped axis that divides the batch, if any.
        """
        sums = self.sums(params, state, batch, real, axis_name)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        totals = sums.totals
        examples = jnp.maximum(totals.weight, 1.0)
        loss, win_rate = totals.loss / examples, totals.wins / examples
        gradient = jax.tree.map(lambda g, a: (g / examples).astype(a.dtype), sums.gradient, state.adapters)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.adapters, value=loss)
        new_state = state.replace(
            step=state.step + 1,
            adapters=optax.apply_updates(state.adapters, updates),
            opt_state=jax.tree.map(_as, opt_state, state.opt_state),
            objective_state=self.objective.next_state(state.objective_state, win_rate, state.step),
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
        if self.accumulate == 1:
            return self._micro_batch(params, state, batch, index, real)
        split = lambda x: x.reshape(self.accumulate, -1, *x.shape[1:])
        micro_batches = jax.tree.map(split, (batch, index, real))
        shapes = jax.eval_shape(self._micro_batch, params, state, *jax.tree.map(lambda x: x[0], micro_batches))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        add = lambda total, micro: (jax.tree.map(jnp.add, total, self._micro_batch(params, state, *micro)), None)
        return jax.lax.scan(add, zeros, micro_batches)[0]

    def _micro_batch(
        self, params: Any, state: TrainState, batch: Batch, index: Int[Array, " B"], real: Bool[Array, " B"] | None
    ) -> Sums:
        choose_rng, model_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        example_rngs = jax.vmap(jax.random.fold_in, (None, 0))(choose_rng, index)
        tie_rngs, draw_rngs = jax.vmap(jax.random.split, out_axes=1)(example_rngs)
        num_hypotheses = hypotheses.count(state.adapters)
        counts = self._token_counts(params, state, batch, index)
        counted = jnp.ones(index.size, bool) if counts is None else counts > 0
        weight = (counted if real is None else counted & real).astype(jnp.float32)
        if counts is not None:
            batch = _without_empty(batch, weight)
        adapters = jax.tree.map(dtypes.widened, state.adapters)  # so that gradients of examples are added in float32

        def normalized(adapters, k_of_example, gathered, rng=model_rng):
            narrowed = jax.tree.map(_as, adapters, state.adapters)
            log_p, lengths = example_log_likelihoods(
                self.log_likelihood_fn, params, narrowed, batch, k_of_example, index, rng, gathered=gathered
            )
            return self.objective.normalize(log_p, lengths)

        def every(adapters, ks, rng=model_rng):
            one = lambda a, k: normalized(a, jnp.full_like(index, k), False, rng)
            return jax.vmap(one, (hypotheses.axes(adapters), 0))(adapters, ks)

        def assess(log_p):
            totals, q, _ = self.objective.totals(log_p, weight, state.step, state.objective_state, tie_rngs)
            return totals, q

        ks = jnp.arange(num_hypotheses)
        clean = self.assign == "clean" and num_hypotheses > 1 and self._has_noise(params, state, batch)
        one_pass = self.backward == "all" and self.hypothesis_chunk is None and not clean
        if one_pass or num_hypotheses == 1:  # with one hypothesis there is no winner to choose first

            def loss(adapters):
                totals, _ = assess(every(adapters, ks))
                return totals.loss, totals

            gradient, totals = jax.grad(loss, has_aux=True)(adapters)
        else:
            totals, q = assess(every(adapters, ks, None if clean else model_rng))
            gradient = self._second_pass(adapters, q, weight, normalized, every, draw_rngs)
        tokens = jnp.zeros(()) if counts is None else jnp.where(weight > 0.0, counts, 0).sum()
        return Sums(gradient, totals, tokens.astype(jnp.float32))

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

    def _second_pass(self, adapters, q, weight, normalized, every, draw_rngs):
        """Returns the gradient of −Σ_b w_b Σ_k q_kb log p(x_b | θ_k), with q from a first pass without activations."""
        num_hypotheses = q.shape[0]
        if self.backward == "all":

            def chunk_gradient(ks):
                counted = (weight[None] > 0.0) & (q[ks] > 0.0)
                loss = lambda chunk: -jnp.where(counted, q[ks] * every(chunk, ks), 0.0).sum()
                return jax.grad(loss)(hypotheses.select(adapters, ks))

            chunks = jnp.arange(num_hypotheses).reshape(-1, self.hypothesis_chunk or num_hypotheses)
            gradient = jax.lax.map(chunk_gradient, chunks)
            return jax.tree_util.tree_map_with_path(
                lambda keys, g, a: g.sum(0) if hypotheses.is_shared(keys) else g.reshape(a.shape), gradient, adapters
            )

        if self.backward == "winner":
            chosen = jnp.argmax(q, axis=0)
        else:
            chosen = jax.vmap(jax.random.categorical)(draw_rngs, jnp.log(q).T)

        def loss(adapters):
            log_p = normalized(hypotheses.select(adapters, chosen), chosen, True)
            return -jnp.where(weight > 0.0, log_p, 0.0).sum()

        return jax.grad(loss)(adapters)


def _settled(leaf: Any) -> Array:
    """Returns the leaf as an array with a fixed dtype, as it comes back from a checkpoint."""
    return _as(jnp.asarray(leaf), jnp.asarray(leaf))


def _as(leaf: Array, like: Array) -> Array:
    """Casts the leaf to the dtype of another, so that a state keeps its dtypes between steps; keys stay unchanged."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(leaf, like.dtype)


def _without_empty(batch: Batch, weight: Float[Array, " B"]) -> Batch:
    """Replaces each example that has no weight by one that has, so that its values cannot reach the gradient.

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
      backward: "winner", "sampled" or "all", see the docstring of `mcl_jax.training`.
      assign: "clean" takes winners and q from scores without dropout, "noisy" from scores with it. So do the metrics.
        With backward="all", dropout and no hypothesis_chunk, "clean" costs one more forward pass of every hypothesis.
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
        accumulate=accumulate,
        hypothesis_chunk=hypothesis_chunk,
    )
    return TrainStep(update, None if mesh is None else OverMesh(mesh), donate=donate)
