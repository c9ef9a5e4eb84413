"""Test-time augmentation, a baseline that varies the input instead of the model: K answers to K augmented inputs.

The augmentations are pure functions of a key and a batch. They draw every example independently:

    augmented = independent(spec_augment, key, K, log_mel, mask)      # [K, B, M, T]

Sources: Park et al., SpecAugment (arXiv 1904.08779), section 2, for the masks; Szegedy et al., Going deeper with
convolutions (arXiv 1409.4842), section 6, for crops with a limited range of scales and aspect ratios.
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
    """Draws `augment(key, *inputs, **options)` n times with different keys and stacks the results along axis 0."""
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
    """Masks frequency bands and time spans with the mean of the clip; the defaults are the policy LD of the paper.

    The width of each mask is uniform between 0 and its limit, and so is its place among those where it fits. (Time is
    not warped, which matters least according to the paper.)

    Args:
      key: random key.
      log_mel: spectrograms of M mel bands and T frames.
      mask: True on the real frames of each clip, which must be contiguous; None means all frames. Other frames are
        neither changed nor counted.
      frequency_masks: number of masked frequency bands.
      frequency_width: F, the largest width of a band, in mel bands.
      time_masks: number of masked time spans.
      time_width: the longest span, in frames (of 10 ms in the paper and in Whisper).
      time_share: p; no span is longer than this share of the real frames.
    Returns:
      The masked spectrograms.
    Raises:
      ValueError: if log_mel is not [B, M, T] floats, the mask is not [B, T], a width does not fit, or the share is
        outside [0, 1].
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
    """Returns True where any of `number` stripes covers `place`; each is 0 to `widest` wide and inside [0, size)."""
    width_key, start_key = jax.random.split(key)
    width = jax.random.randint(width_key, (number, 1), 0, widest + 1)
    start = jax.random.randint(start_key, (number, 1), 0, size - width + 1)
    return ((place[None] >= start) & (place[None] < start + width)).any(0)


def horizontal_flip(
    key: Key[Array, ""], images: Float[Array, "B H W C"], *, probability: float = 0.5
) -> Float[Array, "B H W C"]:
    """Mirrors each image left to right with the given probability (text in it too).

    Args:
      key: random key.
      images: pixels, channels last.
      probability: chance of mirroring, for each image on its own.
    Returns:
      The images.
    Raises:
      ValueError: if the images are not [B, H, W, C], for example without B or with channels first.
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
    """Crops a random rectangle from each image and resizes it to [H, W] (bilinear).

    The share of the area is uniform, the aspect ratio log-uniform and the place uniform; a side longer than the image's
    is shortened to it. Szegedy et al. train on areas from 0.08 on; the default keeps more of what a caption describes.

    Args:
      key: random key.
      images: pixels, channels last.
      area: smallest and largest share of the image's area.
      aspect_ratio: smallest and largest ratio width / height.
    Returns:
      The crops, [B, H, W, C].
    Raises:
      ValueError: if the images are not [B, H, W, C] floats, a range is empty or not positive, or an area is above 1.
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
    """Raises a ValueError unless images are [B, H, W, C]; with channels first, axis 1 is as short as C."""
    shape = jnp.shape(images)
    if len(shape) != 4 or (shape[1] in (1, 3, 4) and shape[3] > 4):
        raise ValueError(f"{name} needs images [B, H, W, C], channels last, got {list(shape)}")


def _check_floats(name: str, needed: str, x: Array, ndim: int) -> None:
    dtype, shape = jnp.result_type(x), jnp.shape(x)
    if len(shape) != ndim or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} needs {needed} of floats, got {dtype}{list(shape)}")
