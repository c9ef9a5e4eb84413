"""Test-time augmentation, the baseline that varies the input rather than the model: K answers to K changed inputs.

Pure functions of a key and a batch, each example drawn on its own:

    changed = independent(spec_augment, key, K, log_mel, mask)      # [K, B, M, T]

Sources: Park et al., SpecAugment (arXiv 1904.08779), section 2, for the masks; Szegedy et al., Going deeper with
convolutions (arXiv 1409.4842), section 6, for crops that keep the scale and aspect ratio of what is seen roughly known.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def independent(
    augment: Callable[..., Array], key: Key[Array, ""], n: int, *inputs: Any, **options: Any
) -> Float[Array, "n B ..."]:
    """n draws of `augment(key, *inputs, **options)`, with a leading axis n."""
    return jax.vmap(lambda key: augment(key, *inputs, **options))(jax.random.split(key, n))


def spec_augment(
    key: Key[Array, ""],
    log_mel: Float[Array, "B M T"],
    mask: Bool[Array, "B T"] | None = None,
    *,
    frequency_masks: int = 2,
    frequency_width: int = 27,
    time_masks: int = 2,
    time_width: int = 100,
    time_share: float = 1.0,
) -> Float[Array, "B M T"]:
    """Bands of frequencies and stretches of time at the mean of their clip; the defaults are the policy LD.

    Each mask has a width drawn uniformly from 0 to its limit, and a place drawn uniformly from where it fits. (Time is
    not warped, which the paper found to matter least.)

    Args:
      log_mel: spectrograms of M mel bands and T frames.
      mask: True on the real frames of each clip, in one piece; all if None. The others are not changed, nor counted.
      frequency_masks, frequency_width: number of bands, and the widest, F.
      time_masks, time_width: number of stretches, and the longest, T frames (of 10 ms in the paper and in Whisper).
      time_share: p; no stretch is longer than this share of the real frames.
    Raises:
      ValueError: for spectrograms that are not [B, M, T] floats, another mask than [B, T], widths that do not fit, or a
        share outside [0, 1].
    """
    _check_floats("spec_augment", "log_mel [B, M, T]", log_mel, ndim=3)
    batch, bands, frames = log_mel.shape
    if mask is not None and jnp.shape(mask) != (batch, frames):
        raise ValueError(f"spec_augment needs a mask {[batch, frames]}, got {list(jnp.shape(mask))}")
    if not (0 <= frequency_width <= bands and time_width >= 0 and 0.0 <= time_share <= 1.0):
        raise ValueError(
            f"spec_augment needs frequency_width in [0, {bands}] mel bands, time_width >= 0 and time_share in [0, 1], "
            f"got {frequency_width}, {time_width} and {time_share}"
        )
    mask = jnp.ones((batch, frames), bool) if mask is None else jnp.asarray(mask, bool)

    def one(key, log_mel, mask):
        frequency_key, time_key = jax.random.split(key)
        real = mask.sum()
        longest = jnp.minimum(time_width, jnp.floor(time_share * real.astype(jnp.float32)).astype(jnp.int32))
        dark = _stripes(frequency_key, frequency_masks, frequency_width, jnp.arange(bands), bands)[:, None]
        dark = dark | _stripes(time_key, time_masks, longest, jnp.cumsum(mask) - 1, real)[None]
        return jnp.where(dark & mask[None], jnp.mean(log_mel, where=mask[None]), log_mel)

    return jax.vmap(one)(jax.random.split(key, batch), log_mel, mask)


def _stripes(
    key: Key[Array, ""], number: int, widest: Int[Array, ""] | int, place: Int[Array, " N"], size: Int[Array, ""] | int
) -> Bool[Array, " N"]:
    """True at the places that any of `number` stripes covers, each 0 to `widest` wide and inside [0, size)."""
    width_key, start_key = jax.random.split(key)
    width = jax.random.randint(width_key, (number, 1), 0, widest + 1)
    start = jax.random.randint(start_key, (number, 1), 0, size - width + 1)
    return ((place[None] >= start) & (place[None] < start + width)).any(0)


def horizontal_flip(
    key: Key[Array, ""], images: Float[Array, "B H W C"], *, probability: float = 0.5
) -> Float[Array, "B H W C"]:
    """Each picture mirrored, left to right, with this probability; so is any writing in it.

    Raises:
      ValueError: for pictures that are not [B, H, W, C], such as one without B, or with channels first.
    """
    _check_images("horizontal_flip", images)
    flipped = jax.random.bernoulli(key, probability, images.shape[:1])
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def random_resized_crop(
    key: Key[Array, ""],
    images: Float[Array, "B H W C"],
    *,
    area: tuple[float, float] = (0.5, 1.0),
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Float[Array, "B H W C"]:
    """A random rectangle of each picture, enlarged to [H, W] (bilinear).

    Its share of the area is uniform, its aspect ratio log-uniform, its place uniform; a side longer than the picture's
    is cut to it. Szegedy et al. train on areas from 0.08; the default keeps more, for what a caption speaks of.

    Args:
      area: least and greatest share of the picture's area.
      aspect_ratio: least and greatest width / height, in pixels.
    Raises:
      ValueError: for pictures that are not [B, H, W, C] floats, ranges that are empty, not positive, or areas above 1.
    """
    _check_images("random_resized_crop", images)
    _check_floats("random_resized_crop", "images [B, H, W, C]", images, ndim=4)
    if not 0.0 < area[0] <= area[1] <= 1.0 or not 0.0 < aspect_ratio[0] <= aspect_ratio[1]:
        raise ValueError(
            f"random_resized_crop needs 0 < area[0] <= area[1] <= 1 and 0 < aspect_ratio[0] <= aspect_ratio[1], got "
            f"{area} and {aspect_ratio}"
        )
    size = jnp.asarray(images.shape[1:3], images.dtype)
    log_ratio = [math.log(ratio) for ratio in aspect_ratio]

    def one(key, image):
        area_key, ratio_key, place_key = jax.random.split(key, 3)
        pixels = jax.random.uniform(area_key, (), size.dtype, *area) * size[0] * size[1]
        ratio = jnp.exp(jax.random.uniform(ratio_key, (), size.dtype, *log_ratio))
        crop = jnp.minimum(jnp.sqrt(pixels * jnp.stack([1.0 / ratio, ratio])), size)
        corner = jax.random.uniform(place_key, (2,), size.dtype) * (size - crop)
        scale = size / crop
        return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -corner * scale, "linear")

    return jax.vmap(one)(jax.random.split(key, images.shape[0]), images)


def _check_images(name: str, images: Array) -> None:
    """Raises a ValueError unless pictures are [B, H, W, C]; with channels first, H looks like C."""
    shape = jnp.shape(images)
    if len(shape) != 4 or (shape[1] in (1, 3, 4) and shape[3] > 4):
        raise ValueError(f"{name} needs images [B, H, W, C], channels last, got {list(shape)}")


def _check_floats(name: str, needed: str, x: Array, ndim: int) -> None:
    dtype, shape = jnp.result_type(x), jnp.shape(x)
    if len(shape) != ndim or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} needs {needed} of floats, got {dtype}{list(shape)}")
