"""The programs of a run, made of shapes: the train step, the held-out evaluation, decoding, and the tower."""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

import mcl_jax as mcl
from experiments.common.config import Config
from experiments.common.devices import Axes
from experiments.common.perception import params_of_tower, tower
from experiments.common.task import Task
from experiments.plan import flops
from experiments.plan.presets import tower_inputs
from mcl_jax.mesh import base_sharding, bytes_per_device, padded, placed, processes_of, state_shardings
from mcl_jax.models import families
from mcl_jax.models.names import abstract_params
from mcl_jax.models.quantized import quantized
from mcl_jax.parallel import DATA_AXIS, MODEL_AXIS
from mcl_jax.sharding import path_of

METHOD = "mcl"
NAMES = ("train", "evaluation", "decoding", "tower")


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of the method mcl.

    Attributes:
      config: the configuration of the run.
      base: config.json of the base.
      devices: devices of the topology, at least as many as the axes need.
      axes: sizes of the mesh.
    """

    config: Config
    base: Any
    devices: tuple[Any, ...]
    axes: Axes

    def on(self, axes: Axes) -> "Programs":
        """Returns the programs on another mesh.

        Raises:
          ValueError: if there are fewer devices than the mesh needs, or the batch does not divide.
        """
        if axes.size > len(self.devices):
            raise ValueError(f"--mesh needs {axes.size} chips, but the topology has {len(self.devices)}")
        config = self.config.replace(mesh=f"{DATA_AXIS}={axes.data},{MODEL_AXIS}={axes.model}")
        return dataclasses.replace(self, config=config, axes=axes)

    def with_rows(self, rows: int) -> "Programs":
        """Returns the programs for batches of which each part of the data axis holds `rows` examples at a time."""
        size = rows * self.axes.data * self.config.training.accumulate
        return dataclasses.replace(self, config=self.config.replace(batch_size=size))

    @property
    def rows(self) -> int:
        """Number of examples that each part of the data axis holds at a time."""
        return max(1, self.config.training.batch_size // (self.axes.data * self.config.training.accumulate))

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh on the first devices."""
        devices = np.array(self.devices[: self.axes.size]).reshape(self.axes.data, self.axes.model)
        return Mesh(devices, (DATA_AXIS, MODEL_AXIS))

    @cached_property
    def hosts(self) -> int:
        """Number of hosts of the mesh, each with a process of its own."""
        return processes_of(self.mesh)

    @cached_property
    def module(self) -> Any:
        """The base."""
        dtype = jnp.dtype(self.config.base.dtype)
        remat = self.config.training.remat
        module = families.build(self.base, scan=True, dtype=dtype, param_dtype=dtype, remat=remat)[1]
        kind = self.config.base.quantization
        return module if kind is None else quantized(module, kind)

    @cached_property
    def params(self) -> Any:
        """Shapes of the base's parameters, in their shards."""
        sharding = base_sharding(self.mesh, fully=self.config.training.fsdp)

        def shard(keys, leaf):  # a quantized kernel has several arrays, which are sharded as the kernel is
            path, kernel, _ = path_of(keys).partition("/kernel")
            return placed(leaf, sharding(path + kernel, leaf.shape))

        return jax.tree_util.tree_map_with_path(shard, abstract_params(self.module))

    @cached_property
    def task(self) -> Task:
        """The task, without data."""
        return Task(self.config, self.module, self.params, None, None, None, None)

    @cached_property
    def model(self) -> Any:
        """The hypotheses."""
        return self.task.model(METHOD)

    @cached_property
    def optimizer(self) -> Any:
        """The optimizer; the length of the training changes no shape."""
        return self.config.optimizer.make(100)

    @cached_property
    def objective(self) -> Any:
        """The objective."""
        return self.config.objective_of(METHOD)

    @property
    def backward(self) -> str:
        """The backward pass."""
        return self.config.objective.backward_of(self.objective, self.config.num_hypotheses)

    @cached_property
    def state(self) -> mcl.TrainState:
        """Shapes of the state, without params, in their shards."""
        init = lambda params: self.model.init(
            jax.random.key(0),
            params,
            jnp.zeros((1, 2), jnp.int32),
            num_hypotheses=self.config.num_hypotheses,
            method="hidden",
        )
        adapters = jax.eval_shape(init, self.params)
        state = mcl.TrainState.abstract(
            params=None, adapters=adapters, optimizer=self.optimizer, objective=self.objective
        )
        return jax.tree.map(placed, state, state_shardings(self.mesh, self.params, state))

    def features(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shape of the features of a batch; {} for text."""
        if not (inputs := tower_inputs(self.module, self.config, size)):
            return {}
        encode = lambda params, inputs: self.module.apply({"params": params}, **inputs, method="encode")
        return {"features": jax.eval_shape(encode, params_of_tower(self.params), inputs)}

    def batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a batch of the longest examples."""
        T = self.config.training.max_length
        return {
            "tokens": jax.ShapeDtypeStruct((size, T), jnp.int32),
            "target_mask": jax.ShapeDtypeStruct((size, T - 1), bool),
            **self.features(size),
        }

    def resident(self) -> dict[str, int]:
        """Returns the bytes per chip, by kind, of what stays in memory between programs."""
        batch = padded(self.batch(self.config.training.batch_size), self.mesh)
        kinds = {
            "base": self.params,
            "adapters": self.state.adapters,
            "optimizer": self.state.opt_state,
            "batch": batch,
        }
        return {name: bytes_per_device(jax.tree.leaves(tree)) for name, tree in kinds.items()}

    def model_flops(self) -> float:
        """Returns the FLOPs of a train step on all chips, by formula."""
        sizes = getattr(self.module.config, "text_config", self.module.config)
        training, K = self.config.training, self.config.num_hypotheses
        one = flops.forward(sizes, self.state.adapters, training.max_length - 1)
        first = self.config.chooses_first(self.backward)
        return flops.step(one, training.batch_size, K, self.backward, training.remat, chooses_first=first)

    def names(self) -> tuple[str, ...]:
        """Returns the names of the programs that the run has."""
        return NAMES if tower_inputs(self.module, self.config, 1) else NAMES[:-1]

    def lower(self, name: str) -> jax.stages.Lowered:
        """Lowers a program."""
        return {
            "train": self._train,
            "evaluation": self._evaluation,
            "decoding": self._decoding,
            "tower": self._tower,
        }[name]()

    def _train(self) -> jax.stages.Lowered:
        training, choosing = self.config.training, self.config.choosing
        log_likelihood = lambda dtype: self.task.log_likelihood_fn(METHOD, train=True, dtype=dtype)
        step = mcl.make_train_step(
            log_likelihood(None),
            self.objective,
            self.optimizer,
            self.backward,
            assign=self.config.objective.assign,
            accumulate=training.accumulate,
            mesh=self.mesh,
            **choosing.options(log_likelihood(choosing.choose_dtype)),
        )
        batch = self.batch(training.batch_size // self.hosts)  # of one process
        return step.lower(self.state.replace(params=self.params), batch)

    def _evaluation(self) -> jax.stages.Lowered:
        batch = self.batch(self.config.evaluation_batches.batch_size)
        return mcl.language_model.lower_evaluate(self.model, self.params, self.state.adapters, batch, mesh=self.mesh)

    def _decoding(self) -> jax.stages.Lowered:
        decoding, length = self.config.decoding, self.config.training.max_length
        prompt = max(1, length - decoding.max_new_tokens)
        size = decoding.decode_batch
        inputs = {"tokens": jax.ShapeDtypeStruct((size, prompt), jnp.int32), **self.features(size)}
        return mcl.generation.lower_decode(
            self.model,
            self.params,
            self.state.adapters,
            inputs,
            self.config.decoders(METHOD)[METHOD],
            decoding.max_new_tokens,
            mesh=self.mesh,
            eos_token_id=2,
            repetition_penalty=decoding.repetition_penalty,
        )

    def _tower(self) -> jax.stages.Lowered:
        """Each process runs the tower for its own part of the batch, on its own devices."""
        mesh = Mesh(self.mesh.devices[: self.axes.data // self.hosts], self.mesh.axis_names)
        size = self.config.training.batch_size // self.hosts
        inputs = padded(tower_inputs(self.module, self.config, size), mesh)
        params = jax.tree.map(
            lambda leaf: placed(leaf, NamedSharding(mesh, leaf.sharding.spec)), params_of_tower(self.params)
        )
        return tower(self.module, mesh).lower(params, inputs)
