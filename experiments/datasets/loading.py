"""Loading of the data that `--data` names: a data set, or your own files."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from experiments.datasets.alma_files import found_in, read_alma
from experiments.datasets.captions_builder import CAPTIONS, build_captions
from experiments.datasets.definitions import read_definitions, read_words
from experiments.datasets.layout import Layout
from experiments.datasets.messages import read_messages
from experiments.datasets.stamp_kinds import KIND, with_kinds
from experiments.datasets.stamps import of_languages, without_families
from experiments.datasets.tfds_table import load_table
from experiments.datasets.verses_builder import Verses, load_verses
from experiments.datasets.wmt import load_wmt
from mcl_jax.data.captions import read_captions
from mcl_jax.data.jsonl import read_jsonl
from mcl_jax.data.parallel_text import read_parallel
from mcl_jax.data.records import Corpus, describe_unknown, warn_of_left_out
from mcl_jax.data.tables import READERS as TABLES

# Readers of text files by the ending of their names; each takes a path and the shares of validation and test.
READERS: dict[str, Callable[[Path | str, float, float], Corpus]] = {".jsonl": read_jsonl}
HELD_OUT = 0.05


def load_corpus(
    data: Path | str = "languages",
    data_dir: Path | str | None = None,
    sword_dir: Path | str | None = None,
    *,
    wordnet_dir: Path | str | None = None,
    locale_dir: Path | str | None = None,
    source: str = "en",
    target: str = "de",
    most: int | None = None,
    layout: Layout | None = None,
    held_out: float = HELD_OUT,
) -> Corpus:
    """Loads one-to-many text by name or from files.

    Args:
      data: a configuration of the verses ("languages", "styles", "languages_whole", "styles_whole"), "definitions",
        "words", "messages", a file with an ending of `READERS`, a folder of parallel files (see `parallel_text`) or of
        ALMA's files (see `alma_files`), or WMT by its TFDS name ("wmt19_translate/de-en").
      data_dir: folder of TFDS and of Debian packages; None means their default, a folder in the user's home.
      sword_dir: folder with the unpacked SWORD modules; None fetches the Debian packages.
      wordnet_dir, locale_dir: folders of `read_definitions` and `read_messages`; None fetches the Debian packages.
      source, target: languages of parallel files and of WMT.
      most: number of WMT training pairs; None means all.
      layout: what the columns of a table are. `data` is then a table, a folder of tables (see `tables`), or any data
        set of TFDS.
      held_out: expected share of your own text for each of the splits validation and test, where it does not say which
        record is in which. With 0 all of it is in the training split.
    Returns:
      The corpus.
    Raises:
      ValueError: if the name is unknown; names the nearest one.
    """
    cache = Path(data_dir or tfds.core.constants.DATA_DIR) / "downloads"
    others = {
        "definitions": lambda: read_definitions(cache, wordnet_dir),
        "words": lambda: read_words(cache, wordnet_dir),
        "messages": lambda: read_messages(cache, locale_dir),
    }
    names = [*Verses.builder_configs, *others]
    if layout is not None:
        return load_table(data, data_dir, layout)
    if (ending := Path(data).suffix) in READERS:
        return READERS[ending](data, held_out, held_out)
    if ending in TABLES:
        raise ValueError(f"--data {data} needs --columns source=NAME targets=NAME, which say what its columns are")
    if data in others:
        return others[data]()
    if data in names:
        return load_verses(data, data_dir, sword_dir)
    if Path(data).is_dir():
        read = read_alma if found_in(data, source, target) else read_parallel
        return read(data, source, target, held_out, held_out)
    if str(data).startswith("wmt"):
        return load_wmt(str(data), data_dir, source=source, target=target, most=most)
    raise ValueError(
        "--data must be a folder with parallel files, a name such as wmt19_translate/de-en, a file that ends in "
        f"{' or '.join(READERS)}, or a data set: it {describe_unknown(str(data), names)}"
    )


def load_captions(
    data: Path | str = "stamps/pictures",
    data_dir: Path | str | None = None,
    folder: Path | str | None = None,
    *,
    modes: Sequence[str] = (),
    families: bool = True,
    spoken: Sequence[str] = (),
    check: Callable[[Corpus], object] | None = None,
    held_out: float = HELD_OUT,
) -> Corpus:
    """Loads images or audio clips with captions, by name or from files.

    Args:
      data: "stamps/pictures", "stamps/spoken", "stamps/sounds", "textcaps/english", "textcaps/bilingual", "audiocaps",
        "clotho", or a folder with captions.jsonl (see `captions`).
      data_dir: folder of TFDS; None means its default.
      folder: files of a named data set, which is prepared again when they change. None fetches the stamps' Debian
        package, or uses a data set that was prepared before.
      modes: modes to keep, such as ("en", "fr"); records that lack one of them are left out. Empty keeps all. Stamps
        have the languages, and also "kind" if it is asked for, see `stamp_kinds`.
      families: whether to keep stamps that look and read nearly the same, see `stamps`.
      spoken: languages of the clips of "stamps/spoken" to keep; empty keeps all.
      check: checks the requested records before any file is read, and may raise an error; it is not called for a named
        data set that was prepared before.
      held_out: as in `load_corpus`, for a folder with captions.jsonl.
    Returns:
      The corpus; `record.media.read()` reads the image or clip of a record.
    Raises:
      ValueError: if a name or a mode is unknown (names the nearest one), or files have another layout.
      FileNotFoundError, RuntimeError: if files are missing or cannot be fetched; says how to get them.
    """
    chosen = functools.partial(_chosen, modes=modes, families=families, spoken=spoken)

    def look(corpus: Corpus) -> object:
        return check(chosen(corpus)) if check is not None else chosen(corpus)

    if str(data) in CAPTIONS:
        corpus = build_captions(str(data), data_dir, folder, look)
    elif Path(data).is_dir():
        corpus = read_captions(data, held_out, held_out, check=look)
    else:
        raise ValueError(
            f"--data must be a folder with captions.jsonl, or a data set: it {describe_unknown(str(data), CAPTIONS)}"
        )
    kept = chosen(corpus)
    warn_of_left_out(dataclasses.replace(kept, left_out=kept.left_out[len(corpus.left_out) :]))
    return kept


def _chosen(corpus: Corpus, modes: Sequence[str], families: bool, spoken: Sequence[str]) -> Corpus:
    """Returns the requested part of a corpus."""
    if spoken:
        corpus = of_languages(corpus, spoken)
    if not families and corpus.name.startswith("stamps/"):
        corpus = without_families(corpus)
    if KIND in modes and corpus.name.startswith("stamps/"):
        corpus = with_kinds(corpus)
    return corpus.with_modes(*modes) if modes else corpus
