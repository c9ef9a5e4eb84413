"""Bases that are modules of Flax NNX, which each call builds from the graph definition and the parameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from mcl_jax import fsdp, lora, sharding
from mcl_jax.bases.base import Call, Params
from mcl_jax.bases.nnx_layers import Declaring, adapt, folded


@dataclasses.dataclass(frozen=True)
class NnxBase:
    """A module of Flax NNX; its parameters are `nnx.state(module)`, with or without its random streams.

    Two are equal if their graph definitions are.

    Attributes:
      graphdef: its graph definition.
      module: the module, with shapes in place of arrays.
    """

    graphdef: nnx.GraphDef
    module: nnx.Module = dataclasses.field(compare=False)
    adaptable = "nnx.Linear, nnx.LinearGeneral and nnx.Einsum"

    @classmethod
    def of(cls, module: nnx.Module) -> "NnxBase":
        """Returns the base of a module, which does not keep its arrays."""
        graphdef, state = nnx.split(module)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), state)
        return cls(graphdef, nnx.merge(graphdef, shapes))

    def plain(self, params, call):
        return _called(self._built(params, None), call)

    def adapted(self, params, adapters_k, call, config, delta, dropout_rng, collections=()):
        if collections:
            raise ValueError(f"layers of flax.nnx cannot report {', '.join(collections)}; use a module of flax.linen")
        module, layers = self._built(self.own(params, adapters_k), dropout_rng), {}
        for (*path, name), leaf in flatten_dict(lora.with_layer_scales(config, adapters_k)).items():
            layers.setdefault("/".join(path), {})[name] = leaf
        adapt(module, config, delta, layers, dropout_rng)
        return _called(module, call)

    def traced(self, params, call, config):
        seen = lora.Adapted(self.adaptable)
        self._inputs(params, call, config, seen)
        return seen

    def declared(self, key, params, call, config, delta, seen):
        declared = {}
        for path, (spec, x) in self._inputs(params, call, config, seen).items():
            kernel = self.kernel(params, path)
            keys = jax.random.split(folded(key, path), kernel.shape[: kernel.ndim - len(spec.shape)])

            def declare(key, path=path, spec=spec, x=x):
                layer = Declaring(key)
                delta(layer, path, spec, jnp.zeros(x.shape, x.dtype))
                return layer.variables

            for _ in range(keys.ndim):
                declare = jax.vmap(declare)
            declared |= {(*path.split("/"), name): leaf for name, leaf in declare(keys).items()}
        return unflatten_dict(declared)

    def check(self, params, call, config, adapted):
        """Does nothing: `adapt` refuses modules that change kernels."""

    def kernel(self, params, path):
        return _values(params)[f"{path}/kernel"]

    def own(self, params, adapters_k):
        if copies := lora.split_copies(adapters_k)[1]:
            raise ValueError(f"modules of flax.nnx take no trained copies of parameters, got {'/'.join(min(copies))}")
        return params

    def is_output(self, params, path):
        return False  # tables of embeddings are not adapted

    def with_kernels(self, params, change):
        def changed(keys, leaf):
            path, _, name = sharding.path_of(keys).rpartition("/")
            kernel = change(path, leaf) if name == "kernel" else None
            return leaf if kernel is None else kernel

        return jax.tree_util.tree_map_with_path(changed, params)

    def _inputs(self, params: Params, call: Call, config: lora.LoraConfig, seen: lora.Adapted) -> dict[str, Any]:
        """Returns contraction and input of each target that the call reaches, and adds the modules to `seen`."""
        inputs: dict[str, Any] = {}
        arrays, rebuild = call.split()

        def record(layer, path, spec, x):
            inputs[path] = spec, jax.ShapeDtypeStruct(x.shape, x.dtype)
            return jnp.zeros((), x.dtype)

        def run(params, arrays):
            module = self._built(params, None)
            adapt(module, config, record, {}, None, seen)
            return _called(module, rebuild(arrays))

        jax.eval_shape(run, params, arrays)
        return inputs

    def _built(self, params: Params, dropout_rng: Key[Array, ""] | None) -> nnx.Module:
        """Returns the module with these parameters; its random streams start from the key.

        Without a key, dropout is off. Batch normalisation uses its running averages, since the base is frozen.
        """
        if fsdp.gathers_any():
            raise ValueError("base_sharding(mesh, fully=True) is for the models of mcl_jax.models; leave fully out")
        values, root = _values(params), jax.random.key(0) if dropout_rng is None else dropout_rng

        def restarted(keys, leaf):
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jnp.zeros(leaf.shape, leaf.dtype)  # a stream's count of keys
            return jax.random.split(folded(root, sharding.path_of(keys)), leaf.shape)

        def given(keys, leaf):
            path = sharding.path_of(keys)
            if path not in values:
                raise ValueError(f"the parameters have no {path}; pass nnx.state(module), with all its variables")
            return values[path]

        graphdef, streams, others = nnx.split(self.module, nnx.RngState, ...)
        by_path = jax.tree_util.tree_map_with_path
        module = nnx.merge(graphdef, by_path(restarted, streams), by_path(given, others))
        off = {"deterministic": True} if dropout_rng is None else {}
        module.set_attributes(use_running_average=True, raise_if_not_found=False, **off)
        return module


def _called(module: nnx.Module, call: Call) -> Any:
    if callable(call.method):
        return call.method(module, *call.inputs, **call.kwargs)
    return getattr(module, call.method or "__call__")(*call.inputs, **call.kwargs)


def _values(params: Params) -> dict[str, Any]:
    return {sharding.path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
