"""Records → token ids: prompt, target, and the end-of-sequence token, which is learned as part of the target.

    tokens        [prompt ............ | target ...... eos | padding]
    target_mask         0 ...........    1 ............  1    0         of tokens[1:], what tokens[:-1] predict

Prompt and target are encoded apart from each other, so a prompt has the same tokens when the model generates.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mcl_jax.console import say
from mcl_jax.data.records import Record
from mcl_jax.json_io import check_unicode
from mcl_jax.tokenization import Tokenizer, answer_ids, check_tokenizer, pad_id, prompt_ids

NO_MODE = -1


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a source is put to the model.

    Attributes:
      template: text with "{source}" once; the target follows it directly.
    """

    template: str = "{source}\n=>\n"

    def __post_init__(self):
        if self.template.count("{source}") != 1:
            raise ValueError(f'the prompt template needs "{{source}}" once, got {self.template!r}')
        check_unicode(self.template, "the prompt template")

    def format(self, source: str) -> str:
        """The prompt's text; braces in the source stay as they are."""
        return self.template.replace("{source}", source)

    def encode(self, tokenizer: Tokenizer, source: str) -> np.ndarray:
        """Token ids [P] of the prompt, with the tokenizer's first tokens (such as bos) but no end of sequence.

        Raises:
          ValueError: if there are none.
        """
        return prompt_ids(tokenizer, self.format(source))

    def of(self, tokenizer: Tokenizer, record: Record) -> np.ndarray:
        """`encode` of a record's source. Prompts that depend on more of a record override this."""
        return self.encode(tokenizer, record.source)


@dataclasses.dataclass(frozen=True)
class Instruction(Prompt):
    """A prompt that is the same for every record: what is asked about its picture or clip.

    Attributes:
      template: the text; the target follows it directly.
    """

    template: str = "Please carefully observe the image and come up with a caption for the image.\n"

    def __post_init__(self):
        if "{source}" in self.template:
            raise ValueError(f"an instruction holds no source; use Prompt({self.template!r})")
        check_unicode(self.template, "the instruction")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokenised records, those with an over-long target left out.

    Attributes:
      prompts: of each record, token ids [P].
      targets: of each record and target, token ids [N] that end in eos.
      modes: of each record and target, index into `mode_names`, or NO_MODE.
      index: of each record, its place in the sequence that was encoded.
      mode_names: the modes.
      dropped: ids of the records left out.
      pad_id: token that fills up.
    """

    prompts: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
    targets: tuple[tuple[np.ndarray, ...], ...] = dataclasses.field(repr=False)
    modes: tuple[tuple[int, ...], ...] = dataclasses.field(repr=False)
    index: tuple[int, ...] = dataclasses.field(repr=False)
    mode_names: tuple[str, ...]
    dropped: tuple[str, ...]
    pad_id: int

    def lengths(self) -> tuple[np.ndarray, ...]:
        """Predicted positions T = P + N − 1 of each record [number of targets]."""
        pairs = zip(self.prompts, self.targets, strict=True)
        return tuple(np.array([len(prompt) + len(target) - 1 for target in targets]) for prompt, targets in pairs)


def encode_records(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    prompt: Prompt | None = None,
    *,
    max_length: int,
    too_long: Literal["error", "drop"] = "error",
    mode_names: Sequence[str] = (),
) -> Encoded:
    """Tokenises records once, so that batches cost little.

    A record with one over-long target is dropped whole: dropping that target alone would favour the other modes.

    Args:
      records: of one split.
      tokenizer: see `Tokenizer`.
      prompt: how a source is put, `Prompt()` by default; an `Instruction` for records that have a picture or a clip.
      max_length: predicted positions T at most, the longest of `BatchConfig.lengths`.
      too_long: "error", or "drop" to leave such records out, and to say how many.
      mode_names: the corpus's modes, `corpus.modes`.
    Returns:
      The tokens; `dropped` names what was left out.
    Raises:
      ValueError: for no records, a target that is empty, over-long or holds eos, an unknown mode, or an instruction
        for a record that has no picture or clip; names the id.
      TypeError: if the tokenizer has no eos, or gives something else than token ids.
    """
    check_tokenizer(tokenizer)
    if too_long not in ("error", "drop"):
        raise ValueError(f'too_long must be "error" or "drop", got {too_long!r}')
    prompt, kept, dropped = prompt or Prompt(), [], []
    for index, record in enumerate(records):
        if record.media is None and isinstance(prompt, Instruction):
            raise ValueError(
                f"record {record.id!r} has no picture or clip; an instruction alone would not tell it apart"
            )
        prompt_ids = prompt.of(tokenizer, record)
        targets = tuple(answer_ids(tokenizer, target.text, f"record {record.id!r}") for target in record.targets)
        if (length := len(prompt_ids) + max(map(len, targets)) - 1) <= max_length:
            kept.append((prompt_ids, targets, _modes(record, mode_names), index))
        elif too_long == "error":
            raise ValueError(
                f"record {record.id!r} has {length} predicted positions, max_length is {max_length}; "
                'make the longest bucket longer, or drop such records with too_long="drop"'
            )
        else:
            dropped.append(record.id)
    if not kept:
        raise ValueError(f"no records to make batches of: {len(records)} came, {len(dropped)} are over {max_length}")
    if dropped:
        say(f"left out {len(dropped)} of {len(records)} records, which are longer than {max_length} positions")
    prompts, targets, modes, index = zip(*kept, strict=True)
    return Encoded(prompts, targets, modes, index, tuple(mode_names), tuple(dropped), pad_id(tokenizer))


def _modes(record: Record, mode_names: Sequence[str]) -> tuple[int, ...]:
    """Indices of the modes of a record's targets."""
    for target in record.targets:
        if target.mode is not None and target.mode not in mode_names:
            raise ValueError(f"record {record.id!r} has mode {target.mode!r}, mode_names are {list(mode_names)}")
    return tuple(NO_MODE if t.mode is None else list(mode_names).index(t.mode) for t in record.targets)
