"""Ways to compute one step of K hypotheses. `all`, `winner` and `sampled` are the library's; the others are here."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import mcl_jax as mcl
from experiments.bench_head.config import Config
from mcl_jax import hypotheses, lora, objectives, training, update
from mcl_jax.models import GPTNeo, GPTNeoConfig

TARGETS = ("q_proj", "k_proj", "v_proj", "c_fc", "c_proj")
CLIP, B1 = 1.0, 0.9
OPTIMIZER = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(1e-4, b1=B1))

# (params, adapters, batch) -> (sums of log p [K, B] in nats, numbers of tokens [B])
LogLikelihoods = Callable[[Any, Any, Any], tuple[Float[Array, "K B"], Int[Array, " B"]]]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Model, frozen weights and batch, which all variants of a rank share.

    Attributes:
      model: GPT-Neo and its adapted layers. α is 2r, so that a variant without the factor α/r is detected.
      params: random parameters of the base.
      drawn: adapters of as many hypotheses as any variant needs, with random B (with B = 0 all would tie).
      batch: tokens [B, T+1]; the first T are inputs, the last T targets.
      chunk_size: tokens per chunk of logits.
      seed: random seed.
      copies: further weights for `separate`, made on demand and shared by all values of K.
      compiled: programs of one model of `separate`, by mode, the same for every K.
    """

    model: mcl.Hypotheses
    params: Any
    drawn: Any
    batch: dict[str, Array]
    chunk_size: int
    seed: int
    copies: list[Any] = dataclasses.field(default_factory=list)
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict)

    def adapters(self, num_hypotheses: int) -> Any:
        """Returns the adapters of the first K hypotheses, with leading axis K."""
        return hypotheses.select(self.drawn, slice(num_hypotheses))

    def params_of(self, k: int) -> Any:
        """Returns the weights of model k of `separate`: equal values in separate buffers."""
        while len(self.copies) <= k:
            self.copies.append(jax.tree.map(jnp.copy, self.params))
        return self.copies[k]

    def state(self, adapters: Any, params: Any = None) -> mcl.TrainState:
        """Returns the state at step 0."""
        params = self.params if params is None else params
        return mcl.TrainState.create(
            params=params, adapters=adapters, optimizer=OPTIMIZER, rng=jax.random.key(self.seed + 2)
        )


def make_setup(config: Config, rank: int, num_hypotheses: int) -> Setup:
    """Makes model, weights, batch, and adapters of up to `num_hypotheses` hypotheses, for one rank."""
    dtype = jnp.dtype(config.dtype)
    module = GPTNeo(
        GPTNeoConfig(
            vocab_size=config.vocab,
            hidden_size=config.d_model,
            num_layers=config.layers,
            num_heads=config.num_heads,
            max_position_embeddings=config.seq_len,
            window_size=config.seq_len,
            attention_layers=("global",) * config.layers,
            dtype=dtype,
            param_dtype=dtype,
        )
    )
    key_params, key_tokens = jax.random.split(jax.random.key(config.seed))
    tokens = jax.random.randint(key_tokens, (config.batch, config.seq_len + 1), 0, config.vocab)
    params = jax.jit(module.init)(key_params, tokens[:, :-1])["params"]
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=rank, alpha=2.0 * rank, targets=TARGETS))
    drawn = _draw(model, params, tokens[:, :-1], num_hypotheses, jax.random.key(config.seed + 1))
    return Setup(model, params, drawn, {"tokens": tokens}, config.chunk_size, config.seed)


def _draw(model, params, tokens, num_hypotheses, key):
    key_a, key_b = jax.random.split(key)
    adapters = model.init(key_a, params, tokens, method="hidden", num_hypotheses=num_hypotheses)
    leaves, treedef = jax.tree.flatten_with_path(adapters)
    keys = jax.random.split(key_b, len(leaves))
    drawn = [
        0.05 * jax.random.normal(key, x.shape, x.dtype) if path[-1].key == "b" else x
        for key, (path, x) in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)


@dataclasses.dataclass(frozen=True)
class Relaxed(objectives.Objective):
    """Relaxed WTA with ε as its state. To check `sampled`, ε is set to 0, which makes the compiled step that of WTA."""

    def is_hard(self, num_hypotheses):
        return False

    def init(self, num_hypotheses):
        return jnp.full((), 0.05, jnp.float32)

    def weights(self, log_likelihood, step=0, state=None, rng=None):
        num_hypotheses = log_likelihood.shape[0]
        won = jax.nn.one_hot(self.assign(jax.lax.stop_gradient(log_likelihood), state, rng), num_hypotheses, axis=0)
        return (1.0 - state) * won + state / (num_hypotheses - 1) * (1.0 - won)


def objective_of(variant: str, num_hypotheses: int) -> objectives.Objective:
    """Returns WTA (relaxed for `sampled`); for a single hypothesis, maximum likelihood."""
    if num_hypotheses == 1:
        return objectives.mle()
    return Relaxed() if variant == "sampled" else objectives.wta()


def log_likelihood_fn(setup: Setup) -> update.LogLikelihoodFn:
    """Makes (params, adapters_k, batch, rng) -> (log p [B], numbers of tokens [B]), without [B, T, V] logits."""

    def log_likelihood(params, adapters_k, batch, rng):
        hidden = setup.model.apply(params, adapters_k, batch["tokens"][:, :-1], method="hidden")
        return _from_hidden(setup, params, hidden, batch["tokens"][:, 1:])

    return log_likelihood


def _from_hidden(setup, params, hidden, targets):
    mask = jnp.ones(targets.shape, bool)
    return mcl.chunked_sequence_log_likelihood(
        hidden, GPTNeo.unembedding(params), targets, mask, chunk_size=setup.chunk_size
    )


# ------------------------------------------------------------------------------------------ [K, B], in several ways


def vmapped(setup: Setup) -> LogLikelihoods:
    """Makes the forward pass of `all`, `winner` and `sampled`: vmap over K and over examples as batches of one."""
    index = jnp.arange(setup.batch["tokens"].shape[0])

    def log_likelihoods(params, adapters, batch):
        def one(adapters_k, k):
            return update.example_log_likelihoods(
                log_likelihood_fn(setup),
                params,
                adapters_k,
                batch,
                jnp.full_like(index, k),
                index,
                jax.random.key(0),
                gathered=False,
            )

        log_p, tokens = jax.vmap(one)(adapters, jnp.arange(hypotheses.count(adapters)))
        return log_p, tokens[0]

    return log_likelihoods


def looped(setup: Setup) -> LogLikelihoods:
    """Makes a forward pass with a Python loop over hypotheses: one program with K copies of the model."""

    def log_likelihoods(params, adapters, batch):
        one = functools.partial(log_likelihood_fn(setup), params, batch=batch, rng=None)
        outs = [one(hypotheses.select(adapters, k)) for k in range(hypotheses.count(adapters))]
        return jnp.stack([log_p for log_p, _ in outs]), outs[0][1]

    return log_likelihoods


def grouped_convolutions(setup: Setup) -> LogLikelihoods:
    """Makes the authors' forward pass: K copies of the batch, each delta as two 1x1 convolutions with K groups."""

    def log_likelihoods(params, adapters, batch):
        num_hypotheses = hypotheses.count(adapters)
        tokens = jnp.tile(batch["tokens"], (num_hypotheses, 1))  # [K·B, T+1]
        with lora.intercept(setup.model.config, grouped_delta(setup.model.config, adapters)):
            hidden = setup.model.module.apply({"params": params}, tokens[:, :-1], method="hidden")
        log_p, counts = _from_hidden(setup, params, hidden, tokens[:, 1:])
        return log_p.reshape(num_hypotheses, -1), counts[: batch["tokens"].shape[0]]

    return log_likelihoods


def grouped_delta(config: mcl.LoraConfig, adapters: Any) -> lora.DeltaFn:
    """Computes (α/r) B_k A_k x_k for rows x [K·B, T, D] ordered by hypothesis, using the layout [B, T, K·D]."""
    num_hypotheses = hypotheses.count(adapters)

    def convolve(x, kernels):
        """Convolves x [B, T, K·in] with kernels [K, in, out] -> [B, T, K·out]."""
        kernel = kernels.transpose(1, 0, 2).reshape(1, kernels.shape[1], -1)
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=num_hypotheses
        )

    def delta_fn(layer, path, spec, x):
        leaves = functools.reduce(lambda tree, name: tree[name], path.split("/"), adapters)
        a, b = (leaves[name].astype(x.dtype) for name in ("a", "b"))
        rows, T, _ = x.shape
        x = x.reshape(num_hypotheses, -1, T, a.shape[1]).transpose(1, 2, 0, 3).reshape(-1, T, x.shape[-1] * a.shape[0])
        y = config.scale_of(path) * convolve(convolve(x, a), b)
        return y.reshape(-1, T, num_hypotheses, b.shape[2]).transpose(2, 0, 1, 3).reshape(rows, T, b.shape[2])

    return delta_fn


WAYS = {"all": vmapped, "loop": looped, "grouped_conv": grouped_convolutions, "separate": looped}

# -------------------------------------------------------------------------------------------------------- The steps


class OneGraph(update.Update):
    """A train step that differentiates the weighted sum of any [K, B] log-likelihoods.

    Everything else (optimizer, metrics, donation) is the library's, so that only the gradient differs.
    """

    def __init__(self, log_likelihoods: LogLikelihoods, objective: objectives.Objective):
        super().__init__(None, objective, OPTIMIZER, "all")
        self.log_likelihoods = log_likelihoods

    def weight(self, batch: Any) -> Float[Array, " B"]:
        """Returns the weight of each example."""
        return jnp.ones(batch["tokens"].shape[0])

    def sums(
        self, params: Any, state: mcl.TrainState, batch: Any, real: None = None, axis_name: None = None
    ) -> update.Sums:
        """Computes gradient and metrics, summed over the batch."""

        def loss(adapters):
            log_p, tokens = self.log_likelihoods(params, adapters, batch)
            log_p = self.objective.normalize(log_p, tokens)
            totals, _, _ = self.objective.totals(log_p, self.weight(batch))
            return totals.loss, (totals, tokens)

        gradient, (totals, tokens) = jax.grad(loss, has_aux=True)(state.adapters)
        examples = jnp.full_like(totals.weight, batch["tokens"].shape[0])
        return update.Sums(gradient, totals.replace(weight=examples), tokens.sum().astype(jnp.float32))


class OneModel(OneGraph):
    """The step of a single model (K=1): maximum likelihood of the examples, weighted by `batch["weight"]` [B]."""

    def __init__(self, setup: Setup):
        super().__init__(looped(setup), objectives.mle())

    def weight(self, batch):
        return batch["weight"]


def make_step(variant: str, setup: Setup, num_hypotheses: int) -> training.TrainStep:
    """Makes the train step of a variant; for `separate`, that of one model."""
    objective = objective_of(variant, num_hypotheses)
    if variant in update.BACKWARDS:
        return mcl.make_train_step(log_likelihood_fn(setup), objective, OPTIMIZER, variant)
    if variant == "separate":
        return training.TrainStep(OneModel(setup))
    return training.TrainStep(OneGraph(WAYS[variant](setup), objective))
