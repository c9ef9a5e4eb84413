"""Folders of mixtures of experts, for which PEFT has no format.

moe_config.json         format, num_experts, top_k, and lora: the `LoraConfig`
moe_model.safetensors   the leaves of the adapters under their paths, such as model/layers/self_attn/q_proj/router
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16", in which safetensors asks for it)
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mcl_jax import hosts, json_io, options
from mcl_jax.lora import as_json
from mcl_jax.moe import MixtureOfExperts

CONFIG, WEIGHTS, FORMAT = "moe_config.json", "moe_model.safetensors", "mcl_jax.moe.1"
LEAVES = {"a", "b", "router"}


def save_moe(folder: str | Path, model: MixtureOfExperts, adapters: PyTree[Array]) -> Path:
    """Writes the adapters of a mixture of experts; of several processes, the first does it.

    Args:
      folder: where to write; created if it does not exist. A mixture in it is replaced.
      model: the mixture, of any module.
      adapters: its adapters, with a leading axis of one or more models.
    Returns:
      The folder.
    """
    folder = Path(folder)
    settings = {"format": FORMAT, "num_experts": model.num_experts, "top_k": model.top_k}
    settings = json_io.to_json(settings | {"lora": as_json.to_json(model.config)}, CONFIG)
    tensors = {path: np.asarray(leaf) for path, leaf in flatten_dict(adapters, sep="/").items()}

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)  # a save that is interrupted leaves no mixture of two
        json_io.write_bytes(folder / WEIGHTS, save(tensors))
        json_io.write_json(folder / CONFIG, settings)

    hosts.on_first(write, f"write {folder}")
    return folder


def load_moe(folder: str | Path, module: Any) -> tuple[MixtureOfExperts, PyTree[Array]]:
    """Reads what `save_moe` wrote, to the bit.

    Args:
      folder: the folder.
      module: the base.
    Returns:
      The mixture, and its adapters with a leading axis of models.
    Raises:
      ValueError: if a file is missing or broken, or the leaves are not those of a mixture of so many experts; names it.
    """
    folder = Path(folder)
    try:
        settings = json_io.read_json_object(folder / CONFIG)
        flat = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError) as error:  # the last three: unknown dtypes
        raise ValueError(f"{folder} is not a complete folder of a mixture of experts: {error}") from error
    if settings.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG}: format must be {FORMAT!r}, got {settings.get('format')!r}")
    try:
        config = as_json.from_json(settings.get("lora"))
        experts = options.given({name: settings.get(name) for name in ("num_experts", "top_k")})
        model = MixtureOfExperts(module, config, **experts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    _check_leaves(folder / WEIGHTS, flat, model.num_experts)
    return model, unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()}, sep="/")


def _check_leaves(file: Path, flat: dict[str, np.ndarray], num_experts: int) -> None:
    """Raises a ValueError unless each layer has A, B and a router, of one number of models and of so many experts."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in flat.items():
        layer, _, name = path.rpartition("/")
        layers.setdefault(layer, {})[name] = leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not np.isfinite(leaf).all():
            raise ValueError(f"{file}: {path} must hold finite numbers")
    models = {leaf.shape[:1] for leaf in flat.values()}
    if len(models) != 1 or () in models:
        raise ValueError(f"{file}: the leaves need one leading axis of models, got leading axes {sorted(models)}")
    for layer, leaves in layers.items():
        fits = leaves.keys() == LEAVES and all(num_experts in leaf.shape[1:] for leaf in leaves.values())
        if not fits or leaves["router"].shape[-1] != num_experts or leaves["a"].shape[-1] not in leaves["b"].shape:
            shapes = {name: leaf.shape for name, leaf in sorted(leaves.items())}
            raise ValueError(f"{file}: {layer} must have a, b and router of {num_experts} experts, got {shapes}")
