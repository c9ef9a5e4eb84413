"""LoRA-MoE, a baseline that mixes experts inside each layer instead of choosing one hypothesis per sequence.

At every targeted linear layer a router weighs E low-rank experts for each token, from the layer's input:

    y = W x + (α/r) Σ_e g_e(x) B_e A_e x        g(x) = softmax(R x), over all experts or over the k most probable

    lora (one model), beside params
    └── q_proj
        ├── a      [E, in, r]
        ├── b      [E, r, out]
        └── router [in, E]

It is trained by maximum likelihood. Without a further loss, a sparse router sends most tokens to few experts. The
balance loss

    E Σ_e f_e P_e        f_e: share of the choices that fall on expert e; P_e: mean of softmax(R x)_e

is 1 when all experts are used equally, and up to E/k when all tokens choose the same k. Its gradient flows through P
only. Sources: Shazeer et al., sparsely-gated mixture of experts (arXiv 1701.06538), for top-k routing; Fedus et al.,
Switch Transformer (arXiv 2101.03961), equations 4 to 6, for the balance loss. Here it is computed per sequence, as in
DeepSeek-V3 (arXiv 2412.19437), because training runs every example as a batch of one.
"""

import dataclasses
import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import bases, dtypes, hypotheses, lora, options

ROUTING = "routing"  # variable collection in which layers report their balance loss


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts(hypotheses.LowRankModule):
    """A mixture of low-rank experts at every target layer. It can replace `Hypotheses`, usually with K = 1.

    There is no `merge`, since what is added to a layer depends on the token.

    A fair comparison gives every method the same number of adapter parameters, r·K·(d_in + d_out) per layer, and the
    same factor α/r:

        LoRA-MCL                Hypotheses(module, LoraConfig(r, α)), num_hypotheses=K
        LoRA-MLE at rank r·K    Hypotheses(module, LoraConfig(r·K, α·K)), num_hypotheses=1
        LoRA-MoE                MixtureOfExperts(module, LoraConfig(r, α), num_experts=K), num_hypotheses=1

    The router adds K·d_in parameters; LoRA-MLE at rank r has as many as one hypothesis. A token costs as much as in the
    MLE model of rank r·K, whether routing is sparse or not: all experts are computed in one product, which for low
    ranks is cheaper than sorting tokens.

    Args:
      module: the base, see `Hypotheses`.
      config: layers to adapt; rank, alpha and their patterns apply to each expert. Dropout acts on the inputs of the
        experts, not on those of the router.
      num_experts: E.
      top_k: number of experts per token, whose weights are renormalised; None uses all. With 1, the only weight is
        always 1, so only the balance loss trains the router.
    Raises:
      ValueError: if num_experts < 1, top_k is outside [1, num_experts], or the config has a shared rank or dora.
    """

    num_experts: int
    top_k: int | None = None

    def __post_init__(self):
        options.settle(self)
        super().__post_init__()
        if self.config.shared_rank:
            raise ValueError(
                f"MixtureOfExperts has no shared part; needed a LoraConfig with shared_rank=0, got "
                f"{self.config.shared_rank}"
            )
        if self.config.dora:
            raise ValueError("MixtureOfExperts needs a LoraConfig with dora=False: an output has one length, not E")
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {self.num_experts}")
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k must be in [1, num_experts={self.num_experts}], got {self.top_k}")

    def init(
        self, key: Key[Array, ""], params: Any, *inputs: Any, num_hypotheses: int = 1, **kwargs: Any
    ) -> hypotheses.Adapters:
        """Creates adapters as `Hypotheses.init` does, for one model by default. Routers are initialised like A."""
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
        """Calls `apply` and also returns the balance loss of each example, averaged over all adapted layers.

        Args:
          params: parameters of the base.
          adapters_k: adapters of one model, without the leading axis K.
          *inputs, **kwargs: arguments of the module.
          counted: True on the tokens whose routing counts, that is, not on padding. Not passed to the module.
          dropout_rng: random key that switches dropout on.
          method: method of the module to call; `__call__` by default.
        Returns:
          The output of the module, and the balance loss [B].
        Raises:
          ValueError: if top_k is None (there is nothing to balance), `counted` is not [B, T] like the inputs of the
            layers, or an nn.scan does not list the collection "routing".
        """
        if self.top_k is None:
            raise ValueError(
                "apply_with_balance needs a MixtureOfExperts with top_k; without it every token goes to every expert. "
                "Set top_k, or call apply"
            )
        delta = experts_delta(self, train=dropout_rng is not None, counted=counted)
        call = bases.Call(inputs, kwargs, method)
        out, sown = self.base.adapted(params, adapters_k, call, self.config, delta, dropout_rng, (ROUTING,))
        layers = [leaf.reshape(-1, counted.shape[0]) for leaf in jax.tree.leaves(sown)]  # [B], or [L, B] if scanned
        return out, jnp.concatenate(layers).mean(0)

    def _delta(self, *, train: bool) -> lora.DeltaFn:
        return experts_delta(self, train=train)


def experts_alone(model: MixtureOfExperts, adapters: hypotheses.Adapters) -> tuple[hypotheses.Hypotheses, Any]:
    """Returns each expert as a hypothesis: expert e alone at every layer, with weight 1, y = W x + (α/r) B_e A_e x.

    An expert e of one layer need not belong to an expert e of another, since every layer has a router of its own. The
    paper's authors decode K answers from a mixture in this way too.

    Args:
      model: the mixture.
      adapters: its adapters, with a leading axis of one model.
    Returns:
      The hypotheses, and their adapters with leading axis E.
    Raises:
      ValueError: if there are several models.
    """
    if (count := hypotheses.count(adapters)) != 1:
        raise ValueError(f"experts_alone needs the adapters of one model, with a leading axis of 1, got {count}")
    layers: dict[tuple[str, ...], dict[str, Array]] = {}
    for path, leaf in flatten_dict(hypotheses.select(adapters, 0)).items():
        layers.setdefault(path[:-1], {})[path[-1]] = leaf
    alone = {
        (*path, name): jnp.moveaxis(leaves[name], _expert_axis(leaves["a"], leaves["router"]), 0)
        for path, leaves in layers.items()
        for name in ("a", "b")
    }
    return hypotheses.Hypotheses(model.module, model.config), unflatten_dict(alone)


def _expert_axis(a: Array, router: Array) -> int:
    """Returns the axis E of A [L, E, in, r] or [E, in, r], whose router is [L, in, E] or [in, E]."""
    stacked = a.shape[:1] == router.shape[:1] and a.shape[1:2] == router.shape[-1:]
    return 1 if stacked and a.shape[2:-1] == router.shape[1:-1] else 0


def with_balance(
    log_likelihood: Float[Array, " B"], tokens: Int[Array, " B"], balance: Float[Array, " B"], weight: float = 0.01
) -> Float[Array, " B"]:
    """Computes log p − weight · tokens · balance, which a `log_likelihood_fn` returns to train with the balance loss.

        def log_likelihood_fn(params, adapters_k, batch, rng):
            logits, balance = model.apply_with_balance(params, adapters_k, inputs, counted=real, dropout_rng=rng)
            log_p, tokens = mcl.sequence_log_likelihood(logits, targets, mask)
            return mcl.moe.with_balance(log_p, tokens, balance), tokens

    An objective that divides by the number of tokens thus adds weight · balance to the loss. The loss that a train step
    reports includes this term; use log p alone for evaluation.

    Args:
      log_likelihood: sums of log p in nats.
      tokens: number of target tokens of each example.
      balance: balance loss of each example, from `MixtureOfExperts.apply_with_balance`.
      weight: α of Fedus et al., who use 0.01.
    Returns:
      The penalised log-likelihoods, in nats.
    """
    return log_likelihood - weight * tokens.astype(balance.dtype) * balance


def chosen_experts(logits: Float[Array, "*T E"], top_k: int) -> Bool[Array, "*T E"]:
    """Returns True for the k most probable experts of each token; the first ones in case of a tie."""
    return jax.nn.one_hot(jax.lax.top_k(logits, top_k)[1], logits.shape[-1], dtype=bool).any(-2)


def balance_loss(logits: Float[Array, "B T *H E"], top_k: int, counted: Bool[Array, "B T"]) -> Float[Array, " B"]:
    """Computes E Σ_e f_e P_e for each example; it is 1 when the tokens use all experts equally.

    Args:
      logits: outputs of the router; the loss is averaged over the axes H (heads with their own routers).
      top_k: number of experts per token.
      counted: True on the tokens that count. An example without any has a loss of 0.
    Returns:
      The balance loss of each example.
    """
    logits = jnp.where(counted.reshape(*counted.shape, *[1] * (logits.ndim - 2)), logits, 0.0)
    counted = counted.astype(logits.dtype)
    share = counted / jnp.maximum(counted.sum(1, keepdims=True), 1.0)

    def mean(x: Array) -> Array:
        return jnp.einsum("bt,bt...e->b...e", share, x)

    chosen = mean(chosen_experts(logits, top_k).astype(logits.dtype)) / top_k
    loss = logits.shape[-1] * (chosen * mean(jax.nn.softmax(logits))).sum(-1)
    return loss.reshape(len(loss), -1).mean(1)


def experts_delta(model: MixtureOfExperts, *, train: bool, counted: Bool[Array, "B T"] | None = None) -> lora.DeltaFn:
    """Returns the function that computes (α/r) Σ_e g_e(x) B_e A_e x; A, B and router are "lora" variables of the layer.

    If `counted` is given, each layer also reports its balance loss in the collection "routing".
    """
    config, num_experts, top_k = model.config, model.num_experts, model.top_k

    def delta_fn(layer, path, spec, x):
        rank, dtype = config.rank_of(path), config.param_dtype
        if spec.lookup:
            raise ValueError(f"{path} is a table of embeddings, which no router can weigh; leave it out of the targets")

        def draw(key, size):
            return lora.init_a(key, spec, size, dtype)

        def init_experts_a():
            return jax.vmap(draw, (0, None))(jax.random.split(layer.make_rng("params"), num_experts), rank)

        init = {
            "a": init_experts_a,
            "b": lambda: jnp.zeros((num_experts, *spec.shape_of(spec.b, rank)), dtype),
            "router": lambda: draw(layer.make_rng("params"), num_experts),
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
    """Computes Σ_e g_e B_e A_e x. One product sums over experts and ranks, so no expert's output is ever stored."""
    expert = next(c for c in string.ascii_letters if c not in spec.equation + spec.rank_axis)
    hidden = spec.hidden[:-1] + expert + spec.rank_axis
    weighted = gates[..., None] * lora.contract(f"{spec.x},{expert}{spec.a}->{hidden}", x, a)
    return lora.contract(f"{hidden},{expert}{spec.b}->{spec.y}", weighted, b)


def _report(layer: lora.Layer, path: str, logits: Array, top_k: int, counted: Array) -> None:
    if logits.shape[:2] != counted.shape:
        raise ValueError(
            f"counted must be [B, T] like the inputs of the layer {path}, which have shape {logits.shape[:-1]}, got "
            f"{counted.shape}"
        )
    if not layer.sow(ROUTING, "balance", balance_loss(logits, top_k, counted)):
        raise ValueError(f'{path}: inside nn.scan, the balance loss needs variable_axes={{"{ROUTING}": 0}}')
