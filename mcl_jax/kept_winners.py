"""Winners that are kept, so that a step need not choose them anew at every visit of an example."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

UNKNOWN = -1


@flax.struct.dataclass
class KeptWinners:
    """The winners of N training examples.

    Attributes:
      winner: the hypothesis that won each example, `UNKNOWN` before its first visit.
      age: number of visits since then, with that one.
    """

    winner: Int[Array, " N"]
    age: Int[Array, " N"]

    @classmethod
    def create(cls, num_examples: int) -> "KeptWinners":
        """Returns the state in which no winner is known.

        Raises:
          ValueError: if there is no example.
        """
        if num_examples < 1:
            raise ValueError(f"num_examples must be at least 1, got {num_examples}")
        return cls(jnp.full(num_examples, UNKNOWN, jnp.int32), jnp.zeros(num_examples, jnp.int32))

    def due(
        self, example: Int[Array, " B"], real: Bool[Array, " B"], refresh: int, axis_name: str | None = None
    ) -> Bool[Array, ""]:
        """Whether a batch needs new winners: one is unknown, or they have served for `refresh` visits on average.

        The average is over the whole batch, on all devices, so that they all do the same. Examples that an epoch left
        out are younger than the others. They must not keep a batch from being old.

        Args:
          example: number of each example, from 0 to N − 1.
          real: False for examples that only pad the batch.
          refresh: n, number of visits that a winner serves.
          axis_name: the mapped axis that divides the batch, if any.
        """
        unknown = (self.winner[example] == UNKNOWN) & real
        sums = jnp.stack([unknown.sum(), jnp.where(real, self.age[example], 0).sum(), real.sum()])
        unknown, age, number = sums if axis_name is None else jax.lax.psum(sums, axis_name)
        return (unknown > 0) | (age >= refresh * number)

    def after(
        self,
        example: Int[Array, " B"],
        real: Bool[Array, " B"],
        winner: Int[Array, " B"],
        due: Bool[Array, ""],
        axis_name: str | None = None,
    ) -> "KeptWinners":
        """Returns the winners after a step in which these examples had these winners, new ones if `due`."""
        place = jnp.where(real, example, self.winner.size)  # beyond the end, where nothing is written
        if axis_name is not None:
            place, winner = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (place, winner))
        age = jnp.where(due, 1, self.age.at[place].get(mode="clip") + 1)
        return KeptWinners(self.winner.at[place].set(winner, mode="drop"), self.age.at[place].set(age, mode="drop"))
