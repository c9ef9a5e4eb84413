"""What `--data` means: the name of a data set, or files of one's own."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.datasets.captions_builder import CAPTIONS, build_captions
from experiments.datasets.stamps import without_families
from experiments.datasets.verses_builder import Verses, load_verses
from experiments.datasets.wmt import load_wmt
from mcl_jax.data.captions import read_captions
from mcl_jax.data.jsonl import read_jsonl
from mcl_jax.data.parallel_text import read_parallel
from mcl_jax.data.records import Corpus, describe_unknown, warn_of_left_out


def load_corpus(
    data: Path | str = "languages",
    data_dir: Path | str | None = None,
    sword_dir: Path | str | None = None,
    *,
    source: str = "en",
    target: str = "de",
    most: int | None = None,
) -> Corpus:
    """One-to-many text by name or from files.

    Args:
      data: a configuration of the verses ("languages", "styles", "languages_whole", "styles_whole"), a path that ends
        in .jsonl, a folder of parallel files (see `parallel`), or WMT by its name in TFDS ("wmt19_translate/de-en").
      data_dir: where TFDS keeps what it makes; its default if None.
      sword_dir: a folder with the unpacked SWORD modules; None to fetch the Debian packages.
      source, target: languages of parallel files and of WMT.
      most: training pairs of WMT; all if None.
    Raises:
      ValueError: for a name that is none of these; names the nearest.
    """
    names = list(Verses.builder_configs)
    if str(data).endswith(".jsonl"):
        return read_jsonl(data)
    if data in names:
        return load_verses(data, data_dir, sword_dir)
    if Path(data).is_dir():
        return read_parallel(data, source, target)
    if str(data).startswith("wmt"):
        return load_wmt(str(data), data_dir, source=source, target=target, most=most)
    raise ValueError(
        "data: a folder with parallel files, a name such as wmt19_translate/de-en, a file that ends in .jsonl, or it "
        f"{describe_unknown(str(data), names)}"
    )


def load_captions(
    data: Path | str = "stamps/pictures",
    data_dir: Path | str | None = None,
    folder: Path | str | None = None,
    *,
    modes: Sequence[str] = (),
    families: bool = True,
    check: Callable[[Corpus], object] | None = None,
) -> Corpus:
    """Pictures or clips with captions, by name or from files.

    Args:
      data: "stamps/pictures", "stamps/spoken", "stamps/sounds", "textcaps/english", "textcaps/bilingual", "audiocaps",
        "clotho", or a folder with captions.jsonl (see `captions`).
      data_dir: where TFDS keeps what it makes; its default if None.
      folder: the files that a named data set is made of; it is made again when they change. None to fetch the stamps'
        Debian package, or to take a data set that was made before.
      modes: keep only captions of these, such as ("en", "fr"), and records that have all of them; all if empty.
      families: of the stamps, whether to keep those that look and read nearly the same, see `stamps`.
      check: looks at the records that are asked for before any picture or clip is read, and refuses them by an error;
        is not called for a named data set that was made before.
    Returns:
      The corpus; its records read their picture or clip when asked to, `record.media.read()`.
    Raises:
      ValueError: for a name or a mode that is not known, and names the nearest; for files with another layout.
      FileNotFoundError, RuntimeError: if files cannot be had; says how to get them.
    """
    chosen = functools.partial(_chosen, modes=modes, families=families)
    look = lambda corpus: check(chosen(corpus)) if check is not None else chosen(corpus)
    if str(data) in CAPTIONS:
        corpus = build_captions(str(data), data_dir, folder, look)
    elif Path(data).is_dir():
        corpus = read_captions(data, check=look)
    else:
        raise ValueError(f"data: a folder with captions.jsonl, or it {describe_unknown(str(data), CAPTIONS)}")
    kept = chosen(corpus)
    warn_of_left_out(dataclasses.replace(kept, left_out=kept.left_out[len(corpus.left_out) :]))
    return kept


def _chosen(corpus: Corpus, modes: Sequence[str], families: bool) -> Corpus:
    """What is asked for of a corpus."""
    if not families and corpus.name.startswith("stamps/"):
        corpus = without_families(corpus)
    return corpus.with_modes(*modes) if modes else corpus
