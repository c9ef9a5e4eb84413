"""Bases that are modules of Flax Linen, whose calls are intercepted."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcl_jax import lora
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
        adapted, nothing = lora.Adapted(self.adaptable), lambda layer, path, spec, x: jnp.zeros((), x.dtype)
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
        return nn.meta.unbox(tree["kernel"])

    def with_kernels(self, params, change):
        variables = variables_of(params)

        def changed(keys, leaf):
            *path, name = (getattr(key, "key", None) for key in keys)
            kernel = change("/".join(path), nn.meta.unbox(leaf)) if name == "kernel" else None
            return leaf if kernel is None else nn.meta.replace_boxed(leaf, kernel)

        whole = lambda node: not isinstance(node, Mapping)  # boxed and quantized kernels too
        new = jax.tree_util.tree_map_with_path(changed, variables["params"], is_leaf=whole)
        return {**variables, "params": new} if variables is params else new

    def _run(self, params, adapters_k, call, config, delta, *, rngs=None, mutable=False, adapted=None):
        variables = {**variables_of(params), lora.COLLECTION: lora.with_layer_scales(config, adapters_k)}
        with lora.intercept(config, delta, adapted):
            return self.module.apply(
                variables, *call.inputs, rngs=rngs or {}, method=call.method, mutable=mutable, **call.kwargs
            )


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
