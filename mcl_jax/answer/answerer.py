"""Answers of K hypotheses to texts, pictures or clips, with their log-likelihoods."""

import dataclasses
from collections.abc import Callable, Sequence
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
from mcl_jax.generation import Defaults
from mcl_jax.hypotheses import AdaptedModule
from mcl_jax.interop import TiedMatrixError
from mcl_jax.lora import split_copies
from mcl_jax.models import from_pretrained
from mcl_jax.selector import Selector, choose
from mcl_jax.tokenization import check_chat

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
      probability: γ, the probability that this hypothesis answers the question best, from the question alone; None
        without a selector.
    """

    hypothesis: int
    text: str
    tokens: int
    log_likelihood: float
    log_likelihood_per_token: float
    log_likelihoods: tuple[float, ...]
    probability: float | None = None


class Answerer:
    """Hypotheses in memory that answer batches of questions: `answerer(["a text", "another"])`.

    Args:
      recipe: prompt, decoder and further settings.
      model, params, adapters: the hypotheses.
      processor: tokenizer of the base, or its processor if it takes pictures or clips.
      selector: tells how probable each hypothesis is for a question; None if there is none.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: AdaptedModule,
        params: Any,
        adapters: Any,
        processor: Any,
        selector: Selector | None = None,
    ):
        self.recipe, self.model, self.params, self.processor = recipe.settled(Defaults()), model, params, processor
        self.selector = selector
        self.adapters = jax.tree.map(jnp.asarray, adapters)
        self._encode = jax.jit(lambda params, inputs: model.module.apply({"params": params}, **inputs, method="encode"))
        self._fits = False

    @classmethod
    def load(cls, trained: Trained) -> "Answerer":
        """Reads the base, and PEFT adapters if those are what was trained.

        Raises:
          ValueError: if the base has no tokenizer, or no chat template that the recipe needs, cannot be read, or does
            not fit PEFT adapters.
        """
        recipe, dtype = trained.recipe, jnp.dtype(trained.recipe.dtype)
        numbered = {"scan": False} if recipe.lora and recipe.lora.layers else {}
        options = dict(dtype=dtype, param_dtype=dtype, quantization=recipe.quantization, **numbered)
        module, params, processor = from_pretrained(recipe.base, **options)
        if processor is None:
            raise ValueError(f"the base {recipe.base} has no tokenizer files, which answers in words need")
        if recipe.chat:
            check_chat(processor)
        if recipe.padded:
            processor = processor.padded_to_squares()
        try:
            model, adapters = trained.hypotheses(module)
        except TiedMatrixError:
            if not hasattr(module.config, "tie_word_embeddings"):
                raise
            del params
            module, params, _ = from_pretrained(recipe.base, tie_word_embeddings=False, **options)
            model, adapters = trained.hypotheses(module)
        return cls(recipe, model, params, adapters, processor, trained.selector)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the base."""
        return self.processor if self.recipe.kind == "text" else self.processor.tokenizer

    def check(self, question: str | np.ndarray) -> None:
        """Raises a ValueError if the base cannot take a picture or clip, for example since it is too short."""
        if self.recipe.kind != "text":
            self.processor.num_features(self._cropped(question))

    def __call__(
        self,
        questions: Sequence[str | np.ndarray],
        *,
        rows: int | None = None,
        first: int = 0,
        top_hypotheses: int | None = None,
        stream: Callable[[list[list[tuple[int, str]]]], None] | None = None,
    ) -> list[list[Answer]]:
        """Answers a batch of questions.

        Args:
          questions: texts; or pictures, uint8 [H, W, 3], or clips, float32 [S] at 16 kHz, as `mcl_jax.data` reads them.
          rows: number of rows to compute, at least that of the questions; batches with the same number share a program.
          first: number of the first question among all; it chooses the random keys if the decoder draws samples.
          top_hypotheses: number of hypotheses that answer each question, the likeliest ones; None means all K.
          stream: called after every few tokens with the answers so far: for each question, (hypothesis, text) of each
            answer. The answers are the same as without.
        Returns:
          For each question its answers: those of the likeliest hypothesis first if there is a selector, else in the
          order of the hypotheses.
        Raises:
          ValueError: if there are no questions, one does not suit the base, the adapters or the selector do not fit it,
            `top_hypotheses` is outside [1, K] or there is no selector for it, or there is a stream of beams.
        """
        if not questions:
            raise ValueError("at least one question is needed, got none")
        padded = [*questions, *[questions[-1]] * ((rows or 0) - len(questions))]
        inputs = self._inputs(padded)
        self._check_adapters(inputs)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), first + jnp.arange(len(padded)))
        given = (self.model, self.params, self.adapters, inputs)
        chosen, gamma = self._chosen(inputs, top_hypotheses)
        watch = None if stream is None else lambda found: stream(self._texts(found)[: len(questions)])
        decoded = generation.decode(*given, **self._options(), rng=keys, chosen=chosen, stream=watch)
        log_p = np.asarray(generation.log_likelihoods(*given, decoded))
        answers = [self._answers(decoded, log_p, gamma, b) for b in range(len(questions))]
        likeliest_first = lambda given: sorted(given, key=lambda answer: -(answer.probability or 0.0))
        return [likeliest_first(given) for given in answers]

    def _options(self) -> dict[str, Any]:
        """Returns the arguments of `decode` that the recipe and the tokenizer decide."""
        recipe, end = self.recipe, self.tokenizer.eos_token_id
        names = ("decoder", "max_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "stop_strings")
        ends = {"eos_token_id": tuple(dict.fromkeys((end, *recipe.eos_token_id))), "pad_token_id": end}
        return {name: getattr(recipe, name) for name in names} | ends | {"tokenizer": self.tokenizer}

    def _chosen(self, inputs: dict[str, Any], top: int | None) -> tuple[Any, np.ndarray | None]:
        """Returns the hypotheses [m, B] that answer, None for all, and γ [K, B], None without a selector."""
        if self.selector is None:
            if top is not None:
                raise ValueError("top_hypotheses needs a selector, which these hypotheses do not have")
            return None, None
        log_gamma = self.selector.log_gamma(generation.prompt_features(self.model, self.params, inputs))
        chosen = None if top is None else choose(log_gamma, top)
        return chosen, np.exp(log_gamma)

    def _answers(
        self, decoded: generation.Generation, log_p: np.ndarray, gamma: np.ndarray | None, b: int
    ) -> list[Answer]:
        """Returns the answers to question b; log_p is [H, m, B, n], and gamma [K, B] or None."""
        tokens, lengths = np.asarray(decoded.tokens), np.asarray(decoded.lengths)
        n, of_rows = tokens.shape[2], _hypotheses_of(decoded, b)
        return [
            Answer(
                hypothesis=k,
                text=generation.text_of(self.tokenizer, tokens[row, b, i], self.recipe.stop_strings),
                tokens=int(lengths[row, b, i]),
                log_likelihood=float(log_p[k, row, b, i]),
                log_likelihood_per_token=float(log_p[k, row, b, i] / lengths[row, b, i]),
                log_likelihoods=tuple(log_p[:, row, b, i].tolist()),
                probability=None if gamma is None else float(gamma[k, b]),
            )
            for row, k in enumerate(of_rows)
            for i in range(n)
        ]

    def _texts(self, found: generation.Generation) -> list[list[tuple[int, str]]]:
        """Returns (hypothesis, text) of each answer so far, for each question."""
        tokens, lengths = np.asarray(found.tokens), np.asarray(found.lengths)
        text = lambda *at: generation.text_of(self.tokenizer, tokens[at][: lengths[at]], self.recipe.stop_strings)
        _, B, n, _ = tokens.shape
        return [
            [(k, text(row, b, i)) for row, k in enumerate(_hypotheses_of(found, b)) for i in range(n)] for b in range(B)
        ]

    def _inputs(self, questions: Sequence[str | np.ndarray]) -> dict[str, Any]:
        """Returns tokens and mask [B, P], padded on the left, and the features of pictures or clips."""
        if self.recipe.kind == "text":
            prompt = Prompt(self.recipe.prompt, chat=self.recipe.chat)
            return _on_the_left([prompt.encode(self.tokenizer, text) for text in questions])
        media = [self._cropped(one) for one in questions]
        window = {} if self.recipe.window is None else {"window": self.recipe.window}
        prompt = self.processor.chat(self.recipe.prompt) if self.recipe.chat else self.recipe.prompt
        prepared = self.processor([prompt] * len(media), media, **window)
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
            return init(jax.random.key(0), self.params, tokens, num_hypotheses=K, method=_logits_of, **features)

        needed, found = (_shapes(tree) for tree in (jax.eval_shape(fresh), split_copies(self.adapters)[0]))
        if differ := [path for path in sorted(needed | found) if needed.get(path) != found.get(path)]:
            lines = [f"{path} is {found.get(path)}, not {needed.get(path)}" for path in differ[:SHOWN]]
            raise ValueError(f"the adapters do not fit the base {self.recipe.base}: {'; '.join(lines)}")
        self._fits = True


def _logits_of(module: Any, tokens: Any, **features: Any) -> Any:
    """Passes through all layers that can have adapters, the output layer among them."""
    return module.logits(module.hidden(tokens, **features))


def _hypotheses_of(found: generation.Generation, b: int) -> list[int]:
    """Returns the hypothesis of each row of question b."""
    return list(range(len(found.tokens))) if found.hypothesis is None else np.asarray(found.hypothesis)[:, b].tolist()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(tree, sep="/").items()}


def _on_the_left(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Pads token ids on the left to a multiple of LENGTHS; returns tokens and mask [B, P]."""
    longest = -(-max(map(len, rows)) // LENGTHS) * LENGTHS
    tokens, mask = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), bool)
    for row, keep, ids in zip(tokens, mask, rows, strict=True):
        row[longest - len(ids) :], keep[longest - len(ids) :] = ids, True
    return {"tokens": tokens, "mask": mask}
