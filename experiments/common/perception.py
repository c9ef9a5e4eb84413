"""Features of the records' images or clips from a frozen tower, computed once per record whatever K is."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from mcl_jax import data
from mcl_jax.console import Progress
from mcl_jax.mesh import Layout, on_mesh, on_own_devices, over_data, padded

Inputs = dict[str, np.ndarray]
LANGUAGE_MODEL = "language_model"  # the part of `params` that no tower needs


@dataclasses.dataclass
class Perception:
    """A tower, and the preparation of its inputs.

    Attributes:
      module: the base model.
      params: its parameters.
      processor: its processor.
      read: reads the image or clip of a record for the processor.
      inputs: makes the tower's arguments, [B, ...] each, from images or clips; None stands for a padding row.
      augment: makes the same arguments [1, ...] for an augmented image or clip, from (key, image or clip).
      cache: whether to keep the features of every record in memory, so that the tower runs once and not in each epoch.
      mesh: devices that share a batch; None means one device. Each of several processes runs the tower on its own
        devices, for the records that it is asked for.
      limits: how clips are cropped, see `Modality.limits`.
    """

    module: nn.Module
    params: Any
    processor: Any
    read: Callable[[data.Record], np.ndarray]
    inputs: Callable[[Sequence[np.ndarray | None]], Inputs]
    augment: Callable[[Key[Array, ""], np.ndarray], Inputs]
    cache: bool
    mesh: Mesh | None = None
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # features [N, D] and pooled ones [F] by id
        self._pool = ThreadPoolExecutor()

    def counts(self, records: Sequence[data.Record]) -> dict[str, int]:
        """Counts the placeholder tokens of each record, by id; shows progress."""

        def count(record: data.Record) -> int:
            return self.processor.num_features(self.read(record))

        with Progress(len(records), description="measuring images or clips") as progress:
            counts = {}
            for record, number in zip(records, self._pool.map(count, records), strict=True):
                counts[record.id] = number
                progress.update(len(counts))
        return counts

    def features(self, records: Sequence[data.Record | None]) -> Float[Array, "B N D"]:
        """Returns the features of a batch; zeros where there is no record."""
        if not self.cache:
            return self._encode(self.tower_inputs(records))[0]
        self._remember(records)
        empty = np.zeros_like(next(iter(self._known.values()))[0])
        return np.stack([empty if record is None else self._known[record.id][0] for record in records])

    def pooled(self, records: Sequence[data.Record], batch_size: int = 8) -> Float[np.ndarray, "M F"]:
        """Returns the mean of what the tower makes of each record, in float32, see `tower`. Shows progress."""
        rows: list[np.ndarray] = []
        with Progress(len(records), description="pooling features") as progress:
            for start in range(0, len(records), batch_size):
                part = [*records[start : start + batch_size]]
                batch = [*part, *[None] * (batch_size - len(part))]  # always as many rows, so it compiles once
                if self.cache:
                    self._remember(batch)
                    rows += [self._known[record.id][1] for record in part]
                else:
                    rows += [*np.asarray(self._encode(self.tower_inputs(batch))[1])[: len(part)]]
                progress.update(len(rows))
        return np.stack(rows)

    def _remember(self, records: Sequence[data.Record | None]) -> None:
        """Runs the tower for the records of a batch that it has not seen."""
        new = {record.id: record for record in records if record is not None and record.id not in self._known}
        if new:
            rows = [*new.values(), *[None] * (len(records) - len(new))]  # always as many rows, so it compiles once
            made = map(np.asarray, self._encode(self.tower_inputs(rows)))
            self._known |= zip(new, zip(*made, strict=True), strict=False)

    def augmented(self, records: Sequence[data.Record], keys: Sequence[Key[Array, ""]]) -> Float[Array, "B N D"]:
        """Returns the features of augmented images or clips, each with its own key."""
        changed = [self.augment(key, self.read(record)) for record, key in zip(records, keys, strict=True)]
        return self._encode(stacked(changed))[0]

    def tower_inputs(self, records: Sequence[data.Record | None]) -> Inputs:
        """Makes the arguments of the tower for a batch, [B, ...] each."""

        def one(record: data.Record | None) -> Inputs:
            return self.inputs([None if record is None else self.read(record)])

        return stacked(list(self._pool.map(one, records)))

    def lower(self, records: Sequence[data.Record | None]) -> Any:
        """Lowers the tower for a batch, as `jax.jit` does."""
        run, params = self._tower
        return run.lower(params, self._placed(self.tower_inputs(records)))

    def _encode(self, inputs: Inputs) -> tuple[Float[Array, "B N D"], Float[Array, "B F"]]:
        """Returns the features of a batch, and pooled ones."""
        (run, params), rows = self._tower, len(next(iter(inputs.values())))
        features, pooled = run(params, self._placed(inputs))
        return features[:rows], pooled[:rows]

    def _placed(self, inputs: Inputs) -> Any:
        return inputs if self._own_mesh is None else padded(inputs, self._own_mesh)

    @property
    def _own_mesh(self) -> Mesh | None:
        return None if self.mesh is None else self.mesh.local_mesh

    @functools.cached_property
    def _tower(self):
        """The compiled tower and its parameters."""
        params = params_of_tower(self.params)
        if self.mesh is not None:
            params = on_mesh(on_own_devices(params, self.mesh), self.mesh.local_mesh)
        return tower(self.module, self._own_mesh), params


def params_of_tower(params: Any) -> Any:
    """Returns the parameters that the tower needs."""
    return {name: leaf for name, leaf in params.items() if name != LANGUAGE_MODEL}


def tower(module: nn.Module, mesh: Mesh | None) -> Callable[..., Any]:
    """Returns the compiled function (parameters of the tower, inputs) -> (features [B, N, D], pooled float32 [B, F]).

    Pooled features say what a picture or clip is like, without a language model. They are the mean of the tower's grid
    if the module tells the tower from its projector (methods "see" and "project"), else the mean of the features,
    without rows of zeros, which pad.
    """

    def encode(params, inputs):
        call = functools.partial(module.apply, {"params": params})
        if hasattr(module, "see"):
            grid = call(**inputs, method="see")
            return call(grid, method="project"), grid.astype(jnp.float32).mean((1, 2))
        features = call(**inputs, method="encode")
        real = jnp.any(features != 0, axis=2).sum(1, keepdims=True)  # [B, 1]
        return features, features.astype(jnp.float32).sum(1) / jnp.maximum(real, 1).astype(jnp.float32)

    return jax.jit(over_data(encode, None if mesh is None else Layout(mesh), out_axis=0))


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> Inputs:
    """Stacks rows [1, ...] of the same arguments into a batch."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def example_call(module: nn.Module) -> tuple[tuple[Array, ...], dict[str, Array]]:
    """Returns arguments of the module's method "hidden" from which adapters can be created: positions and keywords.

    They hold features only if the module needs some in every row.
    """
    needed = hasattr(module, "feature_size") and not hasattr(module, "placeholder")
    features = {"features": jnp.zeros((1, 1, module.feature_size))} if needed else {}
    return (jnp.zeros((1, 2), jnp.int32),), features


@dataclasses.dataclass(frozen=True)
class MediaPrompt(data.Instruction):
    """An instruction with a placeholder, which is repeated for each feature of a record's image or clip.

    Attributes:
      processor: processor of the base.
      counts: number of placeholder tokens of each record, by id.
      chat: whether the template is the message of a user in the chat template, see `Processor.chat`.
    """

    processor: Any = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def text(self) -> str:
        """The prompt with its placeholder. Raises a ValueError if it is a chat and the base has no chat template."""
        return self.processor.chat(self.template) if self.chat else self.template

    def encode_record(self, tokenizer: Any, record: data.Record) -> np.ndarray:
        """Returns the tokens of a record's prompt."""
        return self.processor.prompt(self.text, self.counts[record.id])
