"""Names of parameters in Hugging Face checkpoints, derived from their paths in the module tree.

Every leaf of a model's parameters corresponds to one tensor of a checkpoint, or to one per layer if layers are scanned.
"""

import dataclasses
import re
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from mcl_jax.models.families import Family
from mcl_jax.models.tensors import FLOATS, rename

Path = tuple[str, ...]

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # other names are the same
# By number of axes: those of a torch tensor [out, in, *window] in the order of a Linen kernel [*window, in, out].
KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}
STACKS = r"layers|h"
OTHER_HEADS = r"^(score|classifier|qa_outputs|multiple_choice_head)\."  # heads for other tasks on the same base


def hf_names(path: Path, shape: tuple[int, ...], family: Family) -> str | list[str]:
    """Returns the Hugging Face name of the leaf at `path`, or the names of its L layers if they are stacked.

    model/layers_3/mlp/up_proj/kernel -> model.layers.3.mlp.up_proj.weight
    model/layers/mlp/up_proj/kernel   -> the same for each layer
    """
    *modules, leaf = path
    written = [re.sub(rf"^({STACKS})_(\d+)$", r"\1.\2", module) for module in modules]
    name = lambda modules: rename(".".join([*modules, LEAVES.get(leaf, leaf)]), family.written)
    if not any(re.fullmatch(STACKS, module) for module in modules):
        return name(written)

    def of_layer(i: int) -> list[str]:
        return [f"{module}.{i}" if re.fullmatch(STACKS, module) else module for module in written]

    return [name(of_layer(i)) for i in range(shape[0])]


def in_layers(path: Path) -> bool:
    """Whether a path lies in the layers of a model, such as model/layers_3 or model/layers."""
    return any(re.fullmatch(rf"({STACKS})(_\d+)?", module) for module in path)


def hf_layers(path: Path, shape: tuple[int, ...], family: Family) -> list[tuple[str, int | EllipsisType]]:
    """Returns the layers that a kernel or an adapter belongs to: one, or L if they are stacked.

    Args:
      path: path of the kernel, or of an adapter beside it.
      shape: its shape, with the leading axis L if layers are stacked.
      family: family of the model.
    Returns:
      (Hugging Face name, index of the layer in the leaf) of each layer.
    """
    names = hf_names((*path[:-1], "kernel"), shape, family)
    if isinstance(names, str):
        return [(names.removesuffix(".weight"), ...)]
    return [(name.removesuffix(".weight"), i) for i, name in enumerate(names)]


def abstract_params(module: nn.Module) -> PyTree[jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of the `params` collection without computing anything."""
    return jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]


@dataclasses.dataclass(frozen=True)
class Place:
    """The checkpoint tensors of one leaf.

    Attributes:
      names: name of the tensor, or one name per layer.
      shape: shape of each tensor in the checkpoint.
      axes: order of its axes in the leaf.
    """

    names: str | list[str]
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def all_names(self) -> list[str]:
        """The names, always as a list."""
        return [self.names] if isinstance(self.names, str) else self.names


def places(abstract: PyTree[jax.ShapeDtypeStruct], family: Family) -> dict[Path, Place]:
    """Returns the place of each parameter leaf in a checkpoint of the family."""
    by_path = {}
    for path, leaf in flatten_dict(abstract).items():
        names = hf_names(path, leaf.shape, family)
        shape = leaf.shape if isinstance(names, str) else leaf.shape[1:]
        axes = KERNEL_AXES[len(shape)] if family.transposed and path[-1] == "kernel" else tuple(range(len(shape)))
        by_path[path] = Place(names, tuple(shape[axes.index(axis)] for axis in range(len(shape))), axes)
    return by_path


def check_depth(config: Any, tensors: int) -> None:
    """Raises a ValueError if a config claims more layers than there are tensors: tracing them would not end.

    Args:
      config: config of a model, or of its part.
      tensors: number of tensors of the checkpoint.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_depth(value, tensors)
        elif field.name.endswith("layers") and isinstance(value, int) and value > tensors:
            raise ValueError(f"{field.name} is {value}, but the weights are only {tensors} tensors")


def check(needed_places: Mapping[Path, Place], shapes: Mapping[str, tuple[int, ...]], family: Family) -> None:
    """Raises a ValueError that names every tensor that is missing, unexpected or of the wrong shape."""
    needed = {name: place.shape for place in needed_places.values() for name in place.all_names}
    given = {name for name in shapes if not re.search(f"{family.ignored}|{OTHER_HEADS}", name)}
    extra = given - set(needed) - ({family.tied[0]} if family.tied[0] not in needed else set())
    if (missing := sorted(set(needed) - given)) or extra:
        raise ValueError(
            f"the weights do not fit the config, which needs {len(needed)} tensors, got {len(given)}. "
            f"Missing: {_some(missing)}. Unexpected: {_some(sorted(extra))}."
        )
    wrong = [
        f"{name} must have shape {shape}, got {shapes[name]}" for name, shape in needed.items() if shape != shapes[name]
    ]
    if wrong:
        raise ValueError("; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""))


def check_dtypes(needed_places: Mapping[Path, Place], dtypes: Mapping[str, str]) -> None:
    """Raises a ValueError that names the tensors that are not stored as floating-point numbers."""
    names = [name for place in needed_places.values() for name in place.all_names]
    if wrong := [f"{name} is stored as {dtypes[name]}" for name in names if dtypes[name] not in FLOATS]:
        raise ValueError(f"weights must be stored as one of {FLOATS} (not quantised), but {_some(wrong)}")


def _some(names: list[str]) -> str:
    return f"{names[:8]}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
