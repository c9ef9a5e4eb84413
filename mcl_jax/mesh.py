"""A mesh of devices: its "data" axis divides batches, and its "model" axis shards the matrices of the base.

The train step is manual over "data" (`jax.shard_map`), so that each part of the batch runs the program of one device
and gradients are reduced once; within a part, GSPMD partitions the matrix products over "model". Adapters and the
optimizer's moments are sharded like the kernels that they adapt.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from mcl_jax import fsdp
from mcl_jax.sharding import DATA_AXIS, MODEL_AXIS, batch_size, path_of

Cut = Literal["outputs", "inputs", "whole"]
# (regular expression that is searched in the path of a parameter, axis to shard); the first match counts.
Rules = Sequence[tuple[str, Cut]]

# A layer sharded by outputs, followed by one sharded by inputs, needs one reduction (Megatron-LM, arXiv 1909.08053).
# Embeddings and the output layer are sharded by vocabulary.
RULES: Rules = (
    (r"\b(q|k|v|gate|up)_proj/(kernel|bias)$", "outputs"),
    (r"\b(qkv|gate_up)_proj/kernel$", "outputs"),  # across their parts, which then move between devices
    (r"\b(c_attn|c_fc|fc1|linear_1|lm_head)/(kernel|bias)$", "outputs"),
    (r"\b(o|out|down|c)_proj/kernel$", "inputs"),
    (r"\b(fc2|linear_2|linear|modality_projection/proj)/kernel$", "inputs"),
    (r"\b(embed_tokens|wte)/embedding$", "inputs"),
    (r"\b(wpe|embed_positions|position_embedding)/embedding$", "whole"),
    (r"\b(conv\d|patch_embedding)/kernel$", "whole"),
    (r"\b(\w*norm\w*|ln_\w)/scale$", "whole"),  # those of all layers together are large in Llama 3.1 405B
)
LARGE = 2**20  # entries of a parameter that must not be left whole by accident
# Kernels of the layers of a language model; those of a tower run elsewhere.
LAYERS, TOWERS = re.compile(r"\b(layers|h)(_\d+)?/.*\bkernel$"), re.compile(r"(tower|projector|encoder)/")


def base_sharding(
    mesh: Mesh, rules: Rules = RULES, *, fully: bool = False
) -> Callable[[Any, tuple[int, ...]], NamedSharding]:
    """Returns `(path, shape) -> sharding` for `from_pretrained`: shards the matrices of a base over the "model" axis.

    The first rule whose pattern matches the path says whether a layer is sharded along its outputs or its inputs. If
    the number of devices does not divide that axis, the layer is sharded along the other one; if it divides neither,
    the layer is left whole. Norms, and small parameters without a rule, are left whole.

    Args:
      mesh: devices, with an axis "model".
      rules: rules of the layers. Put rules for your own module before `RULES`.
      fully: whether to shard the kernels of a language model's layers over "data" as well, along the other axis. Each
        layer is then gathered when it runs (`mcl_jax.fsdp`), which takes time and saves memory. It is for the models of
        `mcl_jax.models`, trained with `remat`.
    Raises:
      ValueError: if the mesh has no axis "model", or a rule says something else. The function raises it if a large
        parameter matches no rule.
    """
    if MODEL_AXIS not in mesh.axis_names:
        raise ValueError(f"the mesh needs an axis {MODEL_AXIS!r} to shard the base over, it has {mesh.axis_names}")
    if wrong := [cut for _, cut in rules if cut not in ("outputs", "inputs", "whole")]:
        raise ValueError(f'a rule must say "outputs", "inputs" or "whole", got {wrong[0]!r}')
    parts, rows = mesh.shape[MODEL_AXIS], data_axis(mesh) if fully else 1

    def sharding(path: Any, shape: tuple[int, ...]) -> NamedSharding:
        name = path if isinstance(path, str) else path_of(path)
        cut = next((cut for pattern, cut in rules if re.search(pattern, name)), None)
        if cut is None and np.prod(shape) >= LARGE and parts > 1:
            raise ValueError(
                f"no rule says how to shard {name} {shape} over {parts} devices; pass base_sharding(mesh, "
                f'rules=[(r"{re.escape(name)}$", "outputs"), *mcl.parallel.RULES]), or "inputs", or "whole"'
            )
        spec = _spec(shape, cut, parts)
        if rows > 1 and cut in ("outputs", "inputs") and LAYERS.search(name) and not TOWERS.search(name):
            spec = _over_data_too(spec, shape, rows)
        return NamedSharding(mesh, spec)

    return sharding


def _spec(shape: tuple[int, ...], cut: Cut | None, parts: int) -> PartitionSpec:
    """Returns the spec of a kernel [..., inputs, outputs] or a bias [..., outputs]."""
    if cut in (None, "whole"):
        return PartitionSpec()
    axes = (-1, -2) if cut == "outputs" else (-2, -1)
    divisible = [axis for axis in axes if len(shape) >= -axis and shape[axis] % parts == 0]
    if not divisible:
        return PartitionSpec()
    chosen = divisible[0] % len(shape)
    return PartitionSpec(*(MODEL_AXIS if axis == chosen else None for axis in range(len(shape))))


def _over_data_too(spec: PartitionSpec, shape: tuple[int, ...], rows: int) -> PartitionSpec:
    """Returns the spec of a kernel [..., inputs, outputs] with its other axis sharded over "data", if that divides."""
    names = [*spec, *[None] * (len(shape) - len(spec))]
    free = [axis for axis in (-2, -1) if len(shape) > 1 and names[axis] is None and shape[axis] % rows == 0]
    if not free:
        return spec
    names[free[0]] = DATA_AXIS
    return PartitionSpec(*names)


CUT_AXES = {"a": -2, "shared_a": -2, "b": -1, "shared_b": -1, "magnitude": -1}  # cut like those of the kernel


def adapter_shardings(mesh: Mesh, params: Any, adapters: Any) -> PyTree[NamedSharding]:
    """Returns shardings of adapters: `b` is sharded like the outputs of its kernel, as m of DoRA, `a` like the inputs.

    Args:
      mesh: devices.
      params: parameters of the base on the mesh, or their shapes with shardings.
      adapters: adapters with leading axis K. Those of layers other than `nn.Dense` are left whole.
    """
    kernels = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def sharding(keys, leaf):
        layer, _, name = path_of(keys).rpartition("/")
        if (copied := kernels.get(f"{layer}/{name.removeprefix('shared_')}")) is not None:
            return NamedSharding(mesh, _of_copy(leaf, copied))
        kernel, axis = kernels.get(f"{layer}/kernel"), CUT_AXES.get(name)
        if kernel is None or axis is None or kernel.ndim < 2 or leaf.ndim < 2 or leaf.shape[axis] != kernel.shape[axis]:
            return NamedSharding(mesh, PartitionSpec())
        spec = getattr(kernel.sharding, "spec", ())
        cut = (*spec, *[None] * (kernel.ndim - len(spec)))[axis]
        names = [None] * leaf.ndim
        names[axis] = cut if cut == MODEL_AXIS else None
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree_util.tree_map_with_path(sharding, adapters)


def _of_copy(leaf: Any, copied: Any) -> PartitionSpec:
    """Returns the spec of trained copies [K, ...], or of a shared one, of a parameter: its own, over "model" alone."""
    spec = getattr(copied.sharding, "spec", ())
    own = [name if name == MODEL_AXIS else None for name in (*spec, *[None] * (copied.ndim - len(spec)))]
    return PartitionSpec(*[None] * (leaf.ndim - copied.ndim), *own)


def state_shardings(mesh: Mesh, params: Any, state: Any) -> Any:
    """Returns shardings of a `TrainState` without params; moments, which have the shapes of adapters, get theirs."""
    cut = adapter_shardings(mesh, params, state.adapters)
    of_adapters = {
        path_of(keys): (leaf.shape, sharding)
        for (keys, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(state.adapters), jax.tree.leaves(cut), strict=True
        )
    }
    whole = NamedSharding(mesh, PartitionSpec())

    def sharding(keys, leaf):
        names = path_of(keys).split("/")
        suffixes = ("/".join(names[start:]) for start in range(len(names)))
        shape, like_adapter = next((of_adapters[path] for path in suffixes if path in of_adapters), (None, whole))
        return like_adapter if shape == leaf.shape else whole

    return jax.tree_util.tree_map_with_path(sharding, state)


def placed(leaf: Any, sharding: NamedSharding) -> Any:
    """Puts an array, or the `jax.ShapeDtypeStruct` of one, under a sharding.

    If the devices belong to several processes, each of them must have the whole array, or it is on those devices.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if getattr(leaf, "sharding", None) == sharding:
        return leaf
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # only their data can be put on other processes' devices
        return jax.random.wrap_key_data(placed(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def on_own_devices(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns arrays of a mesh of several processes as arrays on this process's part of it, without a copy.

    Each process must hold every array whole, over its own devices.
    """

    def own(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        sharding = NamedSharding(mesh.local_mesh, leaf.sharding.spec)
        shards = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)

    return jax.tree.map(own, tree)


def processes_of(mesh: Mesh) -> int:
    """Returns the number of processes whose devices are on the mesh.

    Raises:
      ValueError: unless each process has a block of rows of the data axis, as many as any other, in their order.
    """
    of_row = [{device.process_index for device in row} for row in _rows(mesh)]
    processes = sorted(set().union(*of_row))
    blocks = np.repeat(processes, len(of_row) // len(processes)).tolist()
    if len(processes) > 1 and [list(row) for row in of_row] != [[process] for process in blocks]:
        raise ValueError(
            f"each of {len(processes)} processes needs a block of the axis {DATA_AXIS!r}, with all other axes on its "
            f"own devices, but the mesh {dict(mesh.shape)} gives the processes {[sorted(row) for row in of_row]}"
        )
    return len(processes)


def _rows(mesh: Mesh) -> np.ndarray:
    """Returns the devices by data index, [data, others]."""
    devices = np.moveaxis(mesh.devices, mesh.axis_names.index(DATA_AXIS), 0)
    return devices.reshape(len(devices), -1)


class Row(NamedTuple):
    """The place of a parameter on a mesh.

    Attributes:
      path: path of the parameter.
      shape: its shape.
      spec: mesh axis that shards each of its axes.
      bytes_per_device: number of its bytes on each device.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes_per_device: int


def table(tree: PyTree) -> list[Row]:
    """Lists the places of the leaves of a tree: arrays on a mesh, or `jax.ShapeDtypeStruct`s with a sharding."""
    return [
        Row(path_of(keys), leaf.shape, getattr(leaf.sharding, "spec", PartitionSpec()), bytes_per_device([leaf]))
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def bytes_per_device(leaves: Iterable[Any]) -> int:
    """Adds up the bytes that each device holds of arrays, or of `jax.ShapeDtypeStruct`s with a sharding."""
    total = 0
    for leaf in leaves:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += -(-int(np.prod(shape, dtype=np.int64)) * _bits(leaf.dtype) // 8)
    return total


def _bits(dtype: Any) -> int:
    """Returns the bits of an entry; NumPy counts 4-bit integers, which accelerators pack, as bytes."""
    is_key = jax.numpy.issubdtype(dtype, jax.dtypes.extended)
    return 8 * dtype.itemsize if is_key else jax.dtypes.itemsize_bits(dtype)


class Layout(NamedTuple):
    """How a function of parameters and a batch runs on a mesh.

    Attributes:
      mesh: devices.
      gathered: parameters that are sharded over "data" too.
    """

    mesh: Mesh
    gathered: fsdp.Gathered = ()


def laid_out(mesh: Mesh | None, shared: PyTree, batch: PyTree) -> tuple[Layout | None, PyTree, PyTree]:
    """Puts parameters and a batch on the mesh; returns their layout for `over_data`, which is None for one device."""
    if mesh is None:
        return None, shared, batch
    shared = on_mesh(shared, mesh)
    return Layout(mesh, fsdp.gathered_of(shared)), shared, padded(batch, mesh)


def over_data(function: Callable[..., Any], layout: Layout | None, out_axis: int) -> Callable[..., Any]:
    """Returns `function(shared, batch)` that runs once per part of the batch, for use under `jax.jit`.

    Args:
      function: a function of parameters and a batch; the leading axis of the batch is divided over "data".
      layout: devices and shardings; None runs the function as it is.
      out_axis: axis of the outputs that has the examples. They are copied to every device.
    """
    if layout is None:
        return function
    outputs = PartitionSpec(*[None] * out_axis, DATA_AXIS)

    def manual(shared, batch):
        run = manual_over_data(function, layout, (shared,), (PartitionSpec(DATA_AXIS),), outputs)
        return jax.lax.with_sharding_constraint(run(shared, batch), NamedSharding(layout.mesh, PartitionSpec()))

    return manual


def manual_over_data(
    function: Callable[..., Any], layout: Layout, shared: tuple[Any, ...], in_specs: tuple[Any, ...], out_specs: Any
) -> Callable[..., Any]:
    """Returns the function, manual over "data". Its first arguments, whose values are `shared`, are parameters."""

    def traced(*args):
        with fsdp.gathering(layout.gathered):
            return function(*args)

    if layout.mesh.shape[DATA_AXIS] == 1:  # XLA refuses a manual axis of one device
        return traced
    return jax.shard_map(
        traced,
        mesh=layout.mesh,
        in_specs=(*(fsdp.specs(tree, layout.gathered) for tree in shared), *in_specs),
        out_specs=out_specs,
        axis_names={DATA_AXIS},
        check_vma=False,
    )


def padded(batch: PyTree, mesh: Mesh) -> PyTree:
    """Returns the batch on a mesh; copies of its first example fill it up so that the data axis divides it."""
    size, parts = batch_size(batch), data_axis(mesh)
    rows = np.concatenate([np.arange(size), np.zeros(-size % parts, int)])
    by_example = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def filled(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(rows), *x.shape[1:]), x.dtype)
        return x if len(rows) == size else x[rows]

    return jax.tree.map(lambda x: placed(filled(x), by_example), batch)


def on_mesh(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the tree with every array on the mesh: those that are there keep their sharding, others are copied."""
    devices, whole = set(mesh.devices.flat), NamedSharding(mesh, PartitionSpec())

    def moved(leaf):
        sharding = getattr(leaf, "sharding", None)
        return leaf if sharding is not None and sharding.device_set == devices else placed(leaf, whole)

    return jax.tree.map(moved, tree)


def data_axis(mesh: Mesh) -> int:
    """Returns the size of the data axis. Raises a ValueError if the mesh has none."""
    if DATA_AXIS not in mesh.axis_names:
        raise ValueError(f"the mesh needs an axis {DATA_AXIS!r} to divide batches, it has {mesh.axis_names}")
    return mesh.shape[DATA_AXIS]
