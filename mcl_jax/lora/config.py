"""Choice of the layers to adapt, with their ranks and scales."""

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

SHARED = "shared_"  # beginning of the names of leaves that all hypotheses have in common
SHARED_A, SHARED_B = SHARED + "a", SHARED + "b"
ALL_LINEAR = "all-linear"  # PEFT's word
OUTPUT_LAYERS = ("lm_head", "proj_out")


def layer_of(path: str) -> int | None:
    """Returns the number of the layer that a module path lies in; None if it lies in none.

    It is 3 for `model/layers_3/mlp/up_proj` (Linen) and `model/layers/3/mlp/up_proj` (NNX).
    """
    number = re.search(r"(?:^|[_/])(\d+)/", path)
    return None if number is None else int(number[1])


def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` is the end of the module path `a/b/c` (whole names), or a regular expression for all of it.

    "all-linear" stands for every path that does not end with the name of an output layer of a language model.
    """
    if pattern == ALL_LINEAR:
        return path.rsplit("/", 1)[-1] not in OUTPUT_LAYERS
    return path == pattern or path.endswith("/" + pattern) or re.fullmatch(pattern, path) is not None


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Settings of the adapters: layers to adapt, ranks, scales, dropout and dtypes.

    Args:
      rank: r, the inner dimension of the adapters.
      alpha: α; the delta is scaled by α/r (by α/√r with `rank_stabilized`), where r includes `shared_rank`.
      dropout: probability of dropping each input feature of the adapter (not of the base layer) in training.
      targets: names of linear layers (`"q_proj"`, `"attn/out"`) or tables of embeddings (`"embed_tokens"`), or regular
        expressions over whole module paths (`r"layers_[0-3]/.*/q_proj"`). One string or a sequence of them.
        `"all-linear"` is every linear layer but the output layers lm_head and proj_out, as in PEFT; of a model with a
        frozen tower it is the language model's.
      layers: numbers of the layers whose targets get adapters, from 0, as PEFT's `layers_to_transform`; None is all.
        What lies below the lowest of them does not depend on k and is computed once for all K. The layers of a
        pretrained model have numbers if it was loaded with `scan=False`.
      rank_stabilized: scale by α/√r instead of α/r.
      rank_pattern: target pattern → rank, for layers that differ; the first match wins. Layers that `nn.scan` stacks
        share one path: give them a sequence with one value each, such as `{"layers/q_proj": (8, 4, 4)}`.
      alpha_pattern: target pattern → alpha, in the same way.
      shared_rank: number of further rank components that all K hypotheses have in common: ΔW_k = α/r (B A + B_k A_k).
        They are stored once and learn from every example, so that a hypothesis need not learn the task from its own
        examples alone. In the theory of winner-takes-all training (paper, section 4), the loss lies above its bound,
        the loss of the conditional mixture with known modes, by what each hypothesis fails to learn of its mode; the
        shared part removes what the modes have in common of that, and nothing of what sets them apart. 0 is the
        paper's form.
      dora: whether the length of the weights of each output is a parameter of its own, as in DoRA (arXiv 2402.09353):
        y = (x W + s x A B) · m / ‖W + s A B‖, with the leaf m [out] for each hypothesis. A step costs some more time.
      dtype: dtype of the delta's computation; None uses the dtype of the layer's output.
      param_dtype: dtype of the stored adapters, float32 whatever the base is.
    Raises:
      ValueError: for a rank that is no integer of at least 1, an alpha that is no finite number, a dropout outside
        [0, 1), no targets, layers that are no different integers of at least 0, or dora with a shared part.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    targets: str | Sequence[str] = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
    layers: Sequence[int] | None = None
    rank_stabilized: bool = False
    rank_pattern: Mapping[str, int | Sequence[int]] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float | Sequence[float]] = dataclasses.field(default_factory=dict)
    shared_rank: int = 0
    dora: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        options.settle(self)
        for name, ranks in [("rank", self.rank), *self.rank_pattern.items()]:
            _check_ranks(name, ranks)
        for name, alphas in [("alpha", self.alpha), *self.alpha_pattern.items()]:
            _check_alphas(name, alphas)
        options.check_integers(0, **{"LoraConfig: shared_rank": self.shared_rank})
        options.check_numbers(**{"LoraConfig: dropout": self.dropout})
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoraConfig: dropout must be in [0, 1), got {self.dropout}")
        if self.dora and self.shared_rank:
            raise ValueError(f"LoraConfig: dora needs a shared_rank of 0, got {self.shared_rank}")
        if not self.patterns:
            raise ValueError("LoraConfig: targets must name at least one linear layer, got none")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            _check_layers(self.layers)
        for pattern in (*self.patterns, *self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"LoraConfig: {pattern!r} is not a valid regular expression: {error}") from error

    def __hash__(self):
        """Hashes the text form: a config must be hashable to be static under jit, and its mappings are not."""
        return hash(repr(self))

    @property
    def patterns(self) -> tuple[str, ...]:
        """The targets, always as a tuple."""
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)

    def adapts(self, path: str) -> bool:
        """Whether the linear layer at `path` gets an adapter."""
        chosen = self.layers is None or layer_of(path) in self.layers
        return chosen and any(matches(pattern, path) for pattern in self.patterns)

    def names(self, path: str) -> bool:
        """Whether a target other than "all-linear" matches `path`, as that of an adapted table of embeddings must."""
        return any(matches(pattern, path) for pattern in self.patterns if pattern != ALL_LINEAR)

    def rank_of(self, path: str) -> int:
        """Returns r of the layer at `path`; for stacked layers the largest one, to which the others are padded."""
        return max(self.ranks_of(path))

    def ranks_of(self, path: str) -> tuple[int, ...]:
        """Returns r of each layer stacked at `path`, or a single r for all of them."""
        return _each(self._matching(self.rank_pattern, path, self.rank))

    def alphas_of(self, path: str) -> tuple[float, ...]:
        """Returns α of each layer stacked at `path`, or a single α for all of them."""
        return _each(self._matching(self.alpha_pattern, path, self.alpha))

    def scale_of(self, path: str) -> float:
        """Returns the factor of B A x at `path`: α/r or α/√r, or 1 if `with_layer_scales` scales each layer itself."""
        if self.stacked(path) is not None:
            return 1.0
        return self.scale(self.rank_of(path), *self.alphas_of(path))

    def stacked(self, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns (r [L], α [L]) of the layers stacked at `path`, or None if one rank and one alpha hold for all.

        Raises:
          ValueError: if the numbers of ranks and alphas differ.
        """
        ranks, alphas = self.ranks_of(path), self.alphas_of(path)
        patterns = (self.rank_pattern, self.alpha_pattern)
        if not any(isinstance(self._matching(pattern, path, None), Sequence) for pattern in patterns):
            return None
        L = max(len(ranks), len(alphas))
        if not {len(ranks), len(alphas)} <= {1, L}:
            raise ValueError(
                f"LoraConfig: {path} needs as many ranks in rank_pattern as alphas in alpha_pattern, got {len(ranks)} "
                f"ranks and {len(alphas)} alphas"
            )
        return np.broadcast_to(ranks, L), np.broadcast_to(np.array(alphas, float), L)

    def scale(self, rank: int | np.ndarray, alpha: float | np.ndarray) -> float | np.ndarray:
        """Returns α/r, or α/√r if the config is rank-stabilised, where r is this rank and the shared one."""
        total = rank + self.shared_rank
        return alpha / (total**0.5 if self.rank_stabilized else total)

    def _matching(self, patterns: Mapping[str, Any], path: str, default: Any) -> Any:
        return next((value for pattern, value in patterns.items() if matches(pattern, path)), default)


def _each(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _check_layers(layers: Sequence[int]) -> None:
    options.check_integers(0, **{f"LoraConfig: layers[{i}]": number for i, number in enumerate(layers)})
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"LoraConfig: layers must be different numbers, at least one, got {list(layers)}")


def _check_ranks(name: str, ranks: Any) -> None:
    whole = all(isinstance(rank, int) and not isinstance(rank, bool) for rank in _each(ranks))
    if not whole or min(_each(ranks), default=0) < 1:
        raise ValueError(f"LoraConfig: a rank must be an integer of at least 1, got {ranks!r} for {name!r}")


def _check_alphas(name: str, alphas: Any) -> None:
    numbers = [isinstance(alpha, (int, float)) and not isinstance(alpha, bool) for alpha in _each(alphas)]
    if not numbers or not all(numbers) or not all(map(math.isfinite, _each(alphas))):
        raise ValueError(f"LoraConfig: an alpha must be a finite number, got {alphas!r} for {name!r}")


def with_layer_scales(config: LoraConfig, adapters: PyTree[Array]) -> PyTree[Array]:
    """Multiplies A of stacked layers by the α/r of each layer, and by 0 in the padding beyond its rank.

    The padding then has no effect and no gradient.

    Args:
      config: ranks and scales.
      adapters: one set of adapters.
    Returns:
      The scaled adapters.
    Raises:
      ValueError: if the number or the rank of stacked layers is not that of the config.
    """
    return _with_layers(config, adapters, config.scale)


def with_layer_ranks(config: LoraConfig, adapters: PyTree[Array]) -> PyTree[Array]:
    """Sets A of stacked layers to 0 in the padding beyond the rank of each layer; for one set of adapters."""
    return _with_layers(config, adapters, lambda ranks, alphas: np.ones_like(alphas))


def _with_layers(config: LoraConfig, adapters: PyTree[Array], factor: Callable) -> PyTree[Array]:
    def multiplied(keys, leaf):
        *names, name = (key.key for key in keys)
        path = "/".join(names)
        layers = config.stacked(path) if name in ("a", SHARED_A) else None
        if layers is None:
            return leaf
        ranks, alphas = layers
        L, R = len(ranks), max(ranks) if name == "a" else config.shared_rank
        if leaf.ndim < 3 or (leaf.shape[0], leaf.shape[-1]) != (L, R):
            raise ValueError(
                f"LoraConfig gives {path} ranks and alphas for {L} layers stacked by nn.scan, with rank {R} at most; "
                f"its A must have shape [{L}, ..., {R}], got {leaf.shape}"
            )
        real = np.arange(R) < (ranks[:, None] if name == "a" else R)  # the shared part has one rank, hence no padding
        factors = np.where(real, factor(ranks, alphas)[:, None], 0.0)
        return leaf * jnp.asarray(factors, leaf.dtype).reshape(L, *[1] * (leaf.ndim - 2), R)

    values = (*config.rank_pattern.values(), *config.alpha_pattern.values())
    if not any(isinstance(value, Sequence) for value in values):
        return adapters
    return jax.tree_util.tree_map_with_path(multiplied, adapters)
