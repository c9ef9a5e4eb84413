"""Records to token ids: prompt, target, and the end-of-sequence token (eos), which is learned as part of the target.

    tokens        [prompt ............ | target ...... eos | padding]
    target_mask         0 ...........    1 ............  1    0         for tokens[1:], which tokens[:-1] predict

Prompt and target are encoded separately, so a prompt has the same tokens when the model generates.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mcl_jax.console import say
from mcl_jax.data.records import Record
from mcl_jax.json_io import check_unicode
from mcl_jax.tokenization import AnswerStart, Tokenizer, answer_ids, chat_ids, check_tokenizer, pad_id, prompt_ids

NO_MODE = -1


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The form in which a source is given to the model.

    Attributes:
      template: text with "{source}" once; the target follows it directly.
      chat: whether the text is the message of a user in the chat template of the tokenizer; the target is the answer.
    """

    template: str = "{source}\n=>\n"
    chat: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        if self.template.count("{source}") != 1:
            raise ValueError(f'the prompt template needs "{{source}}" once, got {self.template!r}')
        check_unicode(self.template, "the prompt template")

    def format(self, source: str) -> str:
        """Returns the text of the prompt; braces in the source stay unchanged."""
        return self.template.replace("{source}", source)

    def encode(self, tokenizer: Tokenizer, source: str) -> np.ndarray:
        """Returns the token ids [P] of the prompt, with the tokenizer's first tokens (such as bos) but without eos.

        Raises:
          ValueError: if the prompt has no tokens, or the tokenizer no chat template that it needs.
        """
        ids = chat_ids if self.chat else prompt_ids
        return ids(tokenizer, self.format(source))

    def encode_record(self, tokenizer: Tokenizer, record: Record) -> np.ndarray:
        """Encodes the source of a record. Override this if a prompt depends on other fields of the record."""
        return self.encode(tokenizer, record.source)


@dataclasses.dataclass(frozen=True)
class Instruction(Prompt):
    """A prompt that is the same for every record, such as a question about its picture or clip.

    Attributes:
      template: the text; the target follows it directly.
    """

    template: str = "Please carefully observe the image and come up with a caption for the image.\n"

    def __post_init__(self):
        if "{source}" in self.template:
            raise ValueError(f'an instruction must not contain "{{source}}"; use Prompt({self.template!r})')
        check_unicode(self.template, "the instruction")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokenised records, without those that have an over-long target.

    Attributes:
      prompts: token ids [P] of the prompt of each record.
      targets: token ids [N] of each target of each record; they end in eos.
      modes: index into `mode_names` for each target of each record, or NO_MODE.
      index: position of each record in the sequence that was encoded.
      mode_names: names of the modes.
      dropped: ids of the records that were left out.
      pad_id: padding token.
    """

    prompts: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
    targets: tuple[tuple[np.ndarray, ...], ...] = dataclasses.field(repr=False)
    modes: tuple[tuple[int, ...], ...] = dataclasses.field(repr=False)
    index: tuple[int, ...] = dataclasses.field(repr=False)
    mode_names: tuple[str, ...]
    dropped: tuple[str, ...]
    pad_id: int

    def lengths(self) -> tuple[np.ndarray, ...]:
        """Returns the number of predicted positions, T = P + N − 1, for each record [number of targets]."""
        pairs = zip(self.prompts, self.targets, strict=True)
        return tuple(np.array([len(prompt) + len(target) - 1 for target in targets]) for prompt, targets in pairs)

    @functools.cached_property
    def first_example(self) -> np.ndarray:
        """Number of the first target of each record, and the number of all targets last [records + 1]."""
        return np.cumsum([0, *map(len, self.targets)])

    @property
    def num_examples(self) -> int:
        """Number of targets of all records."""
        return int(self.first_example[-1])

    def one_target_each(self) -> "Encoded":
        """Returns a row for each target of each record, so that an epoch passes over every target."""
        rows = [(row, n) for row, targets in enumerate(self.targets) for n in range(len(targets))]
        return dataclasses.replace(
            self,
            prompts=tuple(self.prompts[row] for row, _ in rows),
            targets=tuple((self.targets[row][n],) for row, n in rows),
            modes=tuple((self.modes[row][n],) for row, n in rows),
            index=tuple(self.index[row] for row, _ in rows),
        )

    def between(self, start: int, stop: int) -> "Encoded":
        """Returns the records whose `index` is at least `start` and below `stop`; they keep their index."""
        rows = [row for row, index in enumerate(self.index) if start <= index < stop]
        names = ("prompts", "targets", "modes", "index")
        return dataclasses.replace(self, **{name: tuple(getattr(self, name)[row] for row in rows) for name in names})


def encode_records(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    prompt: Prompt | None = None,
    *,
    max_length: int,
    too_long: Literal["error", "drop"] = "error",
    mode_names: Sequence[str] = (),
    answer_start: AnswerStart = "alone",
) -> Encoded:
    """Tokenises records once, so that batches cost little.

    A record with one over-long target is dropped whole, since dropping only that target would favour the other modes.

    Args:
      records: records of one split.
      tokenizer: see `Tokenizer`.
      prompt: the form of the prompt, `Prompt()` by default; an `Instruction` for records with a picture or a clip.
      max_length: largest number T of predicted positions, the last of `BatchConfig.lengths`.
      too_long: "error", or "drop" to leave longer records out and to print how many.
      mode_names: modes of the corpus, `corpus.modes`.
      answer_start: the tokens with which targets begin, see `tokenization.answer_ids`.
    Returns:
      The tokens; `dropped` names the records that were left out.
    Raises:
      ValueError: if there are no records, a target is empty, over-long or holds eos, a mode is unknown, or a record
        without a picture or clip gets an instruction; names the id.
      TypeError: if the tokenizer has no eos, or does not return token ids.
    """
    check_tokenizer(tokenizer)
    if too_long not in ("error", "drop"):
        raise ValueError(f'too_long must be "error" or "drop", got {too_long!r}')
    prompt, kept, dropped = prompt or Prompt(), [], []
    for index, record in enumerate(records):
        if record.media is None and isinstance(prompt, Instruction):
            raise ValueError(
                f"record {record.id!r} needs a picture or a clip, because an instruction is the same for all records"
            )
        question = prompt.encode_record(tokenizer, record)
        name = f"record {record.id!r}"
        targets = tuple(answer_ids(tokenizer, target.text, name, answer_start) for target in record.targets)
        if (length := len(question) + max(map(len, targets)) - 1) <= max_length:
            kept.append((question, targets, _modes(record, mode_names), index))
        elif too_long == "error":
            raise ValueError(
                f"record {record.id!r} has {length} predicted positions, but max_length is {max_length}; "
                'increase max_length, or drop longer records with too_long="drop"'
            )
        else:
            dropped.append(record.id)
    if not kept:
        raise ValueError(
            f"no records are left to make batches: got {len(records)}, of which {len(dropped)} have more than "
            f"{max_length} predicted positions"
        )
    if dropped:
        say(f"Left out {len(dropped)} of {len(records)} records that have more than {max_length} predicted positions.")
    prompts, targets, modes, index = zip(*kept, strict=True)
    return Encoded(prompts, targets, modes, index, tuple(mode_names), tuple(dropped), pad_id(tokenizer))


def _modes(record: Record, mode_names: Sequence[str]) -> tuple[int, ...]:
    """Returns the index of the mode of each target of a record."""
    for target in record.targets:
        if target.mode is not None and target.mode not in mode_names:
            raise ValueError(
                f"record {record.id!r} has mode {target.mode!r}, which is not among mode_names={list(mode_names)}"
            )
    return tuple(NO_MODE if t.mode is None else list(mode_names).index(t.mode) for t in record.targets)
