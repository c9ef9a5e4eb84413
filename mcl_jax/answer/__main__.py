"""Command line of answers: `python -m mcl_jax.answer RUN_DIR [INPUT ...]` answers with the hypotheses of a run."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import rich.console

from mcl_jax import selector
from mcl_jax.answer.answerer import Answer, Answerer
from mcl_jax.answer.live import growing
from mcl_jax.answer.questions import Question, questions
from mcl_jax.answer.trained import Trained
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.console import plain, say
from mcl_jax.extras import needed_for
from mcl_jax.generation.decoders import Independent
from mcl_jax.json_io import to_json
from mcl_jax.options import check_integers

with errors_in_a_line(), needed_for("python -m mcl_jax.answer", "text"):
    import tyro


@dataclass(frozen=True)
class Config:
    """Answers texts, pictures or clips with K trained hypotheses, and says how likely each answer is.

    Each hypothesis gives one answer with its log p(answer | input), in nats and in nats per token. The end of the
    answer counts as a token. If the run has a selector, it also says how probable each hypothesis is for the input, and
    the answer of the likeliest comes first.

    Args:
      folder: Directory of a finished run; or a folder of PEFT adapters, or one that holds them as lora0, lora1, and so
        on.
      inputs: What to answer: texts if the run was trained on text, or else files of its pictures or clips, and folders
        of such files. Without inputs, or for "-", each line of standard input is an input.
      json: Print each input with its answers as a JSON object on a line of its own. It also has the log-likelihood of
        each answer under every hypothesis.
      answers: Number of answers that each hypothesis gives. The default is that of the run, usually one.
      top_hypotheses: Number of hypotheses that answer an input, the likeliest ones. The default is all. Fewer take less
        time; this needs a run with a selector.
      max_new_tokens: Longest answer in tokens. The default is that of the run. Where neither the run nor the adapters
        say how to decode, the generation_config.json of the base does.
      temperature: Draw the answers, at this temperature; 0 takes the likeliest token at each step. By default, the run
        decides, often for beams.
      top_p: Draw the answers from the likeliest tokens, which have this probability together.
      repetition_penalty: A value above 1 makes tokens of the prompt and of the answer so far less likely.
      no_repeat_ngram_size: Let no sequence of so many tokens occur twice in prompt and answer; 0 allows all.
      stop_strings: Text at which an answer ends; it is not shown. Give the option again for another text.
      stream: Show the answers while they grow, one input at a time. They must be drawn, or be the likeliest tokens
        (--temperature 0): beams are not known before the end.
      batch_size: Number of inputs that are answered at the same time. Fewer need less memory.
      base: Path of the base model. It is needed if the base has moved since the run, or if PEFT adapters do not name
        theirs.
      prompt: Prompt to use instead of that of the run, or with PEFT adapters. For text, "{source}" stands for the
        input; for pictures and clips, it has the placeholder of the base.
      chat: Put the prompt into the chat template of the base, as the message of a user. It needs no placeholder then: a
        picture or clip comes first.
      dtype: Dtype of the weights of the base and of its computations. The default is that of the run.
      quantization: Store the kernels of the base in 8 or 4 bits, which saves memory and costs a little likelihood. The
        default is that of the run.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    inputs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[INPUT ...]")] = ()
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    answers: int | None = None
    top_hypotheses: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop_strings: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT")] = ()
    stream: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    batch_size: int = 8
    base: Path | None = None
    prompt: str | None = None
    chat: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    dtype: Literal["float32", "bfloat16"] | None = None
    quantization: Literal["int8", "nf4"] | None = None


def main(config: Config) -> None:
    """Finds the hypotheses and the inputs, reads the base, and prints answers batch by batch.

    Raises:
      ValueError: if the run, an option or an input is wrong; names it. Inputs that are missing or of a wrong kind are
        refused before the base is read; those that turn out to be broken are left out, and counted at the end.
    """
    with contextlib.redirect_stdout(sys.stderr):  # warnings are no answers
        check_integers(1, **{"--batch-size": config.batch_size})
        if config.stream and config.json:
            raise ValueError("--stream shows answers to people and --json is for programs; give one of them")
        changes = {name: getattr(config, name) for name in CHANGES}
        given = {name: getattr(config, name) or None for name in IF_GIVEN}
        trained = Trained.find(config.folder, **changes, **given)
        asked = questions(config.inputs, trained.recipe.kind)
        _check_top(config.top_hypotheses, trained)
        if config.stream:
            _check_stream(trained)
        answerer = Answerer.load(trained)
    show = _print_json if config.json else _print
    count = 0
    rows = 1 if config.stream else min(config.batch_size, len(asked))
    for question, answers in _answered(answerer, asked, rows, config.top_hypotheses, config.stream):
        show(question, answers)
        count += 1
    if count < len(asked):
        raise ValueError(f"{len(asked) - count} of {len(asked)} inputs were left out, since they cannot be read")


CHANGES = (
    "answers",
    "max_new_tokens",
    "temperature",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "base",
    "prompt",
    "dtype",
    "quantization",
)
IF_GIVEN = ("stop_strings", "chat")  # without them, the recipe decides


def _check_top(top: int | None, trained: Trained) -> None:
    """Raises a ValueError if --top-hypotheses does not fit, before the base is read."""
    if top is None:
        return
    if trained.selector is None:
        raise ValueError(f"--top-hypotheses needs a selector, but {trained.folder} has no {selector.FILE}")
    K = trained.selector.num_hypotheses
    if not 1 <= top <= K:
        raise ValueError(f"--top-hypotheses must be from 1 to {K}, the number of hypotheses, got {top}")


def _check_stream(trained: Trained) -> None:
    """Raises a ValueError if --stream does not fit, before the base is read."""
    if not isinstance(decoder := trained.recipe.decoder, Independent):
        raise ValueError(
            f"--stream needs tokens that stay, but {trained.folder} answers with beams ({decoder}); add --temperature 0"
        )


def _answered(
    answerer: Answerer, asked: Sequence[Question], rows: int, top: int | None, stream: bool
) -> Iterator[tuple[Question, list[Answer]]]:
    """Yields each question with its answers, in order, without those whose files are broken."""
    for first in range(0, len(asked), rows):
        readable = [(one, content) for one in asked[first : first + rows] for content in _contents(answerer, one)]
        if readable:
            contents = [content for _, content in readable]
            with growing(readable[0][0].name) if stream else contextlib.nullcontext() as show:
                answers = answerer(contents, rows=rows, first=first, top_hypotheses=top, stream=show)
            yield from zip([question for question, _ in readable], answers, strict=True)


def _contents(answerer: Answerer, question: Question) -> list[str | np.ndarray]:
    """Returns the content of a question in a list, or an empty list after saying why there is none."""
    try:
        content = question.read()
        answerer.check(content)
    except ValueError as error:
        reason = str(error) if question.name in str(error) else f"{question.name}: {error}"
        say(f"left out: {reason}", console=rich.console.Console(stderr=True))
        return []
    return [content]


def _print(question: Question, answers: Sequence[Answer]) -> None:
    say(plain(question.name, "bold"))
    known = answers[0].probability is not None
    say(plain(f"{'k':>5}{'gamma' if known else '':>{8 * known}}{'nats':>9}{'per token':>11}  answer", "dim"))
    for answer in answers:
        gamma = f"{answer.probability:8.2f}" if known else ""
        numbers = f"{gamma}{answer.log_likelihood:9.2f}{answer.log_likelihood_per_token:11.2f}"
        say(plain(f"{answer.hypothesis:>5}", "cyan"), numbers, "  ", " ".join(answer.text.split()))


def _print_json(question: Question, answers: Sequence[Answer]) -> None:
    line = {"input": question.name, "answers": [dataclasses.asdict(answer) for answer in answers]}
    print(json.dumps(to_json(line, "answers", non_finite="null"), ensure_ascii=False), flush=True)


def cli(args: Sequence[str] | None = None) -> None:
    """Runs the command line; an error is one line on stderr with exit status 1."""
    with errors_in_a_line():
        main(tyro.cli(Config, prog="python -m mcl_jax.answer", args=args))


if __name__ == "__main__":
    cli()
