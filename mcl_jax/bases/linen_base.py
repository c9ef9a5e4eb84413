"""Bases that are modules of Flax Linen, whose calls are intercepted."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import Array

from mcl_jax import fsdp, lora, sharding
from mcl_jax.bases.base import Params


@dataclasses.dataclass(frozen=True)
class LinenBase:
    """A Linen module; its parameters are `module.init(...)["params"]`, or the dictionary of all variables."""

    module: nn.Module
    adaptable = lora.ADAPTABLE

    def plain(self, params, call):
        return self.module.apply(variables_of(params), *call.inputs, method=call.method, **call.kwargs)

    def adapted(self, params, adapters_k, call, config, delta, dropout_rng, collections=()):
        rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
        return self._run(params, adapters_k, call, config, delta, rngs=rngs, mutable=list(collections) or False)

    def traced(self, params, call, config):
        adapted, nothing = lora.Adapted(self.adaptable), lambda layer, path, spec, x: jnp.zeros(())
        arrays, rebuild = call.split()
        run = lambda params, arrays: self._run(params, {}, rebuild(arrays), config, nothing, adapted=adapted)
        jax.eval_shape(run, params, arrays)
        return adapted

    def declared(self, key, params, call, config, delta, seen):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), leaf.dtype), params)
        rngs, mutable = {"params": key}, [lora.COLLECTION]
        _, variables = self._run(zeros, {}, call.filled(), config, delta, rngs=rngs, mutable=mutable, adapted=seen)
        return variables.get(lora.COLLECTION, {})

    def check(self, params, call, config, adapted):
        if not adapted.lifted or any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
            return  # each layer uses its own kernel; or only shapes are known

        @jax.jit  # drops the forward pass, whose result is not used
        def samples(params):
            mutable = [lora.COLLECTION]
            _, variables = self._run(params, {}, call.filled(), config, lora.sampling_delta, mutable=mutable)
            return variables.get(lora.COLLECTION, {})

        seen = samples(params)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, seen))):
            lora.check_kernels(variables_of(params)["params"], seen)

    def kernel(self, params, path):
        tree = variables_of(params)["params"]
        for name in path.split("/"):
            tree = tree[name]
        return nn.meta.unbox(tree["kernel"] if "kernel" in tree else tree["embedding"])

    def own(self, params, adapters_k):
        _, copies = lora.split_copies(adapters_k)
        if not copies:
            return params
        if fsdp.gathers_any():
            raise ValueError("base_sharding(mesh, fully=True) takes no trained copies of parameters; leave fully out")
        new = _changed(params, lambda path, leaf: _copy_of(path, leaf, copies.pop(path, None)))
        if copies:
            raise ValueError(f"the adapters hold {'/'.join(min(copies))}, but the parameters have no such leaf")
        return new

    def is_output(self, params, path):
        unembedding = getattr(self.module, "unembedding", None)
        if unembedding is None:
            return False
        _, used = partial_eval.dce_jaxpr(jax.make_jaxpr(unembedding)(params).jaxpr, [True])
        paths = (sharding.path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params))
        return any(needed and found == f"{path}/embedding" for found, needed in zip(paths, used, strict=True))

    def with_kernels(self, params, change):
        return _changed(
            params, lambda path, leaf: change("/".join(path[:-1]), leaf) if path[-1] in lora.KERNELS else None
        )

    def _run(self, params, adapters_k, call, config, delta, *, rngs=None, mutable=False, adapted=None):
        factors, _ = lora.split_copies(adapters_k)
        own = variables_of(self.own(params, adapters_k))
        variables = {**own, lora.COLLECTION: lora.with_layer_scales(config, factors)}
        with lora.intercept(config, delta, adapted):
            return self.module.apply(
                variables, *call.inputs, rngs=rngs or {}, method=call.method, mutable=mutable, **call.kwargs
            )


def _changed(params: Params, change: Callable[[tuple[str, ...], Any], Any | None]) -> Params:
    """Returns the same structure with `change(path, leaf)` in place of each parameter, unless that is None."""
    variables = variables_of(params)

    def changed(keys, leaf):
        new = change(tuple(getattr(key, "key", None) for key in keys), nn.meta.unbox(leaf))
        return leaf if new is None else nn.meta.replace_boxed(leaf, new)

    whole = lambda node: not isinstance(node, Mapping)  # boxed and quantized kernels too
    new = jax.tree_util.tree_map_with_path(changed, variables["params"], is_leaf=whole)
    return {**variables, "params": new} if variables is params else new


def _copy_of(path: tuple[str, ...], leaf: Any, copy: Array | None) -> Array | None:
    """Returns a trained copy of a parameter in the dtype of the parameter; None if there is none."""
    if copy is None:
        return None
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise ValueError(f"the parameter {'/'.join(path)} is quantized, so it takes no trained copy")
    if leaf.shape != copy.shape:
        raise ValueError(
            f"the copy of {'/'.join(path)} must fit the parameter, of shape {leaf.shape}, got {copy.shape}"
        )
    return copy.astype(leaf.dtype)


def variables_of(params: Params) -> Params:
    """Returns the whole dictionary of variables.

    Raises:
      ValueError: if the parameters contain "params" themselves.
    """
    variables = params if "params" in params else {"params": params}
    if "params" in variables["params"]:
        raise ValueError(
            'the parameters contain "params" inside "params"; unwrap them if they were wrapped twice; if a submodule '
            'is named "params", which Flax cannot apply, rename it'
        )
    return variables
