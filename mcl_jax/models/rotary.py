"""Rotary position embeddings (Su et al., arXiv 2104.09864) and their scalings for longer contexts.

A pair (x_i, x_{i + d/2}) of a query or key at position p is rotated by the angle p · ω_i, ω_i = θ^(−2i/d). A scaling
changes ω, and in some cases the length of the vectors. Where only the first entries of a head are rotated, d is
their number. Source: Hugging Face transformers 5.23, `modeling_rope_utils.py`.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mcl_jax import options
from mcl_jax.models.hf_config import check_types

# Entries that Hugging Face requires for each rope_type. Here the factor of yarn is optional, and so are the frequency
# factors of llama3, which default to those of Llama 3.
KINDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
OPTIONAL = ("low_freq_factor", "high_freq_factor")
PRETRAINED = "original_max_position_embeddings"
BESIDE = {"type", "finetuned", PRETRAINED}  # allowed entries besides the fields of `Rope`


@dataclasses.dataclass(frozen=True)
class Rope:
    """Base and scaling of rotary embeddings, under Hugging Face's names.

    Attributes:
      rope_theta: θ, the base.
      rope_type: one of `KINDS`.
      factor: ratio of the context length to the original one.
      max_positions: context length of the config, in tokens.
      original_max_positions: context length of pretraining, in tokens; None means `max_positions`.
      attention_factor: factor of rotated queries and keys; None means that of the scaling.
      partial_rotary_factor: fraction of each head that is rotated.
    Raises:
      ValueError: if the rope_type is unknown, or a number is missing or out of range.
    """

    rope_theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    max_positions: int = 2048
    original_max_positions: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    attention_factor: float | None = None
    partial_rotary_factor: float = 1.0

    def __post_init__(self):
        options.settle(self)
        if self.rope_type not in KINDS:
            raise ValueError(f"rope_type must be one of {tuple(KINDS)}, got {self.rope_type!r}.")
        check_types(self)
        for name in ("rope_theta", "factor", "max_positions", "original"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} of rotary embeddings must be above 0, got {getattr(self, name)}.")
        if not 0 < self.partial_rotary_factor <= 1:
            raise ValueError(f"partial_rotary_factor must be above 0 and at most 1, got {self.partial_rotary_factor}.")
        if self.low_freq_factor == self.high_freq_factor:
            raise ValueError(f"low_freq_factor and high_freq_factor must differ, got {self.low_freq_factor} for both.")

    @property
    def original(self) -> int:
        """Context length of pretraining, in tokens."""
        return self.original_max_positions or self.max_positions

    @property
    def exact_length(self) -> float:
        """Number of positions up to which no text of a row changes the frequencies of another."""
        return self.original if self.rope_type in ("dynamic", "longrope") else math.inf

    def width(self, head_dim: int) -> int:
        """Number of entries of each head that are rotated, the first ones."""
        return int(head_dim * self.partial_rotary_factor)

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any], default_theta: float = 10000.0) -> "Rope":
        """Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (earlier versions).

        Raises:
          ValueError: if the rope_type is unknown, or a setting is missing or unknown.
        """
        hf_config, given = options.given(hf_config), {}
        for name in ("rope_scaling", "rope_parameters"):
            if not isinstance(entries := hf_config.get(name, {}), Mapping):
                raise ValueError(f"{name} must be an object, got {entries!r}.")
            given |= options.given(entries)
        max_positions = hf_config.get("max_position_embeddings", 2048)
        known = {f.name for f in dataclasses.fields(cls)} - {"max_positions", "original_max_positions"}
        if unknown := sorted(set(given) - known - BESIDE):
            raise ValueError(f"rotary embeddings have settings that are not supported: {unknown}.")
        fields = {"partial_rotary_factor": hf_config.get("partial_rotary_factor", 1.0)}
        fields |= {name: given[name] for name in known if given.get(name) is not None}
        fields |= {name: tuple(fields[name]) for name in ("short_factor", "long_factor") if name in fields}
        original = given.get(PRETRAINED) if hf_config.get(PRETRAINED) is None else hf_config[PRETRAINED]
        kind = given.get("rope_type", given.get("type", "default"))
        if kind in ("longrope", "yarn") and "factor" not in fields:
            fields["factor"] = max_positions / (original or max_positions)
        if missing := [name for name in KINDS.get(kind, ()) if name not in fields and name not in OPTIONAL]:
            raise ValueError(f"rope_type {kind!r} needs {missing}, got only {sorted(given)}.")
        if kind == "dynamic":
            original = None  # Hugging Face always stretches from max_position_embeddings on
        theta = given.get("rope_theta", hf_config.get("rope_theta") or default_theta)
        fields |= {"rope_type": kind, "rope_theta": float(theta), "max_positions": max_positions}
        return cls(**fields, original_max_positions=original)

    def check_head(self, head_dim: int, *, partly: bool = False) -> None:
        """Raises a ValueError unless pairs can be rotated, and a longrope scaling has one factor for each.

        Args:
          head_dim: width of a head.
          partly: whether the model can rotate a part of each head.
        """
        if not partly and self.partial_rotary_factor != 1:
            raise ValueError(
                f"partial_rotary_factor must be 1, since whole heads are rotated, got {self.partial_rotary_factor}."
            )
        if self.width(head_dim) < 2 or self.width(head_dim) % 2:
            raise ValueError(
                f"the rotated part of a head must have an even number of entries, got {self.width(head_dim)} of "
                f"{head_dim} (partial_rotary_factor {self.partial_rotary_factor})."
            )
        pairs = self.width(head_dim) // 2
        for name in KINDS[self.rope_type] if self.rope_type == "longrope" else ():
            factors = getattr(self, name)
            if len(factors) != pairs or not all(isinstance(f, numbers.Real) and f > 0 for f in factors):
                raise ValueError(f"{name} must be {pairs} numbers above 0, one per pair, got {factors}.")

    def to_hf(self) -> dict[str, Any]:
        """Returns the `rope_parameters` of a Hugging Face `config.json`."""
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("max_positions", "original_max_positions") and getattr(self, f.name) != f.default
        }
        always = {name: getattr(self, name) for name in ("rope_type", "rope_theta", *KINDS[self.rope_type])}
        original = self.original_max_positions
        return changed | always | ({} if original is None else {"original_max_position_embeddings": original})


def rotate(x: Float[Array, "B T H d"], positions: Int[Array, "B T"], rope: Rope) -> Float[Array, "B T H d"]:
    """Rotates each pair (x_i, x_{i + r/2}) of the first r = `rope.width(d)` entries by positions · ω_i, in float32."""
    return turn(x, positions, *frequencies_of(rope, x.shape[-1], positions))


def turn(
    x: Float[Array, "B T H d"],
    positions: Int[Array, "B T"],
    frequencies: Float[Array, " r/2"],
    length: float | Float[Array, ""],
) -> Float[Array, "B T H d"]:
    """Rotates as `rotate` does, given ω and the factor of rotated vectors; entries from r on stay as they are."""
    pairs = frequencies.shape[0]
    angles = positions[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = _once(length * jnp.cos(angles)), _once(length * jnp.sin(angles))
    first, second, rest = jnp.split(x.astype(jnp.float32), [pairs, 2 * pairs], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest], axis=-1).astype(x.dtype)


def _once(x: Float[Array, "*N r"]) -> Float[Array, "*N r"]:
    """Returns x, which a CPU then computes once.

    XLA counts sines as cheap there, and would compute those of a token again for each head, layer and hypothesis. What
    a matrix product gives is never computed again, and a product with the identity is exact.
    """
    if jax.default_backend() != "cpu":
        return x
    return jnp.einsum("...i,ij->...j", x, jnp.eye(x.shape[-1], dtype=x.dtype), precision="highest")


def frequencies_of(rope: Rope, head_dim: int, positions: Int[Array, "B T"]) -> tuple[Float[Array, " r/2"], float]:
    """Returns ω in radians per token, and the factor of rotated vectors."""
    width = rope.width(head_dim)
    exponents = np.arange(0, width, 2) / width
    plain = 1.0 / rope.rope_theta**exponents
    match rope.rope_type:
        case "default":
            return jnp.asarray(plain, jnp.float32), 1.0
        case "linear":
            return jnp.asarray(plain / rope.factor, jnp.float32), 1.0
        case "dynamic":
            length = jnp.maximum(positions.max() + 1, rope.original).astype(jnp.float32)
            stretch = rope.factor * length / rope.original - (rope.factor - 1.0)
            theta = rope.rope_theta * stretch ** (width / (width - 2))
            return 1.0 / theta[None] ** jnp.asarray(exponents, jnp.float32), 1.0
        case "llama3":
            return jnp.asarray(_llama3(rope, plain), jnp.float32), 1.0
        case "yarn":
            return jnp.asarray(_yarn(rope, plain, width), jnp.float32), _yarn_length(rope)
        case "longrope":
            short, long = (jnp.asarray(plain / np.array(f), jnp.float32) for f in (rope.short_factor, rope.long_factor))
            return jnp.where(positions.max() + 1 > rope.original, long, short), _longrope_length(rope)


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Divides slow frequencies by the factor and keeps fast ones, with a ramp in between."""
    turns = rope.original * plain / (2 * math.pi)  # in the original context
    keep = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn(rope: Rope, plain: np.ndarray, head_dim: int) -> np.ndarray:
    """Peng et al., arXiv 2309.00071: the ramp runs over the dimensions between beta_fast and beta_slow turns."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    interpolate = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return interpolate * plain / rope.factor + (1 - interpolate) * plain


def _yarn_length(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(m: float) -> float:
        return 0.1 * m * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def _longrope_length(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 1.0 if rope.factor <= 1.0 else math.sqrt(1 + math.log(rope.factor) / math.log(rope.original))
