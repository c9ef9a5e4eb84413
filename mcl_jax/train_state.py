"""The state of a training: everything that a step reads and writes."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from mcl_jax import dtypes, hypotheses, objectives, sharding
from mcl_jax.kept_winners import KeptWinners


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
      winners: the winner of each training example, for a step with `refresh`; else None.
    """

    step: Int[Array, ""]
    params: Any
    adapters: Any
    opt_state: Any
    objective_state: Any
    rng: Key[Array, ""]
    winners: KeptWinners | None = None

    @classmethod
    def create(
        cls,
        *,
        params: Any,
        adapters: Any,
        optimizer: optax.GradientTransformation,
        rng: Key[Array, ""],
        objective: objectives.Objective | None = None,
        num_examples: int | None = None,
    ) -> "TrainState":
        """Returns the state at step 0, on the device of the base.

        Adapters are copied, since steps donate their buffers.

        Args:
          params: frozen base.
          adapters: arrays with leading axis K.
          optimizer: the optimizer of the adapters.
          rng: key of the run.
          objective: the objective whose state to hold. If None, the first step adds the state of its own objective.
          num_examples: N, the number of training examples, for a step with `refresh`, which keeps a winner for each.
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
                winners=None if num_examples is None else KeptWinners.create(num_examples),
            )

        # Compiled, so that every leaf has its own buffer, Python numbers become arrays, and nothing leaves the device.
        state = jax.jit(initial)(adapters, rng)
        return sharding.beside(state, params).replace(params=params)

    @classmethod
    def abstract(
        cls,
        *,
        params: Any,
        adapters: Any,
        optimizer: optax.GradientTransformation,
        objective: objectives.Objective | None = None,
        num_examples: int | None = None,
    ) -> "TrainState":
        """Describes the state that `create` makes, without arrays, for `TrainStep.lower`.

        Args:
          params: `jax.ShapeDtypeStruct`s of the frozen base; those with a sharding keep it.
          adapters: `jax.ShapeDtypeStruct`s with leading axis K.
          optimizer: the optimizer of the adapters.
          objective: the objective whose state to hold.
          num_examples: as in `create`.
        """
        create = functools.partial(
            cls.create, params=None, optimizer=optimizer, objective=objective, num_examples=num_examples
        )
        rng = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(lambda adapters, rng: create(adapters=adapters, rng=rng), adapters, rng).replace(
            params=params
        )


def _settled(leaf: Any) -> Array:
    """Returns the leaf as an array with a fixed dtype, as it comes back from a checkpoint."""
    return dtypes.cast(jnp.asarray(leaf), jnp.asarray(leaf))
