"""Stage 1: fits the projector between a frozen tower and a frozen language model, by a regression and by training."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

import mcl_jax as mcl
from experiments.image_captioning.seen import Seen, drawn
from mcl_jax import objectives
from mcl_jax.models.efficient_llava import EfficientLlava
from mcl_jax.run import Run

RIDGE = 1.0  # λ in units of the mean eigenvalue of the features' covariance
SHARPNESS = 2.0  # classes are told by this times their logits: drawings look less like one class than photographs do
FIXED = ("classes", "names")  # what the projector knows beforehand, so that it still names what no caption names
NO_CONTENT = {"a", "an", "the", "of", "in", "on", "and", "with"}
LONGEST = 12  # tokens of a caption and its end; longer ones are cut, so that a few of them do not slow every step


class Grounding(NamedTuple):
    """Losses of captions, in nats.

    Attributes:
      per_token: given their own pictures, per token.
      own: given their own pictures, per caption.
      other: given the pictures of the next captions, per caption.
    """

    per_token: float
    own: float
    other: float


def regressed(module: EfficientLlava, params: Any, tokenizer: Any, seen: Seen) -> PyTree[Array]:
    """Returns a projector whose visual tokens predict the mean embedding of a caption's words by a linear map.

    The map is a ridge regression of those embeddings on the features, stretched to the spread of the embeddings. The
    other part of the projector adds nothing at first.

    Args:
      module, params: the model.
      tokenizer: its tokenizer.
      seen: features and captions.
    """
    table = np.asarray(params["language_model"]["model"]["embed_tokens"]["embedding"], np.float32)
    wanted = np.stack([table[_content(tokenizer, text)].mean(0) for text in seen.captions])  # [N, D]
    x = seen.features.mean((1, 2)).astype(np.float64)  # [N, F]
    x_mean, y_mean = x.mean(0), wanted.mean(0)
    x, y = x - x_mean, wanted - y_mean
    gram = x.T @ x
    ridge = RIDGE * max(np.trace(gram) / len(gram), 1e-6)  # features may all be 0
    solution = np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ y)  # [F, D]
    solution *= np.sqrt((y**2).sum() / max(((x @ solution) ** 2).sum(), 1e-6))
    repeats = module.config.tokens_per_cell
    projector = jax.tree.map(jnp.asarray, params["multi_modal_projector"])
    second = projector["linear_2"]
    bias = np.tile(y_mean - x_mean @ solution, repeats)
    return projector | {
        "linear": {"kernel": jnp.asarray(np.tile(solution, repeats), second["kernel"].dtype)},
        "linear_2": {"kernel": jnp.zeros_like(second["kernel"]), "bias": jnp.asarray(bias, second["bias"].dtype)},
    }


def spelled(
    module: EfficientLlava, params: Any, tokenizer: Any, classifier: tuple[np.ndarray, np.ndarray], names: Sequence[str]
) -> PyTree[Array]:
    """Returns a projector whose visual tokens spell the classes of a picture, and add nothing else at first.

    Args:
      module, params: the model, with `spelled_classes`.
      tokenizer: its tokenizer.
      classifier: kernel [F, C] and bias [C] of the tower's classifier.
      names: the names of the C classes, such as "A tench.".
    """
    table, m = params["language_model"]["model"]["embed_tokens"]["embedding"], module.config.tokens_per_cell
    article = tokenizer(" a", add_special_tokens=False)["input_ids"]
    ids = [(m * article + _content(tokenizer, name))[-m:] for name in names]  # [C, m]; the last word is the noun
    projector = jax.tree.map(jnp.asarray, params["multi_modal_projector"])
    kernel, bias = (jnp.asarray(SHARPNESS * leaf, table.dtype) for leaf in classifier)
    return projector | {
        "linear": jax.tree.map(jnp.zeros_like, projector["linear"]),
        "linear_2": jax.tree.map(jnp.zeros_like, projector["linear_2"]),
        "classes": {"kernel": kernel, "bias": bias},
        "names": {"kernel": table[np.array(ids)].reshape(len(ids), -1)},
    }


def _content(tokenizer: Any, caption: str) -> list[int]:
    """Returns the tokens of the words of a caption that name things; all of them if it has no such words."""
    words = re.findall(r"[\w']+", caption)
    content = [word for word in words if word.lower() not in NO_CONTENT] or words or [caption]
    return tokenizer(" " + " ".join(content), add_special_tokens=False)["input_ids"]


def encoded(module: EfficientLlava, tokenizer: Any, captions: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns tokens and target_mask of captions after the placeholders of a picture, see `mcl.language_model`.

    A caption is its first clause, "A frog." of "A frog, which sings.", and at most `LONGEST` tokens of that.
    """
    before, end = [module.placeholder] * module.config.num_features, tokenizer.eos_token_id
    length = len(before) + LONGEST
    tokens, mask = np.full((len(captions), length), end, np.int32), np.zeros((len(captions), length - 1), bool)
    for row, targets, text in zip(tokens, mask, captions, strict=True):
        answer = [*tokenizer(clause(text), add_special_tokens=False)["input_ids"], end][:LONGEST]
        given = [*before, *answer]
        row[: len(given)], targets[len(before) - 1 : len(given) - 1] = given, True
    return {"tokens": tokens, "target_mask": mask}


def clause(caption: str) -> str:
    """Returns the first clause of a caption, with a full stop."""
    first = re.split(r"[,;:(—–]| - ", caption)[0].strip(" .")
    return f"{first}." if first else caption


def train(
    run: Run,
    module: EfficientLlava,
    params: Any,
    tokenizer: Any,
    sources: list[Seen],
    held_out: Seen,
    *,
    start: PyTree[Array],
    steps: int,
    batch_size: int,
    learning_rate: float,
    eval_every: int,
    seed: int,
) -> tuple[PyTree[Array], Grounding]:
    """Trains the projector on captions, but not what is `FIXED` in it.

    It resumes a run that was interrupted, and keeps the best projector.

    Args:
      run: the open run.
      module, params, tokenizer: the model, whose other parts stay as they are.
      sources: features and captions; each source gives an equal share of every batch.
      held_out: features and captions for the evaluation.
      start: the projector before the first step.
      steps: number of training steps.
      batch_size: number of captions per step.
      learning_rate: highest learning rate.
      eval_every: number of steps between two evaluations.
      seed: random seed of the batches.
    Returns:
      The projector at the best evaluation, and the losses there.
    """
    fixed = {name: start[name] for name in FIXED if name in start}
    frozen = {"language_model": params["language_model"], "multi_modal_projector": fixed}
    log_likelihood = log_likelihood_fn(module)
    texts = [encoded(module, tokenizer, source.captions) for source in sources]
    rows_of = drawn([len(source.captions) for source in sources], batch_size, seed)
    pairs = _one_table(sources, texts)

    def evaluate(state):
        projector = jax.tree.map(lambda x: x[0], state.adapters)
        found = grounding(module, frozen, projector, tokenizer, held_out, batch_size)
        return {"eval_loss": found.per_token, "own": found.own, "other": found.other}

    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps, learning_rate / 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05))
    # The rest of the projector is what "adapters" of one hypothesis are to the step.
    learned = {name: leaves for name, leaves in start.items() if name not in fixed}
    state = mcl.TrainState.create(
        params=frozen, adapters=jax.tree.map(lambda x: x[None], learned), optimizer=optimizer, rng=jax.random.key(seed)
    )
    fitted = mcl.fit(
        mcl.make_train_step(log_likelihood, objectives.mle(), optimizer, backward="all"),
        state,
        lambda step: {name: column[rows_of(step)] for name, column in pairs.items()},
        steps=steps,
        run=run,
        evaluate=evaluate,
        eval_every=eval_every,
        keep_best=True,
    )
    best = fitted.evaluation
    return (
        fixed | jax.tree.map(lambda x: x[0], fitted.state.adapters),
        Grounding(best["eval_loss"], best["own"], best["other"]),
    )


def log_likelihood_fn(module: EfficientLlava):
    """Returns (frozen parameters, projector, batch, rng) -> (log p [B] in nats, tokens [B]) of captions.

    The frozen parameters may hold a part of the projector.
    """

    def log_likelihood(frozen, projector, batch, rng):
        variables = {"params": frozen | {"multi_modal_projector": frozen.get("multi_modal_projector", {}) | projector}}
        features = module.apply(variables, batch["features"], method="project")
        tokens = batch["tokens"]
        hidden = module.apply(variables, tokens[:, :-1], None, features, method="hidden")
        return mcl.chunked_sequence_log_likelihood(
            hidden, module.unembedding(frozen), tokens[:, 1:], batch["target_mask"]
        )

    return log_likelihood


def grounding(
    module: EfficientLlava, frozen: Any, projector: PyTree[Array], tokenizer: Any, seen: Seen, batch_size: int
) -> Grounding:
    """Returns the losses of captions given their own pictures and given others', which have other captions."""
    table = {"features": seen.features} | encoded(module, tokenizer, seen.captions)
    swapped = table | {"features": seen.features[others(seen.captions)]}
    losses, counts = _losses(module, frozen, projector, table, batch_size)
    of_others, _ = _losses(module, frozen, projector, swapped, batch_size)
    return Grounding(float(losses.sum() / counts.sum()), float(losses.mean()), float(of_others.mean()))


def others(captions: tuple[str, ...]) -> np.ndarray:
    """Returns for each caption the next row with another caption."""
    N = len(captions)
    return np.array([next(j % N for j in range(i + 1, i + N) if captions[j % N] != captions[i]) for i in range(N)])


def _losses(module, frozen, projector, table, batch_size) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Returns the loss in nats and the number of tokens of every row."""
    N, losses, counts = len(table["tokens"]), [], []
    for start in range(0, N, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), N - 1)  # always as many, so it compiles once
        batch = {name: column[rows] for name, column in table.items()}
        log_p, tokens = _evaluated(module, frozen, projector, batch)
        losses.append(-np.asarray(log_p)[: N - start])
        counts.append(np.asarray(tokens)[: N - start])
    return np.concatenate(losses), np.concatenate(counts)


@jax.jit(static_argnums=0)
def _evaluated(module, frozen, projector, batch):
    return log_likelihood_fn(module)(frozen, projector, batch, None)


def _one_table(sources: list[Seen], texts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the rows of all sources."""
    column = lambda name: np.concatenate([text[name] for text in texts])
    features = np.concatenate([source.features for source in sources])
    return {"features": features, "tokens": column("tokens"), "target_mask": column("target_mask")}
