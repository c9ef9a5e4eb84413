"""Answers of K hypotheses to texts, pictures or clips, with their log-likelihoods."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mcl_jax import generation, hypotheses
from mcl_jax.answer.recipe import Recipe
from mcl_jax.answer.trained import Trained
from mcl_jax.data.clips import SAMPLE_RATE
from mcl_jax.data.encoding import Prompt
from mcl_jax.hypotheses import Hypotheses
from mcl_jax.models import from_pretrained

LENGTHS = 16  # prompts are padded to a multiple of it, so that few programs are compiled
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of one hypothesis.

    Attributes:
      hypothesis: its number, from 0.
      text: the answer.
      tokens: number of its tokens, with the end token.
      log_likelihood: log p(answer | question) under this hypothesis in nats, with the end token.
      log_likelihood_per_token: the same divided by the number of tokens.
      log_likelihoods: log p(answer | question) under each of the K hypotheses, in nats.
    """

    hypothesis: int
    text: str
    tokens: int
    log_likelihood: float
    log_likelihood_per_token: float
    log_likelihoods: tuple[float, ...]


class Answerer:
    """Hypotheses in memory that answer batches of questions: `answerer(["a text", "another"])`.

    Args:
      recipe: prompt, decoder and further settings.
      model, params, adapters: the hypotheses.
      processor: tokenizer of the base, or its processor if it takes pictures or clips.
    """

    def __init__(self, recipe: Recipe, model: Hypotheses, params: Any, adapters: Any, processor: Any):
        self.recipe, self.model, self.params, self.processor = recipe, model, params, processor
        self.adapters = jax.tree.map(jnp.asarray, adapters)
        self._encode = jax.jit(lambda params, inputs: model.module.apply({"params": params}, **inputs, method="encode"))
        self._fits = False

    @classmethod
    def load(cls, trained: Trained) -> "Answerer":
        """Reads the base, and PEFT adapters if those are what was trained.

        Raises:
          ValueError: if the base has no tokenizer, cannot be read, or does not fit PEFT adapters.
        """
        recipe, dtype = trained.recipe, jnp.dtype(trained.recipe.dtype)
        module, params, processor = from_pretrained(
            recipe.base, dtype=dtype, param_dtype=dtype, quantization=recipe.quantization
        )
        if processor is None:
            raise ValueError(f"the base {recipe.base} has no tokenizer files, which answers in words need")
        if recipe.padded:
            processor = processor.padded_to_squares()
        model, adapters = trained.hypotheses(module)
        return cls(recipe, model, params, adapters, processor)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the base."""
        return self.processor if self.recipe.kind == "text" else self.processor.tokenizer

    def check(self, question: str | np.ndarray) -> None:
        """Raises a ValueError if the base cannot take a picture or clip, for example since it is too short."""
        if self.recipe.kind != "text":
            self.processor.num_features(self._cropped(question))

    def __call__(
        self, questions: Sequence[str | np.ndarray], *, rows: int | None = None, first: int = 0
    ) -> list[list[Answer]]:
        """Answers a batch of questions.

        Args:
          questions: texts; or pictures, uint8 [H, W, 3], or clips, float32 [S] at 16 kHz, as `mcl_jax.data` reads them.
          rows: number of rows to compute, at least that of the questions; batches with the same number share a program.
          first: number of the first question among all; it chooses the random keys if the decoder draws samples.
        Returns:
          For each question its answers, in the order of the hypotheses.
        Raises:
          ValueError: if there are no questions, one does not suit the base, or the adapters do not fit it.
        """
        if not questions:
            raise ValueError("at least one question is needed, got none")
        padded = [*questions, *[questions[-1]] * ((rows or 0) - len(questions))]
        inputs = self._inputs(padded)
        self._check_adapters(inputs)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), first + jnp.arange(len(padded)))
        end = self.tokenizer.eos_token_id
        given = (self.model, self.params, self.adapters, inputs)
        decoded = generation.decode(
            *given,
            self.recipe.decoder,
            self.recipe.max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
            repetition_penalty=self.recipe.repetition_penalty,
            rng=keys,
        )
        log_p = np.asarray(generation.log_likelihoods(*given, decoded))
        return [self._answers(decoded, log_p, b) for b in range(len(questions))]

    def _answers(self, decoded: generation.Generation, log_p: np.ndarray, b: int) -> list[Answer]:
        """Returns the answers to question b; log_p is [H, K, B, n]."""
        tokens, lengths = np.asarray(decoded.tokens), np.asarray(decoded.lengths)
        K, _, n, _ = tokens.shape
        return [
            Answer(
                hypothesis=k,
                text=self.tokenizer.decode(tokens[k, b, i], skip_special_tokens=True).strip(),
                tokens=int(lengths[k, b, i]),
                log_likelihood=float(log_p[k, k, b, i]),
                log_likelihood_per_token=float(log_p[k, k, b, i] / lengths[k, b, i]),
                log_likelihoods=tuple(log_p[:, k, b, i].tolist()),
            )
            for k in range(K)
            for i in range(n)
        ]

    def _inputs(self, questions: Sequence[str | np.ndarray]) -> dict[str, Any]:
        """Returns tokens and mask [B, P], padded on the left, and the features of pictures or clips."""
        if self.recipe.kind == "text":
            prompt = Prompt(self.recipe.prompt)
            return _on_the_left([prompt.encode(self.tokenizer, text) for text in questions])
        media = [self._cropped(one) for one in questions]
        window = {} if self.recipe.window is None else {"window": self.recipe.window}
        prepared = self.processor([self.recipe.prompt] * len(media), media, **window)
        rows = [tokens[mask] for tokens, mask in zip(prepared.pop("tokens"), prepared.pop("mask"), strict=True)]
        return _on_the_left(rows) | {"features": self._encode(self.params, prepared)}

    def _cropped(self, media: np.ndarray) -> np.ndarray:
        return media if self.recipe.seconds is None else media[: round(self.recipe.seconds * SAMPLE_RATE)]

    def _check_adapters(self, inputs: dict[str, Any]) -> None:
        """Raises a ValueError if the adapters are not those of the recipe's settings on this base; looks only once."""
        if self._fits:
            return
        features = {name: inputs[name] for name in ("features",) if name in inputs}
        K, tokens = hypotheses.count(self.adapters), jnp.asarray(inputs["tokens"])

        def fresh():
            init = self.model.init
            return init(jax.random.key(0), self.params, tokens, num_hypotheses=K, method="hidden", **features)

        needed, found = (_shapes(tree) for tree in (jax.eval_shape(fresh), self.adapters))
        if differ := [path for path in sorted(needed | found) if needed.get(path) != found.get(path)]:
            lines = [f"{path} is {found.get(path)}, not {needed.get(path)}" for path in differ[:SHOWN]]
            raise ValueError(f"the adapters do not fit the base {self.recipe.base}: {'; '.join(lines)}")
        self._fits = True


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(tree, sep="/").items()}


def _on_the_left(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Pads token ids on the left to a multiple of LENGTHS; returns tokens and mask [B, P]."""
    longest = -(-max(map(len, rows)) // LENGTHS) * LENGTHS
    tokens, mask = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), bool)
    for row, keep, ids in zip(tokens, mask, rows, strict=True):
        row[longest - len(ids) :], keep[longest - len(ids) :] = ids, True
    return {"tokens": tokens, "mask": mask}
