"""Which layers are adapted, and with which rank and scale."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp


def matches(pattern: str, path: str) -> bool:
    """True if `pattern` is the last component(s) of the module path `a/b/c`, or a regular expression for all of it."""
    return path == pattern or path.endswith("/" + pattern) or re.fullmatch(pattern, path) is not None


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What to adapt and how.

    Args:
      rank: r, the inner dimension of the adapters.
      alpha: α; the delta is scaled by α/r (by α/√r with `rank_stabilized`).
      dropout: probability of dropping each input feature of the adapter (not of the base layer) in training.
      targets: names of linear layers (`"q_proj"`, `"attn/out"`), or regular expressions over whole module paths
        (`r"layers_[0-3]/.*/q_proj"`). One string or a sequence of them.
      rank_stabilized: scale by α/√r.
      rank_pattern, alpha_pattern: target pattern → rank or alpha, for layers that differ; the first match wins.
      dtype: in which the delta is computed; None is the dtype of the layer's output.
      param_dtype: in which adapters are stored, float32 whatever the base is.

    Raises:
      ValueError: for a rank < 1, a dropout outside [0, 1), or no targets.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    targets: str | Sequence[str] = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        for name, rank in [("rank", self.rank), *self.rank_pattern.items()]:
            if rank < 1:
                raise ValueError(f"LoraConfig: a rank must be at least 1, got {rank} for {name!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoraConfig: dropout must be in [0, 1), got {self.dropout}")
        if not self.patterns:
            raise ValueError("LoraConfig: targets is empty; name at least one linear layer")
        for pattern in (*self.patterns, *self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"LoraConfig: {pattern!r} is not a valid regular expression: {error}") from error

    def __hash__(self):
        """Of what it says: mappings are not hashable themselves, and a config must be, to be static under jit."""
        return hash(repr(self))

    @property
    def patterns(self) -> tuple[str, ...]:
        """The targets as a tuple of patterns."""
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)

    def rank_of(self, path: str) -> int:
        """r of the layer at `path`."""
        return next((r for pattern, r in self.rank_pattern.items() if matches(pattern, path)), self.rank)

    def scale_of(self, path: str) -> float:
        """The factor of B A x at `path`: α/r, or α/√r when rank-stabilised."""
        alpha = next((a for pattern, a in self.alpha_pattern.items() if matches(pattern, path)), self.alpha)
        rank = self.rank_of(path)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)
