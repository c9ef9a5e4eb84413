"""A language model under hypotheses: batches of prompts and answers, the likelihood of the answers, and evaluation.

    batch = encode(tokenizer, prompts, answers, max_length=64)
    step = mcl.make_train_step(log_likelihood_fn(model), mcl.objectives.wta(), optimizer)
    state, metrics = step(state, batch)
    log_p, tokens = evaluate(model, state.params, state.adapters, [batch])      # [K, N] in nats, [N]

A batch is a dict of arrays:

    tokens       int32 [B, T]      prompt, answer, end token, padding on the right
    target_mask  bool  [B, T-1]    true where tokens[:, 1:] is answer or end token
    features     [B, N, D]         features of pictures or clips from the module's `encode`; only if there are any

Short examples may share rows, see `mcl_jax.packing`. Such a batch has two more entries:

    texts        int32 [B, T-1]    number of the example of tokens[:, :-1] in its row, from 1; 0 on padding
    packed       int32 [B, S]      number of each text of the row among all examples, -1 if there is none

Other entries are ignored.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from mcl_jax import hypotheses, likelihood, lora, moe, options, packing, token_ids, tokenization
from mcl_jax.mesh import laid_out, on_mesh, over_data
from mcl_jax.models.decoder import Segment

Batch = Mapping[str, Array]


@runtime_checkable
class LanguageModel(Protocol):
    """The methods that a Flax module needs: `hidden` and `unembedding` for `log_likelihood_fn`, all for `generate`.

    `mask` is True on tokens and False on padding. Models of pictures or clips take `features` [B, N, D] as a keyword in
    `hidden` and `extend`, and have `feature_size`, the width D. A module may also have `vocab_size` and `max_positions`
    (integers), which limit prompts, `logit_cap`, the soft-cap of its logits (`likelihood.soft_cap`), and `placeholder`,
    the id of the token that features replace. If features replace no token, every row needs some.

    A model that can read rows of several texts has `takes_texts = True`. The `mask` of its `hidden` may then be of
    integers: the number of the text of each token, from 1, and 0 on padding.

    A model whose prompt is read as a whole, each token seeing all others, has `takes_prefix = True`. Its `hidden` takes
    `prefix` (bool [B, T], True on the prompt) as a keyword. The tokens of an `extend` without a past are a prompt.
    """

    def hidden(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """Returns the hidden states after the last norm; position t predicts token t+1."""

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Applies the output layer, in float32."""

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        positions: Int[Array, "B T"],
        past: tuple[Segment, ...] = (),
    ) -> tuple[Float[Array, "B T D"], Segment]:
        """Returns hidden states of tokens that also see the segments `past`, and the segment of these tokens."""

    def unembedding(self, params: Any) -> Float[Array, "D V"]:
        """Returns the output matrix from the parameters (a static method): logits = hidden @ unembedding, capped."""


def encode(
    tokenizer: tokenization.Tokenizer, prompts: Sequence[str], answers: Sequence[str], max_length: int
) -> dict[str, np.ndarray]:
    """Makes a batch of prompts with their answers, padded on the right to `max_length` tokens.

    Args:
      tokenizer: tokenizer of the model; see `tokenization.Tokenizer`.
      prompts: B texts. The answer follows its prompt directly, so end the prompt with the separator.
      answers: B texts; the end token of the tokenizer is added to each.
      max_length: T, number of tokens of prompt, answer and end token together.
    Returns:
      {"tokens": int32 [B, T], "target_mask": bool [B, T-1]}, as NumPy arrays.
    Raises:
      ValueError: if there are no prompts, or not one answer for each; for a prompt without tokens, an answer that is
        empty or holds the end token, or an example of more than `max_length` tokens. The message names the example.
      TypeError: if the tokenizer has no end token.
    """
    tokenization.check_tokenizer(tokenizer)
    if isinstance(prompts, str) or isinstance(answers, str):
        raise ValueError("prompts and answers must be lists of texts, got one text")
    if len(prompts) != len(answers) or not len(prompts):
        raise ValueError(
            f"encode needs one answer for each prompt, got {len(prompts)} prompts and {len(answers)} answers"
        )
    tokens = np.full((len(prompts), max_length), tokenization.pad_id(tokenizer), np.int32)
    mask = np.zeros((len(prompts), max_length - 1), bool)
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        before = tokenization.prompt_ids(tokenizer, prompt)
        after = tokenization.answer_ids(tokenizer, answer, f"example {b}")
        P, T = len(before), len(before) + len(after)
        if max_length < T:
            raise ValueError(f"example {b} has {T} tokens, more than max_length={max_length}: {prompt[:40]!r}")
        tokens[b, :P], tokens[b, P:T], mask[b, P - 1 : T - 1] = before, after, True
    return {"tokens": tokens, "target_mask": mask}


def log_likelihood_fn(
    model: hypotheses.AdaptedModule, *, chunk_size: int = 256, balance_weight: float | None = None
) -> Callable[[Any, Any, Batch, Key[Array, ""] | None], tuple[Float[Array, " B"], Int[Array, " B"]]]:
    """Makes the function that `make_train_step` needs: (params, adapters_k, batch, rng) -> (log p [B], tokens [B]).

    log p is that of each answer, in nats, and tokens is its number of target tokens. The function never holds the
    logits of the whole batch, see `chunked_sequence_log_likelihood`. For a batch whose rows hold several texts, both
    are [B, S]. With "winner" [B, S] in such a batch, the adapters are those of all hypotheses, and each text runs under
    its winner.

    Args:
      model: `Hypotheses`, `SoftPrompts` or `MixtureOfExperts` over a `LanguageModel`.
      chunk_size: number of tokens whose logits are held at a time.
      balance_weight: weight of the balance loss of a sparse mixture of experts, see `moe.with_balance`. None leaves the
        balance loss out, as evaluation must.
    Raises:
      TypeError: if the module is not a `LanguageModel`; names the methods that it lacks.
      ValueError: for a balance weight with a model that has no sparse experts. The function raises it for adapters
        that have no part in the logits, and for rows of several texts where model or adapters cannot read them.
    """
    check_language_model(model.module, ("hidden", "unembedding"))
    if balance_weight is not None and getattr(model, "top_k", None) is None:
        raise ValueError(f"balance_weight={balance_weight} needs a MixtureOfExperts with top_k, got {model!r}")

    def log_likelihood(params, adapters_k, batch, rng):
        if packing.is_packed(batch):
            return of_texts(params, adapters_k, batch, rng if model.has_dropout else None)
        tokens, mask = batch["tokens"], batch["target_mask"]
        given = {name: batch[name] for name in ("features",) if name in batch}
        if getattr(model.module, "takes_prefix", False):
            given["prefix"] = prompt_of(mask)
        outer = _adapts_output(model, params, adapters_k, tokens[:, :-1], given)
        given |= {"method": "hidden", "dropout_rng": rng if model.has_dropout else None}
        if balance_weight is None:
            hidden, balance = model.apply(params, adapters_k, tokens[:, :-1], **given), None
        else:
            counted = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > 0  # up to the last target: all but padding
            hidden, balance = model.apply_with_balance(params, adapters_k, tokens[:, :-1], counted=counted, **given)
        if outer:
            of_rng = None if given["dropout_rng"] is None else jax.random.fold_in(rng, 1)
            logits = functools.partial(model.apply, params, adapters_k, method="logits")
            log_p, counts = _by_logits(logits, hidden, tokens[:, 1:], mask, max(1, chunk_size // 8), of_rng)
        else:
            log_p, counts = by_matrix(params, adapters_k, hidden, tokens[:, 1:], mask)
        return (log_p if balance is None else moe.with_balance(log_p, counts, balance, balance_weight)), counts

    def of_texts(params, adapters, batch, rng):
        tokens, texts = batch["tokens"], batch["texts"]
        _check_takes_texts(model, params, adapters, batch, balance_weight)
        given = (tokens[:, :-1], texts)
        if "winner" in batch:
            k_of_token = jnp.take_along_axis(batch["winner"], jnp.maximum(texts - 1, 0), axis=1)
            hidden = model.apply_by_token(params, adapters, k_of_token, *given, method="hidden", dropout_rng=rng)
        else:
            hidden = model.apply(params, adapters, *given, method="hidden", dropout_rng=rng)
        of_text = {"texts": texts, "num_texts": batch["packed"].shape[1]}
        return by_matrix(params, adapters, hidden, tokens[:, 1:], batch["target_mask"], **of_text)

    def by_matrix(params, adapters_k, hidden, targets, mask, **of_text):
        matrix, transposed = _output_matrix(model.module, model.base.own(params, adapters_k))
        return likelihood.chunked_sequence_log_likelihood(
            hidden,
            matrix,
            targets,
            mask,
            cap=getattr(model.module, "logit_cap", None),
            chunk_size=chunk_size,
            transposed=transposed,
            **of_text,
        )

    return log_likelihood


def _check_takes_texts(
    model: hypotheses.AdaptedModule, params: Any, adapters: Any, batch: Batch, balance_weight: float | None
) -> None:
    """Raises a ValueError if rows of several texts cannot be read; names what stands against it."""
    obstacle = None
    if not getattr(model.module, "takes_texts", False):
        obstacle = f"{type(model.module).__name__} has no takes_texts, see mcl_jax.language_model.LanguageModel"
    elif "features" in batch:
        obstacle = "features of pictures or clips belong to whole rows"
    elif balance_weight is not None:
        obstacle = f"balance_weight={balance_weight} counts tokens by rows"
    elif model.added_positions:
        obstacle = f"{type(model).__name__} adds positions before the first text only"
    elif _adapts_output(model, params, adapters, batch["tokens"][:, :-1], {}):
        obstacle = "the output layer has adapters"
    if obstacle:
        raise ValueError(f"a batch with several texts in a row cannot be read: {obstacle}")


def prompt_of(target_mask: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """Returns where the inputs are prompt: up to the one that predicts the first target; all of a row without any."""
    targets = jnp.asarray(target_mask, jnp.int32)
    return jnp.cumsum(targets, axis=1) - targets == 0


def first_tokens(batch: Batch, number: int, lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the batch, and the same examples with the first tokens of their answers, for `by_first_tokens`.

    Args:
      batch: a batch of NumPy arrays.
      number: n, number of target tokens to keep; shorter answers stay whole.
      lengths: allowed numbers of predicted positions, ascending. The shorter examples take the least that holds them,
        so that the step compiles once for each.
    Raises:
      ValueError: if n is less than 1, or no length holds the examples.
    """
    options.check_integers(1, number=number)
    if packing.is_packed(batch):
        raise ValueError("first_tokens needs one example in each row, got a batch with several texts in a row")
    kept = batch["target_mask"] & (np.cumsum(batch["target_mask"], axis=1) <= number)
    longest = int(np.flatnonzero(kept.any(0)).max(initial=0)) + 1
    T = min((length for length in lengths if length >= longest), default=None)
    if T is None:
        raise ValueError(f"lengths must go up to {longest} positions, got {tuple(lengths)}")
    T = min(T, kept.shape[1])
    return {**batch, "first_tokens": batch["tokens"][:, : T + 1], "first_target_mask": kept[:, :T]}


def by_first_tokens(log_likelihood: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the `choose_fn` of a train step that compares hypotheses by the first tokens of each answer.

        step = mcl.make_train_step(log_p, objective, optimizer, choose_fn=language_model.by_first_tokens(log_p))
        state, metrics = step(state, language_model.first_tokens(batch, 8, lengths=(32, 64)))

    Args:
      log_likelihood: the result of `log_likelihood_fn`.
    """

    def log_likelihood_of_first(params, adapters_k, batch, rng):
        part = {"tokens": batch["first_tokens"], "target_mask": batch["first_target_mask"]}
        return log_likelihood(params, adapters_k, {**batch, **part}, rng)

    return log_likelihood_of_first


def _output_matrix(module: Any, params: Any) -> tuple[Array, bool]:
    """Returns the output matrix as it is stored, and whether that is [V, D], as a tied table of embeddings is."""
    jaxpr = jax.make_jaxpr(module.unembedding)(params).jaxpr
    last = jaxpr.eqns[-1] if jaxpr.eqns else None
    transposed = last is not None and last.primitive is jax.lax.transpose_p and last.outvars == jaxpr.outvars
    matrix = module.unembedding(params)
    return (matrix.T if transposed else matrix), transposed  # XLA cancels two transpositions


def _by_logits(logits, hidden, targets, mask, chunk_size, rng):
    """Computes log p [B] and the numbers of targets [B] from logits of `chunk_size` tokens of each row at a time."""
    B, T = targets.shape
    size = min(chunk_size, T)

    def chunks(x: Array) -> Array:  # [B, T, ...] -> [chunks, B, size, ...]; the last chunk is filled with zeros
        padded = jnp.pad(x, [(0, 0), (0, -T % size)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(B, -1, size, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def log_p(chunk):
        i, h, x, m = chunk
        key = None if rng is None else jax.random.fold_in(rng, i)
        return likelihood.sequence_log_likelihood(logits(h, dropout_rng=key), x, m)[0]

    token_ids.check_mask("target_mask", mask)
    mask = mask.astype(bool)  # masked values, even NaN, are kept out of the products
    rows = [chunks(x) for x in (jnp.where(mask[..., None], hidden, 0.0), jnp.where(mask, targets, 0), mask)]
    return jax.lax.map(log_p, (jnp.arange(len(rows[0])), *rows)).sum(0), mask.sum(-1, dtype=jnp.int32)


def _adapts_output(model, params, adapters_k, tokens, features) -> bool:
    """Whether there are adapters of the output layer.

    Raises:
      ValueError: if adapters have no part in the logits, since they would silently do nothing.
    """
    factors, _ = lora.split_copies(adapters_k)
    idle = {"/".join(path[:-1]) for path in flatten_dict(factors)}
    idle -= model.reached(params, tokens, method="hidden", **features)
    if not idle:
        return False
    hidden = jax.eval_shape(lambda: model.apply_base(params, tokens, method="hidden", **features))
    has_logits = callable(getattr(model.module, "logits", None))
    if idle := sorted(idle - (model.reached(params, hidden, method="logits") if has_logits else set())):
        raise ValueError(
            f"adapters of {idle[:3]} have no part in the hidden states, and none in the logits that the module makes "
            "of them: leave them out of the targets, or use mcl_jax.sequence_log_likelihood on logits of your own"
        )
    return True


def evaluate(
    model: hypotheses.AdaptedModule,
    params: Any,
    adapters: Any,
    batches: Iterable[Batch],
    *,
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, "K N"], Int[np.ndarray, " N"]]:
    """Returns log p of each answer under each hypothesis, without dropout; compiles once for each batch shape.

    Args:
      model, params, adapters: as in `log_likelihood_fn`; adapters have a leading axis K.
      batches: at least one batch, with N answers in all.
      mesh: devices to run on, as in `make_train_step`; None means one device.
    Returns:
      (log p in nats [K, N], number of target tokens [N]). An answer without targets has log p 0 and 0 tokens.
    Raises:
      ValueError: if there are no batches, a row holds several texts, or the mesh has no axis "data".
    """
    log_p, tokens, shared = [], [], (params, adapters)
    if mesh is not None:
        shared = on_mesh(shared, mesh)  # once for all batches
    for batch in batches:
        if packing.is_packed(batch):
            raise ValueError("evaluate needs one example in each row, got a batch with several texts in a row")
        needed = {name: batch[name] for name in ("tokens", "target_mask", "features") if name in batch}
        size = len(needed["tokens"])
        batch_log_p, counts = _evaluate(model, *laid_out(mesh, shared, needed))
        log_p.append(np.asarray(batch_log_p)[:, :size])
        tokens.append(np.asarray(counts[0])[:size])
    if not log_p:
        raise ValueError("evaluate needs at least one batch, got none")
    return np.concatenate(log_p, axis=1), np.concatenate(tokens)


def lower_evaluate(
    model: hypotheses.AdaptedModule, params: Any, adapters: Any, batch: Batch, *, mesh: Mesh | None = None
) -> jax.stages.Lowered:
    """Lowers the program that `evaluate` would run for a batch, without arrays.

    Args:
      model, mesh: as in `evaluate`.
      params, adapters: arrays or `jax.ShapeDtypeStruct`s; those with a sharding keep it.
      batch: arrays or shapes of "tokens" and "target_mask", and of "features" if there are any.
    """
    return _evaluate.lower(model, *laid_out(mesh, (params, adapters), batch))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(model, layout, shared, batch):
    log_likelihood = log_likelihood_fn(model)

    def every(shared, batch):
        params, adapters = shared
        one = lambda adapters_k: log_likelihood(params, adapters_k, batch, None)
        return jax.vmap(one, (hypotheses.axes(adapters),))(adapters)

    return over_data(every, layout, out_axis=1)(shared, batch)


def check_language_model(module: Any, methods: Sequence[str] = ("hidden", "logits", "extend", "unembedding")) -> None:
    """Raises a TypeError that names the methods of a `LanguageModel` that a module lacks."""
    if missing := [name for name in methods if not callable(getattr(module, name, None))]:
        raise TypeError(
            f"{type(module).__name__} must have the methods {', '.join(methods)} of mcl_jax.language_model."
            f"LanguageModel, but lacks {', '.join(missing)}. If the module only returns logits, write the "
            "log-likelihood yourself with mcl_jax.sequence_log_likelihood"
        )
