"""EfficientNet-Lite (Tan & Le, arXiv 1905.11946; the Lite variants of 2020): pictures to a grid of features.

    module, params = load("lite0")                                    # from the installed package, see `load`
    grid = module.apply({"params": params}, pixels, method="grid")    # [B, 7, 7, 1280] for 224 x 224 pixels
    pooled = module.apply({"params": params}, pixels, method="pooled")                          # [B, 1280]
    logits = module.apply({"params": params}, pixels)                 # [B, 1000], the classes of ImageNet

The tower is frozen, so the batch norms are folded into the convolutions when the weights are read. The module tree:

    params                                          the published file (`efficientnet_lite_weights`)
    stem/kernel                       [3, 3, 3, C]  _conv_stem, _bn0
    blocks_{i}/expand/kernel          [1, 1, C, E]  _blocks.{i}._expand_conv, _bn0; absent if the expansion is 1
    blocks_{i}/depthwise/kernel       [k, k, 1, E]  _blocks.{i}._depthwise_conv, _bn1
    blocks_{i}/project/kernel         [1, 1, E, D]  _blocks.{i}._project_conv, _bn2
    head/kernel                       [1, 1, D, F]  _conv_head, _bn1
    classifier/kernel                 [F, classes]  _fc

and a bias beside each kernel. There is no squeeze-and-excitation; the activation is ReLU6.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mcl_jax import options
from mcl_jax.models.hf_config import check_sizes

MODEL_TYPE = "efficientnet_lite"
# Kernel size, stride, expansion, channels and repeats of the seven stages of EfficientNet-B0.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
SIZES = ("image_size", "num_channels", "stem_size", "head_size", "num_classes")


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """Sizes of a tower.

    Args:
      image_size: S, height and width of a picture in pixels.
      num_channels: channels of a picture.
      stem_size: channels of the first convolution.
      head_size: F, width of the features.
      num_classes: number of classes of the classifier.
      stages: (kernel size, stride, expansion, channels, repeats) of each stage.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
    Raises:
      ValueError: if a size is not a positive integer, or a stage does not have five of them.
    """

    image_size: int = 224
    num_channels: int = 3
    stem_size: int = 32
    head_size: int = 1280
    num_classes: int = 1000
    stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        check_sizes(self, SIZES)
        stages = tuple(map(tuple, self.stages))  # JSON has lists
        if not stages or any(len(stage) != 5 or any(type(n) is not int or n < 1 for n in stage) for stage in stages):
            raise ValueError(f"stages must be rows of 5 integers of at least 1, got {self.stages}.")
        object.__setattr__(self, "stages", stages)

    @classmethod
    def scaled(cls, width: float, depth: float, image_size: int) -> "EfficientNetLiteConfig":
        """Scales EfficientNet-B0: channels by `width`, to multiples of 8, and repeats by `depth`, rounded up.

        As all Lite variants do, this keeps the width of stem and head and the repeats of the first and last stage.
        """
        stages = []
        for i, (kernel_size, stride, expansion, channels, repeats) in enumerate(STAGES):
            if 0 < i < len(STAGES) - 1:
                repeats = math.ceil(depth * repeats)
            stages.append((kernel_size, stride, expansion, _multiple_of_8(width * channels), repeats))
        return cls(image_size=image_size, stages=tuple(stages))

    @property
    def grid_size(self) -> int:
        """Height and width of the grid of features: S halved by each stride of 2, rounded up."""
        size = math.ceil(self.image_size / 2)
        for _, stride, *_ in self.stages:
            size = math.ceil(size / stride)
        return size

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], **overrides: Any) -> "EfficientNetLiteConfig":
        """Reads the dict that `to_hf` writes; missing entries have their defaults.

        Raises:
          ValueError: if the tower is of another kind, or a value is not supported.
        """
        hf_config = options.given(hf_config)
        if (kind := hf_config.get("model_type", MODEL_TYPE)) != MODEL_TYPE:
            raise ValueError(f"vision_config: model_type must be {MODEL_TYPE!r}, got {kind!r}.")
        given = {name: hf_config[name] for name in (*SIZES, "stages") if name in hf_config}
        return cls(**given | overrides)

    def to_hf(self) -> dict[str, Any]:
        """Returns the sizes as the `vision_config` of a `config.json`."""
        return {"model_type": MODEL_TYPE} | {name: getattr(self, name) for name in (*SIZES, "stages")}


def _multiple_of_8(channels: float) -> int:
    """Rounds to a multiple of 8, at least 8, and up if rounding would take away more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


VARIANTS = {
    "lite0": EfficientNetLiteConfig.scaled(1.0, 1.0, 224),
    "lite2": EfficientNetLiteConfig.scaled(1.1, 1.2, 260),
}


# ---------------------------------------------------------------------------------------------------------- Modules


class Convolution(nn.Module):
    """A convolution with a bias, padded so that a stride s gives ⌈H / s⌉ rows.

    Args:
      config: dtypes.
      features: output channels.
      kernel_size: height and width of the kernel.
      stride: step of the kernel.
    """

    config: EfficientNetLiteConfig
    features: int
    kernel_size: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        kernel, bias = _weights(self, (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
        if self.kernel_size == 1:
            return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0]) + bias
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout) + bias


class Depthwise(nn.Module):
    """A convolution of each channel with a kernel of its own, as the sum of k² shifted products.

    XLA's grouped convolution takes ten times as long on a CPU.
    """

    config: EfficientNetLiteConfig
    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        k, stride, sizes = self.kernel_size, self.stride, x.shape[1:3]
        kernel, bias = _weights(self, (k, k, 1, x.shape[-1]))
        x = jnp.pad(x, ((0, 0), *(_same_padding(size, k, stride) for size in sizes), (0, 0)))
        last = [stride * (math.ceil(size / stride) - 1) + 1 for size in sizes]  # rows that one shift spans
        shifted = (
            x[:, i : i + last[0] : stride, j : j + last[1] : stride] * kernel[None, i : i + 1, j : j + 1, 0]
            for i in range(k)
            for j in range(k)
        )
        return sum(shifted) + bias


class Block(nn.Module):
    """An inverted bottleneck: expand, depthwise, project, and the input added if the shape stays the same.

    Args:
      config: dtypes.
      kernel_size, stride, expansion, features: those of its stage, see `EfficientNetLiteConfig.stages`.
    """

    config: EfficientNetLiteConfig
    kernel_size: int
    stride: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        y = x
        if self.expansion != 1:
            y = jax.nn.relu6(Convolution(self.config, self.expansion * x.shape[-1], name="expand")(y))
        y = jax.nn.relu6(Depthwise(self.config, self.kernel_size, self.stride, name="depthwise")(y))
        y = Convolution(self.config, self.features, name="project")(y)
        return x + y if y.shape == x.shape else y


class EfficientNetLite(nn.Module):
    """The tower and its classifier."""

    config: EfficientNetLiteConfig

    def setup(self):
        config, blocks = self.config, []
        self.stem = Convolution(config, config.stem_size, kernel_size=3, stride=2)
        for kernel_size, stride, expansion, channels, repeats in config.stages:
            for i in range(repeats):
                blocks.append(Block(config, kernel_size, stride if i == 0 else 1, expansion, channels))
        self.blocks = blocks
        self.head = Convolution(config, config.head_size)
        self.classifier = nn.Dense(config.num_classes, dtype=config.dtype, param_dtype=config.param_dtype)

    def __call__(self, pixels: Float[Array, "B S S C"]) -> Float[Array, "B classes"]:
        """Returns the logits of the classes, in float32."""
        return self.classifier(self.pooled(pixels)).astype(jnp.float32)

    def pooled(self, pixels: Float[Array, "B S S C"]) -> Float[Array, "B F"]:
        """Returns the mean of the grid of features."""
        return self.grid(pixels).mean((1, 2))

    def grid(self, pixels: Float[Array, "B S S C"]) -> Float[Array, "B h w F"]:
        """Returns the grid of features.

        Args:
          pixels: pictures, normalised by (x − 127) / 128.
        Raises:
          ValueError: if the pictures have another size than the config says.
        """
        size, channels = self.config.image_size, self.config.num_channels
        if pixels.ndim != 4 or pixels.shape[1:] != (size, size, channels):
            raise ValueError(f"the tower needs pictures [B, {size}, {size}, {channels}], got {list(pixels.shape)}")
        x = jax.nn.relu6(self.stem(pixels.astype(self.config.dtype)))
        for block in self.blocks:
            x = block(x)
        return jax.nn.relu6(self.head(x))


def _weights(module: nn.Module, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Returns kernel and bias [1, 1, 1, D] of a convolution, in the dtype of the computation."""
    config = module.config
    init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    kernel = module.param("kernel", init, shape, config.param_dtype)
    bias = module.param("bias", nn.initializers.zeros, shape[-1:], config.param_dtype)
    return kernel.astype(config.dtype), bias.astype(config.dtype)[None, None, None]


def _same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Returns the padding before and after that gives ⌈size / stride⌉ outputs; the odd one comes after."""
    padding = max(0, (math.ceil(size / stride) - 1) * stride + kernel_size - size)
    return padding // 2, padding - padding // 2
