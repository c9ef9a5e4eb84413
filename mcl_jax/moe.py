"""LoRA-MoE, the baseline that mixes experts inside each layer rather than choosing a hypothesis for each sequence.

At every targeted linear layer a router weighs E low-rank experts, token by token, from the layer's input:

    y = W x + (α/r) Σ_e g_e(x) B_e A_e x        g(x) = softmax(R x), over all experts or over the k likeliest

    lora (one model), beside params
    └── q_proj
        ├── a      [E, in, r]
        ├── b      [E, r, out]
        └── router [in, E]

It is trained by maximum likelihood. A sparse router left alone sends most tokens to few experts; the balance loss

    E Σ_e f_e P_e        f_e: share of the choices that fall on expert e; P_e: mean of softmax(R x)_e

is 1 when they are used alike and up to E/k when all tokens choose the same k. Its gradient flows through P only.
Sources: Shazeer et al., sparsely-gated mixture of experts (arXiv 1701.06538), for top-k routing; Fedus et al., Switch
Transformer (arXiv 2101.03961), equations 4 to 6, for the balance loss, here of each sequence, since examples are run
one by one in training (as the sequence-wise one of DeepSeek-V3, arXiv 2412.19437).
"""

import dataclasses
import string
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import dtypes, hypotheses, lora, options

ROUTING = "routing"  # collection in which layers report their balance loss


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts(hypotheses.AdaptedModule):
    """A mixture of low-rank experts at every target, wherever `Hypotheses` would do; K models of it, mostly one.

    There is no `merge`: what is added to a kernel depends on the token.

    A fair comparison gives every method the same number of adapter parameters, r·K·(d_in + d_out) at each layer, and
    the same factor α/r:

        LoRA-MCL                Hypotheses(module, LoraConfig(r, α)), num_hypotheses=K
        LoRA-MLE at rank r·K    Hypotheses(module, LoraConfig(r·K, α·K)), num_hypotheses=1
        LoRA-MoE                MixtureOfExperts(module, LoraConfig(r, α), num_experts=K), num_hypotheses=1

    The router adds K·d_in; LoRA-MLE at rank r has as many as one hypothesis. A token of the mixture costs as much as
    one of the MLE model of rank r·K, sparse or not: all experts are computed in one product, which for low ranks is
    cheaper than sorting tokens.

    Args:
      module, config: as of `Hypotheses`; rank, alpha and their patterns are those of each expert. Dropout is of the
        experts' inputs, not of the router's.
      num_experts: E.
      top_k: experts that a token is sent to, their weights renormalised; None is all of them. With 1 the only weight is
        always 1, and nothing but the balance loss trains the router.
    Raises:
      ValueError: for num_experts < 1, or a top_k outside [1, num_experts].
    """

    num_experts: int
    top_k: int | None = None

    def __post_init__(self):
        options.settle(self)
        super().__post_init__()
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {self.num_experts}")
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k must be in [1, num_experts={self.num_experts}], got {self.top_k}")

    def init(
        self, key: Key[Array, ""], params: Any, *inputs: Any, num_hypotheses: int = 1, **kwargs: Any
    ) -> hypotheses.Adapters:
        """As `Hypotheses.init`, for one model by default; routers are drawn as A is."""
        return super().init(key, params, *inputs, num_hypotheses=num_hypotheses, **kwargs)

    def apply_with_balance(
        self,
        params: Any,
        adapters_k: hypotheses.Adapters,
        *inputs: Any,
        counted: Bool[Array, "B T"],
        dropout_rng: Key[Array, ""] | None = None,
        method: str | Callable | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Float[Array, " B"]]:
        """`apply`, and the balance loss of each example, the mean over all adapted layers.

        Args:
          counted: the tokens whose routing counts, all but padding. Not passed to the module.
        Raises:
          ValueError: for dense routing, which has nothing to balance; for a `counted` that is not [B, T] as the inputs
            of the layers are; for an nn.scan that does not know the collection "routing".
        """
        if self.top_k is None:
            raise ValueError("apply_with_balance: every token goes to every expert; give top_k, or use apply")
        delta = experts_delta(self, train=dropout_rng is not None, counted=counted)
        rngs = {"dropout": dropout_rng}
        out, sown = self._run(delta, params, adapters_k, inputs, kwargs, rngs, method, mutable=[ROUTING])
        layers = [leaf.reshape(-1, counted.shape[0]) for leaf in jax.tree.leaves(sown)]  # [B], or [L, B] when scanned
        return out, jnp.concatenate(layers).mean(0)

    def _delta(self, *, train: bool) -> lora.DeltaFn:
        return experts_delta(self, train=train)


def with_balance(
    log_likelihood: Float[Array, " B"], tokens: Int[Array, " B"], balance: Float[Array, " B"], weight: float = 0.01
) -> Float[Array, " B"]:
    """log p − weight · tokens · balance: what a `log_likelihood_fn` returns to train with the balance loss.

        def log_likelihood_fn(params, adapters_k, batch, rng):
            logits, balance = model.apply_with_balance(params, adapters_k, inputs, counted=real, dropout_rng=rng)
            log_p, tokens = mcl.sequence_log_likelihood(logits, targets, mask)
            return mcl.moe.with_balance(log_p, tokens, balance), tokens

    An objective that divides by the number of tokens adds weight · balance to the loss; so the loss that a step reports
    holds it too, and evaluation wants log p alone.

    Args:
      log_likelihood: sums of log p in nats.
      tokens: target tokens of each example.
      balance: of `MixtureOfExperts.apply_with_balance`.
      weight: α of Fedus et al., who use 0.01.
    """
    return log_likelihood - weight * tokens.astype(balance.dtype) * balance


def chosen_experts(logits: Float[Array, "*T E"], top_k: int) -> Bool[Array, "*T E"]:
    """True for the k likeliest experts of each token; of equal ones the first."""
    return jax.nn.one_hot(jax.lax.top_k(logits, top_k)[1], logits.shape[-1], dtype=bool).any(-2)


def balance_loss(logits: Float[Array, "B T *H E"], top_k: int, counted: Bool[Array, "B T"]) -> Float[Array, " B"]:
    """E Σ_e f_e P_e of each example, 1 when its tokens use all experts alike.

    Args:
      logits: of the router; axes H (heads with routers of their own) are averaged over.
      top_k: experts that a token is sent to.
      counted: tokens that count. Examples with none have a loss of 0.
    """
    logits = jnp.where(counted.reshape(*counted.shape, *[1] * (logits.ndim - 2)), logits, 0.0)
    counted = counted.astype(logits.dtype)
    share = counted / jnp.maximum(counted.sum(1, keepdims=True), 1.0)
    mean = lambda x: jnp.einsum("bt,bt...e->b...e", share, x)
    chosen = mean(chosen_experts(logits, top_k).astype(logits.dtype)) / top_k
    loss = logits.shape[-1] * (chosen * mean(jax.nn.softmax(logits))).sum(-1)
    return loss.reshape(len(loss), -1).mean(1)


def experts_delta(model: MixtureOfExperts, *, train: bool, counted: Bool[Array, "B T"] | None = None) -> lora.DeltaFn:
    """(α/r) Σ_e g_e(x) B_e A_e x, with A, B and router in the `"lora"` collection of the layer itself.

    With `counted`, each layer reports its balance loss in the collection "routing".
    """
    config, num_experts, top_k = model.config, model.num_experts, model.top_k

    def delta_fn(layer, path, spec, x):
        rank, dtype = config.rank_of(path), config.param_dtype
        draw = lambda key, size: lora.init_a(key, spec, size, dtype)
        rng = lambda: layer.make_rng("params")
        init = {
            "a": lambda: jax.vmap(draw, (0, None))(jax.random.split(rng(), num_experts), rank),
            "b": lambda: jnp.zeros((num_experts, *spec.shape_of(spec.b, rank)), dtype),
            "router": lambda: draw(rng(), num_experts),
        }
        a, b, router = (lora.variable(layer, path, name, init[name]).astype(x.dtype) for name in init)
        logits = lora.contract(f"{spec.x},{spec.a}->{spec.hidden}", x, router).astype(dtypes.at_least_float32(x.dtype))
        if counted is not None:
            _report(layer, path, logits, top_k, counted)
        chosen = None if top_k is None else chosen_experts(logits, top_k)
        gates = jax.nn.softmax(logits, where=chosen).astype(x.dtype)
        x = lora.dropout(layer, path, x, config.dropout if train else 0.0)
        return config.scale_of(path) * mixed(spec, x, gates, a, b)

    return delta_fn


def mixed(
    spec: lora.LinearSpec,
    x: Array,
    gates: Float[Array, "*T E"],
    a: Float[Array, "E *in R"],
    b: Float[Array, "E *out"],
) -> Array:
    """Σ_e g_e B_e A_e x. Gates weigh the ranks, and one product sums over e and r: no expert's output is ever held."""
    expert = next(c for c in string.ascii_letters if c not in spec.equation + spec.rank_axis)
    hidden = spec.hidden[:-1] + expert + spec.rank_axis
    weighted = gates[..., None] * lora.contract(f"{spec.x},{expert}{spec.a}->{hidden}", x, a)
    return lora.contract(f"{hidden},{expert}{spec.b}->{spec.y}", weighted, b)


def _report(layer: nn.Module, path: str, logits: Array, top_k: int, counted: Array) -> None:
    if logits.shape[:2] != counted.shape:
        raise ValueError(f"{path} routes inputs {logits.shape[:-1]}: counted must be [B, T] alike, got {counted.shape}")
    if not layer.sow(ROUTING, "balance", balance_loss(logits, top_k, counted)):
        raise ValueError(f'{path}: inside nn.scan the balance loss needs variable_axes={{"{ROUTING}": 0}}')
