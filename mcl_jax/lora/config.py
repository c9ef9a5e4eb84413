"""Which layers are adapted, and with which rank and scale."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from mcl_jax import options


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
      rank_pattern, alpha_pattern: target pattern → rank or alpha, for layers that differ; the first match wins. Layers
        that `nn.scan` stacks share one path: a sequence, `{"layers/q_proj": (8, 4, 4)}`, has one value for each.
      dtype: in which the delta is computed; None is the dtype of the layer's output.
      param_dtype: in which adapters are stored, float32 whatever the base is.

    Raises:
      ValueError: for a rank that is no integer of at least 1, an alpha that is no finite number, a dropout outside
        [0, 1), or no targets.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    targets: str | Sequence[str] = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int | Sequence[int]] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float | Sequence[float]] = dataclasses.field(default_factory=dict)
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        options.settle(self)
        for name, ranks in [("rank", self.rank), *self.rank_pattern.items()]:
            _check_ranks(name, ranks)
        for name, alphas in [("alpha", self.alpha), *self.alpha_pattern.items()]:
            _check_alphas(name, alphas)
        options.check_numbers(**{"LoraConfig: dropout": self.dropout})
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
        """r of the layer at `path`; of stacked layers the largest, to which the others are padded."""
        return max(self.ranks_of(path))

    def ranks_of(self, path: str) -> tuple[int, ...]:
        """r of each of the layers stacked at `path`, or the one r of all."""
        return _each(self._matching(self.rank_pattern, path, self.rank))

    def alphas_of(self, path: str) -> tuple[float, ...]:
        """α of each of the layers stacked at `path`, or the one α of all."""
        return _each(self._matching(self.alpha_pattern, path, self.alpha))

    def scale_of(self, path: str) -> float:
        """The factor of B A x at `path`: α/r or α/√r, or 1 where `with_layer_scales` applies that of each layer."""
        if self.stacked(path) is not None:
            return 1.0
        return self.scale(self.rank_of(path), *self.alphas_of(path))

    def stacked(self, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(r [L], α [L]) of the layers stacked at `path`, or None where the config has one rank and alpha for all.

        Raises:
          ValueError: if there are not as many ranks as alphas.
        """
        ranks, alphas = self.ranks_of(path), self.alphas_of(path)
        patterns = (self.rank_pattern, self.alpha_pattern)
        if not any(isinstance(self._matching(pattern, path, None), Sequence) for pattern in patterns):
            return None
        L = max(len(ranks), len(alphas))
        if not {len(ranks), len(alphas)} <= {1, L}:
            raise ValueError(f"LoraConfig: {path} has {len(ranks)} ranks in rank_pattern and {len(alphas)} alphas")
        return np.broadcast_to(ranks, L), np.broadcast_to(np.array(alphas, float), L)

    def scale(self, rank: int | np.ndarray, alpha: float | np.ndarray) -> float | np.ndarray:
        """α/r, or α/√r when rank-stabilised."""
        return alpha / (rank**0.5 if self.rank_stabilized else rank)

    def _matching(self, patterns: Mapping[str, Any], path: str, default: Any) -> Any:
        return next((value for pattern, value in patterns.items() if matches(pattern, path)), default)


def _each(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _check_ranks(name: str, ranks: Any) -> None:
    whole = all(isinstance(rank, int) and not isinstance(rank, bool) for rank in _each(ranks))
    if not whole or min(_each(ranks), default=0) < 1:
        raise ValueError(f"LoraConfig: a rank must be an integer of at least 1, got {ranks!r} for {name!r}")


def _check_alphas(name: str, alphas: Any) -> None:
    numbers = [isinstance(alpha, (int, float)) and not isinstance(alpha, bool) for alpha in _each(alphas)]
    if not numbers or not all(numbers) or not all(map(math.isfinite, _each(alphas))):
        raise ValueError(f"LoraConfig: an alpha must be a finite number, got {alphas!r} for {name!r}")


def with_layer_scales(config: LoraConfig, adapters: PyTree[Array]) -> PyTree[Array]:
    """One set of adapters, where A of stacked layers is multiplied by the α/r of each layer, and by 0 in its padding.

    Padding beyond the rank of a layer then counts for nothing, and has no gradient.

    Raises:
      ValueError: if stacked layers are not as many, or not of the rank, as the config says.
    """
    return _with_layers(config, adapters, config.scale)


def with_layer_ranks(config: LoraConfig, adapters: PyTree[Array]) -> PyTree[Array]:
    """One set of adapters, where A of stacked layers is 0 in the padding beyond the rank of each."""
    return _with_layers(config, adapters, lambda ranks, alphas: np.ones_like(alphas))


def _with_layers(config: LoraConfig, adapters: PyTree[Array], factor: Callable) -> PyTree[Array]:
    def multiplied(keys, leaf):
        *names, name = (key.key for key in keys)
        path = "/".join(names)
        layers = config.stacked(path) if name == "a" else None
        if layers is None:
            return leaf
        ranks, alphas = layers
        L, R = len(ranks), max(ranks)
        if leaf.ndim < 3 or (leaf.shape[0], leaf.shape[-1]) != (L, R):
            raise ValueError(
                f"LoraConfig gives {path} ranks and alphas for {L} layers stacked by nn.scan, of rank {R} at most: "
                f"its A must have shape [{L}, ..., {R}], got {leaf.shape}"
            )
        factors = np.where(np.arange(R) < ranks[:, None], factor(ranks, alphas)[:, None], 0.0)
        return leaf * jnp.asarray(factors, leaf.dtype).reshape(L, *[1] * (leaf.ndim - 2), R)

    values = (*config.rank_pattern.values(), *config.alpha_pattern.values())
    if not any(isinstance(value, Sequence) for value in values):
        return adapters
    return jax.tree_util.tree_map_with_path(multiplied, adapters)
