"""A BERT with its tokenizer as in a folder of Hugging Face, and its inputs in batches of few shapes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Bool, Float, Int

from mcl_jax.extras import needed_for
from mcl_jax.metrics.bert import Bert, BertConfig, params_from_hf
from mcl_jax.metrics.text import is_blank
from mcl_jax.models.hf_config import errors_name, read_config

if TYPE_CHECKING:
    import tokenizers

FILES = ("config.json", "tokenizer.json", "model.safetensors")
BATCH = 32
SHORTEST = 16  # inputs are padded to 16, 32, 64, … tokens and 1, 2, 4, … rows, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class BertFolder:
    """A BERT and its tokenizer.

    Attributes:
      config: sizes of the BERT.
      params: its parameters.
      tokenizer: WordPiece, with [CLS] and [SEP].
    """

    config: BertConfig
    params: dict[str, Any] = dataclasses.field(repr=False)
    tokenizer: "tokenizers.Tokenizer" = dataclasses.field(repr=False)

    def batches(
        self, texts: Sequence[str]
    ) -> Iterator[tuple[list[str], Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]]:
        """Yields batches of the distinct texts that are not blank: the texts, their tokens, and the mask of tokens.

        Tokens and mask may have more rows than there are texts.
        """
        distinct = sorted({text for text in texts if not is_blank(text)}, key=lambda text: (len(text), text))
        for start in range(0, len(distinct), BATCH):
            batch = distinct[start : start + BATCH]
            yield batch, *self._padded([encoding.ids for encoding in self.tokenizer.encode_batch(batch)])

    def _padded(self, ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        length = min(_power_of_two(max(SHORTEST, *map(len, ids))), self.config.max_position_embeddings)
        tokens = np.zeros((_power_of_two(len(ids)), length), np.int32)
        mask = np.zeros(tokens.shape, np.bool_)
        mask[len(ids) :, 0] = True  # padding rows
        for row, row_ids in enumerate(ids):
            tokens[row, : len(row_ids)], mask[row, : len(row_ids)] = row_ids, True
        return tokens, mask


def read(
    folder: Path, what: str, max_tokens: int | None = None, depth: float = 1.0, prefix: str = ""
) -> tuple[BertFolder, dict[str, np.ndarray]]:
    """Reads the BERT of a folder with config.json, tokenizer.json and model.safetensors.

    Args:
      folder: the folder.
      what: what needs the folder, for the message.
      max_tokens: longer texts are truncated; None means the limit of the model.
      depth: share of the layers to keep, from below.
      prefix: what the names of the BERT's tensors begin with, besides their names in a `BertModel`.
    Returns:
      The BERT, and all tensors of the file.
    Raises:
      ValueError: if a file is missing or damaged, or holds another kind of model; names it.
      MissingExtra: if tokenizers is not installed.
    """
    tokenizers = tokenizers_for(what)
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ValueError(f"{what} needs {missing} in {folder}")
    hf_config = read_config(folder)
    with errors_name(folder / "config.json"):
        config = BertConfig.from_hf(hf_config)
    config = dataclasses.replace(config, num_hidden_layers=round(depth * config.num_hidden_layers))
    tensors = _read(safetensors.numpy.load_file, folder / "model.safetensors")
    with errors_name(folder / "model.safetensors"):
        params = params_from_hf({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, config)
    tokenizer = _read(tokenizers.Tokenizer.from_file, folder / "tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(max_tokens or config.max_position_embeddings, config.max_position_embeddings))
    return BertFolder(config, params, tokenizer), tensors


def tokenizers_for(what: str) -> Any:
    """Imports tokenizers for `what`; raises MissingExtra if it is not installed."""
    with needed_for(what, "metrics"):
        import tokenizers

        return tokenizers


def _read(reader: Callable[[str], Any], path: Path) -> Any:
    """Reads a file.

    Raises:
      ValueError: if the file is damaged; names it. (The readers raise their own types.)
    """
    try:
        return reader(str(path))
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _power_of_two(size: int) -> int:
    """Returns the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


@functools.partial(jax.jit, static_argnames="config")
def hidden_states(
    config: BertConfig, params: dict[str, Any], tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Computes the hidden states after the last layer."""
    return Bert(config).apply({"params": params}, tokens, mask)
