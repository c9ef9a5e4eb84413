"""K soft prompts, a baseline that trains inputs instead of weights: P vectors before the embedded tokens.

    hidden states of [v_1 ... v_P, embedding(x_1) ... embedding(x_T)], without the first P

The base is frozen, and has no adapters. The vectors of hypothesis k are stored under the path of the table of token
embeddings:

    prompts (K hypotheses), beside params
    └── model/embed_tokens
        └── prompt [K, P, D]

Each vector starts as the embedding of a random token, so hypotheses differ from the beginning. Source: Lester et al.,
The power of scale for parameter-efficient prompt tuning (arXiv 2104.08691).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import hypotheses, options

LEAF = "prompt"
METHODS = ("__call__", "hidden", "extend")  # methods of a `LanguageModel` that take tokens


@dataclasses.dataclass(frozen=True)
class SoftPrompts(hypotheses.AdaptedModule):
    """K soft prompts of a language model. It can replace `Hypotheses`, with any objective and decoder.

    The soft prompt takes the positions 0 to P − 1 and is seen by all tokens, also after padding on the left. It costs P
    more tokens in every pass over a prompt. There is no `merge`, and `added_positions` is P.

    Args:
      module: a `mcl_jax.language_model.LanguageModel`, whose first `nn.Embed` embeds the tokens.
      length: P, the number of vectors of each hypothesis.
    Raises:
      ValueError: if `length` is no integer of at least 1.
    """

    length: int

    def __post_init__(self):
        options.settle(self)
        super().__post_init__()
        if not isinstance(self.module, nn.Module):
            raise ValueError("SoftPrompts needs a module of flax.linen, got one of flax.nnx")
        options.check_integers(1, length=self.length)

    @property
    def added_positions(self) -> int:
        """P, the number of positions before the first token."""
        return self.length

    def init(
        self,
        key: Key[Array, ""],
        params: hypotheses.Params,
        *inputs: Any,
        num_hypotheses: int,
        method: str | Callable | None = None,
        **kwargs: Any,
    ) -> hypotheses.Adapters:
        """Creates soft prompts, float32 [K, P, D]: embeddings of random tokens.

        Args:
          key: random key of the tokens.
          params: parameters of the base.
          *inputs, **kwargs: arguments of an example call of the module.
          num_hypotheses: K.
          method: method of the module to call; `__call__` by default.
        Raises:
          ValueError: if K < 1, or the call embeds no tokens.
        """
        options.check_integers(1, num_hypotheses=num_hypotheses)
        (path,) = self.reached(params, *inputs, method=method, **kwargs)
        table = params.get("params", params)
        for name in path.split("/"):
            table = table[name]
        table = nn.meta.unbox(table["embedding"])
        rows = jax.random.randint(key, (num_hypotheses, self.length), 0, table.shape[0])
        return unflatten_dict({(*path.split("/"), LEAF): jnp.asarray(table)[rows].astype(jnp.float32)})

    def apply(
        self,
        params: hypotheses.Params,
        adapters_k: hypotheses.Adapters,
        *inputs: Any,
        dropout_rng: Key[Array, ""] | None = None,
        method: str | Callable | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the module with the soft prompt of one hypothesis before the tokens.

        Args:
          params: parameters of the base.
          adapters_k: soft prompt of one hypothesis, without the leading axis K.
          *inputs, **kwargs: arguments of the module.
          dropout_rng: not used; a soft prompt has no dropout.
          method: "hidden", "extend" or "logits"; `__call__` by default.
        Returns:
          The output of the module for the tokens. The segment that the first `extend` returns also has the soft prompt.
        Raises:
          ValueError: for another method.
        """
        method = "__call__" if method is None else method
        if method == "logits":
            return self.apply_base(params, *inputs, method=method, **kwargs)
        if method not in METHODS:
            raise ValueError(f"SoftPrompts needs one of the methods {(*METHODS, 'logits')}, got {method!r}")
        arguments, first = self._arguments(*inputs, **kwargs)
        if not first:  # the soft prompt is in the past
            return self.apply_base(params, method=method, **arguments)
        ((path, vectors),) = flatten_dict(adapters_k, sep="/").items()
        with nn.intercept_methods(_Replacing(path.removesuffix(f"/{LEAF}"), vectors)):
            out = self.apply_base(params, method=method, **arguments)
        return (out[0][:, self.length :], out[1]) if method == "extend" else out[:, self.length :]

    def reached(
        self, params: hypotheses.Params, *inputs: Any, method: str | Callable | None = None, **kwargs: Any
    ) -> frozenset[str]:
        """Path of the table of token embeddings, the first `nn.Embed` of a call. Nothing is computed.

        Raises:
          ValueError: if the call embeds no tokens.
        """
        seen = _Replacing()
        with nn.intercept_methods(seen):
            run = lambda params, inputs, kwargs: self.apply_base(params, *inputs, method=method, **kwargs)
            jax.eval_shape(run, params, inputs, kwargs)
        if seen.path is None:
            raise ValueError(f"{type(self.module).__name__} needs an nn.Embed that embeds its tokens, but calls none")
        return frozenset([seen.path])

    def _arguments(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        past: tuple[Any, ...] = (),
        **features: Any,
    ) -> tuple[dict[str, Any], bool]:
        """Returns the arguments with P tokens in front, and True; later tokens are only moved by P positions."""
        arguments = {"tokens": tokens, "mask": mask, **features}
        if positions is not None:
            arguments |= {"positions": positions + self.length, "past": past}
        if past:
            return arguments, False
        filler = int(getattr(self.module, "placeholder", None) == 0)  # any token that no feature replaces
        arguments["tokens"] = self._in_front(jnp.full(self.length, filler, tokens.dtype), tokens)
        for name in ("mask", "prefix"):
            if arguments.get(name) is not None:
                arguments[name] = self._in_front(jnp.ones(self.length, bool), arguments[name])
        if positions is not None:
            own = jnp.arange(self.length, dtype=positions.dtype)
            arguments["positions"] = self._in_front(own, arguments["positions"])
        return arguments, True

    def _in_front(self, row: Array, x: Array) -> Array:
        return jnp.concatenate([jnp.broadcast_to(row, (len(x), self.length)), x], axis=1)


class _Replacing:
    """An interceptor that replaces the first P rows of the first embedding lookup by vectors, or only finds its path.

    Args:
      path: path of the table, to check that it is the one that the vectors were made for.
      vectors: the soft prompt; None changes nothing.
    """

    def __init__(self, expected: str | None = None, vectors: Float[Array, "P D"] | None = None):
        self.expected, self.vectors, self.path = expected, vectors, None

    def __call__(self, next_fun: Callable, args: tuple, kwargs: Mapping[str, Any], context: Any) -> Any:
        y = next_fun(*args, **kwargs)
        if self.path is not None or context.method_name != "__call__" or not isinstance(context.module, nn.Embed):
            return y
        self.path = "/".join(context.module.path)
        if self.vectors is None:
            return y
        if self.path != self.expected:
            raise ValueError(f"the soft prompt was made for {self.expected}, but {self.path} embeds the tokens")
        front = jnp.broadcast_to(self.vectors.astype(y.dtype)[None], (len(y), *self.vectors.shape))
        return jnp.concatenate([front, y[:, len(self.vectors) :]], axis=1)
